//! The paged cache and attention over it. How a call is cut into blocks changes no bit (kernels/README.md), so it is
//! chosen for speed alone.

use lingqu_backend::{AttentionSpec, KvEntry, KvStore, Step, View, ViewMut};

use crate::Result;
use crate::arguments::{Argument, ViewArgument};
use crate::core::{Core, Room};
use crate::memory::{KvCells, source, target};
use crate::step::StepTables;

/// Positions of a split, counted from the start of a sequence: a law of the kernels.
const SPLIT_POSITIONS: usize = 256;
/// Queries that a block may take at most, plain and on matrix units.
const BLOCK_QUERIES: [usize; 3] = [4, 8, 16];
const UNIT_QUERIES: [usize; 2] = [16, 64];
/// With fewer blocks than this a long sequence is split among more of them.
const BLOCKS_ENOUGH: usize = 256;
/// Most memory that splits may take before they are merged.
const PARTIAL_BYTES_MAX: usize = 256 << 20;

/// Keys and values of this step.
pub(crate) struct Fresh<'a> {
    pub k: View<'a>,
    pub v: Option<View<'a>>,
}

fn check(step: &StepTables, kv: &KvCells) {
    assert_eq!(step.block_tokens, kv.spec().block_tokens, "tokens of a block");
    assert!((step.block_max as usize) < kv.spec().blocks, "block {} of {}", step.block_max, kv.spec().blocks);
}

pub(crate) fn kv_append(core: &Core, step: &Step, kv: &mut KvStore, layer: usize, fresh: Fresh<'_>) -> Result<()> {
    let (tables, kv) = (step.storage::<StepTables>(), kv.storage::<KvCells>());
    let (k, v) = (source(fresh.k), fresh.v.map(source));
    check(tables, kv);
    assert_eq!(k.rows as usize, step.rows(), "rows of keys");
    match (kv.spec().entry, &v) {
        (KvEntry::Separate { kv_heads, k_dim, v_dim }, Some(v)) => {
            assert_eq!((k.heads as usize, k.len as usize), (kv_heads, k_dim), "shape of keys");
            assert_eq!((v.rows, v.heads as usize, v.len as usize), (k.rows, kv_heads, v_dim), "shape of values");
        }
        (KvEntry::Latent { width, .. }, None) => assert_eq!(k.width(), width, "width of an entry"),
        _ => panic!("values where the entry has them, and only there"),
    }
    let k = if v.is_none() { k.flat() } else { k };
    let v = v.unwrap_or_default(); // all zeros: the entry is its key
    let arguments =
        [Argument::Step(tables.argument), Argument::Kv(kv.layer(layer)), Argument::View(k), Argument::View(v)];
    core.launch("kv_append", [step.rows(), 1, 1], 128, &arguments)
}

/// How the queries of a step are spread over blocks.
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    /// Of the kernel's name.
    queries: usize,
    rows_per_block: usize,
    heads_per_block: usize,
    row_blocks: usize,
    head_blocks: usize,
}

impl Cut {
    /// `group` heads share a kv head. Rows of one sequence share a block, as they read the same cache.
    /// `sizes`: queries that a block of some kernel may take, ascending.
    fn of(rows: usize, sequences: usize, heads: [usize; 2], sizes: &[usize]) -> Self {
        let [kv_heads, group] = heads;
        let most = sizes[sizes.len() - 1];
        let heads_per_block = group.min(most);
        let rows_per_block = (most / heads_per_block).min(rows.div_ceil(sequences.max(1))).max(1);
        let wanted = rows_per_block * heads_per_block;
        let queries = sizes.iter().copied().find(|q| *q >= wanted).expect("within the most");
        let row_blocks = rows.div_ceil(rows_per_block);
        let head_blocks = kv_heads * group.div_ceil(heads_per_block);
        Self { queries, rows_per_block, heads_per_block, row_blocks, head_blocks }
    }
}

/// Queries and results of attention.
pub(crate) struct Attended<'a> {
    pub q: View<'a>,
    pub out: ViewMut<'a>,
}

