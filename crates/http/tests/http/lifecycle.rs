//! Clients that go away, health, draining, the end.

use std::time::Duration;

use lingqu_http::{HttpConfig, Phase};
use lingqu_testkit::toy::ToyFaults;
use lingqu_types::Limits;
use serde_json::{Value, json};

use crate::server::{CHAT, Options, TestServer, chat, events, next, post, until, whole};

/// A generation that does not end by itself for long.
fn endless(stream: bool) -> Value {
    chat("x", json!({"max_tokens": null, "ignore_eos": true, "stream": stream}))
}

/// Long enough that no generation ends while a test looks on.
fn long() -> Options {
    Options { limits: Limits::for_context(1_000_000, 4), ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_go_away_stop_their_generations() {
    let (server, _) = TestServer::toy(long(), ToyFaults::default()).await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        let response = server.send(post(CHAT, endless(true).to_string())).await;
        let mut body = response.into_body();
        next(&mut body).await.expect("open").expect("no error");
        streams.push(body);
    }
    let several = chat("x", json!({"max_tokens": null, "ignore_eos": true, "n": 2}));
    {
        let waiting = server.post(CHAT, &several);
        tokio::pin!(waiting);
        tokio::select! {
            _ = &mut waiting => panic!("it does not end by itself"),
            () = server.until_running(4) => {}
        }
    }
    server.until_running(2).await;
    drop(streams);
    server.until_idle().await;
    assert_eq!(server.engine.handle().load().kv_blocks_used, 0);
    let page = server.get("/metrics").await.text;
    assert!(page.contains("lingqu_requests_total{outcome=\"abort\"} 4\n"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_finishes_what_runs_and_refuses_the_rest() {
    let (server, control) = TestServer::toy(Options::default(), ToyFaults::default()).await;
    control.hold();
    let body = chat("x", json!({"stream": true, "ignore_eos": true, "stream_options": {"include_usage": true}}));
    let running = server.send(post(CHAT, body.to_string())).await;
    server.phase.send_replace(Phase::Draining);
    let refused = server.post(CHAT, &chat("x", json!({}))).await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert_eq!(
        (refused.headers.get("retry-after").is_some(), &refused.headers["connection"]),
        (true, &"close".parse().expect("valid"))
    );
    let health = server.get("/health").await;
    assert_eq!((health.status, &health.json()["status"]), (503, &json!("draining")));
    let engine = server.engine.clone();
    let drain = tokio::task::spawn_blocking(move || engine.drain(Duration::from_secs(30)));
    control.release();
    let (events, done) = events(&whole(running).await.text);
    assert!(done, "it is finished, not cut off");
    assert_eq!(events.last().expect("an event")["usage"]["completion_tokens"], 12);
    assert_eq!(drain.await.expect("no panic").cut_off, 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_drain_cuts_off_is_told_so() {
    let (server, _) = TestServer::toy(long(), ToyFaults::default()).await;
    let running = server.send(post(CHAT, endless(true).to_string())).await;
    let waiting = server.send(post(CHAT, endless(false).to_string()));
    tokio::pin!(waiting);
    tokio::select! {
        _ = &mut waiting => panic!("it does not end by itself"),
        () = server.until_running(2) => {}
    }
    let engine = server.engine.clone();
    let reading = tokio::spawn(whole(running));
    let report = tokio::task::spawn_blocking(move || engine.drain(Duration::from_millis(10))).await;
    assert_eq!(report.expect("no panic").cut_off, 2);
    let (events, done) = events(&reading.await.expect("no panic").text);
    assert!(!done);
    assert_eq!(events.last().expect("an event")["error"]["code"], "unavailable");
    let cut = whole(waiting.await).await;
    assert_eq!(cut.status, 503, "{}", cut.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_cannot_hold_up_the_end() {
    let config = HttpConfig { stop_timeout: Duration::from_millis(100), ..HttpConfig::default() };
    let (server, _) = TestServer::toy(Options { config, ..long() }, ToyFaults::default()).await;
    let stream = server.send(post(CHAT, endless(true).to_string())).await;
    let engine = server.engine.clone();
    server.stop().await;
    until("an idle engine", || engine.handle().load().running == 0).await;
    drop(stream);
}
