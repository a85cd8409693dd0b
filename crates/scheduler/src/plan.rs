//! What one step computes, in lengths.

use lingqu_types::RequestId;

/// One step: decodes first, then prompt chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    pub slices: Vec<SlicePlan>,
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
    /// The sequence is over.
    Finished,
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
    pub logit_rows: usize,
}
