//! A request's body, read whole within bounds.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use axum::body::Body;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, StatusCode};
use http_body::Body as _;
use lingqu_serving::{Arrival, NoRoom};

use crate::app::App;
use crate::error::ApiError;

/// A whole body. It counts among the bytes in flight until it is dropped.
pub struct Received {
    pub bytes: Vec<u8>,
    _held: Arrival,
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
    let reading =
        tokio::time::timeout(app.config.request_read_timeout, read_frames(app.arrivals.begin(), body, bytes_max));
    let late = || ApiError::of(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time");
    reading.await.map_err(|_| late())?
}

async fn read_frames(mut arrival: Arrival, mut body: Body, bytes_max: usize) -> Result<Received, ApiError> {
    let mut bytes = Vec::new();
    loop {
        let next = poll_fn(|cx| match Pin::new(&mut body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => arrival.poll_cut(cx).map(Err),
        });
        let Some(frame) = next.await.map_err(no_room)? else { break };
        let frame = frame.map_err(|_| ApiError::of(StatusCode::BAD_REQUEST, "the request's body broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        arrival.hold(data.len()).map_err(no_room)?;
        bytes.extend_from_slice(&data);
    }
    arrival.whole().map_err(no_room)?;
    Ok(Received { bytes, _held: arrival })
}

fn no_room(why: NoRoom) -> ApiError {
    ApiError::of(StatusCode::TOO_MANY_REQUESTS, why.to_string())
}

fn too_large(bytes_max: usize) -> ApiError {
    ApiError::of(StatusCode::PAYLOAD_TOO_LARGE, format!("the request is larger than {bytes_max} bytes"))
}
