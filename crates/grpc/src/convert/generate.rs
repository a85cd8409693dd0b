//! A generation as it is asked for on the wire, checked and encoded.

use lingqu_engine::SubmitError;
use lingqu_engine::text::{ReasoningMode, TextOptions};
use lingqu_proto::v1;
use lingqu_proto::v1::generate_request::Input;
use lingqu_tokenizer::{ReasoningSplitter, Tokenizer};
use lingqu_types::sampling::InvalidParam;
use lingqu_types::{GenerateRequest, SamplingParams, StopConditions, TokenId};
use tonic::Status;

use super::input::{self, TextInput};
use super::sampling::sampling;
use crate::model::Served;
use crate::status::{invalid, too_many};

const STOP_STRINGS_MAX: usize = 16;
const STOP_STRING_BYTES_MAX: usize = 256;
const STOP_TOKEN_IDS_MAX: usize = 64;
/// Tokens at the end of an input that tell whether it opens the thinking.
const TAIL_TOKENS: usize = 16;

/// What the engine and its text side are given.
#[derive(Debug)]
pub struct Generation {
    pub request: GenerateRequest,
    pub text: TextOptions,
    /// The field that the input came in, for messages.
    pub input_field: &'static str,
}

/// Checks all that can be told without the engine, cheapest first, then encodes the input.
pub async fn generation(served: &Served, wire: v1::GenerateRequest) -> Result<Generation, Status> {
    served.check_name(&wire.model)?;
    let top_logprobs_max = served.model.engine.limits().top_logprobs_max;
    let checked = Checked::new(wire, &served.model.default_sampling, top_logprobs_max)?;
    let prompt = match checked.input {
        // Nothing to encode: no need for another thread.
        CheckedInput::Tokens(ids) => Prompt::from_ids(ids, &served.model.tokenizer, checked.split_reasoning),
        CheckedInput::Text(text) => {
            let split = checked.split_reasoning;
            served.off_thread("tokenizing", move |t| Prompt::from_text(text, t, split)).await?
        }
    };
    let request = GenerateRequest {
        sampling: checked.sampling,
        stop: checked.stop,
        logprobs: checked.logprobs,
        prompt_logprobs: checked.prompt_logprobs,
        ..GenerateRequest::new(prompt.ids)
    };
    let text = TextOptions {
        stop_strings: checked.stop_strings,
        skip_special_tokens: checked.skip_special_tokens,
        reasoning: prompt.reasoning,
    };
    Ok(Generation { request, text, input_field: checked.input_field })
}

/// Why the engine did not take a request, as clients see it.
pub fn submit_error(error: SubmitError, input_field: &str) -> Status {
    match error {
        SubmitError::Invalid(InvalidParam { field, problem }) => match field {
            "prompt" | "token_ids" => invalid(input_field, problem),
            "logprobs" | "prompt_logprobs" | "stop_token_ids" | "max_tokens" => invalid(field, problem),
            sampling => invalid(&format!("sampling.{sampling}"), problem),
        },
        SubmitError::TooLong { prompt_tokens, context_tokens_max } => {
            let problem = format!("{prompt_tokens} tokens leave no room in a context of {context_tokens_max} tokens");
            invalid(input_field, problem)
        }
        SubmitError::QueueFull { .. } => Status::resource_exhausted(format!("{error}: try again later")),
        SubmitError::Draining => Status::unavailable(error.to_string()),
        SubmitError::Ended(cause) => {
            tracing::error!(%cause, "request refused: the engine has ended");
            Status::unavailable("the engine has ended")
        }
    }
}

/// A request whose every field but the input has its final form.
#[derive(Debug)]
struct Checked {
    input: CheckedInput,
    input_field: &'static str,
    sampling: SamplingParams,
    stop: StopConditions,
    stop_strings: Vec<String>,
    logprobs: Option<u32>,
    prompt_logprobs: Option<u32>,
    skip_special_tokens: bool,
    split_reasoning: bool,
}

