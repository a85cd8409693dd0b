//! All blocks of the cache and how many owners each has.

use lingqu_types::BlockId;
use thiserror::Error;

use crate::BlockTable;

/// The pool cannot give what was asked for; nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{wanted} KV blocks wanted, {free} free")]
pub struct OutOfBlocks {
    pub wanted: usize,
    pub free: usize,
}

/// A broken invariant: a bug of ours, never the world's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KvBug {
    #[error("block {0:?} is not in the pool")]
    UnknownBlock(BlockId),
    #[error("block {0:?} was freed twice")]
    DoubleFree(BlockId),
    #[error("block {0:?} is free but was used")]
    UseAfterFree(BlockId),
    #[error("block {block:?} counts {counted} owners, it is held {held} times")]
    Owners { block: BlockId, counted: u32, held: u32 },
    #[error("block {0:?} is in the free list twice, or in it with an owner, or in neither place")]
    FreeList(BlockId),
    #[error("block {0:?} is not where the prefix tree, or a table, has it")]
    Tree(BlockId),
    #[error("the prefix tree counts its nodes wrongly")]
    TreeCounts,
}

/// Every block of the cache: free, or owned by one or several tables.
#[derive(Clone, Debug)]
pub struct BlockPool {
    /// Owners of each block; 0 is free. `[blocks]`
    owners: Vec<u32>,
    /// The next block to hand out is the last one.
    free: Vec<BlockId>,
}

impl BlockPool {
    /// A pool of `blocks` free blocks; the lowest is handed out first.
    pub fn new(blocks: usize) -> Self {
        let free = (0..u32::try_from(blocks).expect("block ids are 32 bits")).rev().map(BlockId).collect();
        Self { owners: vec![0; blocks], free }
    }

    pub fn total(&self) -> usize {
        self.owners.len()
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    pub fn used(&self) -> usize {
        self.total() - self.free()
    }

    /// Takes `count` blocks, each with one owner, or none at all. They are appended to `into`.
    pub fn take(&mut self, count: usize, into: &mut Vec<BlockId>) -> Result<(), OutOfBlocks> {
        if count > self.free.len() {
            return Err(OutOfBlocks { wanted: count, free: self.free.len() });
        }
        for _ in 0..count {
            let block = self.free.pop().expect("counted above");
            self.owners[block.0 as usize] = 1;
            into.push(block);
        }
        Ok(())
    }

    /// Owners of a block; 0 when it is free.
    pub fn owners(&self, block: BlockId) -> u32 {
        self.owners[block.0 as usize]
    }

    /// Adds an owner to a block in use.
    ///
    /// # Panics
    /// On a [`KvBug`].
    pub fn share(&mut self, block: BlockId) {
        match self.owners.get_mut(block.0 as usize) {
            Some(owners) if *owners > 0 => *owners += 1,
            Some(_) => panic!("{}", KvBug::UseAfterFree(block)),
            None => panic!("{}", KvBug::UnknownBlock(block)),
        }
    }

    /// Takes an owner away; the last one frees the block.
    ///
    /// # Panics
    /// On a [`KvBug`]: a block freed twice would be given to two sequences, and one user would read another's text.
    pub fn release(&mut self, block: BlockId) {
        if let Err(bug) = self.try_release(block) {
            panic!("{bug}");
        }
    }

    /// [`BlockPool::release`] with the bug as a value. Returns whether the block is free now.
    pub fn try_release(&mut self, block: BlockId) -> Result<bool, KvBug> {
        let owners = self.owners.get_mut(block.0 as usize).ok_or(KvBug::UnknownBlock(block))?;
        *owners = owners.checked_sub(1).ok_or(KvBug::DoubleFree(block))?;
        if *owners == 0 {
            self.free.push(block);
        }
        Ok(*owners == 0)
    }

    /// Checks that every block is either free or counted once for each table that holds it. `tables` are all there are.
    pub fn check<'a>(&self, tables: impl IntoIterator<Item = &'a BlockTable>) -> Result<(), KvBug> {
        self.check_held(tables.into_iter().flat_map(BlockTable::blocks).copied())
    }

    /// The same for `holds`: each block once for each of its owners.
    pub(crate) fn check_held(&self, holds: impl Iterator<Item = BlockId>) -> Result<(), KvBug> {
        let mut held = vec![0u32; self.total()];
        for block in holds {
            *held.get_mut(block.0 as usize).ok_or(KvBug::UnknownBlock(block))? += 1;
        }
        let mut listed = vec![0u32; self.total()];
        for block in &self.free {
            *listed.get_mut(block.0 as usize).ok_or(KvBug::UnknownBlock(*block))? += 1;
        }
        for (i, &counted) in self.owners.iter().enumerate() {
            let block = BlockId(i as u32);
            if counted != held[i] {
                return Err(KvBug::Owners { block, counted, held: held[i] });
            }
            if listed[i] != u32::from(counted == 0) {
                return Err(KvBug::FreeList(block));
            }
        }
        Ok(())
    }
}
