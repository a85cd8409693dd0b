//! What all endpoints share.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use lingqu_serving::{Phase, RequestError, Served};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::config::HttpConfig;

pub struct App {
    pub config: HttpConfig,
    pub served: Arc<Served>,
    /// When the server started, in seconds since 1970.
    pub started_unix_s: u64,
    phase: watch::Receiver<Phase>,
    places: Arc<Semaphore>,
    /// One permit for each byte of a body that may be held.
    pub bytes: Arc<Semaphore>,
}

impl App {
    pub fn new(config: HttpConfig, served: Arc<Served>, phase: watch::Receiver<Phase>) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        let (places, bytes) = (semaphore(config.requests_max), semaphore(config.request_bytes_in_flight_max));
        Self { config, served, started_unix_s: now_unix_s(), phase, places, bytes }
    }

    /// A place for one generation, to be kept until its reply is over.
    pub fn admit(&self) -> Result<OwnedSemaphorePermit, RequestError> {
        if self.is_draining() {
            return Err(RequestError::Unavailable("the server is shutting down".into()));
        }
        Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| RequestError::Exhausted("too many requests at once: try again later".into()))
    }

    pub fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }
}

pub fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
