//! One sequence as the scheduler sees it: lengths, blocks and standing.

use std::sync::Arc;

use lingqu_kv::BlockTable;
use lingqu_types::{Priority, RequestId};

use crate::plan::{Budget, SlicePlan};

/// A request's summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSequence {
    pub id: RequestId,
    /// At least 1.
    pub prompt_tokens: usize,
    /// The logits of every prompt row are wanted, once each: log-probabilities of the prompt.
    pub prompt_logits: bool,
    pub priority: Priority,
    pub tenant: Arc<str>,
    /// Blocks are shared within one namespace; `None`: not at all.
    pub namespace: Option<Arc<str>>,
}

impl NewSequence {
    /// A sequence of nobody in particular that shares no block.
    pub fn new(id: RequestId, prompt_tokens: usize) -> Self {
        Self {
            id,
            prompt_tokens,
            prompt_logits: false,
            priority: Priority::default(),
            tenant: Arc::default(),
            namespace: None,
        }
    }
}

/// Another sequence that computes what this one would have to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Awaited {
    pub id: RequestId,
    /// Tokens that both begin with, in full blocks.
    pub tokens: usize,
}

#[derive(Debug)]
pub(crate) struct Sequence {
    /// Tokens known: the prompt and what was drawn since.
    pub tokens: usize,
    /// Tokens in the cache.
    pub computed: usize,
    /// Prompt rows whose logits are still wanted: `scored..prompt_logits`. Recomputing does not ask for them again.
    scored: usize,
    prompt_logits: usize,
    pub paused: bool,
    /// Guesses at its next tokens that its next step may check.
    pub drafts: usize,
    pub table: BlockTable,
    /// The first so many blocks of the table are in the prefix tree.
    pub kept_blocks: usize,
    /// See [`NewSequence::namespace`].
    pub namespace: Option<Arc<str>>,
    pub tenant: Arc<str>,
    priority: Priority,
    /// A batch sequence that was left out for long: it now goes with the interactive ones.
    pub sheltered: bool,
    /// Its tenant has been charged for so many tokens: computing them again is free.
    pub charged: usize,
    /// The step that last got it further than ever.
    pub progressed_at: u64,
    /// The step that last had a slice of it.
    pub planned_at: u64,
    /// The step that last looked at it.
    pub seen_at: u64,
    pub awaited: Option<Awaited>,
}

impl Sequence {
    pub fn new(new: NewSequence, block_tokens: usize, step: u64) -> Self {
        Self {
            tokens: new.prompt_tokens,
            computed: 0,
            scored: 0,
            prompt_logits: if new.prompt_logits { new.prompt_tokens } else { 0 },
            paused: false,
            drafts: 0,
            table: BlockTable::new(block_tokens),
            kept_blocks: 0,
            namespace: new.namespace,
            tenant: new.tenant,
            priority: new.priority,
            sheltered: false,
            charged: 0,
            progressed_at: step,
            planned_at: 0,
            seen_at: 0,
            awaited: None,
        }
    }

    /// The priority it goes by.
    pub fn class(&self) -> Priority {
        if self.sheltered { Priority::Interactive } else { self.priority }
    }

    /// Only its newest token is missing from the cache.
    pub fn decodes(&self) -> bool {
        !self.paused && self.tokens - self.computed == 1
    }

    /// Several tokens are missing from the cache; their blocks are there since admission.
    pub fn prefills(&self) -> bool {
        !self.paused && self.tokens - self.computed > 1
    }

    /// Blocks it must be given before its next row, if that is a decode.
    pub fn decode_blocks_missing(&self) -> usize {
        if self.decodes() { self.table.missing_for(self.tokens) } else { 0 }
    }

    /// Tokens that need not be computed if they are found in the cache: all but the last, and none whose logits are
    /// wanted.
    pub fn tokens_to_find(&self) -> usize {
        match (&self.namespace, self.scored < self.prompt_logits) {
            (None, _) => 0,
            (Some(_), true) => self.scored,
            (Some(_), false) => self.tokens - 1,
        }
    }

    /// As much of what is missing as the step can still hold; `None` if that is nothing.
    pub fn next_slice(&self, id: RequestId, budget: &mut Budget) -> Option<SlicePlan> {
        let missing = self.tokens - self.computed;
        // Rows before the first whose logits are wanted. After the prompt is scored that is the last row of all.
        let first_wanted = self.scored.max(self.computed);
        let plain = if self.scored < self.prompt_logits { first_wanted - self.computed } else { missing - 1 };
        let rows = missing.min(budget.rows).min(budget.prompt_rows).min(plain + budget.logit_rows);
        if rows == 0 {
            return None;
        }
        let logit_rows = rows.saturating_sub(plain);
        budget.rows -= rows;
        budget.prompt_rows -= rows;
        budget.logit_rows -= logit_rows;
        Some(SlicePlan { id, context: self.computed, rows, drafts: 0, logit_rows, reaches_end: rows == missing })
    }

    /// The slice was computed, and so many more tokens are known.
    pub fn advance(&mut self, slice: &SlicePlan, tokens: usize) {
        match slice.reaches_end {
            true => assert!((1..=1 + slice.drafts).contains(&tokens), "a row's logits say one token"),
            false => assert_eq!(tokens, 0, "the next token is known already"),
        }
        // The newest token's own row is still to come.
        self.computed = slice.end() + tokens.saturating_sub(1);
        self.scored = self.scored.max(self.computed.min(self.prompt_logits));
        self.tokens += tokens;
    }
}
