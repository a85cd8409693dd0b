//! The form of the answer: OpenAI's `response_format`, vLLM's `guided_…` and `structured_outputs`.

use lingqu_grammar::GrammarSpec;
use lingqu_serving::{Format, RequestError};
use serde_json::Value;

use crate::fields::{self, Fields, wrong_type};

/// Reads the form that was asked for, if any; more than one is an error.
pub fn format(fields: &mut Fields) -> Result<Option<Format>, RequestError> {
    let forms = [
        ("response_format", response_format(fields)?),
        ("guided_json", schema(fields, "guided_json")?),
        ("guided_regex", fields.string("guided_regex")?.map(GrammarSpec::Regex)),
        ("guided_choice", choice(fields, "guided_choice")?),
        ("guided_grammar", fields.string("guided_grammar")?.map(GrammarSpec::Lark)),
        ("structured_outputs", structured_outputs(fields)?),
    ];
    let mut given = forms.into_iter().filter_map(|(field, spec)| Some(Format { spec: spec?, field }));
    match (given.next(), given.next()) {
        (Some(first), Some(second)) => {
            Err(RequestError::invalid(second.field, format_args!("cannot be together with {}", first.field)))
        }
        (first, _) => Ok(first),
    }
}

fn response_format(fields: &mut Fields) -> Result<Option<GrammarSpec>, RequestError> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(None) };
    match format.needed_string("type")?.as_str() {
        "text" => Ok(None),
        "json_object" => Ok(Some(GrammarSpec::JsonObject)),
        "json_schema" => {
            let mut named = format.object("json_schema")?.ok_or_else(|| format.invalid("json_schema", "is needed"))?;
            schema(&mut named, "schema")?.map(Some).ok_or_else(|| named.invalid("schema", "is needed"))
        }
        other => Err(format.invalid("type", format_args!("{other:?} is not one of text, json_object, json_schema"))),
    }
}

/// vLLM's younger object, with one field.
fn structured_outputs(fields: &mut Fields) -> Result<Option<GrammarSpec>, RequestError> {
    let Some(mut form) = fields.object("structured_outputs")? else { return Ok(None) };
    let json_object = form.flag("json_object")?.unwrap_or(false).then_some(GrammarSpec::JsonObject);
    let forms = [
        json_object,
        schema(&mut form, "json")?,
        form.string("regex")?.map(GrammarSpec::Regex),
        choice(&mut form, "choice")?,
        form.string("grammar")?.map(GrammarSpec::Lark),
    ];
    let mut given = forms.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(spec), None) => Ok(Some(spec)),
        _ => Err(fields.invalid("structured_outputs", "needs one of json, json_object, regex, choice, grammar")),
    }
}

/// A schema, maybe written as a string.
fn schema(fields: &mut Fields, name: &str) -> Result<Option<GrammarSpec>, RequestError> {
    let schema = match fields.take(name) {
        None => return Ok(None),
        Some(Value::String(text)) => serde_json::from_str(&text).map_err(|e| fields.invalid(name, e))?,
        Some(schema) => schema,
    };
    match schema {
        Value::Object(_) | Value::Bool(_) => Ok(Some(GrammarSpec::JsonSchema(schema))),
        other => Err(wrong_type(&fields.path(name), "a JSON schema", &other)),
    }
}

fn choice(fields: &mut Fields, name: &str) -> Result<Option<GrammarSpec>, RequestError> {
    let path = fields.path(name);
    let Some(items) = fields.array(name)? else { return Ok(None) };
    let item = |(index, item)| fields::string(item, &format!("{path}[{index}]"));
    let choices = items.into_iter().enumerate().map(item).collect::<Result<_, _>>()?;
    Ok(Some(GrammarSpec::Choice(choices)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: Value) -> Result<Option<Format>, RequestError> {
        format(&mut Fields::parse(body.to_string().as_bytes()).expect("an object"))
    }

    #[test]
    fn forms_are_read() {
        let check = |body: Value, field: &str, spec: GrammarSpec| {
            let format = read(body.clone()).expect("valid").expect("a form");
            assert_eq!((format.field, format.spec), (field, spec), "{body}");
        };
        let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}});
        let by_schema = || GrammarSpec::JsonSchema(schema.clone());
        let named = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
        check(json!({"response_format": named}), "response_format", by_schema());
        check(json!({"response_format": {"type": "json_object"}}), "response_format", GrammarSpec::JsonObject);
        check(json!({"guided_json": schema}), "guided_json", by_schema());
        check(json!({"guided_json": schema.to_string()}), "guided_json", by_schema());
        check(json!({"guided_regex": "[0-9]+"}), "guided_regex", GrammarSpec::Regex("[0-9]+".into()));
        let either = || GrammarSpec::Choice(vec!["yes".into(), "no".into()]);
        check(json!({"guided_choice": ["yes", "no"]}), "guided_choice", either());
        check(json!({"guided_grammar": "start: \"x\""}), "guided_grammar", GrammarSpec::Lark("start: \"x\"".into()));
        let structured = |form: Value| json!({"structured_outputs": form});
        check(structured(json!({"json": schema})), "structured_outputs", by_schema());
        check(structured(json!({"choice": ["yes", "no"]})), "structured_outputs", either());
        check(structured(json!({"json_object": true})), "structured_outputs", GrammarSpec::JsonObject);
        for none in [json!({}), json!({"response_format": null}), json!({"response_format": {"type": "text"}})] {
            assert_eq!(read(none), Ok(None));
        }
    }

    #[test]
    fn forms_that_cannot_be_are_named() {
        let check = |body: Value, field: &str| {
            let error = read(body).expect_err(field);
            assert!(error.to_string().starts_with(&format!("{field}: ")), "{error}");
        };
        let response = |format: Value| json!({"response_format": format});
        check(response(json!("json")), "response_format");
        check(response(json!({})), "response_format.type");
        check(response(json!({"type": "xml"})), "response_format.type");
        check(response(json!({"type": "json_schema"})), "response_format.json_schema");
        check(response(json!({"type": "json_schema", "json_schema": {}})), "response_format.json_schema.schema");
        let listed = json!({"type": "json_schema", "json_schema": {"schema": [1]}});
        check(response(listed), "response_format.json_schema.schema");
        check(json!({"guided_json": "{"}), "guided_json");
        check(json!({"guided_json": 7}), "guided_json");
        check(json!({"guided_regex": 7}), "guided_regex");
        check(json!({"guided_choice": "yes"}), "guided_choice");
        check(json!({"guided_choice": ["yes", 1]}), "guided_choice[1]");
        check(json!({"guided_regex": "x", "guided_choice": ["x"]}), "guided_choice");
        check(json!({"structured_outputs": {}}), "structured_outputs");
        check(json!({"structured_outputs": {"regex": "x", "grammar": "y"}}), "structured_outputs");
    }
}
