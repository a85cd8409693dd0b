//! Errors as clients see them. A message begins with the name of the field at fault, as the `.proto` spells it.

use std::fmt::Display;

use lingqu_types::RequestId;
use tonic::Status;

/// INVALID_ARGUMENT: `field` is the field's path in the request.
pub fn invalid(field: &str, problem: impl Display) -> Status {
    Status::invalid_argument(format!("{field}: {problem}"))
}

/// INVALID_ARGUMENT for more items than are allowed.
pub fn too_many(field: &str, count: usize, max: usize) -> Status {
    invalid(field, format_args!("{count} are more than {max}"))
}

/// INTERNAL: the client gets an id to quote, the log gets the cause.
pub fn internal(id: RequestId, cause: impl Display) -> Status {
    tracing::error!(request = %id, %cause, "request failed");
    Status::internal(format!("request {id} failed inside the server; its log says why"))
}

/// INTERNAL for work outside the engine.
pub fn internal_task(task: &str, cause: impl Display) -> Status {
    tracing::error!(task, %cause, "request failed");
    Status::internal(format!("{task} failed inside the server; its log says why"))
}
