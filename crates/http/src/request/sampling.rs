//! How tokens are drawn and when generation ends. Ranges are checked by `serving`.

use lingqu_serving::RequestError;
use lingqu_types::{SamplingParams, StopConditions, TokenId};
use serde_json::Value;

use crate::fields::{self, Fields, wrong_type};

/// The request's sampling over the model's own.
pub fn sampling(fields: &mut Fields, defaults: &SamplingParams) -> Result<SamplingParams, RequestError> {
    Ok(SamplingParams {
        temperature: fields.number("temperature")?.unwrap_or(defaults.temperature),
        top_p: fields.number("top_p")?.unwrap_or(defaults.top_p),
        top_k: top_k(fields)?.unwrap_or(defaults.top_k),
        min_p: fields.number("min_p")?.unwrap_or(defaults.min_p),
        repetition_penalty: fields.number("repetition_penalty")?.unwrap_or(defaults.repetition_penalty),
        presence_penalty: fields.number("presence_penalty")?.unwrap_or(defaults.presence_penalty),
        frequency_penalty: fields.number("frequency_penalty")?.unwrap_or(defaults.frequency_penalty),
        logit_bias: logit_bias(fields)?.unwrap_or_else(|| defaults.logit_bias.clone()),
        seed: seed(fields)?.or(defaults.seed),
    })
}

/// `max_tokens` and its younger name, `stop_token_ids`, `ignore_eos`.
pub fn stop_conditions(fields: &mut Fields) -> Result<StopConditions, RequestError> {
    let old = fields.count("max_tokens")?;
    let max_tokens = fields.count("max_completion_tokens")?.or(old);
    let path = fields.path("stop_token_ids");
    let ids = fields.array("stop_token_ids")?.unwrap_or_default();
    let stop_token_ids = ids.iter().map(|id| fields::count(id, &path)).collect::<Result<_, _>>()?;
    Ok(StopConditions { max_tokens, stop_token_ids, ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false) })
}

/// `stop`: a string or several.
pub fn stop_strings(fields: &mut Fields) -> Result<Vec<String>, RequestError> {
    let path = fields.path("stop");
    match fields.take("stop") {
        None => Ok(Vec::new()),
        Some(Value::String(stop)) => Ok(vec![stop]),
        Some(Value::Array(stops)) => {
            let item = |(index, stop)| fields::string(stop, &format!("{path}[{index}]"));
            stops.into_iter().enumerate().map(item).collect()
        }
        Some(other) => Err(wrong_type(&path, "a string or an array of strings", &other)),
    }
}

/// As vLLM has it, -1 keeps all tokens as 0 does.
fn top_k(fields: &mut Fields) -> Result<Option<u32>, RequestError> {
    let path = fields.path("top_k");
    match fields.take("top_k") {
        None => Ok(None),
        Some(value) if value.as_i64() == Some(-1) => Ok(Some(0)),
        Some(value) => fields::count(&value, &path).map(Some),
    }
}

/// Any 64-bit number; negative ones count from the top.
fn seed(fields: &mut Fields) -> Result<Option<u64>, RequestError> {
    let path = fields.path("seed");
    let Some(value) = fields.take("seed") else { return Ok(None) };
    let seed = value.as_u64().or_else(|| value.as_i64().map(|seed| seed as u64));
    seed.map(Some).ok_or_else(|| RequestError::invalid(&path, format_args!("{value} is not a 64-bit whole number")))
}

