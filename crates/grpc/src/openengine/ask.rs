//! A generation as OpenEngine asks for it, as a question.

use lingqu_grammar::GrammarSpec;
use lingqu_proto::openengine as wire;
use lingqu_proto::openengine::candidate_token_selection::Selection;
use lingqu_proto::openengine::generate_request::Input as WireInput;
use lingqu_proto::openengine::guided_decoding::Guide;
use lingqu_proto::openengine::stop_condition::Condition;
use lingqu_serving::{Ask, FieldNames, Format, Input};
use lingqu_types::{SamplingParams, Service};
use tonic::Status;

use crate::convert::format::json_schema;
use crate::convert::input;
use crate::status::invalid;

/// What a request asks.
#[derive(Clone, Debug)]
pub struct Question {
    pub ask: Ask,
    /// Of the prompt's tokens, those from here on are reported.
    pub prompt_start: usize,
}

/// The question of a request; `service` is what the call's headers say.
///
/// # Errors
/// INVALID_ARGUMENT names the field. What this engine cannot do is refused, not passed over; only `extra` may be
/// ignored.
pub fn question(
    request: wire::GenerateRequest,
    service: Service,
    defaults: &SamplingParams,
) -> Result<Question, Status> {
    let (input, field) = match request.input {
        None => return Err(invalid("input", "one of prompt and token_ids is needed")),
        Some(WireInput::Prompt(text)) => (input::plain(text, None, None), "prompt"),
        Some(WireInput::TokenIds(tokens)) => (Input::Tokens(tokens.ids), "token_ids.ids"),
    };
    if !request.media.is_empty() {
        return Err(invalid("media", "this model reads text alone"));
    }
    check_kv(request.kv.unwrap_or_default())?;
    let names = FieldNames { input: field, sampling_prefix: "sampling." };
    // Clients tell thinking and tool calls apart by themselves: they get the text as it is.
    let mut ask = Ask { model: request.model, service, split_reasoning: false, ..Ask::new(input, defaults, names) };
    ask.adapter = (!request.lora_name.is_empty()).then(|| request.lora_name.into());
    ask.format = format(request.guided.unwrap_or_default())?;
    set_sampling(&mut ask, request.sampling.unwrap_or_default())?;
    set_stopping(&mut ask, request.stopping.unwrap_or_default())?;
    let prompt_start = set_response(&mut ask, request.response.unwrap_or_default())?;
    Ok(Question { ask, prompt_start })
}

fn check_kv(kv: wire::KvOptions) -> Result<(), Status> {
    if kv.session.is_some() {
        return Err(Status::failed_precondition("kv.session: this engine prefills and decodes by itself"));
    }
    if kv.bypass_prefix_cache == Some(true) {
        return Err(invalid("kv.bypass_prefix_cache", "is not supported"));
    }
    if kv.cache_salt.is_some_and(|salt| !salt.is_empty()) {
        return Err(invalid("kv.cache_salt", "is not supported"));
    }
    Ok(())
}

/// The one engine that clients may ask for by name.
const GRAMMAR_BACKEND: &str = "llguidance";

fn format(wire: wire::GuidedDecoding) -> Result<Option<Format>, Status> {
    if !wire.backend.is_empty() && wire.backend != GRAMMAR_BACKEND {
        return Err(invalid("guided.backend", format_args!("only {GRAMMAR_BACKEND} is supported")));
    }
    let (field, spec) = match wire.guide {
        None => return Ok(None),
        Some(Guide::JsonSchema(text)) => ("guided.json_schema", json_schema("guided.json_schema", &text)?),
        Some(Guide::Regex(text)) => ("guided.regex", GrammarSpec::Regex(text)),
        // Which notation is meant is not said; one that is not Lark is refused as it is read.
        Some(Guide::EbnfGrammar(text)) => ("guided.ebnf_grammar", GrammarSpec::Lark(text)),
        Some(Guide::Choice(choice)) => ("guided.choice", GrammarSpec::Choice(choice.choices)),
        Some(Guide::JsonObject(_)) => ("guided.json_object", GrammarSpec::JsonObject),
        Some(Guide::StructuralTag(_)) => return Err(invalid("guided.structural_tag", "is not supported")),
    };
    Ok(Some(Format { spec, field }))
}

