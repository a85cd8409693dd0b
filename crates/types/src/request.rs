//! What a client asks of the engine, and what comes back for each token.

use std::sync::Arc;
use std::time::Instant;

use crate::ids::TokenId;
use crate::sampling::{InvalidParam, SamplingParams};

/// One generation, in tokens. Text, templates and stop strings are the caller's side of the engine.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// At least one token.
    pub prompt: Vec<TokenId>,
    pub sampling: SamplingParams,
    pub stop: StopConditions,
    /// Report the chosen token's log-probability and this many likeliest tokens at each output position.
    pub logprobs: Option<u32>,
    /// The same for every prompt position.
    pub prompt_logprobs: Option<u32>,
    pub service: Service,
    /// Name of the LoRA adapter that answers; `None`: the base model.
    pub adapter: Option<Arc<str>>,
}

/// On whose account a request runs, and how urgently. It never changes what is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    pub priority: Priority,
    /// Who shares the machine fairly with whom: a department. Empty: the one of all who did not say.
    pub tenant: Arc<str>,
    /// A request that has not ended by then fails.
    pub deadline: Option<Instant>,
}

/// Which requests go first. Within one priority tenants share by weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// Runs with what the others leave, but is never starved.
    Batch,
}

/// When a generation ends, as far as tokens tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopConditions {
    /// Output tokens at most; `None`: up to the context length. 0 scores the prompt only.
    pub max_tokens: Option<u32>,
    /// Generation ends when one of these is drawn. It counts in usage but is not part of the text.
    pub stop_token_ids: Vec<TokenId>,
    /// Go on past the model's own end-of-sequence tokens.
    pub ignore_eos: bool,
}

/// The likeliest tokens at one position with their natural-log probabilities, likeliest first.
pub type TopLogprobs = Vec<(TokenId, f32)>;

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenOutput {
    pub token: TokenId,
    /// ln p(token) under the model's own distribution (before temperature, filters and penalties).
    pub logprob: Option<f32>,
    pub top: TopLogprobs,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// End-of-sequence, a stop token or a stop string.
    Stop,
    /// `max_tokens` or the context length was reached.
    Length,
    /// The client went away or asked to end it.
    Abort,
}

/// Tokens counted for one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: u32,
    /// Of the prompt tokens, those found in the cache.
    pub cached_prompt_tokens: u32,
    pub completion_tokens: u32,
    /// Of the completion tokens, those of the thinking part.
    pub reasoning_tokens: u32,
}

impl GenerateRequest {
    /// A request that says nothing but its prompt: plain sampling until the model ends, for nobody in particular.
    pub fn new(prompt: Vec<TokenId>) -> Self {
        Self {
            prompt,
            sampling: SamplingParams::default(),
            stop: StopConditions::default(),
            logprobs: None,
            prompt_logprobs: None,
            service: Service::default(),
            adapter: None,
        }
    }

    /// Checks all that can be told without the model; `vocab` is the number of token ids.
    pub fn validate(&self, vocab: usize) -> Result<(), InvalidParam> {
        self.sampling.validate()?;
        let invalid = |field, problem| Err(InvalidParam { field, problem });
        if self.prompt.is_empty() {
            return invalid("prompt", "holds no token".into());
        }
        let unknown = |ids: &[TokenId]| ids.iter().copied().find(|&id| id as usize >= vocab);
        if let Some(id) = unknown(&self.prompt) {
            return invalid("token_ids", format!("{id} is not below the vocabulary size {vocab}"));
        }
        if let Some(id) = unknown(&self.stop.stop_token_ids) {
            return invalid("stop_token_ids", format!("{id} is not below the vocabulary size {vocab}"));
        }
        if let Some(&(id, _)) = self.sampling.logit_bias.iter().find(|(id, _)| *id as usize >= vocab) {
            return invalid("logit_bias", format!("{id} is not below the vocabulary size {vocab}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_ids_are_named_by_field() {
        let check = |field: &str, edit: fn(&mut GenerateRequest)| {
            let mut r = GenerateRequest::new(vec![1]);
            assert_eq!(r.validate(10), Ok(()));
            edit(&mut r);
            assert_eq!(r.validate(10).expect_err(field).field, field);
        };
        check("prompt", |r| r.prompt.clear());
        check("token_ids", |r| r.prompt.push(10));
        check("stop_token_ids", |r| r.stop.stop_token_ids.push(11));
        check("logit_bias", |r| r.sampling.logit_bias.push((10, 1.0)));
        check("top_p", |r| r.sampling.top_p = 2.0);
    }
}