/// Token ids, written as strings, to biases.
fn logit_bias(fields: &mut Fields) -> Result<Option<Vec<(TokenId, f32)>>, RequestError> {
    let path = fields.path("logit_bias");
    let Some(biases) = fields.object("logit_bias")? else { return Ok(None) };
    let entry = |(id, bias): (String, Value)| {
        let token = id.parse().map_err(|_| RequestError::invalid(&path, format_args!("{id:?} is not a token id")))?;
        Ok((token, fields::number(&bias, &format!("{path}.{id}"))?))
    };
    biases.rest().into_iter().map(entry).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(body: Value) -> Fields {
        Fields::parse(body.to_string().as_bytes()).expect("an object")
    }

    fn r1() -> SamplingParams {
        SamplingParams { temperature: 0.6, top_p: 0.95, ..SamplingParams::default() }
    }

    #[test]
    fn requests_override_defaults() {
        let check = |body: Value, edit: fn(&mut SamplingParams)| {
            let mut expected = r1();
            edit(&mut expected);
            assert_eq!(sampling(&mut fields(body.clone()), &r1()), Ok(expected), "{body}");
        };
        check(json!({}), |_| ());
        check(json!({"temperature": null, "seed": null, "logit_bias": null}), |_| ());
        check(json!({"temperature": 0}), |p| p.temperature = 0.0);
        check(json!({"top_p": 1}), |p| p.top_p = 1.0);
        check(json!({"top_k": 40}), |p| p.top_k = 40);
        check(json!({"top_k": -1}), |p| p.top_k = 0);
        check(json!({"min_p": 0.25}), |p| p.min_p = 0.25);
        check(json!({"repetition_penalty": 1.5}), |p| p.repetition_penalty = 1.5);
        check(json!({"presence_penalty": -1}), |p| p.presence_penalty = -1.0);
        check(json!({"frequency_penalty": 0.5}), |p| p.frequency_penalty = 0.5);
        check(json!({"seed": u64::MAX}), |p| p.seed = Some(u64::MAX));
        check(json!({"seed": -1}), |p| p.seed = Some(u64::MAX));
        check(json!({"logit_bias": {"7": -100, "3": 1.5}}), |p| p.logit_bias = vec![(7, -100.0), (3, 1.5)]);
    }

    #[test]
    fn wrong_values_are_named() {
        let check = |body: Value, field: &str| {
            let mut fields = fields(body);
            let read = sampling(&mut fields, &r1()).map(drop).and_then(|()| stop_conditions(&mut fields).map(drop));
            let error = read.and_then(|()| stop_strings(&mut fields).map(drop)).expect_err(field);
            assert!(error.to_string().starts_with(&format!("{field}: ")), "{error}");
        };
        for field in ["temperature", "top_p", "min_p", "top_k", "repetition_penalty", "presence_penalty", "seed"] {
            check(json!({field: "1"}), field);
            check(json!({field: [1]}), field);
        }
        check(json!({"seed": 0.5}), "seed");
        check(json!({"top_k": -2}), "top_k");
        check(json!({"logit_bias": [1]}), "logit_bias");
        check(json!({"logit_bias": {"x": 1}}), "logit_bias");
        check(json!({"logit_bias": {"3": "x"}}), "logit_bias.3");
        check(json!({"max_tokens": -1}), "max_tokens");
        check(json!({"max_completion_tokens": 5_000_000_000u64}), "max_completion_tokens");
        check(json!({"stop_token_ids": ["x"]}), "stop_token_ids");
        check(json!({"ignore_eos": 1}), "ignore_eos");
        check(json!({"stop": 7}), "stop");
        check(json!({"stop": ["a", 7]}), "stop[1]");
    }

    #[test]
    fn ends_are_read() {
        let check = |body: Value, max_tokens: Option<u32>, stop: &[&str]| {
            let mut fields = fields(body);
            assert_eq!(stop_conditions(&mut fields).map(|s| s.max_tokens), Ok(max_tokens));
            assert_eq!(stop_strings(&mut fields), Ok(stop.iter().map(|s| s.to_string()).collect()));
        };
        check(json!({}), None, &[]);
        check(json!({"max_tokens": 0, "stop": "a"}), Some(0), &["a"]);
        check(json!({"max_tokens": 5, "max_completion_tokens": 9, "stop": ["a", "b"]}), Some(9), &["a", "b"]);
    }
}