#[derive(Debug)]
enum CheckedInput {
    Text(TextInput),
    Tokens(Vec<TokenId>),
}

impl Checked {
    fn new(wire: v1::GenerateRequest, defaults: &SamplingParams, top_logprobs_max: u32) -> Result<Self, Status> {
        let sampling = sampling(wire.sampling, defaults)?;
        check_stop_strings(&wire.stop)?;
        if wire.stop_token_ids.len() > STOP_TOKEN_IDS_MAX {
            return Err(too_many("stop_token_ids", wire.stop_token_ids.len(), STOP_TOKEN_IDS_MAX));
        }
        for (field, asked) in [("logprobs", wire.logprobs), ("prompt_logprobs", wire.prompt_logprobs)] {
            if let Some(asked) = asked.filter(|&asked| asked > top_logprobs_max) {
                return Err(invalid(field, format_args!("{asked} is above {top_logprobs_max}")));
            }
        }
        let (input, input_field) = match wire.input {
            None => return Err(invalid("input", "one of prompt, chat and token_ids is needed")),
            Some(Input::Prompt(text)) => {
                (CheckedInput::Text(input::plain(text, wire.add_special_tokens, wire.parse_special_tokens)), "prompt")
            }
            Some(Input::Chat(chat)) => (CheckedInput::Text(input::chat(chat)?), "chat"),
            Some(Input::TokenIds(tokens)) => (CheckedInput::Tokens(tokens.ids), "token_ids.ids"),
        };
        let stop = StopConditions {
            max_tokens: wire.max_tokens,
            stop_token_ids: wire.stop_token_ids,
            ignore_eos: wire.ignore_eos,
        };
        Ok(Self {
            input,
            input_field,
            sampling,
            stop,
            stop_strings: wire.stop,
            logprobs: wire.logprobs,
            prompt_logprobs: wire.prompt_logprobs,
            skip_special_tokens: wire.skip_special_tokens.unwrap_or(true),
            split_reasoning: wire.split_reasoning.unwrap_or(true),
        })
    }
}

fn check_stop_strings(stop: &[String]) -> Result<(), Status> {
    if stop.len() > STOP_STRINGS_MAX {
        return Err(too_many("stop", stop.len(), STOP_STRINGS_MAX));
    }
    let bad = stop.iter().position(|s| s.is_empty() || s.len() > STOP_STRING_BYTES_MAX);
    match bad {
        None => Ok(()),
        Some(index) => {
            let problem = format!("{} bytes are not in 1..={STOP_STRING_BYTES_MAX}", stop[index].len());
            Err(invalid(&format!("stop[{index}]"), problem))
        }
    }
}

struct Prompt {
    ids: Vec<TokenId>,
    reasoning: ReasoningMode,
}

impl Prompt {
    fn from_text(text: TextInput, tokenizer: &Tokenizer, split_reasoning: bool) -> Result<Self, Status> {
        let encoded = text.encode(tokenizer, "prompt")?;
        Ok(Self { ids: encoded.ids, reasoning: reasoning(tokenizer, &encoded.text, split_reasoning) })
    }

    fn from_ids(ids: Vec<TokenId>, tokenizer: &Tokenizer, split_reasoning: bool) -> Self {
        let tail = tokenizer.decode(&ids[ids.len().saturating_sub(TAIL_TOKENS)..], false);
        Self { ids, reasoning: reasoning(tokenizer, &tail, split_reasoning) }
    }
}

