//! Guesses at tokens to come, by the model's own prediction layer ([`lingqu_model::DraftBatch`]), after each step.
//!
//! The next step computes the guessed tokens as rows behind the last known one, and each is drawn for as if it were
//! known: a draw depends on its row of logits, the parameters, the seed and the output's index alone. A guess that is
//! drawn in fact stands, and the first that is not ends the step with the token drawn instead ([`Active::deliver`]). So
//! guesses change when tokens come, and nothing else; no guess is ever believed.

use std::collections::BTreeMap;
use std::ops::Range;

use lingqu_backend::{Backend, BackendError, KvStore};
use lingqu_model::{DraftBatch, Model, States};
use lingqu_sampler::TokenMask;
use lingqu_scheduler::{Scheduler, SliceOutcome, SlicePlan, StepPlan};
use lingqu_types::{Batch, BlockId, RequestId, SequenceSlice, TokenId};

use crate::Speculation;
use crate::request::Active;

/// What the step loop lends.
pub(crate) struct Parts<'a> {
    pub model: &'a mut dyn Model,
    pub backend: &'a dyn Backend,
    pub kv: &'a mut KvStore,
    pub scheduler: &'a mut Scheduler,
    pub requests: &'a mut BTreeMap<RequestId, Active>,
    /// The step that is done.
    pub batch: &'a Batch,
    /// `[logit_rows_max, vocab]`
    pub logits: &'a mut [f32],
    pub mask: &'a mut TokenMask,
}

/// A sequence whose next tokens are being guessed.
struct Asked {
    id: RequestId,
    /// Guesses wanted.
    drafts: usize,
    /// Where the first guess will lie.
    position: usize,
}

/// Completes the prediction layer's cache with the rows of a step, and has it guess what follows.
pub(crate) fn speculate(
    config: &Speculation,
    plan: &StepPlan,
    outcomes: &[SliceOutcome],
    mut parts: Parts<'_>,
) -> Result<(), BackendError> {
    let decoding = outcomes.iter().filter(|o| matches!(o, SliceOutcome::Advanced { tokens: 1.. })).count();
    let drafts = if decoding <= config.sequences_max { config.drafts } else { 0 };
    // Rows without a state before them, rows that only fill the cache, and rows that something is guessed after.
    let (mut first, mut fill, mut ask) = (Rows::default(), Rows::default(), Rows::default());
    let mut asked = Vec::new();
    for ((slice, outcome), sequence) in plan.slices.iter().zip(outcomes).zip(&parts.batch.sequences) {
        let SliceOutcome::Advanced { tokens } = *outcome else { continue };
        let request = parts.requests.get_mut(&slice.id).expect("it goes on");
        // Rows of known tokens, right guesses among them; each has a token after it, and a state for that one's row.
        let right = slice.context + slice.rows - slice.drafts + tokens.saturating_sub(1);
        let wanted = if tokens > 0 { drafts.min(request.drafts_max()) } else { 0 };
        let wanted = (0..=wanted).rev().find(|n| parts.scheduler.reserve(slice.id, right + n.max(&1)));
        let blocks = parts.scheduler.blocks(slice.id);
        if request.predicted != slice.context + 1 {
            first.push(request, slice.context..slice.context + 1, 0, blocks);
        }
        // Without a block for the newest token its entry is left out; zeros stand for the state before it later.
        let end = if wanted.is_some() { right + 1 } else { right };
        request.predicted = if wanted.is_some() { end } else { 0 };
        let at = slice.context + 1..end;
        let row = sequence.rows.start as u32;
        let drafts = wanted.unwrap_or(0);
        match (drafts, is_prompt(slice)) {
            (0, _) => fill.push(request, at, row, blocks),
            (_, true) => {
                fill.push(request, at.start..at.end - 1, row, blocks);
                ask.push(request, at.end - 1..at.end, row + (at.len() - 1) as u32, blocks);
            }
            (_, false) => ask.push(request, at, row, blocks),
        }
        if drafts > 0 {
            ask.batch.logit_rows.push(ask.batch.rows() as u32 - 1);
            asked.push(Asked { id: slice.id, drafts, position: end });
        }
    }
    first.draft(&mut parts, |_| States::Unknown)?;
    fill.draft(&mut parts, States::OfForward)?;
    ask.draft(&mut parts, States::OfForward)?;
    guess(asked, &mut parts)
}

/// Its rows but the last are many, and nothing is guessed after them.
fn is_prompt(slice: &SlicePlan) -> bool {
    slice.rows > 1 + slice.drafts
}

/// Reads the guesses off the logits; goes on from them while more are wanted.
fn guess(mut asked: Vec<Asked>, parts: &mut Parts<'_>) -> Result<(), BackendError> {
    let vocab = parts.model.config().vocab_size;
    for round in 1.. {
        // Rows of the last draft whose sequence has its guess now.
        let mut rows = Rows::default();
        let mut row = 0;
        asked.retain(|one| {
            let logits = &mut parts.logits[row * vocab..(row + 1) * vocab];
            row += 1;
            let request = parts.requests.get_mut(&one.id).expect("it goes on");
            let guessed = request.guess(logits, parts.mask);
            let goes_on = guessed.is_some() && one.drafts > round;
            if let Some(token) = guessed.filter(|_| goes_on) {
                rows.push_one(token, one.position + round - 1, row as u32 - 1, parts.scheduler.blocks(one.id));
            }
            parts.scheduler.set_drafts(one.id, request.drafts.len());
            goes_on
        });
        if asked.is_empty() {
            return Ok(());
        }
        rows.draft(parts, States::OfDraft)?;
    }
    Ok(())
}

/// Rows for the prediction layer on their way into a batch.
#[derive(Default)]
struct Rows {
    batch: Batch,
    states: Vec<u32>,
}

impl Rows {
    /// The tokens of a request at these positions; `row` is that of the state before the first of them.
    fn push(&mut self, request: &Active, at: Range<usize>, row: u32, blocks: &[BlockId]) {
        if !at.is_empty() {
            self.states.extend(row..row + at.len() as u32);
            self.push_tokens(&request.tokens[at.clone()], at.start, blocks);
        }
    }

    /// A guessed token, and something is guessed after it.
    fn push_one(&mut self, token: TokenId, position: usize, row: u32, blocks: &[BlockId]) {
        self.states.push(row);
        self.push_tokens(&[token], position, blocks);
        self.batch.logit_rows.push(self.batch.rows() as u32 - 1);
    }

    fn push_tokens(&mut self, tokens: &[TokenId], context: usize, blocks: &[BlockId]) {
        let start = self.batch.rows();
        self.batch.tokens.extend_from_slice(tokens);
        let rows = start..self.batch.rows();
        // Adapters know nothing of the prediction layer: it guesses for the base, and the forward decides.
        self.batch.sequences.push(SequenceSlice { rows, context, blocks: blocks.to_vec(), adapter: None });
    }

    /// Runs them, if there are any, and brings their logits.
    fn draft(self, parts: &mut Parts<'_>, states: fn(Vec<u32>) -> States) -> Result<(), BackendError> {
        if self.batch.rows() == 0 {
            return Ok(());
        }
        let rows = DraftBatch { batch: self.batch, states: states(self.states) };
        let logits = parts.model.draft(&rows, parts.kv)?; // [logit_rows, vocab]
        match rows.batch.logit_rows.len() {
            0 => Ok(()),
            count => {
                let values = count * logits.width();
                parts.backend.read(logits, &mut parts.logits[..values])
            }
        }
    }
}
