//! The bounds of what a client's grammar may cost.

use llguidance::api::ParserLimits;

/// Bytes of a specification, as JSON or text. The largest schemas in use have some 300 KB.
pub const SPEC_BYTES_MAX: usize = 512 << 10;
/// Bytes of a Lark grammar or a regular expression: people write them by hand.
pub const TEXT_BYTES_MAX: usize = 64 << 10;
/// Levels of a schema. serde_json reads 128.
pub const DEPTH_MAX: usize = 64;
pub const CHOICES_MAX: usize = 8 << 10;
pub const TOOLS_MAX: usize = 128;
/// OpenAI allows 64.
pub const TOOL_NAME_BYTES_MAX: usize = 256;

/// Compiled grammars that are kept for whoever asks next.
pub const KEPT_GRAMMARS_MAX: usize = 64;
/// Ways to think that are kept. A model has one or two.
pub(crate) const KEPT_ENDS_MAX: usize = 4;

/// llguidance goes down its trees by recursion: a thousand bytes and more for each byte of a grammar. It is address
/// space; what is not touched costs nothing.
pub(crate) const COMPILE_STACK_BYTES: usize = 512 << 20;

/// What llguidance may spend. Its defaults bound a mask to some 15 ms on a slow core; a lexer's states cost 1 to 2 kB.
pub(crate) fn parser() -> ParserLimits {
    ParserLimits { max_lexer_states: 50_000, verbose_errors: false, ..ParserLimits::default() }
}
