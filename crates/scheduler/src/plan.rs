//! What one step computes, in lengths.

use lingqu_types::{BlockId, RequestId};

/// One step: decodes first, then prompt chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    pub slices: Vec<SlicePlan>,
    /// Blocks to copy, from and to, before anything is computed: a sequence goes on within a block that others share.
    pub copies: Vec<(BlockId, BlockId)>,
}

/// The part of one sequence that a step computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlicePlan {
    pub id: RequestId,
    /// Tokens in the cache before the step; row `i` is token `context + i` of the sequence.
    pub context: usize,
    /// Tokens to compute, at least 1, the drafts among them.
    pub rows: usize,
    /// The last so many rows are guesses at what follows the last known token, to be confirmed by the logits of the row
    /// before each. Only where `reaches_end`.
    pub drafts: usize,
    /// The logits of the last so many rows are wanted.
    pub logit_rows: usize,
    /// The last row, drafts aside, is the last known token: its logits say the next one.
    pub reaches_end: bool,
}

/// What became of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SliceOutcome {
    /// Its rows are in the cache, and so many more tokens are known: none unless the slice reached the end; then one,
    /// and one for each draft that turned out right. Rows of wrong drafts will be written over.
    Advanced { tokens: usize },
    /// The sequence is over. Its rows, drafts aside, are in the cache.
    Finished,
    /// The sequence is over, and its rows are nothing to go by.
    Failed,
}

impl SlicePlan {
    /// Known tokens in the cache after the step.
    pub fn end(&self) -> usize {
        self.context + self.rows - self.drafts
    }
}

impl StepPlan {
    /// Rows of the whole step.
    pub fn rows(&self) -> usize {
        self.slices.iter().map(|s| s.rows).sum()
    }

    /// Rows whose logits are wanted.
    pub fn logit_rows(&self) -> usize {
        self.slices.iter().map(|s| s.logit_rows).sum()
    }
}

/// What a step may still hold.
#[derive(Debug)]
pub(crate) struct Budget {
    pub rows: usize,
    /// Of the rows, those that may be of prompts.
    pub prompt_rows: usize,
    pub logit_rows: usize,
}

impl Budget {
    /// A prompt can have a row.
    pub fn has_row(&self) -> bool {
        self.rows.min(self.prompt_rows) > 0
    }
}
