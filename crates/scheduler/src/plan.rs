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
    /// Tokens to compute, at least 1.
    pub rows: usize,
    /// The logits of the last so many rows are wanted.
    pub logit_rows: usize,
    /// The last row is the last known token: its logits say the next one.
    pub reaches_end: bool,
}

/// What became of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SliceOutcome {
    /// Its tokens are in the cache, and one more token is known if the slice reached the end.
    Advanced,
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
