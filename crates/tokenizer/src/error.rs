//! What can be wrong with a tokenizer's files or with text given to it.

use lingqu_types::TokenId;

/// `source` in messages is the file or table that was read: `tokenizer.json`, `GGUF tokenizer`, …
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file or table that cannot be right.
    #[error("{source_name}: {field}: {problem}")]
    Invalid { source_name: &'static str, field: String, problem: String },
    /// Right, perhaps, but not something that is read here.
    #[error("{source_name}: {field} {value:?} is not supported (supported: {supported})")]
    Unsupported { source_name: &'static str, field: &'static str, value: String, supported: &'static str },
    #[error("text of {bytes} bytes is longer than {bytes_max} bytes")]
    TextTooLong { bytes: usize, bytes_max: usize },
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
    #[error("token id {id} is not below the vocabulary size {vocab_size}")]
    UnknownToken { id: TokenId, vocab_size: usize },
}

impl TokenizerError {
    pub(crate) fn invalid(source_name: &'static str, field: impl Into<String>, problem: impl ToString) -> Self {
        Self::Invalid { source_name, field: field.into(), problem: problem.to_string() }
    }
}
