//! Paged KV cache: which block of the cache belongs to whom.
//!
//! Pure bookkeeping: it knows no device, no request and no async, and holds no key or value. Start with [`BlockPool`]
//! (all blocks, counted by owner) and [`BlockTable`] (the blocks of one sequence, in position order). Blocks may be
//! shared between tables; a shared block is copied before it is written ([`BlockTable::make_writable`]).
//! [`BlockCache`] is both with a prefix tree: full blocks are found again by whoever begins with the same tokens, and
//! stay until their room is needed.

#![forbid(unsafe_code)]

mod cache;
mod pool;
mod table;
mod tree;

pub use cache::BlockCache;
pub use pool::{BlockPool, KvBug, OutOfBlocks};
pub use table::BlockTable;
pub use tree::BlockKey;

/// Blocks that hold this many positions.
pub fn blocks_for(tokens: usize, block_tokens: usize) -> usize {
    tokens.div_ceil(block_tokens)
}
