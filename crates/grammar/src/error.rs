//! Why a specification was refused.

/// All are the client's, but for `Vocabulary`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It cannot be read, asks for what is not supported, or nothing could match it.
    #[error("{what}: {problem}")]
    Invalid {
        /// `json_schema`, `regex`, `choice`, `grammar`, `tools`.
        what: &'static str,
        problem: String,
    },
    #[error("{what}: {count} {of} are more than {max}")]
    TooLarge { what: &'static str, of: &'static str, count: usize, max: usize },
    /// The model's vocabulary does not serve grammars.
    #[error("vocabulary: {problem}")]
    Vocabulary { problem: String },
}
