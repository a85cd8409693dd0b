//! What the engine reports, as messages of the wire.

use std::vec;

use lingqu_engine::{Finished, PromptLogprobs};
use lingqu_proto::v1;
use lingqu_tokenizer::{Tokenizer, ToolCallDelta};
use lingqu_types::request::TopLogprobs;
use lingqu_types::{FinishReason, SamplingParams, TokenId, TokenOutput, Usage};

use super::sampling::sampling_on_wire;

/// Log-probabilities in one part of a prompt's, at most: keeps events some 100 KB large.
const ENTRIES_PER_PART: usize = 4096;

/// What newly generated tokens added; their log-probabilities if they were asked for.
pub fn delta(
    tokenizer: &Tokenizer,
    text: String,
    reasoning: String,
    tool_calls: Vec<ToolCallDelta>,
    tokens: Vec<TokenOutput>,
) -> v1::Delta {
    let token_ids = tokens.iter().map(|t| t.token).collect();
    let logprobs = tokens.into_iter().filter_map(|t| {
        let logprob = t.logprob?; // None: not asked for
        Some(token_logprobs(tokenizer, t.token, Some(logprob), t.top))
    });
    let logprobs = logprobs.collect();
    v1::Delta { text, reasoning, token_ids, logprobs, tool_calls: tool_calls.into_iter().map(tool_call).collect() }
}

fn tool_call(call: ToolCallDelta) -> v1::ToolCallDelta {
    let ToolCallDelta { index, id, name, arguments } = call;
    v1::ToolCallDelta { index, id: id.unwrap_or_default(), name: name.unwrap_or_default(), arguments }
}

/// The end of a generation, less who answered.
pub struct Answered<'a> {
    pub finished: Finished,
    pub sampling: &'a SamplingParams,
    pub model: &'a str,
    pub model_fingerprint: &'a str,
    pub request_id: String,
}

/// The end of a generation.
pub fn finished(answered: Answered<'_>) -> v1::Finished {
    let Answered { finished: Finished { reason, usage, seed }, sampling, model, model_fingerprint, request_id } =
        answered;
    let reason = match reason {
        FinishReason::Stop => v1::FinishReason::Stop,
        FinishReason::Length => v1::FinishReason::Length,
        FinishReason::Abort => v1::FinishReason::Abort,
    };
    let Usage { prompt_tokens, cached_prompt_tokens, completion_tokens, reasoning_tokens } = usage;
    v1::Finished {
        reason: reason.into(),
        usage: Some(v1::Usage { prompt_tokens, completion_tokens, reasoning_tokens, cached_prompt_tokens }),
        sampling: Some(v1::Sampling { seed: Some(seed), ..sampling_on_wire(sampling) }),
        model: model.to_owned(),
        model_fingerprint: model_fingerprint.to_owned(),
        request_id,
    }
}

/// A prompt's log-probabilities, in parts that make events of a moderate size.
pub struct PromptParts {
    /// Position of the next part.
    start: usize,
    tokens_per_part: usize,
    positions: vec::IntoIter<(TokenId, Option<f32>, TopLogprobs)>,
    next_top: Option<TopLogprobs>,
}

impl PromptParts {
    /// `scores.top[t]` stands for what may follow position `t`; on the wire a position has its own alternatives.
    pub fn new(prompt: Vec<TokenId>, scores: PromptLogprobs) -> Self {
        let PromptLogprobs { logprobs, mut top } = scores;
        let next_top = top.pop();
        top.insert(0, TopLogprobs::new());
        let entries = 1 + top.last().map_or(0, Vec::len);
        let positions: Vec<_> = prompt.into_iter().zip(logprobs).zip(top).map(|((id, p), top)| (id, p, top)).collect();
        let tokens_per_part = (ENTRIES_PER_PART / entries).max(1);
        Self { start: 0, tokens_per_part, positions: positions.into_iter(), next_top }
    }

    /// The next part; `None` after the last.
    pub fn next(&mut self, tokenizer: &Tokenizer) -> Option<v1::PromptLogprobs> {
        if self.positions.len() == 0 {
            return None;
        }
        let start = self.start as u32;
        let positions = self.positions.by_ref().take(self.tokens_per_part);
        let tokens: Vec<_> = positions.map(|(id, p, top)| token_logprobs(tokenizer, id, p, top)).collect();
        self.start += tokens.len();
        let last = self.positions.len() == 0;
        let next_top = self.next_top.take_if(|_| last).unwrap_or_default();
        Some(v1::PromptLogprobs { start, tokens, next_top: top_logprobs(tokenizer, next_top) })
    }
}

fn token_logprobs(
    tokenizer: &Tokenizer,
    token_id: TokenId,
    logprob: Option<f32>,
    top: TopLogprobs,
) -> v1::TokenLogprobs {
    v1::TokenLogprobs { token_id, text: token_text(tokenizer, token_id), logprob, top: top_logprobs(tokenizer, top) }
}

fn top_logprobs(tokenizer: &Tokenizer, top: TopLogprobs) -> Vec<v1::TopLogprob> {
    let entry = |(token_id, logprob)| v1::TopLogprob { token_id, text: token_text(tokenizer, token_id), logprob };
    top.into_iter().map(entry).collect()
}

/// The text of a token by itself.
pub fn token_text(tokenizer: &Tokenizer, id: TokenId) -> String {
    tokenizer.decode(&[id], false)
}