/// How the reply to this prompt is split. The model's template tells whether it thinks, however the prompt was made.
fn reasoning(tokenizer: &Tokenizer, prompt: &str, split: bool) -> ReasoningMode {
    match tokenizer.chat_template().filter(|_| split) {
        Some(template) => ReasoningMode::Split(ReasoningSplitter::for_chat(template, prompt)),
        None => ReasoningMode::Off,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP_LOGPROBS_MAX: u32 = 8;

    fn wire() -> v1::GenerateRequest {
        v1::GenerateRequest { input: Some(Input::Prompt("x".into())), ..Default::default() }
    }

    #[test]
    fn invalid_fields_are_named() {
        let check = |field: &str, edit: fn(&mut v1::GenerateRequest)| {
            let mut request = wire();
            edit(&mut request);
            let error = Checked::new(request, &SamplingParams::default(), TOP_LOGPROBS_MAX).expect_err(field);
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().starts_with(&format!("{field}:")), "{}", error.message());
        };
        check("input", |r| r.input = None);
        check("chat.messages", |r| r.input = Some(Input::Chat(v1::Chat::default())));
        check("sampling.top_p", |r| r.sampling = Some(v1::Sampling { top_p: Some(7.0), ..Default::default() }));
        check("stop", |r| r.stop = vec!["x".into(); STOP_STRINGS_MAX + 1]);
        check("stop[1]", |r| r.stop = vec!["x".into(), String::new()]);
        check("stop[0]", |r| r.stop = vec!["x".repeat(STOP_STRING_BYTES_MAX + 1)]);
        check("stop_token_ids", |r| r.stop_token_ids = vec![1; STOP_TOKEN_IDS_MAX + 1]);
        check("logprobs", |r| r.logprobs = Some(TOP_LOGPROBS_MAX + 1));
        check("prompt_logprobs", |r| r.prompt_logprobs = Some(u32::MAX));
    }

    #[test]
    fn absent_fields_take_their_defaults() {
        let defaults = SamplingParams { temperature: 0.6, ..SamplingParams::default() };
        let checked = Checked::new(wire(), &defaults, TOP_LOGPROBS_MAX).expect("valid");
        assert_eq!(checked.sampling, defaults);
        assert_eq!(checked.stop, StopConditions::default());
        assert_eq!((checked.logprobs, checked.prompt_logprobs), (None, None));
        assert!(checked.skip_special_tokens && checked.split_reasoning);
    }

    #[test]
    fn zeros_that_are_present_are_kept() {
        let mut request = wire();
        (request.max_tokens, request.logprobs, request.prompt_logprobs) = (Some(0), Some(0), Some(0));
        (request.skip_special_tokens, request.split_reasoning) = (Some(false), Some(false));
        let checked = Checked::new(request, &SamplingParams::default(), TOP_LOGPROBS_MAX).expect("valid");
        assert_eq!(checked.stop.max_tokens, Some(0));
        assert_eq!((checked.logprobs, checked.prompt_logprobs), (Some(0), Some(0)));
        assert!(!checked.skip_special_tokens && !checked.split_reasoning);
    }

    #[test]
    fn submit_errors_have_their_codes() {
        let check = |error: SubmitError, code: tonic::Code, start: &str| {
            let status = submit_error(error, "chat");
            assert_eq!(status.code(), code);
            assert!(status.message().starts_with(start), "{}", status.message());
        };
        let param = |field| SubmitError::Invalid(InvalidParam { field, problem: "bad".into() });
        check(param("prompt"), tonic::Code::InvalidArgument, "chat: bad");
        check(param("token_ids"), tonic::Code::InvalidArgument, "chat: bad");
        check(param("stop_token_ids"), tonic::Code::InvalidArgument, "stop_token_ids: bad");
        check(param("logit_bias"), tonic::Code::InvalidArgument, "sampling.logit_bias: bad");
        let too_long = SubmitError::TooLong { prompt_tokens: 9, context_tokens_max: 8 };
        check(too_long, tonic::Code::InvalidArgument, "chat: 9 tokens");
        check(SubmitError::QueueFull { queue_requests_max: 2 }, tonic::Code::ResourceExhausted, "2 requests");
        check(SubmitError::Draining, tonic::Code::Unavailable, "the server is shutting down");
    }
}
