//! The server: endpoints over a listener, from serving through draining to the end.

use std::sync::Arc;

use axum::{Extension, Router};
use futures_util::FutureExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use lingqu_serving::{Connections, Phase, Place, Served};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::app::App;
use crate::config::HttpConfig;
use crate::connection::Connection;
use crate::endpoint;

/// Headers of one request.
const HEADERS_MAX: usize = 100;

/// Serves a model on a bound listener until `phase` says [`Phase::Stopping`] (or its sender is gone) and the requests
/// have ended, or have been cut off after [`HttpConfig::stop_timeout`]. While [`Phase::Draining`] holds, new requests
/// are answered 503 and what runs goes on.
pub async fn serve(config: HttpConfig, served: Arc<Served>, listener: TcpListener, phase: watch::Receiver<Phase>) {
    let mut incoming = Connections::new(listener, config.connections_max);
    let stop_timeout = config.stop_timeout;
    let app = Arc::new(App::new(config, served, phase.clone()));
    let router = endpoint::router(Arc::clone(&app));
    let mut tasks = JoinSet::new();
    let spawn = |(stream, place): (TcpStream, Place), tasks: &mut JoinSet<()>| {
        let router = router.clone().layer(Extension(place.peer()));
        let connection = Connection::new(stream, place, app.config.write_stall_timeout);
        tasks.spawn(serve_connection(connection, app.config.clone(), router, phase.clone()));
    };
    let stop = stopping(phase.clone());
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = incoming.next() => spawn(accepted, &mut tasks),
            Some(_) = tasks.join_next() => {}
        }
    }
    // Whoever has connected before the port closes is still answered.
    while let Some(accepted) = incoming.next().now_or_never() {
        spawn(accepted, &mut tasks);
    }
    drop(incoming);
    let ended = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(stop_timeout, ended).await.is_err() {
        tracing::warn!("HTTP connections were cut off: they had not ended in {stop_timeout:?}");
    }
}

/// Answers one connection's requests, one after the other.
async fn serve_connection(io: Connection, config: HttpConfig, router: Router, phase: watch::Receiver<Phase>) {
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_read_timeout)
        .max_buf_size(config.header_bytes_max)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(router));
    tokio::pin!(serving);
    let result = tokio::select! {
        result = &mut serving => result,
        () = stopping(phase) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        // A client that went away, kept silent or spoke no HTTP.
        tracing::debug!(%error, "HTTP connection ended");
    }
}

/// Resolves when the server is to stop. A wiring that is gone cannot tell us any more: that is a stop too.
async fn stopping(mut phase: watch::Receiver<Phase>) {
    let _ = phase.wait_for(|&phase| phase >= Phase::Stopping).await;
}
