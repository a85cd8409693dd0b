//! A request's body, read whole within bounds.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, StatusCode};
use http_body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::app::App;
use crate::error::ApiError;

/// A whole body. It counts among the bytes in flight until it is dropped.
pub struct Received {
    pub bytes: Vec<u8>,
    _held: OwnedSemaphorePermit,
}

/// Reads a body.
///
/// # Errors
/// 413 for one too large, 408 for one too slow, 429 if too much is arriving at once, 400 if the client breaks off.
pub async fn read(app: &App, headers: &HeaderMap, body: Body) -> Result<Received, ApiError> {
    let bytes_max = app.config.request_bytes_max;
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > bytes_max as u64) {
        return Err(too_large(bytes_max));
    }
    let reading = tokio::time::timeout(app.config.request_read_timeout, read_frames(&app.bytes, body, bytes_max));
    let late = || ApiError::of(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time");
    reading.await.map_err(|_| late())?
}

async fn read_frames(budget: &Arc<Semaphore>, mut body: Body, bytes_max: usize) -> Result<Received, ApiError> {
    let hold = |bytes: usize| {
        let permits = u32::try_from(bytes).map_err(|_| too_large(bytes_max))?;
        Arc::clone(budget).try_acquire_many_owned(permits).map_err(|_| {
            ApiError::of(StatusCode::TOO_MANY_REQUESTS, "too many requests are arriving at once: try again later")
        })
    };
    let mut received = Received { bytes: Vec::new(), _held: hold(0)? };
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|_| ApiError::of(StatusCode::BAD_REQUEST, "the request's body broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        if received.bytes.len() + data.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        received._held.merge(hold(data.len())?);
        received.bytes.extend_from_slice(&data);
    }
    Ok(received)
}

fn too_large(bytes_max: usize) -> ApiError {
    ApiError::of(StatusCode::PAYLOAD_TOO_LARGE, format!("the request is larger than {bytes_max} bytes"))
}
