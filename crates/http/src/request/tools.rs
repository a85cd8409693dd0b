//! Tools that the model may call.

use lingqu_grammar::ToolFunction;
use lingqu_serving::{RequestError, ToolChoice, Tools, tool_function};
use serde_json::Value;

use crate::fields::{Fields, wrong_type};

/// Reads `tools`, `tool_choice` and `parallel_tool_calls`. Gives the tools for the template too, as they came; there
/// are none if the model may not call any.
pub fn tools(fields: &mut Fields) -> Result<(Option<Tools>, Vec<Value>), RequestError> {
    let listed = fields.array("tools")?.unwrap_or_default();
    let parallel = fields.flag("parallel_tool_calls")?.unwrap_or(true);
    let choice = choice(fields)?;
    if listed.is_empty() {
        return match choice {
            None | Some(Choice::None | Choice::Calls(ToolChoice::Auto)) => Ok((None, Vec::new())),
            Some(Choice::Calls(_)) => Err(fields.invalid("tool_choice", "needs tools")),
        };
    }
    let read = |(index, tool): (usize, &Value)| function(&format!("tools[{index}]"), tool);
    let functions = listed.iter().enumerate().map(read).collect::<Result<_, _>>()?;
    match choice.unwrap_or(Choice::Calls(ToolChoice::Auto)) {
        Choice::None => Ok((None, Vec::new())),
        Choice::Calls(choice) => Ok((Some(Tools { functions, choice, parallel }), listed)),
    }
}

enum Choice {
    None,
    Calls(ToolChoice),
}

fn choice(fields: &mut Fields) -> Result<Option<Choice>, RequestError> {
    let path = fields.path("tool_choice");
    Ok(match fields.take("tool_choice") {
        None => None,
        Some(Value::String(word)) => Some(match word.as_str() {
            "none" => Choice::None,
            "auto" => Choice::Calls(ToolChoice::Auto),
            "required" => Choice::Calls(ToolChoice::Required),
            _ => return Err(RequestError::invalid(&path, "not one of none, auto, required, or a function")),
        }),
        Some(named @ Value::Object(_)) => {
            let mut named = Fields::of(named, &path)?;
            let mut function = named.object("function")?.ok_or_else(|| named.invalid("function", "is needed"))?;
            Some(Choice::Calls(ToolChoice::Named(function.needed_string("name")?)))
        }
        Some(other) => return Err(wrong_type(&path, "a string or an object", &other)),
    })
}

fn function(field: &str, tool: &Value) -> Result<ToolFunction, RequestError> {
    match tool {
        Value::Object(_) => tool_function(field, tool),
        other => Err(wrong_type(field, "an object", other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: Value) -> Result<(Option<Tools>, Vec<Value>), RequestError> {
        tools(&mut Fields::parse(body.to_string().as_bytes()).expect("an object"))
    }

    fn look() -> Value {
        json!({"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}})
    }

    #[test]
    fn tools_are_read() {
        let check = |fields: Value, expected: Option<(ToolChoice, bool)>| {
            let mut body = json!({"tools": [look()]});
            body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
            let (tools, listed) = read(body).expect("valid");
            assert_eq!(listed.len(), usize::from(expected.is_some()), "{fields}");
            assert_eq!(tools.map(|tools| (tools.choice, tools.parallel)), expected, "{fields}");
        };
        check(json!({}), Some((ToolChoice::Auto, true)));
        check(json!({"tool_choice": "auto"}), Some((ToolChoice::Auto, true)));
        check(json!({"tool_choice": "none"}), None);
        check(json!({"tool_choice": "required", "parallel_tool_calls": false}), Some((ToolChoice::Required, false)));
        let named = json!({"tool_choice": {"type": "function", "function": {"name": "look"}}});
        check(named, Some((ToolChoice::Named("look".into()), true)));
        for none in [json!({}), json!({"tools": []}), json!({"tool_choice": "auto"}), json!({"tool_choice": "none"})] {
            assert_eq!(read(none), Ok((None, Vec::new())));
        }
        let bare = read(json!({"tools": [{"function": {"name": "f"}}]})).expect("valid").0.expect("tools");
        assert_eq!(bare.functions, [ToolFunction { name: "f".into(), parameters: Value::Null }]);
    }

    #[test]
    fn tools_that_cannot_be_are_named() {
        let check = |body: Value, field: &str| {
            let error = read(body).expect_err(field);
            assert!(error.to_string().starts_with(&format!("{field}: ")), "{error}");
        };
        check(json!({"tools": {}}), "tools");
        check(json!({"tools": [7]}), "tools[0]");
        check(json!({"tools": [{"type": "web_search"}]}), "tools[0].type");
        check(json!({"tools": [{"type": "function"}]}), "tools[0].function");
        check(json!({"tools": [look(), {"function": {}}]}), "tools[1].function.name");
        check(json!({"tools": [{"function": {"name": "f", "parameters": 7}}]}), "tools[0].function.parameters");
        check(json!({"tools": [look()], "tool_choice": "maybe"}), "tool_choice");
        check(json!({"tools": [look()], "tool_choice": {"type": "function"}}), "tool_choice.function");
        check(json!({"tool_choice": "required"}), "tool_choice");
        check(json!({"tools": [look()], "parallel_tool_calls": 1}), "parallel_tool_calls");
    }
}
