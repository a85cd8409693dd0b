//! Why a request is not answered, in the terms of no protocol.

use std::fmt::Display;

use lingqu_engine::{EngineError, SubmitError};
use lingqu_types::RequestId;
use lingqu_types::sampling::InvalidParam;
use thiserror::Error;

use crate::ask::FieldNames;

/// Why a request is not answered. The text is for the client and tells nothing of the server's inside.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// The request itself is wrong; `field` is its path as the front end spells it.
    #[error("{field}: {problem}")]
    Invalid { field: String, problem: String },
    /// No such model or adapter.
    #[error("{0}")]
    NotFound(String),
    /// This model cannot do what is asked.
    #[error("{0}")]
    Unsupported(String),
    /// Too much is under way: try again later.
    #[error("{0}")]
    Exhausted(String),
    /// The server drains or has ended: try another.
    #[error("{0}")]
    Unavailable(String),
    /// The request's own deadline has passed.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// Our fault; the log has the cause under the id that the text quotes.
    #[error("{0}")]
    Internal(String),
}

impl RequestError {
    /// A field that is wrong.
    pub fn invalid(field: &str, problem: impl Display) -> Self {
        Self::Invalid { field: field.to_owned(), problem: problem.to_string() }
    }

    /// More items than are allowed.
    pub fn too_many(field: &str, count: usize, max: usize) -> Self {
        Self::invalid(field, format_args!("{count} are more than {max}"))
    }

    /// A fault inside a request; the cause goes to the log.
    pub fn internal(id: RequestId, cause: impl Display) -> Self {
        tracing::error!(request = %id, %cause, "request failed");
        Self::Internal(format!("request {id} failed inside the server; its log says why"))
    }

    /// A fault in work outside the engine.
    pub fn internal_task(task: &str, cause: impl Display) -> Self {
        tracing::error!(task, %cause, "request failed");
        Self::Internal(format!("{task} failed inside the server; its log says why"))
    }

    /// What the engine did not take.
    pub fn submit(error: SubmitError, names: FieldNames) -> Self {
        match error {
            SubmitError::Invalid(InvalidParam { field, problem }) => match field {
                "prompt" | "token_ids" => Self::invalid(names.input, problem),
                "logprobs" | "prompt_logprobs" | "stop_token_ids" | "max_tokens" | "adapter" => {
                    Self::invalid(field, problem)
                }
                sampling => Self::invalid(&names.sampling(sampling), problem),
            },
            SubmitError::TooLong { prompt_tokens, context_tokens_max } => {
                let problem =
                    format!("{prompt_tokens} tokens leave no room in a context of {context_tokens_max} tokens");
                Self::invalid(names.input, problem)
            }
            SubmitError::QueueFull { .. } | SubmitError::TenantQueueFull { .. } => {
                Self::Exhausted(format!("{error}: try again later"))
            }
            SubmitError::Draining => Self::Unavailable(error.to_string()),
            SubmitError::Ended(cause) => {
                tracing::error!(%cause, "request refused: the engine has ended");
                Self::Unavailable("the engine has ended".into())
            }
        }
    }

    /// What ended a request in the engine.
    pub fn engine(id: RequestId, error: &EngineError) -> Self {
        match error {
            EngineError::Stopped => Self::Unavailable(format!("request {id} was cut off: the server stops")),
            EngineError::DeadlineExceeded => Self::DeadlineExceeded(format!("request {id}: its deadline has passed")),
            EngineError::Unreachable(cause) => {
                tracing::error!(request = %id, %cause, "request failed");
                Self::Unavailable(format!("request {id}: a part of the model is out of reach: try again later"))
            }
            error => Self::internal(id, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lingqu_backend::BackendError;

    use super::*;

    #[test]
    fn submit_errors_name_the_front_ends_field() {
        let names = FieldNames { input: "chat", sampling_prefix: "sampling." };
        let param = |field| SubmitError::Invalid(InvalidParam { field, problem: "bad".into() });
        let check = |error: SubmitError, text: &str| {
            assert_eq!(RequestError::submit(error, names).to_string(), text);
        };
        check(param("prompt"), "chat: bad");
        check(param("token_ids"), "chat: bad");
        check(param("stop_token_ids"), "stop_token_ids: bad");
        check(param("logit_bias"), "sampling.logit_bias: bad");
        let too_long = SubmitError::TooLong { prompt_tokens: 9, context_tokens_max: 8 };
        check(too_long, "chat: 9 tokens leave no room in a context of 8 tokens");
        let full = RequestError::submit(SubmitError::QueueFull { queue_requests_max: 2 }, names);
        assert!(matches!(full, RequestError::Exhausted(_)), "{full}");
        let problem = "worker 3 at 10.0.0.3:7001: the deadline has passed".to_owned();
        let cause = Arc::new(BackendError::Exchange { layer: 3, problem });
        let lost = RequestError::engine(RequestId(7), &EngineError::Unreachable(cause));
        assert!(matches!(&lost, RequestError::Unavailable(text) if !text.contains("10.0")), "{lost}");
        let draining = RequestError::submit(SubmitError::Draining, names);
        assert!(matches!(draining, RequestError::Unavailable(_)), "{draining}");
    }
}
