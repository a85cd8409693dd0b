//! Identifiers. Token ids stay plain `u32`: they cross tokenizers, wires and kernels unchanged.

use std::fmt;

/// A token of the model's vocabulary.
pub type TokenId = u32;

/// A request, unique for the life of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A block of the paged KV cache: `block_tokens` consecutive positions of one sequence, in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// A LoRA adapter, counted in the order in which a model was given them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(pub u32);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "req-{}", self.0)
    }
}
