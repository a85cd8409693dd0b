//! One request inside the engine: its tokens, its sampler, and what its client is told.

use std::sync::Arc;

use lingqu_sampler::{Constraint, Draw, LogProbs, Sampled, Sampler, SamplerError, TokenMask, Top, top_wanted};
use lingqu_scheduler::{SliceOutcome, SlicePlan};
use lingqu_types::request::TopLogprobs;
use lingqu_types::{AdapterId, FinishReason, GenerateRequest, RequestId, Service, TokenId, TokenOutput, Usage};

use crate::mailbox::QueuePlace;
use crate::stream::{EventSender, Finished, PromptLogprobs, TokenEvent};
use crate::{EngineConfig, EngineError, PrefixSharing};

/// A request on its way into the loop. It has been checked.
pub(crate) struct Submission {
    pub id: RequestId,
    pub request: GenerateRequest,
    pub constraint: Option<Box<dyn Constraint>>,
    /// Of `request.adapter`.
    pub adapter: Option<AdapterId>,
    /// Output tokens at most, the context's bound included.
    pub outputs_max: usize,
    pub seed: u64,
    pub sender: EventSender,
    pub place: QueuePlace,
}

/// A request in the loop.
pub(crate) struct Active {
    request: GenerateRequest,
    constraint: Option<Box<dyn Constraint>>,
    /// Part of what the cache's blocks hold.
    pub adapter: Option<AdapterId>,
    outputs_max: usize,
    seed: u64,
    pub sender: EventSender,
    /// The prompt, then every token drawn.
    pub tokens: Vec<TokenId>,
    prompt_tokens: usize,
    /// Tokens that end the generation, ascending.
    stops: Vec<TokenId>,
    /// Made at the first draw, so that a waiting request costs its prompt alone.
    sampler: Option<Sampler>,
    scores: PromptLogprobs,
    /// Drawn ahead of `deliver`, from the largest logits alone.
    drawn: Option<Sampled>,
    /// Guesses at the tokens after `tokens`, for the next step.
    pub drafts: Vec<TokenId>,
    /// Positions that the prediction layer's part of the cache holds after the last step; 0 where the newest found no
    /// room.
    pub predicted: usize,
    /// Given up with its first slice.
    place: Option<QueuePlace>,
    /// Tokens that are, or were, in the cache; and of the prompt those that were found there.
    reached: usize,
    found: usize,
}

/// What one row of logits led to.
enum Drawn {
    Token(TokenOutput),
    Stop,
}

impl Active {
    pub fn new(submission: Submission, config: &EngineConfig) -> Self {
        let Submission { mut request, constraint, adapter, outputs_max, seed, sender, place, .. } = submission;
        let tokens = std::mem::take(&mut request.prompt);
        let mut stops = std::mem::take(&mut request.stop.stop_token_ids);
        if !request.stop.ignore_eos {
            stops.extend(&config.eos_token_ids);
        }
        stops.sort_unstable();
        let prompt_tokens = tokens.len();
        let scores = PromptLogprobs::default();
        Self {
            request,
            constraint,
            adapter,
            outputs_max,
            seed,
            sender,
            tokens,
            prompt_tokens,
            stops,
            sampler: None,
            scores,
            drawn: None,
            drafts: Vec::new(),
            predicted: 0,
            place: Some(place),
            reached: 0,
            found: 0,
        }
    }

    /// What sharing of blocks depends on besides the tokens; `None`: nothing is shared. An adapter changes what is in a
    /// block; it goes by its id, which no other weights ever have, whatever their name.
    pub fn namespace(&self, sharing: PrefixSharing) -> Option<Arc<str>> {
        let tenant: &str = match sharing {
            PrefixSharing::All => "",
            PrefixSharing::Tenant => &self.request.service.tenant,
            PrefixSharing::Off => return None,
        };
        match self.adapter {
            None if tenant.is_empty() => Some(Arc::default()),
            None => Some(format!("-{tenant}").into()),
            Some(AdapterId(adapter)) => Some(format!("{adapter}+{tenant}").into()),
        }
    }

    pub fn service(&self) -> &Service {
        &self.request.service
    }

    /// It is part of a step.
    pub fn on_planned(&mut self, slice: &SlicePlan) {
        if self.place.take().is_some() {
            self.sender.begin();
        }
        self.found += slice.context.min(self.prompt_tokens).saturating_sub(self.reached);
        self.reached = self.reached.max(slice.end());
    }

