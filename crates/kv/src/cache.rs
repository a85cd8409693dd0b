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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const BLOCK_TOKENS: usize = 2;

    /// A cache of 6 blocks of 2 tokens; a letter is a token.
    struct World(BlockCache);

    /// A sequence: its namespace, its tokens, its blocks.
    struct Sequence {
        namespace: Arc<str>,
        tokens: Vec<u32>,
        table: BlockTable,
    }

    impl World {
        fn new() -> Self {
            Self(BlockCache::new(6, BLOCK_TOKENS))
        }

        /// Begins `namespace:text` with what is found of it.
        fn begin(&mut self, name: &str) -> Sequence {
            let (namespace, text) = name.split_once(':').expect("namespace:text");
            let tokens = text.chars().map(u32::from).collect();
            let mut sequence = Sequence { namespace: namespace.into(), tokens, table: BlockTable::new(BLOCK_TOKENS) };
            for slot in 0..sequence.tokens.len() / BLOCK_TOKENS {
                let Sequence { namespace, tokens, table } = &mut sequence;
                if !self.0.share(table, slot, key(namespace, tokens, slot)) {
                    break;
                }
            }
            sequence
        }

        /// Computes the rest of it, and enters its whole blocks into the tree.
        fn compute(&mut self, sequence: &mut Sequence) {
            let Sequence { namespace, tokens, table } = sequence;
            self.0.grow(table, tokens.len()).expect("room");
            for slot in 0..tokens.len() / BLOCK_TOKENS {
                assert!(self.0.keep(table, slot, key(namespace, tokens, slot)));
            }
        }

        /// Computed from beginning to end, and kept by the tree alone.
        fn leave(&mut self, name: &str) {
            let mut sequence = self.begin(name);
            self.compute(&mut sequence);
            self.0.release(&mut sequence.table);
        }

        /// Blocks that are found of it.
        fn found(&mut self, name: &str) -> usize {
            let mut sequence = self.begin(name);
            let found = sequence.table.blocks().len();
            self.0.release(&mut sequence.table);
            found
        }

        /// (used, kept, available)
        fn counts(&self) -> (usize, usize, usize) {
            (self.0.used(), self.0.kept(), self.0.available())
        }
    }

    fn key<'a>(namespace: &'a Arc<str>, tokens: &'a [u32], slot: usize) -> BlockKey<'a> {
        BlockKey { namespace, tokens: &tokens[slot * BLOCK_TOKENS..][..BLOCK_TOKENS] }
    }

    #[test]
    fn sequences_that_begin_alike_share_blocks() {
        let check = |first: &str, second: &str, shared: usize| {
            let mut world = World::new();
            let mut a = world.begin(first);
            world.compute(&mut a);
            let mut b = world.begin(second);
            assert_eq!(b.table.blocks().len(), shared, "{first} {second}");
            assert_eq!(a.table.blocks()[..shared], b.table.blocks()[..shared]);
            // The tree, and both tables.
            assert!(b.table.blocks().iter().all(|&block| world.0.pool.owners(block) == 3));
            world.0.check([&a.table, &b.table].into_iter()).expect("counted well");
            let held = a.table.blocks().len();
            world.0.release(&mut a.table);
            assert_eq!(world.counts(), (shared, a.tokens.len() / BLOCK_TOKENS - shared, 6 - shared), "of {held}");
            world.0.release(&mut b.table);
            assert_eq!(world.counts(), (0, a.tokens.len() / BLOCK_TOKENS, 6));
            world.0.check(std::iter::empty()).expect("nothing is lost");
        };
        check("x:aabbcc", "x:aabbcc", 3);
        check("x:aabbcc", "x:aabbdd", 2);
        check("x:aabbc", "x:aabbc", 2); // a block in part is not kept
        check("x:aabb", "x:abbb", 0);
        check("x:aabb", "x:ccbb", 0); // the same tokens after others
        check("x:aaaa", "x:aaaaaa", 2); // the same tokens after themselves
        check("x:aabbcc", "y:aabbcc", 0); // as under two adapters
        check("x:aabbcc", ":aabbcc", 0);
    }

    #[test]
    fn the_same_computed_twice_is_kept_once() {
        let mut world = World::new();
        let (mut a, mut b) = (world.begin("x:aabb"), world.begin("x:aabb"));
        world.compute(&mut a);
        world.compute(&mut b);
        assert_eq!((a.table.blocks(), world.counts()), (b.table.blocks(), (2, 0, 4)));
        world.0.check([&a.table, &b.table].into_iter()).expect("counted well");
    }

    #[test]
    fn what_was_used_longest_ago_is_evicted_first_and_leaves_before_parents() {
        let check = |left: &[&str], taken: usize, found: &[(&str, usize)]| {
            let mut world = World::new();
            left.iter().for_each(|name| world.leave(name));
            let (kept, free) = (world.0.kept(), world.0.pool.free());
            let mut other = BlockTable::new(BLOCK_TOKENS);
            world.0.grow(&mut other, taken * BLOCK_TOKENS).expect("room");
            let evicted = taken.saturating_sub(free);
            assert_eq!((world.0.kept(), world.0.evictions()), (kept - evicted, evicted as u64), "{left:?} {taken}");
            world.0.check([&other].into_iter()).expect("counted well");
            for &(name, blocks) in found {
                assert_eq!(world.found(name), blocks, "{name} of {left:?} after {taken}");
            }
        };
        let two = ["x:aabb", "x:ccdd"];
        check(&two, 2, &[("x:aabb", 2), ("x:ccdd", 2)]);
        check(&two, 3, &[("x:aabb", 1), ("x:ccdd", 2)]);
        check(&two, 4, &[("x:aabb", 0), ("x:ccdd", 2)]);
        check(&two, 5, &[("x:aabb", 0), ("x:ccdd", 1)]);
        check(&two, 6, &[("x:aabb", 0), ("x:ccdd", 0)]);
        // Asked for again: now the other is the older.
        let again = ["x:aabb", "x:ccdd", "x:aabb"];
        check(&again, 4, &[("x:aabb", 2), ("x:ccdd", 0)]);
        // Only the beginning was: its end is the oldest of all.
        let part = ["x:aabb", "x:ccdd", "x:aa"];
        check(&part, 3, &[("x:aabb", 1), ("x:ccdd", 2)]);
        check(&part, 5, &[("x:aabb", 1), ("x:ccdd", 0)]);
        // Branches: what they share goes last.
        let branches = ["x:aabb", "x:aacc", "x:aadd"];
        check(&branches, 3, &[("x:aabb", 1), ("x:aacc", 2), ("x:aadd", 2)]);
        check(&branches, 5, &[("x:aabb", 1), ("x:aacc", 1), ("x:aadd", 1)]);
        check(&branches, 6, &[("x:aabb", 0), ("x:aacc", 0), ("x:aadd", 0)]);
    }

    #[test]
    fn what_a_table_holds_is_not_evicted() {
        let mut world = World::new();
        let mut a = world.begin("x:aabb");
        world.compute(&mut a);
        world.leave("x:aabbccdd");
        let mut other = BlockTable::new(BLOCK_TOKENS);
        let error = world.0.grow(&mut other, 5 * BLOCK_TOKENS).expect_err("two are held");
        assert_eq!((error, world.counts()), (OutOfBlocks { wanted: 5, free: 4 }, (2, 2, 4)), "nothing was taken");
        world.0.grow(&mut other, 4 * BLOCK_TOKENS).expect("all others");
        assert_eq!((world.counts(), world.found("x:aabbccdd")), ((6, 0, 0), 2));
        world.0.check([&a.table, &other].into_iter()).expect("counted well");
    }

    #[test]
    fn a_shared_block_is_copied_before_it_is_written() {
        // Who holds the sequence besides the one that writes; whether it is in the tree; counts afterwards.
        let check = |others: usize, is_kept: bool, counts: (usize, usize, usize)| {
            let mut world = World::new();
            let mut a = world.begin("x:aabb");
            match is_kept {
                true => world.compute(&mut a),
                false => world.0.grow(&mut a.table, 4).expect("room"),
            }
            let mut tables: Vec<BlockTable> = (0..others).map(|_| a.table.fork(&mut world.0.pool, 4)).collect();
            let before = a.table.blocks().to_vec();
            let copy = world.0.make_writable(&mut a.table, 3).expect("room");
            match others > 0 || is_kept {
                true => assert_eq!(copy, Some((before[1], a.table.blocks()[1])), "{others} {is_kept}"),
                false => assert_eq!((copy, a.table.blocks()), (None, &before[..])),
            }
            assert_eq!(a.table.blocks()[0], before[0], "the other block stays");
            assert_eq!(world.0.pool.owners(a.table.blocks()[1]), 1, "its own");
            assert_eq!(world.0.make_writable(&mut a.table, 2), Ok(None), "once is enough");
            assert_eq!(world.counts(), counts, "{others} {is_kept}");
            tables.push(a.table);
            world.0.check(tables.iter()).expect("counted well");
        };
        check(0, false, (2, 0, 4));
        check(1, false, (3, 0, 3));
        check(0, true, (2, 1, 4)); // the tree keeps the old one
        check(2, true, (3, 0, 3));
    }

    #[test]
    fn a_copy_that_finds_no_room_changes_nothing() {
        let mut world = World::new();
        let mut a = world.begin("x:aabb");
        world.compute(&mut a);
        let mut other = BlockTable::new(BLOCK_TOKENS);
        world.0.grow(&mut other, 4 * BLOCK_TOKENS).expect("room");
        let before = a.table.blocks().to_vec();
        assert_eq!(world.0.make_writable(&mut a.table, 0), Err(OutOfBlocks { wanted: 1, free: 0 }));
        assert_eq!((a.table.blocks(), world.counts()), (&before[..], (6, 0, 0)));
        world.0.check([&a.table, &other].into_iter()).expect("counted well");
    }

    #[test]
    fn what_a_release_would_free_is_told_beforehand() {
        let check = |names: &[&str], released: &[usize], freed: usize| {
            let mut world = World::new();
            let mut sequences: Vec<Sequence> = Vec::new();
            for name in names {
                let mut sequence = world.begin(name);
                world.compute(&mut sequence);
                sequences.push(sequence);
            }
            let told = world.0.freed_by(released.iter().map(|&i| &sequences[i].table));
            assert_eq!(told, freed, "{names:?} {released:?}");
            let before = world.0.available();
            released.iter().for_each(|&i| world.0.release(&mut sequences[i].table));
            assert_eq!(world.0.available() - before, freed);
        };
        check(&["x:aabb", "x:aacc"], &[], 0);
        check(&["x:aabb", "x:aacc"], &[0], 1);
        check(&["x:aabb", "x:aacc"], &[0, 1], 3);
        check(&["x:aabb", "y:aabb"], &[0], 2);
        check(&["x:aab", "x:aabb", "x:aabbc"], &[2, 0], 2);
    }
}
