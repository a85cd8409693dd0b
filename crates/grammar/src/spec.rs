//! What a reply is to look like, as data.

use lingqu_tokenizer::{ReasoningSplitter, ToolFormat};
use serde_json::Value;

/// The form of a reply.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarSpec {
    /// Any JSON object.
    JsonObject,
    /// JSON that this schema allows, its properties in the schema's order. `docs/structured-output.md` says which
    /// keywords are heeded; one that is not is an error, never ignored.
    JsonSchema(Value),
    /// The whole reply matches: Rust's `regex` syntax, without look-around; `\d` and `\w` are ASCII's.
    Regex(String),
    /// The reply is one of these, exactly.
    Choice(Vec<String>),
    /// A context-free grammar in llguidance's dialect of Lark.
    Lark(String),
    /// Nothing but calls of tools.
    Tools(ToolsGrammar),
}

/// Calls as the model writes them, and as [`lingqu_tokenizer::ToolCallParser`] reads them.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolsGrammar {
    pub format: ToolFormat,
    /// Which may be called; at least one.
    pub tools: Vec<ToolFunction>,
    /// One call, or as many as the model likes.
    pub calls: ToolCalls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolCalls {
    One,
    OneOrMore,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ToolFunction {
    pub name: String,
    /// The schema of its arguments, an object; `Null` for a function without any.
    pub parameters: Value,
}

/// Where in a reply its grammar begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum GrammarStart {
    #[default]
    AtOnce,
    /// The reply begins in the midst of thinking. All is free up to this text, which ends it; then a little white
    /// space may come, and then the grammar holds.
    AfterReasoning { end: String },
    /// The same, if the reply begins with the token `open`; else at once.
    MaybeReasoning { open: String, end: String },
}

impl GrammarStart {
    /// Where the answer of a reply begins that this splitter is about to read.
    pub fn for_reply(splitter: &ReasoningSplitter) -> Self {
        let (open, end) = (ReasoningSplitter::OPEN.to_owned(), ReasoningSplitter::CLOSE.to_owned());
        match () {
            _ if splitter.in_reasoning() => Self::AfterReasoning { end },
            _ if splitter.may_reason() => Self::MaybeReasoning { open, end },
            _ => Self::AtOnce,
        }
    }
}
