//! What can go wrong, for clients.

use std::sync::Arc;

use lingqu_backend::BackendError;
use lingqu_sampler::SamplerError;
use lingqu_types::sampling::InvalidParam;
use thiserror::Error;

/// Why a request, or the whole engine, failed. Cheap to copy: one cause may fail many requests.
#[derive(Clone, Debug, Error)]
pub enum EngineError {
    #[error("engine limits: {0}")]
    Limits(InvalidParam),
    #[error("cannot start the engine: {0}")]
    Start(String),
    /// A step failed; the engine goes on with other requests.
    #[error("the step failed: {0}")]
    Step(Arc<BackendError>),
    /// Experts that live elsewhere cannot be reached; others may be, or these later.
    #[error("a part of the model is out of reach: {0}")]
    Unreachable(Arc<BackendError>),
    /// The device is gone; the engine has ended.
    #[error("the device is lost: {0}")]
    DeviceLost(Arc<BackendError>),
    /// The model's weights are broken, and so is every answer that needs them. The engine has ended.
    #[error("the weights are broken: {0}")]
    Weights(Arc<BackendError>),
    /// A sick model or device: nothing sound can be drawn. Other requests go on.
    #[error("after token {position}: {problem}")]
    Logits { position: usize, problem: SamplerError },
    /// The grammar that the request asked for does not go on.
    #[error("after token {position}: the grammar: {problem}")]
    Constraint { position: usize, problem: String },
    #[error("the deadline has passed")]
    DeadlineExceeded,
    /// A bug of ours; the engine has ended.
    #[error("the engine panicked: {0}")]
    Panicked(String),
    /// The engine was stopped before the request was done.
    #[error("the engine has stopped")]
    Stopped,
}

/// Why a request was not taken.
#[derive(Clone, Debug, Error)]
pub enum SubmitError {
    #[error(transparent)]
    Invalid(#[from] InvalidParam),
    #[error("prompt: {prompt_tokens} tokens leave no room for an answer in a context of {context_tokens_max}")]
    TooLong { prompt_tokens: usize, context_tokens_max: usize },
    #[error("{queue_requests_max} requests are waiting already")]
    QueueFull { queue_requests_max: usize },
    #[error("{queue_requests_per_tenant_max} requests of tenant {tenant:?} are waiting already")]
    TenantQueueFull { tenant: Arc<str>, queue_requests_per_tenant_max: usize },
    #[error("the server is shutting down")]
    Draining,
    /// The engine has ended and takes nothing any more.
    #[error(transparent)]
    Ended(EngineError),
}
