//! One request's sampler.

use std::collections::HashMap;

use lingqu_types::{SamplingParams, TokenId};

use crate::SamplerError;
use crate::filter::{Candidate, draw, filter, uniform};
use crate::logprobs::{LogProbs, check};
use crate::mask::TokenMask;
use crate::top::Top;

/// Draws the tokens of one request. Holds its parameters, the counts of its tokens where a penalty needs them, and
/// buffers that are kept from token to token.
///
/// In order, as Hugging Face and vLLM have it: mask, repetition penalty, frequency and presence penalty, bias,
/// temperature, top_k, top_p, min_p, draw.
#[derive(Clone, Debug)]
pub struct Sampler {
    pub(crate) params: SamplingParams,
    pub(crate) seed: u64,
    /// Tokens seen so far and how often each was generated (0: in the prompt alone). Empty if no penalty is on.
    pub(crate) seen: HashMap<TokenId, u32>,
    pub(crate) candidates: Vec<Candidate>,
}

/// What one draw is to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Draw<'a> {
    /// Which token of the reply this is, from 0. With the seed it decides the draw.
    pub output_index: u64,
    /// Report the token's log-probability: one more pass over the logits.
    pub report_logprob: bool,
    /// Tokens that may come; `None`: all.
    pub allowed: Option<&'a TokenMask>,
}

/// A drawn token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    pub token: TokenId,
    /// ln p(token) under the model's own distribution: before mask, penalties, temperature and filters. If asked for.
    pub logprob: Option<f32>,
}

impl Sampler {
    /// `seed` decides where the parameters name none. Parameters are taken as valid ([`SamplingParams::validate`]).
    pub fn new(params: &SamplingParams, seed: u64, prompt: &[TokenId]) -> Self {
        let mut sampler = Self {
            params: params.clone(),
            seed: params.seed.unwrap_or(seed),
            seen: HashMap::new(),
            candidates: Vec::new(),
        };
        if sampler.params.repetition_penalty != 1.0 {
            sampler.seen.extend(prompt.iter().map(|&token| (token, 0)));
        }
        sampler
    }

    /// The seed in use, to be reported so that the reply can be replayed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Counts a token as generated without drawing it: when a reply is resumed or replayed.
    pub fn record(&mut self, token: TokenId) {
        let p = &self.params;
        if p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0 {
            *self.seen.entry(token).or_insert(0) += 1;
        }
    }

    /// Draws the next token and counts it as generated. `[vocab]`; the logits are left changed.
    ///
    /// # Errors
    /// Logits with NaN or +inf, or from which no token can come. Nothing is counted then.
    pub fn sample(&mut self, logits: &mut [f32], how: Draw<'_>) -> Result<Sampled, SamplerError> {
        check(logits)?;
        // The model's own distribution must be read before anything is changed, for a token not known yet.
        let own = if how.report_logprob { Some(LogProbs::new(logits)?.log_sum()) } else { None };
        if let Some(mask) = how.allowed {
            mask.apply(logits);
        }
        let untouched = own.map(|log_sum| (log_sum, OwnLogits::before_changes(self, logits)));
        let token = self.choose(logits, how.output_index)?;
        let logprob = untouched.map(|(log_sum, own)| (f64::from(own.of(token, logits)) - log_sum) as f32);
        self.record(token);
        Ok(Sampled { token, logprob })
    }

    /// Draws from logits that are another's guess at those to come, and counts nothing: with the same parameters, seed
    /// and output index the two draws mostly agree where the logits do. `[vocab]`; the logits are left changed.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn guess(&mut self, logits: &mut [f32], how: Draw<'_>) -> Result<TokenId, SamplerError> {
        check(logits)?;
        if let Some(mask) = how.allowed {
            mask.apply(logits);
        }
        self.choose(logits, how.output_index)
    }

    /// Penalties and biases, filters, the draw. `[vocab]`, what the mask leaves
    fn choose(&mut self, logits: &mut [f32], output_index: u64) -> Result<TokenId, SamplerError> {
        self.change(logits);
        let max = check(logits)?;
        if self.params.temperature == 0.0 {
            let position = logits.iter().position(|&l| l == max).expect("max is one of them");
            return Ok(position as TokenId);
        }
        filter(logits, max, &self.params, &mut self.candidates);
        Ok(draw(&self.candidates, uniform(self.seed, output_index)))
    }

    /// Draws as [`Sampler::sample`] does, from the largest logits of a row alone; `None`, with nothing counted, where
    /// they do not decide what the whole row would give.
    pub fn sample_top(&mut self, top: Top<'_>, how: Draw<'_>) -> Option<Sampled> {
        if how.report_logprob || how.allowed.is_some() {
            return None;
        }
        let token = self.decide(top, how.output_index)?;
        self.record(token);
        Some(Sampled { token, logprob: None })
    }

    /// Penalties and biases.
    fn change(&self, logits: &mut [f32]) {
        for (&token, &count) in &self.seen {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = self.penalised(*logit, count);
            }
        }
        for &(token, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
    }

    /// Repetition: CTRL paper, section 4.1, on prompt and output. Frequency and presence: OpenAI's, on output alone.
    pub(crate) fn penalised(&self, mut logit: f32, count: u32) -> f32 {
        let p = &self.params;
        if p.repetition_penalty != 1.0 {
            logit = if logit > 0.0 { logit / p.repetition_penalty } else { logit * p.repetition_penalty };
        }
        if count > 0 {
            logit -= p.frequency_penalty * count as f32 + p.presence_penalty;
        }
        logit
    }
}

/// The logits that penalties and biases are about to change, as they were.
struct OwnLogits(HashMap<TokenId, f32>);

impl OwnLogits {
    fn before_changes(sampler: &Sampler, logits: &[f32]) -> Self {
        let changed = sampler.seen.keys().chain(sampler.params.logit_bias.iter().map(|(token, _)| token));
        Self(changed.filter_map(|&token| Some((token, *logits.get(token as usize)?))).collect())
    }

    fn of(&self, token: TokenId, logits: &[f32]) -> f32 {
        self.0.get(&token).copied().unwrap_or(logits[token as usize])
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
