//! The bounds of what a client's grammar may cost. Measured figures: `benches/masks.rs`.

/// Bytes of a specification, as JSON or text. The largest schemas in use have some 300 KB.
pub const SPEC_BYTES_MAX: usize = 512 << 10;
/// Brackets of a schema or grammar within each other. serde_json reads 128.
pub const DEPTH_MAX: usize = 64;
/// Choices and tools of one specification.
pub const CHOICES_MAX: usize = 16 << 10;
pub const TOOLS_MAX: usize = 128;
/// OpenAI allows 64.
pub const TOOL_NAME_BYTES_MAX: usize = 256;

/// Compiled grammars that are kept for whoever asks next.
pub const KEPT_GRAMMARS_MAX: usize = 64;
