//! A generation as it is asked for on the wire, as a question.

use std::time::{Duration, Instant};

use lingqu_proto::v1;
use lingqu_proto::v1::generate_request::Input as WireInput;
use lingqu_serving::{Ask, FieldNames, Input};
use lingqu_types::{Priority, SamplingParams, Service, StopConditions};
use tonic::Status;

use super::format::format;
use super::input;
use super::sampling::sampling;
use super::service::FromHeaders;
use super::tools::tools;
use crate::status::invalid;

/// The question of a request.
pub fn ask(wire: v1::GenerateRequest, headers: &FromHeaders, defaults: &SamplingParams) -> Result<Ask, Status> {
    let service = headers.over(service(&wire)?);
    let (tools, listed) = tools(&wire.tools, &wire.tool_choice, &wire.tool_choice_function)?;
    let (mut input, field) = match wire.input {
        None => return Err(invalid("input", "one of prompt, chat and token_ids is needed")),
        Some(WireInput::Prompt(text)) => {
            (input::plain(text, wire.add_special_tokens, wire.parse_special_tokens), "prompt")
        }
        Some(WireInput::Chat(chat)) => (input::chat(chat)?, "chat"),
        Some(WireInput::TokenIds(tokens)) => (Input::Tokens(tokens.ids), "token_ids.ids"),
    };
    if let Input::Chat { options, .. } = &mut input {
        options.tools = listed;
    }
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
        format: format(wire.format)?,
        tools,
        adapter: (!wire.adapter.is_empty()).then(|| wire.adapter.into()),
        service,
        ..Ask::new(input, defaults, names)
    })
}

/// On whose account a request runs, and until when, as it says itself.
fn service(wire: &v1::GenerateRequest) -> Result<Service, Status> {
    let priority = v1::Priority::try_from(wire.priority);
    let priority = match priority.map_err(|_| invalid("priority", format_args!("{} is none", wire.priority)))? {
        v1::Priority::Unspecified | v1::Priority::Interactive => Priority::Interactive,
        v1::Priority::Batch => Priority::Batch,
    };
    let deadline = wire.timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms.into()));
    Ok(Service { priority, tenant: wire.tenant.as_str().into(), deadline })
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
            let error = ask(request, &FromHeaders::default(), &SamplingParams::default()).expect_err(field);
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().starts_with(&format!("{field}:")), "{}", error.message());
        };
        check("input", None);
        check("chat.messages", Some(WireInput::Chat(v1::Chat::default())));
    }

    #[test]
    fn absent_fields_take_their_defaults() {
        let defaults = SamplingParams { temperature: 0.6, ..SamplingParams::default() };
        let ask = ask(wire(), &FromHeaders::default(), &defaults).expect("valid");
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
        let ask = ask(request, &FromHeaders::default(), &SamplingParams::default()).expect("valid");
        assert_eq!(ask.stop.max_tokens, Some(0));
        assert_eq!((ask.logprobs, ask.prompt_logprobs), (Some(0), Some(0)));
        assert!(!ask.skip_special_tokens && !ask.split_reasoning);
    }

    #[test]
    fn the_service_is_told() {
        let soon = Instant::now() + Duration::from_secs(1);
        let check = |request: v1::GenerateRequest, deadline: Option<Instant>, expected: Priority| {
            let headers = FromHeaders { deadline, ..FromHeaders::default() };
            let Ask { service, .. } = ask(request, &headers, &SamplingParams::default()).expect("valid");
            assert_eq!(service.priority, expected);
            service
        };
        let batch = v1::GenerateRequest { priority: v1::Priority::Batch.into(), tenant: "fire".into(), ..wire() };
        assert_eq!(check(batch.clone(), Some(soon), Priority::Batch).deadline, Some(soon));
        assert_eq!(&*check(batch, None, Priority::Batch).tenant, "fire");
        let later = v1::GenerateRequest { timeout_ms: Some(3_600_000), ..wire() };
        assert_eq!(check(later.clone(), Some(soon), Priority::Interactive).deadline, Some(soon));
        assert!(check(later, None, Priority::Interactive).deadline > Some(soon));
        let unknown = v1::GenerateRequest { priority: 7, ..wire() };
        let error = ask(unknown, &FromHeaders::default(), &SamplingParams::default()).expect_err("unknown");
        assert!(error.message().starts_with("priority: "), "{error}");
    }

    #[test]
    fn forms_tools_and_adapters_reach_the_question() {
        let chat = v1::ChatMessage { role: "user".into(), content: "x".into(), ..Default::default() };
        let request = v1::GenerateRequest {
            input: Some(WireInput::Chat(v1::Chat { messages: vec![chat], add_generation_prompt: None })),
            format: Some(v1::generate_request::Format::Regex("a+".into())),
            tools: vec![r#"{"function": {"name": "look"}}"#.into()],
            tool_choice: "required".into(),
            adapter: "alpha".into(),
            ..Default::default()
        };
        let ask = ask(request, &FromHeaders::default(), &SamplingParams::default()).expect("valid");
        assert_eq!(ask.format.expect("a form").field, "regex");
        assert_eq!(ask.tools.expect("tools").functions[0].name, "look");
        let Input::Chat { options, .. } = &ask.input else { panic!("{:?}", ask.input) };
        assert_eq!(options.tools.len(), 1, "the template is told");
        assert_eq!(ask.adapter.as_deref(), Some("alpha"));
    }
}