    /// Takes the logits of one computed slice, `[slice.logit_rows, vocab]`, and tells the client what follows.
    pub fn deliver(&mut self, slice: &SlicePlan, logits: &mut [f32], mask: &mut TokenMask) -> SliceOutcome {
        let vocab = logits.len().checked_div(slice.logit_rows).unwrap_or(0);
        let first = slice.context + slice.rows - slice.logit_rows;
        match self.score_prompt(first, logits, vocab) {
            Ok(true) => {}
            Ok(false) => return SliceOutcome::Finished,
            Err(error) => return self.fail(error),
        }
        if !slice.reaches_end {
            return SliceOutcome::Advanced { tokens: 0 };
        }
        if self.outputs_max == 0 {
            return self.finish(FinishReason::Length, 0);
        }
        // The last known token's row, then those of drafts, each of which counts only if its token is what was drawn.
        let drafts = std::mem::take(&mut self.drafts);
        let rows = &mut logits[(slice.logit_rows - 1 - slice.drafts) * vocab..];
        let mut known = 0;
        for row in rows.chunks_exact_mut(vocab) {
            if let Some(over) = self.advance(row, mask) {
                return over;
            }
            known += 1;
            if drafts.get(known - 1) != self.tokens.last() {
                break;
            }
        }
        SliceOutcome::Advanced { tokens: known }
    }

    /// Draws one token, `[vocab]`, and tells it; how the request ended, if it did.
    fn advance(&mut self, logits: &mut [f32], mask: &mut TokenMask) -> Option<SliceOutcome> {
        let outputs = self.tokens.len() - self.prompt_tokens + 1;
        match self.draw(logits, mask) {
            Err(error) => Some(self.fail(error)),
            Ok(Drawn::Stop) => Some(self.finish(FinishReason::Stop, outputs)),
            Ok(Drawn::Token(token)) => {
                self.tokens.push(token.token);
                let is_over = self.constraint.as_ref().is_some_and(|constraint| constraint.is_over());
                match self.sender.send(TokenEvent::Token(token)) {
                    false => Some(SliceOutcome::Finished),
                    true if is_over => Some(self.finish(FinishReason::Stop, outputs)),
                    true if outputs == self.outputs_max => Some(self.finish(FinishReason::Length, outputs)),
                    true => None,
                }
            }
        }
    }

    /// The tokens that a slice computes.
    pub fn row_tokens(&self, slice: &SlicePlan) -> impl Iterator<Item = TokenId> {
        let known = &self.tokens[slice.context..slice.context + slice.rows - slice.drafts];
        known.iter().chain(&self.drafts[..slice.drafts]).copied()
    }

    /// Tokens that are worth guessing: the last one that may come needs no row of its own.
    pub fn drafts_max(&self) -> usize {
        (self.outputs_max + self.prompt_tokens).saturating_sub(self.tokens.len() + 1)
    }

    /// Guesses the token after those known and guessed so far as it will be drawn, from logits of its own, `[vocab]`,
    /// and keeps the guess. `None` where nothing can be drawn from them: then nothing is guessed.
    pub fn guess(&mut self, logits: &mut [f32], mask: &mut TokenMask) -> Option<TokenId> {
        let output_index = (self.outputs() + self.drafts.len()) as u64;
        // What a grammar allows after a guess is not known yet.
        let constraint = self.constraint.as_mut().filter(|_| self.drafts.is_empty());
        let allowed = match constraint {
            None => None,
            Some(constraint) => {
                mask.clear();
                constraint.allow(mask).ok()?;
                Some(&*mask)
            }
        };
        let token = self.sampler().guess(logits, Draw { output_index, report_logprob: false, allowed }).ok()?;
        self.drafts.push(token);
        Some(token)
    }

    /// How many of the largest logits may be all that this slice needs; `None`: it needs whole rows.
    pub fn top_wanted(&self, slice: &SlicePlan) -> Option<usize> {
        let draws_alone = slice.logit_rows == 1 && slice.reaches_end && self.outputs_max > 0;
        let is_scored = self.request.prompt_logprobs.is_none() || self.is_told();
        let wanted = top_wanted(&self.request.sampling);
        let plain = self.request.logprobs.is_none() && self.constraint.is_none();
        wanted.filter(|_| draws_alone && is_scored && plain)
    }

    /// By which the sum of [`Top`] is scaled.
    pub fn top_scale(&self) -> f32 {
        match self.request.sampling.temperature {
            0.0 => 1.0,
            temperature => 1.0 / temperature,
        }
    }

    /// Draws from the largest logits; false if the whole row must come.
    pub fn draw_top(&mut self, top: Top<'_>) -> bool {
        let how = Draw { output_index: self.outputs() as u64, ..Draw::default() };
        self.drawn = self.sampler().sample_top(top, how);
        self.drawn.is_some()
    }

