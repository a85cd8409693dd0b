//! Random traces of grow, fork, write and free, with an integrity check after each step.

use std::collections::HashMap;

use lingqu_kv::{BlockPool, BlockTable, KvBug, OutOfBlocks, blocks_for};
use lingqu_testkit::rng::Rng;
use lingqu_types::BlockId;

const BLOCK_TOKENS: usize = 4;

/// A cache that holds one number a position, to see that no table reads what another one wrote.
struct World {
    pool: BlockPool,
    cells: Vec<u64>,
    /// Each table with what its sequence must read back.
    tables: Vec<(BlockTable, Vec<u64>)>,
}

impl World {
    /// Writes one position, copying a shared block first; nothing happens when no block is left for that.
    fn write(&mut self, which: usize, position: usize, value: u64) {
        let (table, expected) = &mut self.tables[which];
        match table.make_writable(&mut self.pool, position) {
            Ok(Some((from, to))) => {
                let (from, to) = (from.0 as usize * BLOCK_TOKENS, to.0 as usize * BLOCK_TOKENS);
                self.cells.copy_within(from..from + BLOCK_TOKENS, to);
            }
            Ok(None) => {}
            Err(_) => return,
        }
        let block = table.blocks()[position / BLOCK_TOKENS];
        self.cells[block.0 as usize * BLOCK_TOKENS + position % BLOCK_TOKENS] = value;
        expected.resize(expected.len().max(position + 1), 0);
        expected[position] = value;
    }

    fn append(&mut self, which: usize, value: u64) {
        let (table, expected) = &mut self.tables[which];
        let before = table.blocks().len();
        if let Err(OutOfBlocks { wanted, free }) = table.grow(&mut self.pool, expected.len() + 1) {
            assert!(wanted > free && table.blocks().len() == before, "a failed grow took blocks");
            return;
        }
        let end = expected.len();
        self.write(which, end, value);
    }

    fn check(&self) {
        self.pool.check(self.tables.iter().map(|(table, _)| table)).expect("integrity");
        for (table, expected) in &self.tables {
            assert!(table.capacity_tokens() >= expected.len());
            for (p, want) in expected.iter().enumerate() {
                let block = table.blocks()[p / BLOCK_TOKENS].0 as usize;
                assert_eq!(self.cells[block * BLOCK_TOKENS + p % BLOCK_TOKENS], *want, "position {p}");
            }
        }
    }
}

#[test]
fn random_traces_keep_every_block_accounted_for() {
    let mut done: HashMap<&str, usize> = HashMap::new();
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let blocks = rng.between(1, 24);
        let cells = vec![0; blocks * BLOCK_TOKENS];
        let mut world = World { pool: BlockPool::new(blocks), cells, tables: Vec::new() };
        for _ in 0..200 {
            let count = world.tables.len();
            let what = match rng.below(10) {
                0 if count < 8 => {
                    world.tables.push((BlockTable::new(BLOCK_TOKENS), Vec::new()));
                    "open"
                }
                1 if count > 0 => {
                    let (table, expected) = &world.tables[rng.below(count)];
                    let tokens = rng.between(0, expected.len());
                    let fork = (table.fork(&mut world.pool, tokens), expected[..tokens].to_vec());
                    world.tables.push(fork);
                    "fork"
                }
                2 if count > 0 => {
                    let (mut table, _) = world.tables.swap_remove(rng.below(count));
                    table.release(&mut world.pool);
                    "free"
                }
                3 if count > 0 && !world.tables[count - 1].1.is_empty() => {
                    let position = rng.below(world.tables[count - 1].1.len());
                    world.write(count - 1, position, rng.next_u64());
                    "write"
                }
                4.. if count > 0 => {
                    world.append(rng.below(count), rng.next_u64());
                    "append"
                }
                _ => "nothing",
            };
            *done.entry(what).or_default() += 1;
            world.check();
        }
        world.tables.drain(..).for_each(|(mut table, _)| table.release(&mut world.pool));
        assert_eq!(world.pool.free(), blocks, "blocks leaked (seed {seed})");
    }
    for what in ["open", "fork", "free", "write", "append"] {
        assert!(done[what] > 100, "the traces hardly {what}");
    }
}

#[test]
fn bugs_are_named_and_never_skipped() {
    let mut pool = BlockPool::new(2);
    let mut taken = Vec::new();
    pool.take(1, &mut taken).expect("free");
    assert_eq!(taken, [BlockId(0)]);
    assert_eq!(pool.try_release(BlockId(0)), Ok(true));
    assert_eq!(pool.try_release(BlockId(0)), Err(KvBug::DoubleFree(BlockId(0))));
    assert_eq!(pool.try_release(BlockId(9)), Err(KvBug::UnknownBlock(BlockId(9))));
    assert_eq!((pool.free(), pool.check([])), (2, Ok(())));
}

#[test]
#[should_panic(expected = "freed twice")]
fn a_double_free_stops_the_step() {
    BlockPool::new(1).release(BlockId(0));
}

#[test]
fn leaks_are_found() {
    let mut pool = BlockPool::new(4);
    let mut table = BlockTable::new(BLOCK_TOKENS);
    table.grow(&mut pool, 5).expect("free");
    assert_eq!(pool.check([&table]), Ok(()));
    let leaked = KvBug::Owners { block: BlockId(0), counted: 1, held: 0 };
    assert_eq!(pool.check([]), Err(leaked));
}

#[test]
fn room_is_counted_in_whole_blocks() {
    for (tokens, blocks) in [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)] {
        assert_eq!(blocks_for(tokens, BLOCK_TOKENS), blocks, "{tokens} tokens");
    }
}
