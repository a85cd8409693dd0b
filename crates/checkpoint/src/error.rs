//! What can be wrong with a checkpoint. Every error names the file, and the tensor or key where there is one.

use std::io;

use lingqu_tensor::TensorError;
use thiserror::Error;

/// Why a checkpoint or one of its tensors cannot be used.
#[derive(Debug, Error)]
pub enum CheckpointError {
    #[error("{file}: {source}")]
    Io { file: String, source: io::Error },
    /// The file, or the folder, as a whole.
    #[error("{file}: {problem}")]
    File { file: String, problem: String },
    /// One metadata key of a GGUF file.
    #[error("{file}: key '{key}': {problem}")]
    Key { file: String, key: String, problem: String },
    /// One tensor.
    #[error("{file}: tensor '{tensor}': {problem}")]
    Tensor { file: String, tensor: String, problem: String },
}

impl CheckpointError {
    pub(crate) fn file(file: &str, problem: impl Into<String>) -> Self {
        Self::File { file: file.into(), problem: problem.into() }
    }

    pub(crate) fn key(file: &str, key: &str, problem: impl Into<String>) -> Self {
        Self::Key { file: file.into(), key: shown(key), problem: problem.into() }
    }

    pub(crate) fn tensor(file: &str, tensor: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { file: file.into(), tensor: shown(tensor), problem: problem.into() }
    }

    pub(crate) fn of_tensor(file: &str, error: TensorError) -> Self {
        Self::tensor(file, &error.name, error.problem)
    }
}

/// A name out of a file, fit for one line of a terminal: no control characters, and not without end.
pub(crate) fn shown(name: &str) -> String {
    const CHARS_MAX: usize = 120;
    let mut line = String::new();
    for c in name.chars().take(CHARS_MAX) {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    if name.chars().nth(CHARS_MAX).is_some() {
        line.push('…');
    }
    line
}
