//! Tool calls in a reply: each family of models writes them in its own way.
//!
//! Start with [`ToolCallParser`], which tells calls from text while a reply comes in; [`ToolFormat`] says how a model
//! writes them.

mod format;
mod head;
mod json;
mod parser;
#[cfg(test)]
mod tests;

pub use format::ToolFormat;
pub use parser::ToolCallParser;

/// What has come of a tool call since the last delta of it, in OpenAI's terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCallDelta {
    /// Which call of the reply, from 0. Calls come one after another.
    pub index: u32,
    /// Only in the first delta of a call, with `name`. Unlike any other in the conversation.
    pub id: Option<String>,
    /// The function's name.
    pub name: Option<String>,
    /// The next piece of the arguments: JSON as the model wrote it, which may be broken or end too early.
    pub arguments: String,
}

/// What a piece of a reply adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolText {
    pub text: String,
    pub calls: Vec<ToolCallDelta>,
}