pub(crate) fn attention(
    core: &Core,
    step: &Step,
    kv: &KvStore,
    spec: AttentionSpec,
    views: Attended<'_>,
) -> Result<()> {
    let (tables, kv) = (step.storage::<StepTables>(), kv.storage::<KvCells>());
    let (q, out): (ViewArgument, ViewArgument) = (source(views.q), target(views.out));
    check(tables, kv);
    let cells = kv.layer(spec.layer);
    let (heads, kv_heads) = (q.heads as usize, cells.kv_heads as usize);
    assert!(q.rows == out.rows && q.rows as usize == step.rows() && q.heads == out.heads, "rows and heads");
    assert!(q.len == cells.k_dim && out.len == cells.v_dim && heads.is_multiple_of(kv_heads), "shape of attention");
    let (family, sizes) =
        if core.has_matrix_units { ("flash", &UNIT_QUERIES[..]) } else { ("attention", &BLOCK_QUERIES[..]) };
    let cut = Cut::of(step.rows(), tables.sequences, [kv_heads, heads / kv_heads], sizes);
    let splits = tables.position_max as usize / SPLIT_POSITIONS + 1;
    let whole = [cut.row_blocks, cut.head_blocks, 1];
    let (step_argument, kv_argument) = (Argument::Step(tables.argument), Argument::Kv(cells));
    let tail = [
        Argument::F32(spec.scale),
        Argument::U32(cut.rows_per_block as u32),
        Argument::U32(cut.heads_per_block as u32),
    ];
    let name = |kind: &str| format!("{family}_{kind}_q{}", cut.queries);
    let partial_bytes = step.rows() * heads * splits * (out.len as usize + 2) * 4;
    let is_worth_it = splits > 1 && cut.row_blocks * cut.head_blocks < BLOCKS_ENOUGH;
    if !is_worth_it || partial_bytes > PARTIAL_BYTES_MAX {
        let head = [step_argument, Argument::View(q), kv_argument, Argument::View(out)];
        return core.launch(&name("rows"), whole, 128, &[&head[..], &tail].concat());
    }
    let mut scratch = core.scratch();
    let partial = Argument::Address(scratch.address(core, Room::Partial, partial_bytes)?);
    let head = [step_argument, Argument::View(q), kv_argument, partial];
    let split_count = Argument::U32(splits as u32);
    let [x, y, _] = whole;
    core.launch(&name("splits"), [x, y, splits], 128, &[&head[..], &tail, &[split_count]].concat())?;
    let merge = [step_argument, partial, Argument::View(out), split_count];
    core.launch("attention_merge", [step.rows(), heads, 1], 128, &merge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_take_what_they_can() {
        let check_of = |sizes: &[usize], rows, sequences, heads: [usize; 2], expected: [usize; 5]| {
            let [queries, rows_per_block, heads_per_block, row_blocks, head_blocks] = expected;
            let cut = Cut { queries, rows_per_block, heads_per_block, row_blocks, head_blocks };
            assert_eq!(Cut::of(rows, sequences, heads, sizes), cut, "{rows} {sequences} {heads:?}");
        };
        let check = |rows, sequences, kv_heads, group, expected| {
            check_of(&BLOCK_QUERIES, rows, sequences, [kv_heads, group], expected);
        };
        check(1, 1, 8, 4, [4, 1, 4, 1, 8]);
        check(16, 16, 8, 4, [4, 1, 4, 16, 8]);
        check(512, 1, 8, 4, [16, 4, 4, 128, 8]);
        check(512, 1, 1, 128, [16, 1, 16, 512, 8]);
        check(7, 1, 2, 7, [16, 2, 7, 4, 2]);
        check(3, 3, 4, 1, [4, 1, 1, 3, 4]);
        check(0, 0, 4, 1, [4, 1, 1, 0, 4]);
        check_of(&UNIT_QUERIES, 1, 1, [8, 4], [16, 1, 4, 1, 8]);
        check_of(&UNIT_QUERIES, 512, 1, [8, 4], [64, 16, 4, 32, 8]);
        check_of(&UNIT_QUERIES, 1, 1, [1, 128], [64, 1, 64, 1, 2]);
    }
}
