//! All blocks: free, held by tables, or kept for whoever begins with the same tokens.

use lingqu_types::BlockId;

use crate::pool::{BlockPool, KvBug, OutOfBlocks};
use crate::table::BlockTable;
use crate::tree::{BlockKey, PrefixTree};

/// The pool and the prefix tree over it. Blocks that only the tree holds count as available: they are evicted, the
/// longest unused first, when a table needs them.
#[derive(Debug)]
pub struct BlockCache {
    pool: BlockPool,
    tree: PrefixTree,
    evictions: u64,
    /// Zeros, but while [`BlockCache::freed_by`] counts. `[blocks]`
    scratch: Vec<u32>,
}

impl BlockCache {
    pub fn new(blocks: usize, block_tokens: usize) -> Self {
        let (pool, tree) = (BlockPool::new(blocks), PrefixTree::new(blocks, block_tokens));
        Self { pool, tree, evictions: 0, scratch: vec![0; blocks] }
    }

    pub fn total(&self) -> usize {
        self.pool.total()
    }

    /// Blocks that a table can be given.
    pub fn available(&self) -> usize {
        self.pool.free() + self.tree.idle()
    }

    /// Blocks that tables hold.
    pub fn used(&self) -> usize {
        self.pool.used() - self.tree.idle()
    }

    /// Blocks that only the tree holds.
    pub fn kept(&self) -> usize {
        self.tree.idle()
    }

    /// Blocks taken from the tree since the start.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// [`BlockTable::grow`], at the tree's cost.
    pub fn grow(&mut self, table: &mut BlockTable, tokens: usize) -> Result<(), OutOfBlocks> {
        self.make_free(table.missing_for(tokens))?;
        table.grow(&mut self.pool, tokens)
    }

    /// [`BlockTable::make_writable`], at the tree's cost.
    pub fn make_writable(
        &mut self,
        table: &mut BlockTable,
        position: usize,
    ) -> Result<Option<(BlockId, BlockId)>, OutOfBlocks> {
        if !table.is_shared(&self.pool, position) {
            return Ok(None);
        }
        self.make_free(1)?;
        let copy = table.make_writable(&mut self.pool, position)?;
        if let Some((from, _)) = copy {
            self.tree.let_go(&self.pool, from);
        }
        Ok(copy)
    }

    /// Lets block `slot` of the table be the tree's, if it has one after the table's block before; that one must be in
    /// the tree too. The table's own block there, if it has any, is given back.
    pub fn share(&mut self, table: &mut BlockTable, slot: usize, key: BlockKey<'_>) -> bool {
        let Some(block) = self.tree.find(self.parent(table, slot), key) else { return false };
        self.tree.share(&mut self.pool, block);
        if let Some(own) = table.put(slot, block) {
            self.tree.give_back(&mut self.pool, own);
        }
        true
    }

    /// Enters block `slot` of the table, which holds computed tokens in full, into the tree; or lets it be the tree's
    /// block of the same content. As for [`BlockCache::share`], the block before must be there. False if it cannot be
    /// entered: two keys have one hash.
    pub fn keep(&mut self, table: &mut BlockTable, slot: usize, key: BlockKey<'_>) -> bool {
        let (parent, block) = (self.parent(table, slot), table.blocks()[slot]);
        self.share(table, slot, key) || self.tree.insert(&mut self.pool, parent, key, block)
    }

    /// Gives back the table's last block.
    pub fn pop(&mut self, table: &mut BlockTable) {
        if let Some(block) = table.pop() {
            self.tree.give_back(&mut self.pool, block);
        }
    }

    /// Gives every block of the table back. Those in the tree stay there.
    pub fn release(&mut self, table: &mut BlockTable) {
        while let Some(block) = table.pop() {
            self.tree.give_back(&mut self.pool, block);
        }
    }

    /// Blocks that would become available if all these tables were released.
    pub fn freed_by<'a>(&mut self, tables: impl Iterator<Item = &'a BlockTable> + Clone) -> usize {
        let mut freed = 0;
        for &block in tables.clone().flat_map(BlockTable::blocks) {
            let held = &mut self.scratch[block.0 as usize];
            *held += 1;
            freed += usize::from(*held + u32::from(self.tree.contains(block)) == self.pool.owners(block));
        }
        tables.flat_map(BlockTable::blocks).for_each(|block| self.scratch[block.0 as usize] = 0);
        freed
    }

    /// Checks that every block is free, or counted once for each table that holds it and once if it is in the tree;
    /// and the tree itself. `tables` are all there are.
    pub fn check<'a>(&self, tables: impl Iterator<Item = &'a BlockTable> + Clone) -> Result<(), KvBug> {
        let blocks = tables.clone().flat_map(BlockTable::blocks).copied();
        self.pool.check_held(blocks.chain(self.tree.blocks()))?;
        self.tree.check(&self.pool, tables.map(BlockTable::blocks))
    }

    fn parent(&self, table: &BlockTable, slot: usize) -> Option<BlockId> {
        let parent = slot.checked_sub(1).map(|before| table.blocks()[before]);
        assert!(parent.is_none_or(|block| self.tree.contains(block)), "a prefix begins at its beginning");
        parent
    }

    /// Evicts until so many blocks are free, or takes nothing.
    fn make_free(&mut self, wanted: usize) -> Result<(), OutOfBlocks> {
        if wanted > self.available() {
            return Err(OutOfBlocks { wanted, free: self.available() });
        }
        while self.pool.free() < wanted {
            assert!(self.tree.evict(&mut self.pool), "below an idle node all are idle");
            self.evictions += 1;
        }
        Ok(())
    }
}
