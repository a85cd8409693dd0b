//! Log-probabilities in OpenAI's two forms: the chat's, and the older one of plain completions.

use lingqu_engine::PromptLogprobs;
use lingqu_tokenizer::Tokenizer;
use lingqu_types::request::TopLogprobs;
use lingqu_types::{TokenId, TokenOutput};
use serde_json::{Map, Value, json};

/// What stands for the logarithm of nothing, which JSON cannot write.
const LOGPROB_MIN: f32 = -9999.0;

/// The chat's form: `null` unless they were asked for.
pub fn of_chat(tokenizer: &Tokenizer, tokens: &[TokenOutput]) -> Value {
    let entry = |id: TokenId, logprob: f32| {
        let bytes = tokenizer.token_bytes(id);
        json!({"token": tokenizer.decode(&[id], false), "logprob": finite(logprob), "bytes": bytes})
    };
    let content: Vec<Value> = tokens
        .iter()
        .filter_map(|token| {
            let mut value = entry(token.token, token.logprob?);
            value["top_logprobs"] = token.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
            Some(value)
        })
        .collect();
    if content.is_empty() { Value::Null } else { json!({"content": content, "refusal": null}) }
}

/// The older form: four lists alike in length. Offsets count characters from the beginning of the text.
#[derive(Default)]
pub struct Columns {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

impl Columns {
    /// `offset`: characters told before; it moves on.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: Position<'_>, offset: &mut usize) {
        let text = token_text(tokenizer, token.id);
        self.text_offset.push(*offset);
        *offset += text.chars().count();
        let mut top: Map<String, Value> =
            token.top.iter().map(|&(id, logprob)| (token_text(tokenizer, id), json!(finite(logprob)))).collect();
        self.top_logprobs.push(match token.logprob {
            None => Value::Null,
            Some(logprob) => {
                // The chosen token is always among them, as OpenAI has it.
                top.entry(text.clone()).or_insert_with(|| json!(finite(logprob)));
                Value::Object(top)
            }
        });
        self.token_logprobs.push(token.logprob.map(finite));
        self.tokens.push(text);
    }

    /// Generated tokens.
    pub fn push_outputs(&mut self, tokenizer: &Tokenizer, tokens: &[TokenOutput], offset: &mut usize) {
        for token in tokens.iter().filter(|token| token.logprob.is_some()) {
            self.push(tokenizer, Position { id: token.token, logprob: token.logprob, top: &token.top }, offset);
        }
    }

    /// A prompt. `scores.top[t]` stands for what may follow position `t`; here a position has its own alternatives.
    pub fn push_prompt(&mut self, tokenizer: &Tokenizer, ids: &[TokenId], scores: &PromptLogprobs, offset: &mut usize) {
        let none = TopLogprobs::new();
        let tops = std::iter::once(&none).chain(&scores.top);
        for ((&id, &logprob), top) in ids.iter().zip(&scores.logprobs).zip(tops) {
            self.push(tokenizer, Position { id, logprob, top }, offset);
        }
    }

    /// `null` if there is none.
    pub fn json(self) -> Value {
        let Self { tokens, token_logprobs, top_logprobs, text_offset } = self;
        if tokens.is_empty() {
            return Value::Null;
        }
        json!({
            "tokens": tokens,
            "token_logprobs": token_logprobs,
            "top_logprobs": top_logprobs,
            "text_offset": text_offset,
        })
    }
}

/// One token with its scores.
pub struct Position<'a> {
    pub id: TokenId,
    pub logprob: Option<f32>,
    pub top: &'a TopLogprobs,
}

/// The text of a token; a part of a character is written as OpenAI does: `bytes:\xe4\xbd`.
fn token_text(tokenizer: &Tokenizer, id: TokenId) -> String {
    match String::from_utf8(tokenizer.token_bytes(id).unwrap_or_default()) {
        Ok(text) => text,
        Err(error) => {
            let hex: String = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{hex}")
        }
    }
}

fn finite(logprob: f32) -> f32 {
    logprob.max(LOGPROB_MIN)
}
