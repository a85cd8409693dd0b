//! Tools that the model may call, and calls that it made before: OpenAI's objects, as JSON.

use lingqu_grammar::{ToolFunction, limits};
use lingqu_serving::{ToolChoice, Tools, check_call, tool_function};
use serde_json::Value;
use tonic::Status;

use crate::status::{invalid, status, too_many};

/// Of one turn.
const CALLS_MAX: usize = 128;

/// Reads `tools`, `tool_choice` and `tool_choice_function`. Gives the tools for the template too, as they came; there
/// are none if the model may not call any.
pub fn tools(listed: &[String], choice: &str, function: &str) -> Result<(Option<Tools>, Vec<Value>), Status> {
    const NAMED: &str = "tool_choice_function";
    let choice = match (choice, function) {
        ("none", "") => None,
        ("" | "auto", "") => Some(ToolChoice::Auto),
        ("required", "") => Some(ToolChoice::Required),
        (_, "") => return Err(invalid("tool_choice", "not one of none, auto, required")),
        ("", name) => Some(ToolChoice::Named(name.to_owned())),
        _ => return Err(invalid(NAMED, "cannot be together with tool_choice")),
    };
    if listed.is_empty() {
        return match choice {
            None | Some(ToolChoice::Auto) => Ok((None, Vec::new())),
            Some(ToolChoice::Required) => Err(invalid("tool_choice", "needs tools")),
            Some(ToolChoice::Named(_)) => Err(invalid(NAMED, "needs tools")),
        };
    }
    if listed.len() > limits::TOOLS_MAX {
        return Err(too_many("tools", listed.len(), limits::TOOLS_MAX));
    }
    let read = |(index, text): (usize, &String)| tool(&format!("tools[{index}]"), text);
    let read: Vec<(ToolFunction, Value)> = listed.iter().enumerate().map(read).collect::<Result<_, _>>()?;
    let (functions, listed): (Vec<_>, Vec<_>) = read.into_iter().unzip();
    match choice {
        None => Ok((None, Vec::new())),
        Some(ToolChoice::Named(name)) if functions.iter().all(|f: &ToolFunction| f.name != name) => {
            Err(invalid(NAMED, "names none of the tools"))
        }
        Some(choice) => Ok((Some(Tools { functions, choice, parallel: true }), listed)),
    }
}

/// An assistant's earlier calls, as the template is given them.
pub fn earlier_calls(field: &str, calls: &[String]) -> Result<Vec<Value>, Status> {
    if calls.len() > CALLS_MAX {
        return Err(too_many(field, calls.len(), CALLS_MAX));
    }
    let read = |(index, text): (usize, &String)| {
        let field = format!("{field}[{index}]");
        let call: Value = serde_json::from_str(text).map_err(|e| invalid(&field, e))?;
        check_call(&field, &call).map_err(status)?;
        Ok(call)
    };
    calls.iter().enumerate().map(read).collect()
}

fn tool(field: &str, text: &str) -> Result<(ToolFunction, Value), Status> {
    let tool: Value = serde_json::from_str(text).map_err(|e| invalid(field, e))?;
    Ok((tool_function(field, &tool).map_err(status)?, tool))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: &str = r#"{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}"#;

    #[test]
    fn tools_are_read() {
        let check = |(choice, function): (&str, &str), expected: Option<ToolChoice>| {
            let (tools, listed) = tools(&[LOOK.into()], choice, function).expect("valid");
            assert_eq!(listed.len(), usize::from(expected.is_some()), "{choice} {function}");
            assert_eq!(tools.map(|tools| tools.choice), expected, "{choice} {function}");
        };
        check(("", ""), Some(ToolChoice::Auto));
        check(("auto", ""), Some(ToolChoice::Auto));
        check(("required", ""), Some(ToolChoice::Required));
        check(("", "look"), Some(ToolChoice::Named("look".into())));
        check(("none", ""), None);
        for choice in ["", "auto", "none"] {
            assert_eq!(tools(&[], choice, "").expect("valid"), (None, Vec::new()));
        }
        let bare = tools(&[r#"{"function": {"name": "f"}}"#.into()], "", "").expect("valid").0.expect("tools");
        assert_eq!(bare.functions, [ToolFunction { name: "f".into(), parameters: Value::Null }]);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let named = |error: Status, field: &str| {
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().starts_with(&format!("{field}: ")), "{}", error.message());
        };
        let check = |listed: &[&str], (choice, function): (&str, &str), field: &str| {
            let listed: Vec<String> = listed.iter().map(|&text| text.to_owned()).collect();
            named(tools(&listed, choice, function).expect_err(field), field);
        };
        check(&["{"], ("", ""), "tools[0]");
        check(&[LOOK, "7"], ("", ""), "tools[1].function");
        check(&[r#"{"type": "web_search"}"#], ("", ""), "tools[0].type");
        check(&[r#"{"function": {}}"#], ("", ""), "tools[0].function.name");
        check(&[r#"{"function": {"name": "f", "parameters": 7}}"#], ("", ""), "tools[0].function.parameters");
        check(&[LOOK; limits::TOOLS_MAX + 1], ("", ""), "tools");
        check(&[LOOK], ("maybe", ""), "tool_choice");
        check(&[LOOK], ("", "fly"), "tool_choice_function");
        check(&[LOOK], ("required", "look"), "tool_choice_function");
        check(&[], ("required", ""), "tool_choice");
        check(&[], ("", "look"), "tool_choice_function");
        let call = |text: &str, field: &str| named(earlier_calls("c", &[text.to_owned()]).expect_err(field), field);
        call("", "c[0]");
        call("{}", "c[0].function");
        call(r#"{"function": {"arguments": "{}"}}"#, "c[0].function.name");
        call(r#"{"function": {"name": "f", "arguments": 7}}"#, "c[0].function.arguments");
        named(earlier_calls("c", &vec!["{}".to_owned(); CALLS_MAX + 1]).expect_err("many"), "c");
    }
}
