//! The form of the answer.

use lingqu_grammar::{GrammarSpec, limits};
use lingqu_proto::v1::generate_request::Format as Wire;
use lingqu_serving::Format;
use serde_json::Value;
use tonic::Status;

use crate::status::invalid;

/// The form that a request asks for, if any.
pub fn format(wire: Option<Wire>) -> Result<Option<Format>, Status> {
    let (field, spec) = match wire {
        None | Some(Wire::JsonObject(false)) => return Ok(None),
        Some(Wire::JsonObject(true)) => ("json_object", GrammarSpec::JsonObject),
        Some(Wire::JsonSchema(text)) => ("json_schema", json_schema("json_schema", &text)?),
        Some(Wire::Regex(text)) => ("regex", GrammarSpec::Regex(text)),
        Some(Wire::Choice(choice)) => ("choice", GrammarSpec::Choice(choice.options)),
        Some(Wire::Lark(text)) => ("lark", GrammarSpec::Lark(text)),
    };
    Ok(Some(Format { spec, field }))
}

/// A schema, written as JSON.
pub fn json_schema(field: &str, text: &str) -> Result<GrammarSpec, Status> {
    let (bytes, bytes_max) = (text.len(), limits::SPEC_BYTES_MAX);
    if bytes > bytes_max {
        return Err(invalid(field, format_args!("{bytes} bytes are more than {bytes_max}")));
    }
    match serde_json::from_str(text).map_err(|e| invalid(field, e))? {
        schema @ (Value::Object(_) | Value::Bool(_)) => Ok(GrammarSpec::JsonSchema(schema)),
        _ => Err(invalid(field, "a schema is a JSON object")),
    }
}

#[cfg(test)]
mod tests {
    use lingqu_proto::v1::Choice;
    use serde_json::json;

    use super::*;

    #[test]
    fn forms_are_read() {
        let check = |wire: Wire, field: &'static str, spec: GrammarSpec| {
            assert_eq!(format(Some(wire)).expect(field), Some(Format { spec, field }));
        };
        check(Wire::JsonObject(true), "json_object", GrammarSpec::JsonObject);
        let schema = json!({"type": "object"});
        check(Wire::JsonSchema(schema.to_string()), "json_schema", GrammarSpec::JsonSchema(schema));
        check(Wire::Regex("a+".into()), "regex", GrammarSpec::Regex("a+".into()));
        let either = vec!["yes".to_owned(), "no".to_owned()];
        check(Wire::Choice(Choice { options: either.clone() }), "choice", GrammarSpec::Choice(either));
        check(Wire::Lark("start: \"a\"".into()), "lark", GrammarSpec::Lark("start: \"a\"".into()));
        assert_eq!(format(None).expect("valid"), None);
        assert_eq!(format(Some(Wire::JsonObject(false))).expect("valid"), None);
    }

    #[test]
    fn schemas_that_are_none_are_refused() {
        let check = |text: &str| {
            let error = format(Some(Wire::JsonSchema(text.into()))).expect_err("no schema");
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().starts_with("json_schema: "), "{}", error.message());
        };
        for text in ["", "{", "[1]", "7", &"[".repeat(1000), &" ".repeat(limits::SPEC_BYTES_MAX + 1)] {
            check(text);
        }
    }
}
