//! What can be wrong with a model's files, said with the file and the field or tensor.

use lingqu_backend::BackendError;
use lingqu_checkpoint::CheckpointError;
use lingqu_tensor::TensorError;
use lingqu_tokenizer::TokenizerError;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum ModelError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A number or text that cannot be right, or one that asks for what we do not do.
    #[error("{file}: {field}: {problem}")]
    Config { file: String, field: String, problem: String },
    #[error("{file}: architecture {found} is not supported (supported: {known})")]
    UnknownArchitecture { file: String, found: String, known: String },
    #[error("{name} has no layer that predicts further tokens: it cannot speculate")]
    NoPredictionLayer { name: String },
    /// Part of a LoRA adapter that cannot be applied.
    #[error("{file}: '{what}' {problem}")]
    Adapter { file: String, what: String, problem: String },
    #[error("{model} takes no LoRA adapters")]
    NoAdapters { model: String },
    #[error("tensor '{name}' is missing")]
    MissingTensor { name: String },
    #[error("tensor '{name}' has shape {found:?}, but the configuration asks for {expected:?}")]
    TensorShape { name: String, found: Vec<usize>, expected: Vec<usize> },
}