fn set_sampling(ask: &mut Ask, wire: wire::SamplingParams) -> Result<(), Status> {
    let sampling = &mut ask.sampling;
    let set = |field: &mut f32, value: Option<f64>| {
        if let Some(value) = value {
            *field = value as f32;
        }
    };
    set(&mut sampling.temperature, wire.temperature);
    set(&mut sampling.top_p, wire.top_p);
    set(&mut sampling.min_p, wire.min_p);
    set(&mut sampling.frequency_penalty, wire.frequency_penalty);
    set(&mut sampling.presence_penalty, wire.presence_penalty);
    set(&mut sampling.repetition_penalty, wire.repetition_penalty);
    if let Some(top_k) = wire.top_k {
        // -1 is off for the engines that this protocol comes from.
        let top_k = u32::try_from(if top_k == -1 { 0 } else { top_k });
        sampling.top_k = top_k.map_err(|_| invalid("sampling.top_k", "is below -1"))?;
    }
    sampling.seed = wire.seed.or(sampling.seed);
    match wire.num_sequences {
        Some(0) => Err(invalid("sampling.num_sequences", "must be above 0")),
        count => {
            ask.choices = count.unwrap_or(1);
            Ok(())
        }
    }
}

fn set_stopping(ask: &mut Ask, wire: wire::StoppingOptions) -> Result<(), Status> {
    if wire.min_tokens.is_some_and(|min| min > 0) {
        return Err(invalid("stopping.min_tokens", "is not supported"));
    }
    if wire.include_stop_in_output == Some(true) {
        return Err(invalid("stopping.include_stop_in_output", "is not supported"));
    }
    ask.stop.max_tokens = wire.max_tokens;
    ask.stop.ignore_eos = wire.ignore_eos.unwrap_or(false);
    for (index, condition) in wire.conditions.into_iter().enumerate() {
        match condition.condition {
            Some(Condition::StopText(text)) => ask.stop_strings.push(text),
            Some(Condition::StopTokenId(id)) => ask.stop.stop_token_ids.push(id),
            None => return Err(invalid(&format!("stopping.conditions[{index}]"), "holds no condition")),
        }
    }
    Ok(())
}

fn set_response(ask: &mut Ask, wire: wire::ResponseOptions) -> Result<usize, Status> {
    let candidates = |field: &str, wanted: Option<bool>, selection: Option<wire::CandidateTokenSelection>| match (
        wanted,
        selection.and_then(|s| s.selection),
    ) {
        (Some(false), _) | (None, None) => Ok(None),
        (Some(true), None) => Ok(Some(0)),
        (_, Some(Selection::TopN(count))) => Ok(Some(count)),
        (_, Some(_)) => Err(invalid(field, "only top_n is supported")),
    };
    ask.prompt_logprobs =
        candidates("response.prompt_candidates", wire.return_prompt_logprobs, wire.prompt_candidates)?;
    ask.logprobs = candidates("response.output_candidates", wire.return_output_logprobs, wire.output_candidates)?;
    Ok(wire.prompt_logprob_start.unwrap_or(0) as usize)
}

#[cfg(test)]
mod tests {
    use lingqu_types::Priority;

    use super::*;

    fn request() -> wire::GenerateRequest {
        wire::GenerateRequest { input: Some(WireInput::Prompt("x".into())), ..Default::default() }
    }

    fn asked(request: wire::GenerateRequest) -> Result<Question, Status> {
        let service = Service { priority: Priority::Batch, ..Service::default() };
        question(request, service, &SamplingParams { temperature: 0.6, ..SamplingParams::default() })
    }

