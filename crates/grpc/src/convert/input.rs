//! Prompts and conversations of the wire as inputs.

use lingqu_proto::v1;
use lingqu_serving::Input;
use lingqu_tokenizer::{ChatMessage, EncodeOptions, RenderOptions};
use tonic::Status;

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
    let v1::ChatMessage { role, content, reasoning_content } = message;
    if !ROLES.contains(&role.as_str()) {
        let field = format!("chat.messages[{index}].role");
        return Err(invalid(&field, format_args!("not one of {}", ROLES.join(", "))));
    }
    if reasoning_content.is_some() && role != "assistant" {
        let field = format!("chat.messages[{index}].reasoning_content");
        return Err(invalid(&field, "only an assistant's message may have it"));
    }
    Ok(ChatMessage { reasoning_content, ..ChatMessage::new(role, content) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(role: &str, reasoning: Option<&str>) -> v1::ChatMessage {
        v1::ChatMessage { role: role.into(), content: "x".into(), reasoning_content: reasoning.map(str::to_owned) }
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
    }

    #[test]
    fn conversations_keep_their_parts() {
        let wire = v1::Chat { messages: vec![turn("assistant", Some("hm"))], add_generation_prompt: Some(false) };
        let expected = ChatMessage { reasoning_content: Some("hm".into()), ..ChatMessage::new("assistant", "x") };
        let got = chat(wire).expect("valid");
        assert_eq!(got, Input::Chat { messages: vec![expected], options: RenderOptions::default() });
    }
}
