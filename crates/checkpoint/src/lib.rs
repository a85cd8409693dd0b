//! Checkpoint files to named tensors: GGUF files (split or whole) and Hugging Face folders of safetensors.
//!
//! Files are memory-mapped and never copied; a tensor keeps its stored format. Nothing in a file is trusted: lengths
//! and offsets are checked against the bytes that are there before anything is allocated or read, and every error
//! names the file and the tensor or key. Memory beyond the map is bounded by a small multiple of the header's bytes.
//!
//! Knows no architecture and no tensor by name (but for the suffix `_scale_inv` of FP8 scales), no tokenizer, no
//! device. Start with [`Checkpoint`]; then [`gguf`](GgufMetadata) and the two parsers `gguf.rs` and `safetensors.rs`.

mod checkpoint;
mod error;
mod fingerprint;
mod folder;
mod gguf;
mod hugging_face;
mod reader;
mod safetensors;
mod tensors;

pub use checkpoint::{Checkpoint, Source};
pub use error::CheckpointError;
pub use gguf::{FromGguf, GgufArray, GgufMetadata, GgufStrings, GgufValue};
pub use tensors::TensorInfo;
