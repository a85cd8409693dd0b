//! Values by name as a question: the names that Triton's vLLM and TensorRT-LLM backends use, and our own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lingqu_grammar::GrammarSpec;
use lingqu_serving::{Ask, FieldNames, Format, Input};
use lingqu_tokenizer::EncodeOptions;
use lingqu_types::{Priority, SamplingParams};
use serde_json::Value as Json;
use tonic::Status;

use super::tensor::Value;
use crate::convert::format::json_schema;
use crate::convert::service::FromHeaders;
use crate::status::{invalid, too_many};

const NAMES: FieldNames = FieldNames { input: "text_input", sampling_prefix: "" };
/// Members of `sampling_parameters`, and elements of a list in it.
const JSON_VALUES_MAX: usize = 1024;

/// What one prompt asks.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its input is still to come: [`Options::ask`].
    ask: Ask,
    encode: EncodeOptions,
    /// Piece by piece.
    pub stream: bool,
    /// The prompt goes before the answer.
    pub echo: Option<bool>,
    /// Outputs asked for by `return_…`.
    pub returns: Vec<&'static str>,
}

impl Options {
    pub fn new(model: String, defaults: &SamplingParams) -> Self {
        let input = Input::Tokens(Vec::new());
        let ask = Ask { model, ..Ask::new(input, defaults, NAMES) };
        let encode = EncodeOptions { add_special_tokens: true, parse_special: true };
        Self { ask, encode, stream: false, echo: None, returns: Vec::new() }
    }

    /// The question of a prompt.
    pub fn ask(&self, text: String) -> Ask {
        Ask { input: Input::Text { text, options: self.encode }, ..self.ask.clone() }
    }

    /// Headers come before what the request says.
    pub fn heed(&mut self, headers: &FromHeaders) {
        self.ask.service = headers.over(std::mem::take(&mut self.ask.service));
    }

    /// Log-probabilities of the output's tokens are needed.
    pub fn need_logprobs(&mut self) {
        self.ask.logprobs.get_or_insert(0);
    }

    /// Takes the values of a tensor, or a parameter.
    ///
    /// # Errors
    /// INVALID_ARGUMENT naming it, for an unknown name too: an option that is not heeded must not pass for one that is.
    pub fn set(&mut self, name: &str, values: &[Value]) -> Result<(), Status> {
        let given = Given { name, values };
        if self.set_sampling(given)? || self.set_text(given)? || self.set_service(given)? || self.set_form(given)? {
            return Ok(());
        }
        match name {
            "stream" | "streaming" => self.stream = given.bool()?,
            "exclude_input_in_output" => self.echo = Some(!given.bool()?),
            "return_finish_reason" => self.returns("finish_reason", given.bool()?),
            "return_num_input_tokens" => self.returns("num_input_tokens", given.bool()?),
            "return_num_output_tokens" => self.returns("num_output_tokens", given.bool()?),
            "return_cumulative_logprob" => self.returns("cumulative_logprob", given.bool()?),
            "sampling_parameters" => self.set_json(given)?,
            // Only these values mean what is done anyway.
            "n" | "best_of" | "beam_width" | "num_return_sequences" => given.only(1.0)?,
            "length_penalty" => given.only(1.0)?,
            "min_tokens" | "min_length" | "sequence_id" => given.only(0.0)?,
            "return_logprobs" | "return_log_probs" | "return_context_logits" | "return_generation_logits" => {
                given.only(0.0)?;
            }
            "bad_words" => given.none()?,
            "pad_id" | "sequence_start" | "sequence_end" => {}
            // The client's and Triton's own business.
            name if name.starts_with("triton_") => {}
            _ => return Err(invalid(name, "this model takes no such input or parameter")),
        }
        Ok(())
    }

