//! Errors as clients see them. A message begins with the name of the field at fault, as the `.proto` spells it.

use std::fmt::Display;

use lingqu_serving::RequestError;
use tonic::Status;

/// INVALID_ARGUMENT: `field` is the field's path in the request.
pub fn invalid(field: &str, problem: impl Display) -> Status {
    Status::invalid_argument(format!("{field}: {problem}"))
}

/// INVALID_ARGUMENT for more items than are allowed.
pub fn too_many(field: &str, count: usize, max: usize) -> Status {
    invalid(field, format_args!("{count} are more than {max}"))
}

/// An error in gRPC's codes.
pub fn status(error: RequestError) -> Status {
    let text = error.to_string();
    match error {
        RequestError::Invalid { .. } => Status::invalid_argument(text),
        RequestError::NotFound(_) => Status::not_found(text),
        RequestError::Unsupported(_) => Status::failed_precondition(text),
        RequestError::Exhausted(_) => Status::resource_exhausted(text),
        RequestError::Unavailable(_) => Status::unavailable(text),
        RequestError::DeadlineExceeded(_) => Status::deadline_exceeded(text),
        RequestError::Internal(_) => Status::internal(text),
    }
}
