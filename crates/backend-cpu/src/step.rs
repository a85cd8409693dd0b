//! One step's tokens, positions and block tables; the rows of an embedding and of the wanted logits.

use std::sync::OnceLock;

use lingqu_backend::{Step, View, ViewMut, Weight};
use lingqu_types::{Batch, SequenceSlice, TokenId};

use crate::memory::{Source, Target};
use crate::team::{Shares, share};
use crate::weights::Embedding;
use crate::{Core, Result};

/// Storage of a [`Step`].
pub(crate) struct StepTables {
    pub tokens: Vec<TokenId>,
    /// Position of each row.
    pub positions: Vec<u32>,
    /// Sequence of each row.
    pub sequence_of: Vec<u32>,
    pub sequences: Vec<SequenceSlice>,
    pub logit_rows: Vec<u32>,
    pub block_tokens: usize,
}

pub(crate) fn begin(batch: &Batch, block_tokens: usize) -> Step {
    batch.validate(block_tokens).expect("a batch that keeps its invariants");
    let mut sequence_of = vec![0; batch.rows()];
    for (i, sequence) in batch.sequences.iter().enumerate() {
        sequence_of[sequence.rows.clone()].fill(i as u32);
    }
    let tables = StepTables {
        tokens: batch.tokens.clone(),
        positions: batch.positions(),
        sequence_of,
        sequences: batch.sequences.clone(),
        logit_rows: batch.logit_rows.clone(),
        block_tokens,
    };
    Step::new(batch.rows(), batch.logit_rows.len(), tables)
}

pub(crate) fn embed(core: &Core, step: &Step, table: &Weight, out: ViewMut<'_>) -> Result<()> {
    let tables = step.storage::<StepTables>();
    let matrix = table.storage::<Embedding>();
    let Target { rows, len, row_stride, offset, values, .. } = Target::of(out).flattened();
    assert!(rows == tables.tokens.len() && len == table.cols, "shapes of an embedding");
    let (out, failed) = (Shares::new(values), OnceLock::new());
    core.team.run_if_worth(rows * len, |member, members| {
        for row in share(rows, member, members) {
            let start = row * row_stride + offset;
            // SAFETY: each row is one member's.
            let out = unsafe { out.part(start..start + len) };
            if let Err(error) = matrix.decode_row(tables.tokens[row] as usize, out) {
                _ = failed.set(error); // one will do
            }
        }
    });
    failed.into_inner().map_or(Ok(()), Err)
}

pub(crate) fn gather_logit_rows(step: &Step, x: View<'_>, out: ViewMut<'_>) {
    let wanted = &step.storage::<StepTables>().logit_rows;
    let (x, mut out) = (Source::of(x), Target::of(out));
    assert!(out.rows == wanted.len() && out.heads == x.heads && out.len == x.len, "shapes of the logit rows");
    for (i, &row) in wanted.iter().enumerate() {
        assert!((row as usize) < x.rows, "logit row {row} of {}", x.rows);
        for head in 0..x.heads {
            out.head(i, head).copy_from_slice(x.head(row as usize, head));
        }
    }
}
