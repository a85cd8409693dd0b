//! The blocks of one sequence.

use lingqu_types::BlockId;

use crate::blocks_for;
use crate::pool::{BlockPool, OutOfBlocks};

/// Blocks of one sequence: position `p` lives in `blocks()[p / block_tokens]`, at offset `p % block_tokens`.
///
/// A table must be given back with [`BlockTable::release`]; one that is merely dropped leaks its blocks, which
/// [`BlockPool::check`] finds.
#[derive(Debug)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    block_tokens: usize,
}

impl BlockTable {
    /// An empty table for blocks of `block_tokens` positions.
    pub fn new(block_tokens: usize) -> Self {
        assert!(block_tokens > 0, "a block holds at least one position");
        Self { blocks: Vec::new(), block_tokens }
    }

    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Positions that fit without another block.
    pub fn capacity_tokens(&self) -> usize {
        self.blocks.len() * self.block_tokens
    }

    /// Blocks still missing for this many positions.
    pub fn missing_for(&self, tokens: usize) -> usize {
        blocks_for(tokens, self.block_tokens).saturating_sub(self.blocks.len())
    }

    /// Makes room for `tokens` positions in all, or changes nothing.
    pub fn grow(&mut self, pool: &mut BlockPool, tokens: usize) -> Result<(), OutOfBlocks> {
        pool.take(self.missing_for(tokens), &mut self.blocks)
    }

    /// A table that shares this one's first `tokens` positions, the last block perhaps in part.
    pub fn fork(&self, pool: &mut BlockPool, tokens: usize) -> BlockTable {
        let blocks = self.blocks[..blocks_for(tokens, self.block_tokens)].to_vec();
        blocks.iter().for_each(|&block| pool.share(block));
        BlockTable { blocks, block_tokens: self.block_tokens }
    }

    /// Makes the block of this position the table's own. `Some((from, to))` asks the caller to copy one block.
    pub fn make_writable(
        &mut self,
        pool: &mut BlockPool,
        position: usize,
    ) -> Result<Option<(BlockId, BlockId)>, OutOfBlocks> {
        let slot = position / self.block_tokens;
        let from = self.blocks[slot];
        if pool.owners(from) == 1 {
            return Ok(None);
        }
        pool.take(1, &mut self.blocks)?;
        let to = self.blocks.pop().expect("just taken");
        pool.release(from);
        self.blocks[slot] = to;
        Ok(Some((from, to)))
    }

    /// Whether somebody else owns the block of this position too.
    pub(crate) fn is_shared(&self, pool: &BlockPool, position: usize) -> bool {
        pool.owners(self.blocks[position / self.block_tokens]) > 1
    }

    /// Puts a block, of which the table is an owner, where the table has one or ends. Returns the one that was there.
    pub(crate) fn put(&mut self, slot: usize, block: BlockId) -> Option<BlockId> {
        match self.blocks.get_mut(slot) {
            Some(there) => Some(std::mem::replace(there, block)),
            None => {
                assert_eq!(slot, self.blocks.len(), "a table has no gaps");
                self.blocks.push(block);
                None
            }
        }
    }

    /// Takes the last block off; it is still owned.
    pub(crate) fn pop(&mut self) -> Option<BlockId> {
        self.blocks.pop()
    }

    /// Gives every block back.
    pub fn release(&mut self, pool: &mut BlockPool) {
        self.blocks.drain(..).for_each(|block| pool.release(block));
    }
}