    fn set_sampling(&mut self, given: Given<'_>) -> Result<bool, Status> {
        let sampling = &mut self.ask.sampling;
        match given.name {
            "temperature" => sampling.temperature = given.float()?,
            "top_p" => sampling.top_p = given.float()?,
            // -1 is off, as for vLLM.
            "top_k" => sampling.top_k = if given.int()? == -1 { 0 } else { given.u32()? },
            "min_p" => sampling.min_p = given.float()?,
            "repetition_penalty" => sampling.repetition_penalty = given.float()?,
            "presence_penalty" => sampling.presence_penalty = given.float()?,
            "frequency_penalty" => sampling.frequency_penalty = given.float()?,
            "seed" | "random_seed" => sampling.seed = Some(given.u64()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set_text(&mut self, given: Given<'_>) -> Result<bool, Status> {
        let ask = &mut self.ask;
        match given.name {
            "max_tokens" | "max_new_tokens" | "request_output_len" => ask.stop.max_tokens = Some(given.u32()?),
            "stop" | "stop_words" => ask.stop_strings = given.texts()?,
            "stop_token_ids" => ask.stop.stop_token_ids = given.u32s()?,
            "end_id" => ask.stop.stop_token_ids.push(given.u32()?),
            "ignore_eos" => ask.stop.ignore_eos = given.bool()?,
            "logprobs" => ask.logprobs = Some(given.u32()?),
            "skip_special_tokens" => ask.skip_special_tokens = given.bool()?,
            "split_reasoning" => ask.split_reasoning = given.bool()?,
            "add_special_tokens" => self.encode.add_special_tokens = given.bool()?,
            "parse_special_tokens" => self.encode.parse_special = given.bool()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set_service(&mut self, given: Given<'_>) -> Result<bool, Status> {
        match given.name {
            "priority" => self.ask.service.priority = given.priority()?,
            "tenant" => self.ask.service.tenant = Arc::from(given.text()?),
            "adapter" | "lora_name" => {
                let name = given.text()?;
                self.ask.adapter = (!name.is_empty()).then(|| Arc::from(name));
            }
            // Microseconds, as Triton has it; 0 is none.
            "timeout" => match given.u64()? {
                0 => {}
                micros => {
                    let deadline = Instant::now().checked_add(Duration::from_micros(micros));
                    self.ask.service.deadline = Some(deadline.ok_or_else(|| invalid(given.name, "too long"))?);
                }
            },
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The form of the answer, by vLLM's names.
    fn set_form(&mut self, given: Given<'_>) -> Result<bool, Status> {
        let (field, spec) = match given.name {
            "guided_json" => ("guided_json", json_schema("guided_json", given.text()?)?),
            "guided_regex" => ("guided_regex", GrammarSpec::Regex(given.text()?.into())),
            "guided_choice" => ("guided_choice", GrammarSpec::Choice(given.texts()?)),
            "guided_grammar" => ("guided_grammar", GrammarSpec::Lark(given.text()?.into())),
            _ => return Ok(false),
        };
        match &self.ask.format {
            Some(other) if other.field != field => {
                Err(invalid(field, format_args!("cannot be together with {}", other.field)))
            }
            _ => {
                self.ask.format = Some(Format { spec, field });
                Ok(true)
            }
        }
    }

    fn returns(&mut self, output: &'static str, wanted: bool) {
        if wanted {
            self.returns.push(output);
        }
    }

    /// The vLLM backend's way: one JSON object, numbers often as strings.
    fn set_json(&mut self, given: Given<'_>) -> Result<(), Status> {
        let name = given.name;
        let json: Json = serde_json::from_str(given.text()?).map_err(|e| invalid(name, e))?;
        let Json::Object(members) = json else { return Err(invalid(name, "is not a JSON object")) };
        if members.len() > JSON_VALUES_MAX {
            return Err(too_many(name, members.len(), JSON_VALUES_MAX));
        }
        for (member, json) in members {
            let values = match json {
                Json::Null => continue,
                Json::Array(items) if items.len() > JSON_VALUES_MAX => {
                    return Err(too_many(&member, items.len(), JSON_VALUES_MAX));
                }
                // A schema as it stands, not as its text.
                Json::Object(_) if member == "guided_json" => vec![Value::Text(json.to_string())],
                Json::Array(items) => items.into_iter().map(|item| scalar(&member, item)).collect::<Result<_, _>>()?,
                json => vec![scalar(&member, json)?],
            };
            if member == name {
                return Err(invalid(name, "holds itself"));
            }
            self.set(&member, &values)?;
        }
        Ok(())
    }
}

fn scalar(name: &str, json: Json) -> Result<Value, Status> {
    match json {
        Json::Bool(v) => Ok(Value::Bool(v)),
        Json::String(v) => Ok(Value::Text(v)),
        Json::Number(v) => {
            let value = v.as_i64().map(Value::Int).or_else(|| v.as_u64().map(Value::UInt));
            value.or_else(|| v.as_f64().map(Value::Float)).ok_or_else(|| invalid(name, "is no number"))
        }
        Json::Null | Json::Array(_) | Json::Object(_) => {
            Err(invalid(name, "is neither a number nor a text nor a bool"))
        }
    }
}

/// The values of one name.
#[derive(Clone, Copy)]
struct Given<'a> {
    name: &'a str,
    values: &'a [Value],
}

impl<'a> Given<'a> {
    fn one(self) -> Result<&'a Value, Status> {
        match self.values {
            [value] => Ok(value),
            values => Err(invalid(self.name, format_args!("{} values where one is taken", values.len()))),
        }
    }

    fn wrong(self, wanted: &str) -> Status {
        invalid(self.name, format_args!("is not {wanted}"))
    }

    fn bool(self) -> Result<bool, Status> {
        match self.one()? {
            Value::Bool(v) => Ok(*v),
            Value::Int(0) | Value::UInt(0) => Ok(false),
            Value::Int(1) | Value::UInt(1) => Ok(true),
            Value::Text(v) if v.eq_ignore_ascii_case("true") => Ok(true),
            Value::Text(v) if v.eq_ignore_ascii_case("false") => Ok(false),
            _ => Err(self.wrong("a bool")),
        }
    }

    fn int(self) -> Result<i128, Status> {
        int(self.one()?).ok_or_else(|| self.wrong("a whole number"))
    }

    fn u32(self) -> Result<u32, Status> {
        u32::try_from(self.int()?).map_err(|_| self.wrong("a whole number of 0 to 4294967295"))
    }

    fn u64(self) -> Result<u64, Status> {
        u64::try_from(self.int()?).map_err(|_| self.wrong("a whole number of 0 to 18446744073709551615"))
    }

    fn float(self) -> Result<f32, Status> {
        let value = match self.one()? {
            Value::Float(v) => Some(*v),
            Value::Int(v) => Some(*v as f64),
            Value::UInt(v) => Some(*v as f64),
            Value::Text(v) => v.trim().parse().ok(),
            Value::Bool(_) => None,
        };
        value.map(|v| v as f32).ok_or_else(|| self.wrong("a number"))
    }

    fn text(self) -> Result<&'a str, Status> {
        match self.one()? {
            Value::Text(v) => Ok(v),
            _ => Err(self.wrong("a text")),
        }
    }

    fn texts(self) -> Result<Vec<String>, Status> {
        let text = |value: &Value| match value {
            Value::Text(v) => Ok(v.clone()),
            _ => Err(self.wrong("texts")),
        };
        // Rows of a batch are padded with empty texts.
        let texts: Vec<String> = self.values.iter().map(text).collect::<Result<_, _>>()?;
        Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
    }

    fn u32s(self) -> Result<Vec<u32>, Status> {
        let number = |value| int(value).and_then(|v| u32::try_from(v).ok());
        self.values.iter().map(number).collect::<Option<_>>().ok_or_else(|| self.wrong("token ids"))
    }

    /// Lower is more urgent for Triton, and 0 the default.
    fn priority(self) -> Result<Priority, Status> {
        match self.one()? {
            Value::Text(v) if v == "interactive" => Ok(Priority::Interactive),
            Value::Text(v) if v == "batch" => Ok(Priority::Batch),
            _ if self.u64()? <= 1 => Ok(Priority::Interactive),
            _ => Ok(Priority::Batch),
        }
    }

    /// Takes no value but this one.
    fn only(self, neutral: f32) -> Result<(), Status> {
        let value = match self.one()? {
            Value::Bool(v) => f32::from(u8::from(*v)),
            _ => self.float()?,
        };
        match value == neutral {
            true => Ok(()),
            false => Err(invalid(self.name, format_args!("only {neutral} is supported"))),
        }
    }

    /// Takes nothing but empty texts.
    fn none(self) -> Result<(), Status> {
        match self.texts()?.is_empty() {
            true => Ok(()),
            false => Err(invalid(self.name, "is not supported")),
        }
    }
}

fn int(value: &Value) -> Option<i128> {
    match value {
        Value::Int(v) => Some((*v).into()),
        Value::UInt(v) => Some((*v).into()),
        Value::Text(v) => v.trim().parse::<i64>().ok().map(Into::into),
        Value::Float(v) if v.fract() == 0.0 && v.abs() < 2f64.powi(53) => Some(*v as i128),
        Value::Float(_) | Value::Bool(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, values: &[Value]) -> Result<Ask, Status> {
        let mut options = Options::new(String::new(), &SamplingParams::default());
        options.set(name, values)?;
        Ok(options.ask("x".into()))
    }

    #[test]
    fn names_of_both_backends_are_known() {
        let text = |t: &str| Value::Text(t.into());
        let ask = |name: &str, value: Value| set(name, &[value]).expect(name);
        assert_eq!(ask("max_tokens", Value::Int(7)).stop.max_tokens, Some(7));
        assert_eq!(ask("max_tokens", text(" 7 ")).stop.max_tokens, Some(7));
        assert_eq!(ask("temperature", Value::Float(0.5)).sampling.temperature, 0.5);
        assert_eq!(ask("temperature", text("0.5")).sampling.temperature, 0.5);
        assert_eq!(ask("temperature", Value::Int(0)).sampling.temperature, 0.0);
        assert_eq!(ask("top_k", Value::Int(-1)).sampling.top_k, 0);
        assert_eq!(ask("random_seed", Value::UInt(u64::MAX)).sampling.seed, Some(u64::MAX));
        assert_eq!(ask("priority", Value::UInt(2)).service.priority, Priority::Batch);
        assert_eq!(ask("priority", text("interactive")).service.priority, Priority::Interactive);
        assert_eq!(&*ask("tenant", text("fire")).service.tenant, "fire");
        assert!(ask("timeout", Value::Int(1000)).service.deadline.is_some());
        assert_eq!(ask("end_id", Value::Int(3)).stop.stop_token_ids, [3]);
        assert_eq!(ask("lora_name", text("alpha")).adapter.as_deref(), Some("alpha"));
        assert_eq!(ask("adapter", text("")).adapter, None);
        let form = |name: &str, values: &[Value]| set(name, values).expect(name).format.expect("a form").spec;
        let schema = || GrammarSpec::JsonSchema(serde_json::json!({"type": "object"}));
        assert_eq!(form("guided_json", &[text(r#"{"type": "object"}"#)]), schema());
        assert_eq!(form("sampling_parameters", &[text(r#"{"guided_json": {"type": "object"}}"#)]), schema());
        assert_eq!(form("guided_regex", &[text("a+")]), GrammarSpec::Regex("a+".into()));
        let either = GrammarSpec::Choice(vec!["a".into(), "b".into()]);
        assert_eq!(form("guided_choice", &[text("a"), text("b")]), either);
        assert_eq!(form("sampling_parameters", &[text(r#"{"guided_choice": ["a", "b"]}"#)]), either);
        let words = set("stop_words", &[text("a"), text(""), text("b")]).expect("words");
        assert_eq!(words.stop_strings, ["a", "b"]);
        let json = r#"{"temperature": "0.1", "top_p": 0.95, "max_tokens": "100", "stop": ["x"], "seed": null, "n": 1}"#;
        let ask = ask("sampling_parameters", text(json));
        assert_eq!((ask.sampling.temperature, ask.sampling.top_p), (0.1, 0.95));
        assert_eq!((ask.stop.max_tokens, ask.stop_strings), (Some(100), vec!["x".to_owned()]));
    }

    #[test]
    fn what_cannot_be_heeded_is_refused_by_name() {
        let check = |name: &str, values: &[Value], named: &str| {
            let error = set(name, values).expect_err(name);
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().starts_with(&format!("{named}: ")), "{name}: {}", error.message());
        };
        let text = |t: &str| Value::Text(t.into());
        check("nonsense", &[Value::Int(1)], "nonsense");
        check("max_tokens", &[Value::Int(-1)], "max_tokens");
        check("max_tokens", &[Value::Int(1), Value::Int(2)], "max_tokens");
        check("max_tokens", &[], "max_tokens");
        check("max_tokens", &[Value::Float(1.5)], "max_tokens");
        check("max_tokens", &[Value::Float(f64::NAN)], "max_tokens");
        check("max_tokens", &[text("many")], "max_tokens");
        check("temperature", &[Value::Bool(true)], "temperature");
        check("stop", &[Value::Int(1)], "stop");
        check("stop_token_ids", &[Value::Int(-3)], "stop_token_ids");
        check("stream", &[Value::Int(2)], "stream");
        check("n", &[Value::Int(2)], "n");
        check("bad_words", &[text("x")], "bad_words");
        check("sampling_parameters", &[text("[1]")], "sampling_parameters");
        check("sampling_parameters", &[text("{")], "sampling_parameters");
        check("sampling_parameters", &[text(r#"{"top_p": {}}"#)], "top_p");
        check("sampling_parameters", &[text(r#"{"sampling_parameters": "{}"}"#)], "sampling_parameters");
        check("sampling_parameters", &[text(r#"{"zeal": 1}"#)], "zeal");
        check("guided_json", &[text("{")], "guided_json");
        let both = r#"{"guided_choice": ["a"], "guided_regex": "a"}"#;
        check("sampling_parameters", &[text(both)], "guided_regex");
    }
}
