//! One step's tables on the device, and the ops that read them but no weights' matrices.

use std::sync::{Arc, Mutex};

use lingqu_backend::{RopePairing, Step, View, ViewMut, Weight};
use lingqu_types::Batch;

use crate::Result;
use crate::arguments::{Argument, StepArgument};
use crate::core::{Core, lock};
use crate::device::Memory;
use crate::driver::Address;
use crate::memory::{assert_alike, source, target};
use crate::weights::Table;

/// Step tables that wait for their next use: more than run side by side.
const SPARE_MAX: usize = 4;

/// Storage of a [`Step`].
pub(crate) struct StepTables {
    /// All tables one after another; taken when the step is over.
    memory: Option<Memory>,
    spare: Arc<Mutex<Vec<Memory>>>,
    pub argument: StepArgument,
    logit_rows: Address,
    pub sequences: usize,
    pub block_tokens: usize,
    /// The largest of each, to be checked against what it indexes.
    pub token_max: u32,
    pub position_max: u32,
    pub block_max: u32,
}

impl Drop for StepTables {
    fn drop(&mut self) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE_MAX {
            spare.extend(self.memory.take());
        }
    }
}

pub(crate) fn begin(core: &Core, batch: &Batch, block_tokens: usize) -> Result<Step> {
    batch.validate(block_tokens).expect("a batch that keeps its invariants");
    let (rows, sequences) = (batch.rows(), batch.sequences.len());
    let blocks_max = batch.sequences.iter().map(|s| s.blocks.len()).max().unwrap_or(0);
    let blocks_max = blocks_max.next_power_of_two(); // grows seldom, so that launches stay alike from step to step
    let positions = batch.positions();
    let mut words = batch.tokens.clone();
    words.extend(&positions);
    for (i, sequence) in batch.sequences.iter().enumerate() {
        words.resize(words.len() + sequence.rows.len(), i as u32);
    }
    words.extend(&batch.logit_rows);
    let blocks_at = words.len();
    let mut block_max = 0;
    for (i, sequence) in batch.sequences.iter().enumerate() {
        words.extend(sequence.blocks.iter().map(|b| b.0));
        words.resize(blocks_at + (i + 1) * blocks_max, 0);
        // Only blocks that hold positions are ever read.
        let used = (sequence.context + sequence.rows.len()).div_ceil(block_tokens);
        block_max = sequence.blocks[..used].iter().fold(block_max, |most, b| most.max(b.0));
    }
    let memory = tables(core, &words)?;
    let at = |word: usize| memory.address() + (word * 4) as Address;
    let argument = StepArgument {
        tokens: at(0),
        positions: at(rows),
        sequence_of: at(2 * rows),
        blocks: at(blocks_at),
        rows: rows as u32,
        block_tokens: block_tokens as u32,
        blocks_max: blocks_max as u32,
        zero: 0,
    };
    let tables = StepTables {
        argument,
        logit_rows: at(3 * rows),
        sequences,
        block_tokens,
        token_max: batch.tokens.iter().copied().max().unwrap_or(0),
        position_max: positions.iter().copied().max().unwrap_or(0),
        block_max,
        memory: Some(memory),
        spare: core.spare_steps.clone(),
    };
    Ok(Step::new(rows, batch.logit_rows.len(), tables))
}

/// Memory with these words: that of the step that was over last, where it is large enough, so that steps one after
/// another have the same.
fn tables(core: &Core, words: &[u32]) -> Result<Memory> {
    let told = core.told("a step's tables");
    let mut spare = lock(&core.spare_steps);
    let fits = spare.iter().rposition(|memory| memory.bytes() >= size_of_val(words));
    let memory = match fits {
        Some(at) => spare.swap_remove(at),
        None => {
            spare.clear(); // too small for steps as they are now
            Memory::new(&core.device, size_of_val(words).next_power_of_two().max(4096)).map_err(&told)?
        }
    };
    memory.write(0, words).map_err(told)?;
    Ok(memory)
}

pub(crate) fn gather_logit_rows(core: &Core, step: &Step, x: View<'_>, out: ViewMut<'_>) -> Result<()> {
    let tables = step.storage::<StepTables>();
    let (x, out) = (source(x), target(out));
    assert!(out.rows as usize == step.logit_rows() && (out.heads, out.len) == (x.heads, x.len), "shape of logit rows");
    assert_eq!(x.rows as usize, step.rows(), "rows of a step");
    let arguments = [Argument::View(x), Argument::Address(tables.logit_rows), Argument::View(out)];
    core.launch("gather_rows", [out.rows as usize, out.heads as usize, 1], 128, &arguments)
}

/// Input and output of a rotation.
pub(crate) struct Rotated<'a> {
    pub x: View<'a>,
    pub out: ViewMut<'a>,
}

pub(crate) fn rope(core: &Core, step: &Step, table: &Weight, pairing: RopePairing, views: Rotated<'_>) -> Result<()> {
    let tables = step.storage::<StepTables>();
    let (x, out) = (source(views.x), target(views.out));
    assert_alike(&x, &out, "a rotation");
    assert!(x.rows as usize == step.rows() && x.len as usize == table.cols && x.len % 2 == 0, "shape of a rotation");
    assert!(step.rows() == 0 || (tables.position_max as usize) < table.rows, "position {}", tables.position_max);
    let arguments = [
        Argument::Step(tables.argument),
        Argument::View(x),
        Argument::Address(table.storage::<Table>().address()),
        Argument::View(out),
        Argument::U32(u32::from(pairing == RopePairing::Half)),
    ];
    core.launch("rope", [x.rows as usize, x.heads as usize, 1], 64, &arguments)
}

pub(crate) fn rms_norm(core: &Core, x: View<'_>, weight: &Weight, eps: f32, out: ViewMut<'_>) -> Result<()> {
    let (x, out) = (source(x), target(out));
    assert_alike(&x, &out, "a norm");
    assert_eq!(x.len as usize, weight.rows * weight.cols, "weights of a norm");
    let threads = if x.len > 1024 { 256 } else { 64 }; // by the length alone: it orders the sum
    let table = Argument::Address(weight.storage::<Table>().address());
    let arguments = [Argument::View(x), table, Argument::View(out), Argument::F32(eps)];
    core.launch("rms_norm", [x.rows as usize, x.heads as usize, 1], threads, &arguments)
}

pub(crate) fn add(core: &Core, x: View<'_>, out: ViewMut<'_>) -> Result<()> {
    let (x, out) = (source(x), target(out));
    assert_alike(&x, &out, "a sum");
    core.launch("add", [x.rows as usize, x.heads as usize, 1], 128, &[Argument::View(x), Argument::View(out)])
}