    /// Tokens drawn so far.
    fn outputs(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    fn sampler(&mut self) -> &mut Sampler {
        let prompt = &self.tokens[..self.prompt_tokens];
        self.sampler.get_or_insert_with(|| Sampler::new(&self.request.sampling, self.seed, prompt))
    }

    /// The prompt's scores are with the client.
    fn is_told(&self) -> bool {
        self.scores.top.len() == self.prompt_tokens
    }

    /// The request asks for nothing that a step could compute.
    pub fn wants_nothing(&self) -> bool {
        self.outputs_max == 0 && self.request.prompt_logprobs.is_none()
    }

    /// Ends the stream with an error.
    pub fn fail(&self, error: EngineError) -> SliceOutcome {
        self.sender.fail(error);
        SliceOutcome::Failed
    }

    /// Ends the stream.
    pub fn finish(&self, reason: FinishReason, outputs: usize) -> SliceOutcome {
        let usage = Usage {
            prompt_tokens: self.prompt_tokens as u32,
            cached_prompt_tokens: self.found as u32,
            completion_tokens: outputs as u32,
            reasoning_tokens: 0, // Only text tells; `TextStream` counts them.
        };
        self.sender.send(TokenEvent::Finished(Finished { reason, usage, seed: self.seed }));
        SliceOutcome::Finished
    }

    /// Scores prompt positions from `first` on, if asked for; false if the client is gone.
    fn score_prompt(&mut self, first: usize, logits: &[f32], vocab: usize) -> Result<bool, EngineError> {
        let Some(top) = self.request.prompt_logprobs else { return Ok(true) };
        if self.is_told() || logits.is_empty() {
            return Ok(true); // Told already, or nothing new.
        }
        assert_eq!(first, self.scores.top.len(), "prompt rows come once each, in order");
        if first == 0 {
            self.scores.logprobs.push(None);
        }
        for (row, position) in logits.chunks_exact(vocab).zip(first..) {
            let failed = |problem| EngineError::Logits { position, problem };
            let logprobs = LogProbs::new(row).map_err(failed)?;
            self.scores.top.push(logprobs.top(top as usize));
            if position + 1 < self.prompt_tokens {
                let next = self.tokens[position + 1];
                self.scores.logprobs.push(Some(logprobs.of(next).map_err(failed)?));
            }
        }
        if self.scores.top.len() < self.prompt_tokens {
            return Ok(true);
        }
        let logprobs = std::mem::take(&mut self.scores.logprobs);
        // The positions stay counted, so that a recomputed prompt is not told twice.
        let top = std::mem::replace(&mut self.scores.top, vec![Vec::new(); self.prompt_tokens]);
        Ok(self.sender.send(TokenEvent::Prompt(PromptLogprobs { logprobs, top })))
    }

    /// Draws the next token from one row of logits, `[vocab]`, unless that is done already.
    fn draw(&mut self, logits: &mut [f32], mask: &mut TokenMask) -> Result<Drawn, EngineError> {
        let position = self.tokens.len() - 1;
        let broken = |problem| EngineError::Constraint { position, problem };
        if let Some(constraint) = &mut self.constraint {
            mask.clear();
            constraint.allow(mask).map_err(broken)?;
        }
        let (sampled, top) = match self.drawn.take() {
            Some(sampled) => (sampled, Vec::new()),
            None => {
                let allowed = self.constraint.is_some().then_some(&*mask);
                self.draw_whole(logits, allowed).map_err(|problem| EngineError::Logits { position, problem })?
            }
        };
        if self.stops.binary_search(&sampled.token).is_ok() {
            return Ok(Drawn::Stop);
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(sampled.token).map_err(broken)?;
        }
        Ok(Drawn::Token(TokenOutput { token: sampled.token, logprob: sampled.logprob, top }))
    }

    fn draw_whole(
        &mut self,
        logits: &mut [f32],
        allowed: Option<&TokenMask>,
    ) -> Result<(Sampled, TopLogprobs), SamplerError> {
        // The model's own distribution: taken before the sampler changes the logits.
        let top = match self.request.logprobs {
            Some(k) if k > 0 => LogProbs::new(logits)?.top(k as usize),
            _ => Vec::new(),
        };
        let report_logprob = self.request.logprobs.is_some();
        let how = Draw { output_index: self.outputs() as u64, report_logprob, allowed };
        Ok((self.sampler().sample(logits, how)?, top))
    }
}
