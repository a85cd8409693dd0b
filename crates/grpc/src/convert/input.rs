//! Prompts, conversations and token ids to the tokens that the engine is given.

use lingqu_proto::v1;
use lingqu_tokenizer::{ChatMessage, ChatTemplateError, EncodeOptions, RenderOptions, Tokenizer, TokenizerError};
use lingqu_types::TokenId;
use tonic::Status;

use crate::status::{invalid, too_many};

const MESSAGES_MAX: usize = 2048;
/// Of a prompt or a rendered conversation: several times what the longest context takes.
const TEXT_BYTES_MAX: usize = 2 << 20;
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// Text to be encoded, checked as far as can be told without the tokenizer.
#[derive(Debug, PartialEq)]
pub enum TextInput {
    Plain { text: String, options: EncodeOptions },
    Chat { messages: Vec<ChatMessage>, add_generation_prompt: bool },
}

/// Encoded text.
#[derive(Debug, PartialEq)]
pub struct Encoded {
    pub ids: Vec<TokenId>,
    /// The text that was encoded: a conversation in its template.
    pub text: String,
}

/// Plain text; absent options are true.
pub fn plain(text: String, add_special_tokens: Option<bool>, parse_special: Option<bool>) -> TextInput {
    let options = EncodeOptions {
        add_special_tokens: add_special_tokens.unwrap_or(true),
        parse_special: parse_special.unwrap_or(true),
    };
    TextInput::Plain { text, options }
}

/// A conversation.
pub fn chat(chat: v1::Chat) -> Result<TextInput, Status> {
    let v1::Chat { messages, add_generation_prompt } = chat;
    if messages.is_empty() {
        return Err(invalid("chat.messages", "holds no message"));
    }
    if messages.len() > MESSAGES_MAX {
        return Err(too_many("chat.messages", messages.len(), MESSAGES_MAX));
    }
    let messages = messages.into_iter().enumerate().map(|(i, m)| message(i, m)).collect::<Result<_, _>>()?;
    Ok(TextInput::Chat { messages, add_generation_prompt: add_generation_prompt.unwrap_or(true) })
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

impl TextInput {
    /// The field of the request, for messages.
    pub fn field(&self, plain: &'static str) -> &'static str {
        match self {
            Self::Plain { .. } => plain,
            Self::Chat { .. } => "chat",
        }
    }

    /// Renders and encodes. Takes up to seconds for megabytes of text: not for a thread that serves connections.
    pub fn encode(self, tokenizer: &Tokenizer, plain_field: &'static str) -> Result<Encoded, Status> {
        let field = self.field(plain_field);
        let (text, options) = match self {
            Self::Plain { text, options } => (text, options),
            Self::Chat { messages, add_generation_prompt } => {
                let template = tokenizer.chat_template().ok_or_else(|| {
                    Status::failed_precondition("chat: this model has no chat template; use prompt or token_ids")
                })?;
                let options = RenderOptions { add_generation_prompt, ..RenderOptions::default() };
                (template.render(&messages, &options).map_err(template_error)?, EncodeOptions::CHAT)
            }
        };
        if text.len() > TEXT_BYTES_MAX {
            return Err(invalid(field, format_args!("{} bytes of text are more than {TEXT_BYTES_MAX}", text.len())));
        }
        let ids = tokenizer.encode(&text, options).map_err(|e| encode_error(field, &e))?;
        Ok(Encoded { ids, text })
    }
}

fn template_error(error: ChatTemplateError) -> Status {
    match error {
        ChatTemplateError::Raised(_) | ChatTemplateError::Limit(_) => invalid("chat.messages", error),
        ChatTemplateError::Syntax(_) | ChatTemplateError::Render(_) => {
            Status::failed_precondition(format!("chat: {error}"))
        }
    }
}

fn encode_error(field: &str, error: &TokenizerError) -> Status {
    invalid(field, error)
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
        assert_eq!(got, TextInput::Chat { messages: vec![expected], add_generation_prompt: false });
    }
}
