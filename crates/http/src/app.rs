//! What all endpoints share.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use lingqu_serving::{Arrivals, Asking, Peer, Phase, RequestError, Served};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::config::HttpConfig;

pub struct App {
    pub config: HttpConfig,
    pub served: Arc<Served>,
    /// When the server started, in seconds since 1970.
    pub started_unix_s: u64,
    phase: watch::Receiver<Phase>,
    places: Arc<Semaphore>,
    /// Bodies that are arriving.
    pub arrivals: Arc<Arrivals>,
}

/// A request's place.
pub struct Admitted {
    _permit: OwnedSemaphorePermit,
    _asking: Option<Asking>,
}

impl App {
    pub fn new(config: HttpConfig, served: Arc<Served>, phase: watch::Receiver<Phase>) -> Self {
        let places = Arc::new(Semaphore::new(config.requests_max.min(Semaphore::MAX_PERMITS)));
        // Each arrives over a connection of its own.
        let arrivals = Arc::new(Arrivals::new(config.connections_max, config.request_bytes_in_flight_max));
        Self { config, served, started_unix_s: now_unix_s(), phase, places, arrivals }
    }

    /// A place for one generation whose request is whole, to be kept until its reply is over. `peer`: whose it is.
    pub fn admit(&self, peer: Option<&Peer>) -> Result<Admitted, RequestError> {
        self.check_open()?;
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => Ok(Admitted { _permit: permit, _asking: peer.map(Peer::asking) }),
            Err(_) => Err(RequestError::Exhausted("too many requests at once: try again later".into())),
        }
    }

    /// # Errors
    /// [`RequestError::Unavailable`] while the server drains.
    pub fn check_open(&self) -> Result<(), RequestError> {
        match self.is_draining() {
            true => Err(RequestError::Unavailable("the server is shutting down".into())),
            false => Ok(()),
        }
    }

    pub fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }
}

pub fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