    #[test]
    fn fields_reach_the_question() {
        let sampling = wire::SamplingParams {
            top_p: Some(0.5),
            top_k: Some(-1),
            seed: Some(7),
            num_sequences: Some(3),
            ..Default::default()
        };
        let stop = |condition| wire::StopCondition { condition: Some(condition) };
        let conditions = vec![stop(Condition::StopText("。".into())), stop(Condition::StopTokenId(9))];
        let stopping =
            wire::StoppingOptions { max_tokens: Some(5), ignore_eos: Some(true), conditions, ..Default::default() };
        let top_n = wire::CandidateTokenSelection { selection: Some(Selection::TopN(4)) };
        let response = wire::ResponseOptions {
            return_prompt_logprobs: Some(true),
            output_candidates: Some(top_n),
            prompt_logprob_start: Some(2),
            ..Default::default()
        };
        let (sampling, stopping, response) = (Some(sampling), Some(stopping), Some(response));
        let choice = Guide::Choice(wire::ChoiceConstraint { choices: vec!["a".into()] });
        let guided = Some(wire::GuidedDecoding { guide: Some(choice), backend: "llguidance".into() });
        let lora_name = "alpha".into();
        let request = wire::GenerateRequest { sampling, stopping, response, guided, lora_name, ..request() };
        let Question { ask, prompt_start } = asked(request).expect("valid");
        let form = Format { spec: GrammarSpec::Choice(vec!["a".into()]), field: "guided.choice" };
        assert_eq!((ask.format, ask.adapter.as_deref()), (Some(form), Some("alpha")));
        assert_eq!((ask.sampling.temperature, ask.sampling.top_p, ask.sampling.top_k), (0.6, 0.5, 0));
        assert_eq!((ask.sampling.seed, ask.choices, prompt_start), (Some(7), 3, 2));
        assert_eq!((ask.stop.max_tokens, ask.stop.ignore_eos), (Some(5), true));
        assert_eq!((ask.stop_strings, ask.stop.stop_token_ids), (vec!["。".to_owned()], vec![9]));
        assert_eq!((ask.prompt_logprobs, ask.logprobs), (Some(0), Some(4)));
        assert_eq!((ask.service.priority, ask.split_reasoning), (Priority::Batch, false));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let check = |field: &str, edit: fn(&mut wire::GenerateRequest)| {
            let mut request = request();
            edit(&mut request);
            let error = asked(request).expect_err(field);
            assert!(error.message().starts_with(&format!("{field}: ")), "{}", error.message());
        };
        check("input", |r| r.input = None);
        check("media", |r| r.media = vec![wire::MediaItem::default()]);
        check("kv.session", |r| r.kv.get_or_insert_default().session = Some(Default::default()));
        check("kv.bypass_prefix_cache", |r| r.kv.get_or_insert_default().bypass_prefix_cache = Some(true));
        check("kv.cache_salt", |r| r.kv.get_or_insert_default().cache_salt = Some("x".into()));
        check("sampling.top_k", |r| r.sampling.get_or_insert_default().top_k = Some(-2));
        check("sampling.num_sequences", |r| r.sampling.get_or_insert_default().num_sequences = Some(0));
        check("stopping.min_tokens", |r| r.stopping.get_or_insert_default().min_tokens = Some(1));
        check("stopping.include_stop_in_output", |r| {
            r.stopping.get_or_insert_default().include_stop_in_output = Some(true);
        });
        check("stopping.conditions[0]", |r| {
            r.stopping.get_or_insert_default().conditions = vec![wire::StopCondition::default()];
        });
        fn guided(r: &mut wire::GenerateRequest) -> &mut wire::GuidedDecoding {
            r.guided.get_or_insert_default()
        }
        check("guided.json_schema", |r| guided(r).guide = Some(Guide::JsonSchema("{".into())));
        check("guided.structural_tag", |r| guided(r).guide = Some(Guide::StructuralTag("{}".into())));
        check("guided.backend", |r| guided(r).backend = "outlines".into());
        check("response.output_candidates", |r| {
            let all = wire::CandidateTokenSelection { selection: Some(Selection::All(wire::AllCandidates {})) };
            r.response.get_or_insert_default().output_candidates = Some(all);
        });
    }
}
