//! What comes back, as OpenEngine's messages.

use lingqu_engine::PromptLogprobs;
use lingqu_proto::openengine as wire;
use lingqu_serving::RequestError;
use lingqu_tokenizer::Tokenizer;
use lingqu_types::request::TopLogprobs;
use lingqu_types::{FinishReason, TokenId, TokenOutput};

use crate::convert::event::token_text;

/// Newly generated tokens of one output.
pub fn token_output(tokenizer: &Tokenizer, index: usize, text: String, tokens: Vec<TokenOutput>) -> wire::TokenOutput {
    let tokens = tokens.into_iter().map(|t| token_info(tokenizer, t.token, t.logprob, t.top));
    wire::TokenOutput { output_index: Some(index as u32), tokens: tokens.collect(), text }
}

/// The prompt's tokens from `start` on. `scores.top[t]` stands for what may follow position `t`; here a position has
/// its own candidates.
///
/// # Errors
/// More than about `bytes_max` bytes of them: it is a single message.
pub fn prompt_output(
    tokenizer: &Tokenizer,
    (prompt, scores): (Vec<TokenId>, PromptLogprobs),
    start: usize,
    bytes_max: usize,
) -> Result<wire::PromptOutput, RequestError> {
    let PromptLogprobs { logprobs, mut top } = scores;
    top.pop();
    top.insert(0, TopLogprobs::new());
    let mut tokens = Vec::new();
    let mut bytes = 0;
    for ((id, logprob), top) in prompt.into_iter().zip(logprobs).zip(top).skip(start) {
        let info = token_info(tokenizer, id, logprob, top);
        bytes += ENTRY_BYTES + info.token.len();
        bytes += info.candidates.iter().map(|c| ENTRY_BYTES + c.token.len()).sum::<usize>();
        if bytes > bytes_max {
            let problem = format!("the prompt's candidates take more than {bytes_max} bytes: ask for fewer");
            return Err(RequestError::invalid("response.prompt_candidates", problem));
        }
        tokens.push(info);
    }
    Ok(wire::PromptOutput { tokens })
}

/// Of one token or candidate on the wire, less its text.
const ENTRY_BYTES: usize = 24;

fn token_info(tokenizer: &Tokenizer, token_id: TokenId, logprob: Option<f32>, top: TopLogprobs) -> wire::TokenInfo {
    let rank = |index: usize| index as u32 + 1;
    let candidate = |(index, (token_id, logprob)): (usize, (TokenId, f32))| wire::LogProb {
        token_id,
        logprob: logprob.into(),
        token: token_text(tokenizer, token_id),
        rank: Some(rank(index)),
    };
    wire::TokenInfo {
        token_id,
        token: token_text(tokenizer, token_id),
        logprob: logprob.map(Into::into),
        rank: top.iter().position(|(id, _)| *id == token_id).map(rank),
        candidates: top.into_iter().enumerate().map(candidate).collect(),
    }
}

/// The end of one output.
pub fn finished(index: usize, reason: FinishReason) -> wire::GenerationFinished {
    let reason = match reason {
        FinishReason::Stop => wire::FinishReason::Stop,
        FinishReason::Length => wire::FinishReason::Length,
        FinishReason::Abort => wire::FinishReason::Cancelled,
    };
    wire::GenerationFinished { output_index: Some(index as u32), reason: reason.into(), ..Default::default() }
}

/// The end of a request that was accepted and failed.
pub fn failed(error: &RequestError) -> wire::EngineError {
    let (code, retryable) = match error {
        RequestError::Invalid { .. } => (wire::ErrorCode::InvalidArgument, false),
        RequestError::NotFound(_) => (wire::ErrorCode::ModelNotFound, false),
        RequestError::Unsupported(_) => (wire::ErrorCode::UnsupportedFeature, false),
        RequestError::Exhausted(_) => (wire::ErrorCode::Overloaded, true),
        RequestError::Unavailable(_) => (wire::ErrorCode::Draining, true),
        RequestError::DeadlineExceeded(_) => (wire::ErrorCode::Cancelled, true),
        RequestError::Internal(_) => (wire::ErrorCode::Internal, false),
    };
    wire::EngineError { code: code.into(), message: error.to_string(), retryable }
}
