//! One step's work: prefill chunks and single-token decodes of several sequences, mixed.

use std::ops::Range;

use crate::ids::{AdapterId, BlockId, TokenId};

/// The rows that one forward pass computes. Rows of a sequence are consecutive and in position order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The input token of each row. `[rows]`
    pub tokens: Vec<TokenId>,
    /// Which rows belong to which sequence; ascending, covering every row once.
    pub sequences: Vec<SequenceSlice>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
}

/// The part of one sequence that a batch computes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SequenceSlice {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Tokens of this sequence already in the KV cache: row `rows.start + i` has position `context + i`.
    pub context: usize,
    /// Block table: position `p` lives in `blocks[p / block_tokens]` at offset `p % block_tokens`.
    /// Covers at least `context + rows.len()` positions.
    pub blocks: Vec<BlockId>,
    /// The LoRA adapter that answers; `None`: the base model. The same in every batch of a sequence, and for whoever
    /// shares its blocks, for keys and values depend on it.
    pub adapter: Option<AdapterId>,
}

impl Batch {
    /// Rows (tokens) of this step.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Position of every row in its sequence. `[rows]`
    pub fn positions(&self) -> Vec<u32> {
        let mut positions = vec![0; self.rows()];
        for s in &self.sequences {
            for (i, row) in s.rows.clone().enumerate() {
                positions[row] = (s.context + i) as u32;
            }
        }
        positions
    }

    /// Checks the invariants written on the fields; `Err` names the first that is broken.
    pub fn validate(&self, block_tokens: usize) -> Result<(), &'static str> {
        let mut next = 0;
        for s in &self.sequences {
            if s.rows.start != next || s.rows.end <= s.rows.start {
                return Err("sequences must cover the rows once, in order");
            }
            next = s.rows.end;
            if s.blocks.len() * block_tokens < s.context + s.rows.len() {
                return Err("a block table is shorter than its sequence");
            }
        }
        if next != self.rows() {
            return Err("sequences must cover the rows once, in order");
        }
        if self.logit_rows.windows(2).any(|w| w[0] >= w[1])
            || self.logit_rows.last().is_some_and(|&r| r as usize >= self.rows())
        {
            return Err("logit rows must ascend and lie in the batch");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        Batch {
            tokens: vec![5, 6, 7, 8],
            sequences: vec![
                SequenceSlice { rows: 0..3, context: 2, blocks: vec![BlockId(0), BlockId(4)], adapter: None },
                SequenceSlice { rows: 3..4, context: 0, blocks: vec![BlockId(1)], adapter: Some(AdapterId(0)) },
            ],
            logit_rows: vec![2, 3],
        }
    }

    #[test]
    fn positions_follow_context() {
        assert_eq!(batch().positions(), [2, 3, 4, 0]);
        assert_eq!(batch().validate(4), Ok(()));
    }

    #[test]
    fn broken_batches_are_named() {
        let check = |edit: fn(&mut Batch), says: &str| {
            let mut b = batch();
            edit(&mut b);
            let error = b.validate(4).expect_err(says);
            assert!(error.contains(says), "{error}");
        };
        check(|b| b.sequences[1].rows = 2..4, "cover the rows");
        check(|b| b.sequences.truncate(1), "cover the rows");
        check(|b| b.sequences[0].blocks.truncate(1), "block table");
        check(|b| b.logit_rows = vec![3, 2], "logit rows");
        check(|b| b.logit_rows = vec![4], "logit rows");
    }
}
