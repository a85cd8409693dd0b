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

    /// The first `rows` rows and the others, each a batch of its own. Computed one after the other, layer by layer or
    /// whole, they give what the batch gives.
    pub fn split(&self, rows: usize) -> [Batch; 2] {
        let part = |range: Range<usize>| {
            let overlap = |s: &SequenceSlice| s.rows.start.max(range.start)..s.rows.end.min(range.end);
            let sequences = self.sequences.iter().filter(|s| !overlap(s).is_empty()).map(|s| SequenceSlice {
                rows: overlap(s).start - range.start..overlap(s).end - range.start,
                context: s.context + (overlap(s).start - s.rows.start),
                ..s.clone()
            });
            let logit_rows = self.logit_rows.iter().filter(|row| range.contains(&(**row as usize)));
            Batch {
                tokens: self.tokens[range.clone()].to_vec(),
                sequences: sequences.collect(),
                logit_rows: logit_rows.map(|row| row - range.start as u32).collect(),
            }
        };
        [part(0..rows), part(rows..self.rows())]
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
    fn halves_have_the_rows_of_the_whole() {
        let whole = batch();
        for at in 0..=whole.rows() {
            let [first, second] = whole.split(at);
            assert_eq!((first.validate(4), second.validate(4)), (Ok(()), Ok(())), "at {at}");
            assert_eq!([first.tokens.as_slice(), &second.tokens].concat(), whole.tokens, "at {at}");
            assert_eq!([first.positions(), second.positions()].concat(), whole.positions(), "at {at}");
            let moved = second.logit_rows.iter().map(|row| row + at as u32);
            let logit_rows: Vec<u32> = first.logit_rows.iter().copied().chain(moved).collect();
            assert_eq!(logit_rows, whole.logit_rows, "at {at}");
            let of_rows = |b: &Batch| -> Vec<_> {
                b.sequences.iter().flat_map(|s| s.rows.clone().map(|_| (s.blocks.clone(), s.adapter))).collect()
            };
            assert_eq!([of_rows(&first), of_rows(&second)].concat(), of_rows(&whole), "at {at}");
        }
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
