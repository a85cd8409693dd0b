//! A generation as it is asked for on the wire, as a question.

use lingqu_proto::v1;
use lingqu_proto::v1::generate_request::Input as WireInput;
use lingqu_serving::{Ask, FieldNames, Input};
use lingqu_types::{SamplingParams, StopConditions};
use tonic::Status;

use super::input;
use super::sampling::sampling;
use crate::status::invalid;

/// The question of a request.
pub fn ask(wire: v1::GenerateRequest, defaults: &SamplingParams) -> Result<Ask, Status> {
    let (input, field) = match wire.input {
        None => return Err(invalid("input", "one of prompt, chat and token_ids is needed")),
        Some(WireInput::Prompt(text)) => {
            (input::plain(text, wire.add_special_tokens, wire.parse_special_tokens), "prompt")
        }
        Some(WireInput::Chat(chat)) => (input::chat(chat)?, "chat"),
        Some(WireInput::TokenIds(tokens)) => (Input::Tokens(tokens.ids), "token_ids.ids"),
    };
    let names = FieldNames { input: field, sampling_prefix: "sampling." };
    Ok(Ask {
        model: wire.model,
        sampling: sampling(wire.sampling, defaults),
        stop: StopConditions {
            max_tokens: wire.max_tokens,
            stop_token_ids: wire.stop_token_ids,
            ignore_eos: wire.ignore_eos,
        },
        stop_strings: wire.stop,
        logprobs: wire.logprobs,
        prompt_logprobs: wire.prompt_logprobs,
        skip_special_tokens: wire.skip_special_tokens.unwrap_or(true),
        split_reasoning: wire.split_reasoning.unwrap_or(true),
        ..Ask::new(input, defaults, names)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> v1::GenerateRequest {
        v1::GenerateRequest { input: Some(WireInput::Prompt("x".into())), ..Default::default() }
    }

    #[test]
    fn inputs_that_cannot_be_are_named() {
        let check = |field: &str, input: Option<WireInput>| {
            let request = v1::GenerateRequest { input, ..wire() };
            let error = ask(request, &SamplingParams::default()).expect_err(field);
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().starts_with(&format!("{field}:")), "{}", error.message());
        };
        check("input", None);
        check("chat.messages", Some(WireInput::Chat(v1::Chat::default())));
    }

    #[test]
    fn absent_fields_take_their_defaults() {
        let defaults = SamplingParams { temperature: 0.6, ..SamplingParams::default() };
        let ask = ask(wire(), &defaults).expect("valid");
        assert_eq!(ask.sampling, defaults);
        assert_eq!(ask.stop, StopConditions::default());
        assert_eq!((ask.logprobs, ask.prompt_logprobs, ask.choices), (None, None, 1));
        assert!(ask.skip_special_tokens && ask.split_reasoning);
    }

    #[test]
    fn zeros_that_are_present_are_kept() {
        let mut request = wire();
        (request.max_tokens, request.logprobs, request.prompt_logprobs) = (Some(0), Some(0), Some(0));
        (request.skip_special_tokens, request.split_reasoning) = (Some(false), Some(false));
        let ask = ask(request, &SamplingParams::default()).expect("valid");
        assert_eq!(ask.stop.max_tokens, Some(0));
        assert_eq!((ask.logprobs, ask.prompt_logprobs), (Some(0), Some(0)));
        assert!(!ask.skip_special_tokens && !ask.split_reasoning);
    }
}
