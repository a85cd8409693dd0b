//! Conversations.

use lingqu_serving::{RequestError, check_call};
use lingqu_tokenizer::ChatMessage;
use serde_json::Value;

use crate::fields::{Fields, wrong_type};

const MESSAGES_MAX: usize = 2048;
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Reads `messages`.
pub fn messages(fields: &mut Fields) -> Result<Vec<ChatMessage>, RequestError> {
    let messages = fields.array("messages")?.ok_or_else(|| fields.invalid("messages", "is needed"))?;
    if messages.is_empty() {
        return Err(fields.invalid("messages", "holds no message"));
    }
    if messages.len() > MESSAGES_MAX {
        return Err(RequestError::too_many("messages", messages.len(), MESSAGES_MAX));
    }
    let read = |(index, value)| message(Fields::of(value, &format!("messages[{index}]"))?);
    messages.into_iter().enumerate().map(read).collect()
}

fn message(mut fields: Fields) -> Result<ChatMessage, RequestError> {
    let role = fields.needed_string("role")?;
    if !ROLES.contains(&role.as_str()) {
        return Err(fields.invalid("role", format_args!("not one of {}", ROLES.join(", "))));
    }
    let reasoning = fields.string("reasoning_content")?;
    let message = ChatMessage {
        content: content(&mut fields)?,
        reasoning_content: reasoning.or(fields.string("reasoning")?),
        name: fields.string("name")?,
        tool_calls: tool_calls(&mut fields)?,
        tool_call_id: fields.string("tool_call_id")?,
        // What OpenAI's younger models call the system's voice.
        role: if role == "developer" { "system".into() } else { role },
    };
    let is_assistant = message.role == "assistant";
    let only = |name: &str| Err(fields.invalid(name, "only an assistant's message may have it"));
    match () {
        () if message.reasoning_content.is_some() && !is_assistant => only("reasoning_content"),
        () if !message.tool_calls.is_empty() && !is_assistant => only("tool_calls"),
        () if message.content.is_none() && !is_assistant => Err(fields.invalid("content", "is needed")),
        () => Ok(message),
    }
}

/// A string, or parts of text, which stand on lines of their own.
fn content(fields: &mut Fields) -> Result<Option<String>, RequestError> {
    let path = fields.path("content");
    let parts = match fields.take("content") {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text)),
        Some(Value::Array(parts)) => parts,
        Some(other) => return Err(wrong_type(&path, "a string or an array of parts", &other)),
    };
    let text = |(index, part): (usize, Value)| {
        let mut part = Fields::of(part, &format!("{path}[{index}]"))?;
        match part.needed_string("type")?.as_str() {
            "text" => part.needed_string("text"),
            other => Err(part.invalid("type", format_args!("this model reads text only, not {other:?}"))),
        }
    };
    let texts: Vec<String> = parts.into_iter().enumerate().map(text).collect::<Result<_, _>>()?;
    Ok(Some(texts.join("\n")))
}

/// An assistant's earlier calls, as the template is given them.
fn tool_calls(fields: &mut Fields) -> Result<Vec<Value>, RequestError> {
    let path = fields.path("tool_calls");
    let calls = fields.array("tool_calls")?.unwrap_or_default();
    for (index, call) in calls.iter().enumerate() {
        let field = format!("{path}[{index}]");
        match call {
            Value::Object(_) => check_call(&field, call)?,
            other => return Err(wrong_type(&field, "an object", other)),
        }
    }
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(list: Value) -> Result<Vec<ChatMessage>, RequestError> {
        messages(&mut Fields::parse(json!({"messages": list}).to_string().as_bytes()).expect("an object"))
    }

    #[test]
    fn conversations_keep_their_parts() {
        let check = |message: Value, expected: ChatMessage| {
            assert_eq!(read(json!([message])), Ok(vec![expected]), "{message}");
        };
        let plain = ChatMessage::new;
        check(json!({"role": "user", "content": "x"}), plain("user", "x"));
        check(json!({"role": "developer", "content": "x"}), plain("system", "x"));
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        check(json!({"role": "system", "content": parts}), plain("system", "a\nb"));
        let named = ChatMessage { name: Some("li".into()), ..plain("user", "x") };
        check(json!({"role": "user", "content": "x", "name": "li", "novelty": 1}), named);
        let thought = ChatMessage { reasoning_content: Some("hm".into()), ..plain("assistant", "x") };
        check(json!({"role": "assistant", "content": "x", "reasoning_content": "hm"}), thought.clone());
        check(json!({"role": "assistant", "content": "x", "reasoning": "hm"}), thought);
        let call = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
        let calls = ChatMessage { content: None, tool_calls: vec![call.clone()], ..plain("assistant", "") };
        check(json!({"role": "assistant", "content": null, "tool_calls": [call]}), calls);
        let result = ChatMessage { tool_call_id: Some("c1".into()), ..plain("tool", "42") };
        check(json!({"role": "tool", "tool_call_id": "c1", "content": "42"}), result);
    }

    #[test]
    fn bad_conversations_are_refused_by_field() {
        let check = |list: Value, field: &str| {
            let error = read(list).expect_err(field);
            assert!(error.to_string().starts_with(&format!("{field}: ")), "{error}");
        };
        let user = json!({"role": "user", "content": "x"});
        check(Value::Null, "messages");
        check(json!("hello"), "messages");
        check(json!([]), "messages");
        check(json!(vec![&user; MESSAGES_MAX + 1]), "messages");
        check(json!([user, "x"]), "messages[1]");
        check(json!([user, {"content": "x"}]), "messages[1].role");
        check(json!([{"role": "function", "content": "x"}]), "messages[0].role");
        check(json!([{"role": "user"}]), "messages[0].content");
        check(json!([{"role": "user", "content": {"a": 1}}]), "messages[0].content");
        check(json!([{"role": "user", "content": ["x"]}]), "messages[0].content[0]");
        let image = json!({"type": "image_url", "image_url": {"url": "x"}});
        check(json!([{"role": "user", "content": [image]}]), "messages[0].content[0].type");
        check(json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text");
        check(json!([{"role": "user", "content": "x", "reasoning_content": "hm"}]), "messages[0].reasoning_content");
        let call = |function: Value| json!([{"role": "assistant", "tool_calls": [{"function": function}]}]);
        check(call(Value::Null), "messages[0].tool_calls[0].function");
        check(call(json!({"arguments": "{}"})), "messages[0].tool_calls[0].function.name");
        check(call(json!({"name": "f", "arguments": 7})), "messages[0].tool_calls[0].function.arguments");
        check(
            json!([{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]),
            "messages[0].tool_calls",
        );
    }
}
