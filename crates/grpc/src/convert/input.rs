//! Prompts and conversations of the wire as inputs.

use lingqu_proto::v1;
use lingqu_serving::Input;
use lingqu_tokenizer::{ChatMessage, EncodeOptions, RenderOptions};
use tonic::Status;

use super::tools::earlier_calls;
use crate::status::{invalid, too_many};

const MESSAGES_MAX: usize = 2048;
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// Plain text; absent options are true.
pub fn plain(text: String, add_special_tokens: Option<bool>, parse_special: Option<bool>) -> Input {
    let options = EncodeOptions {
        add_special_tokens: add_special_tokens.unwrap_or(true),
        parse_special: parse_special.unwrap_or(true),
    };
    Input::Text { text, options }
}

/// A conversation.
pub fn chat(chat: v1::Chat) -> Result<Input, Status> {
    let v1::Chat { messages, add_generation_prompt } = chat;
    if messages.is_empty() {
        return Err(invalid("chat.messages", "holds no message"));
    }
    if messages.len() > MESSAGES_MAX {
        return Err(too_many("chat.messages", messages.len(), MESSAGES_MAX));
    }
    let messages = messages.into_iter().enumerate().map(|(i, m)| message(i, m)).collect::<Result<_, _>>()?;
    let options =
        RenderOptions { add_generation_prompt: add_generation_prompt.unwrap_or(true), ..RenderOptions::default() };
    Ok(Input::Chat { messages, options })
}

fn message(index: usize, message: v1::ChatMessage) -> Result<ChatMessage, Status> {
    let v1::ChatMessage { role, content, reasoning_content, tool_calls, tool_call_id, name } = message;
    let path = |field: &str| format!("chat.messages[{index}].{field}");
    if !ROLES.contains(&role.as_str()) {
        return Err(invalid(&path("role"), format_args!("not one of {}", ROLES.join(", "))));
    }
    for (field, is_there) in
        [("reasoning_content", reasoning_content.is_some()), ("tool_calls", !tool_calls.is_empty())]
    {
        if is_there && role != "assistant" {
            return Err(invalid(&path(field), "only an assistant's message may have it"));
        }
    }
    let tool_calls = earlier_calls(&path("tool_calls"), &tool_calls)?;
    let content = (!content.is_empty() || tool_calls.is_empty()).then_some(content);
    Ok(ChatMessage { role, content, reasoning_content, name, tool_calls, tool_call_id })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(role: &str, reasoning: Option<&str>) -> v1::ChatMessage {
        let reasoning_content = reasoning.map(str::to_owned);
        v1::ChatMessage { role: role.into(), content: "x".into(), reasoning_content, ..Default::default() }
    }

    #[test]
    fn bad_conversations_are_refused_by_field() {
        let check = |messages: Vec<v1::ChatMessage>, field: &str| {
            let error = chat(v1::Chat { messages, add_generation_prompt: None }).expect_err(field);
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().starts_with(&format!("{field}:")), "{}", error.message());
        };
        check(vec![], "chat.messages");
        check(vec![turn("user", None); MESSAGES_MAX + 1], "chat.messages");
        check(vec![turn("user", None), turn("", None)], "chat.messages[1].role");
        check(vec![turn("User", None)], "chat.messages[0].role");
        check(vec![turn("user", Some("hm"))], "chat.messages[0].reasoning_content");
        let calls = |role: &str, call: &str| v1::ChatMessage { tool_calls: vec![call.into()], ..turn(role, None) };
        check(vec![calls("user", r#"{"function": {"name": "f"}}"#)], "chat.messages[0].tool_calls");
        check(vec![turn("user", None), calls("assistant", "{")], "chat.messages[1].tool_calls[0]");
    }

    #[test]
    fn conversations_keep_their_parts() {
        let check = |message: v1::ChatMessage, expected: ChatMessage| {
            let wire = v1::Chat { messages: vec![message], add_generation_prompt: Some(false) };
            let got = chat(wire).expect("valid");
            assert_eq!(got, Input::Chat { messages: vec![expected], options: RenderOptions::default() });
        };
        let thought = ChatMessage { reasoning_content: Some("hm".into()), ..ChatMessage::new("assistant", "x") };
        check(turn("assistant", Some("hm")), thought);
        let call = serde_json::json!({"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}});
        let calls =
            v1::ChatMessage { content: String::new(), tool_calls: vec![call.to_string()], ..turn("assistant", None) };
        let expected = ChatMessage { content: None, tool_calls: vec![call], ..ChatMessage::new("assistant", "") };
        check(calls, expected);
        let (id, name) = (Some("c1".to_owned()), Some("f".to_owned()));
        let result = v1::ChatMessage { tool_call_id: id.clone(), name: name.clone(), ..turn("tool", None) };
        check(result, ChatMessage { tool_call_id: id, name, ..ChatMessage::new("tool", "x") });
    }
}
