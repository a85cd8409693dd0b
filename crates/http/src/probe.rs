//! What a worker of a cluster says of itself, to those who look after processes: `/health`, `/ready` and `/metrics`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use lingqu_cluster::Worker;
use lingqu_serving::Connections;
use serde_json::json;
use tokio::net::TcpListener;

use crate::endpoint::metrics::Page;
use crate::error::json_response;

/// Those who look are few.
const CONNECTIONS_MAX: usize = 16;
/// For a question and its answer.
const LOOK: Duration = Duration::from_secs(10);
const HEADER_BYTES_MAX: usize = 8 << 10;

/// Serves until it is dropped. `/health` is 200 while the process answers at all; `/ready` is 200 while a server has
/// the worker hold its part and work, else 503.
pub async fn serve_worker(listener: TcpListener, worker: Arc<Worker>) -> std::convert::Infallible {
    let router = Router::new()
        .route("/health", get(|| async { json_response(StatusCode::OK, &json!({"status": "alive"})) }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(worker);
    let mut incoming = Connections::new(listener, CONNECTIONS_MAX);
    loop {
        let (stream, place) = incoming.next().await;
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let _place = place;
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(LOOK).max_buf_size(HEADER_BYTES_MAX).keep_alive(false);
            // Whoever asked sees an end that is not good.
            let _ = tokio::time::timeout(LOOK, http.serve_connection(TokioIo::new(stream), service)).await;
        });
    }
}

async fn ready(State(worker): State<Arc<Worker>>) -> Response {
    let (status, word) = match worker.is_at_work() {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "no server has it work"),
    };
    json_response(status, &json!({"status": word, "experts": worker.experts()}))
}

async fn metrics(State(worker): State<Arc<Worker>>) -> Response {
    let mut page = Page::default();
    page.gauge("lingqu_worker_ready", "1 while a server has the worker work.", u64::from(worker.is_at_work()));
    page.gauge("lingqu_worker_experts", "Experts held, of all layers.", worker.experts() as u64);
    page.gauge("lingqu_worker_expert_bytes", "Bytes of their weights.", worker.bytes() as u64);
    page.into_response()
}
