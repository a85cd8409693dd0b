//! Prompts, conversations and token ids to the tokens that the engine is given.

use lingqu_tokenizer::{ChatMessage, ChatTemplate, ChatTemplateError, EncodeOptions, RenderOptions, Tokenizer};
use lingqu_types::TokenId;

use crate::RequestError;

/// Of a prompt or a rendered conversation: several times what the longest context takes.
const TEXT_BYTES_MAX: usize = 2 << 20;

/// What is to be continued or answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Text, continued as it stands.
    Text { text: String, options: EncodeOptions },
    /// A conversation, put into the model's own template.
    Chat { messages: Vec<ChatMessage>, options: RenderOptions },
    /// Tokens, taken as they are.
    Tokens(Vec<TokenId>),
}

/// An input in tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    pub ids: Vec<TokenId>,
    /// The text that was encoded, a conversation in its template; of tokens, as much of their end as tells whether the
    /// prompt opens the thinking.
    pub text: String,
}

/// Tokens at the end of an input that tell whether it opens the thinking.
const TAIL_TOKENS: usize = 16;

impl Input {
    /// Nothing is to be encoded: no need for another thread.
    pub(crate) fn is_encoded(&self) -> bool {
        matches!(self, Self::Tokens(_))
    }

    /// Renders and encodes. Takes up to seconds for megabytes of text: not for a thread that serves connections.
    ///
    /// # Errors
    /// Name `field`.
    pub fn encode(self, tokenizer: &Tokenizer, field: &str) -> Result<Encoded, RequestError> {
        let (text, options) = match self {
            Self::Tokens(ids) => {
                let text = tokenizer.decode(&ids[ids.len().saturating_sub(TAIL_TOKENS)..], false);
                return Ok(Encoded { ids, text });
            }
            Self::Text { text, options } => (text, options),
            Self::Chat { messages, options } => {
                let template = tokenizer.chat_template().ok_or_else(|| {
                    RequestError::Unsupported(format!("{field}: this model has no chat template; use a plain prompt"))
                })?;
                let messages = if wants_objects(template) { with_objects(messages) } else { messages };
                let text = template.render(&messages, &options).map_err(|e| template_error(field, &e))?;
                (text, EncodeOptions::CHAT)
            }
        };
        if text.len() > TEXT_BYTES_MAX {
            let problem = format!("{} bytes of text are more than {TEXT_BYTES_MAX}", text.len());
            return Err(RequestError::invalid(field, problem));
        }
        let ids = tokenizer.encode(&text, options).map_err(|e| RequestError::invalid(field, e))?;
        Ok(Encoded { ids, text })
    }
}

/// Some templates print the arguments of earlier calls as JSON themselves: they want an object, not its text.
fn wants_objects(template: &ChatTemplate) -> bool {
    let squeezed: String = template.source().chars().filter(|c| !c.is_whitespace()).collect();
    squeezed.contains("arguments|tojson")
}

/// Arguments that were given as text, which clients do, as what the text says.
fn with_objects(mut messages: Vec<ChatMessage>) -> Vec<ChatMessage> {
    for call in messages.iter_mut().flat_map(|message| &mut message.tool_calls) {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        if let Some(object) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok()) {
            *arguments = object;
        }
    }
    messages
}

fn template_error(field: &str, error: &ChatTemplateError) -> RequestError {
    match error {
        ChatTemplateError::Raised(_) | ChatTemplateError::Limit(_) => RequestError::invalid(field, error),
        ChatTemplateError::Syntax(_) | ChatTemplateError::Render(_) => {
            RequestError::Unsupported(format!("{field}: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn arguments_are_what_the_template_prints() {
        let check = |source: &str, arguments: serde_json::Value| {
            let template = ChatTemplate::new(source).expect("valid");
            let call = json!({"function": {"name": "f", "arguments": "{\"b\": 1, \"a\": 2}"}});
            let message = ChatMessage { tool_calls: vec![call], ..ChatMessage::new("assistant", "") };
            let messages = if wants_objects(&template) { with_objects(vec![message]) } else { vec![message] };
            assert_eq!(messages[0].tool_calls[0]["function"]["arguments"], arguments, "{source}");
        };
        check("{{ tool_call.arguments | tojson }}", json!({"b": 1, "a": 2}));
        check("{{ tool.function.arguments|tojson }}", json!({"b": 1, "a": 2}));
        check("{{ 'x' + tool['function']['arguments'] }}", json!("{\"b\": 1, \"a\": 2}"));
    }
}
