//! Clients that read too slowly, and clients that hang up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::Finding;
use crate::cli::TargetArgs;
use crate::run::connect;
use crate::target::{FailureKind, Listening, probe};
use crate::workload::sample_text;

/// Between two reads of a slow reader.
const READ_EVERY: Duration = Duration::from_secs(1);
/// Flow-control window of a slow reader: a few events.
const SLOW_WINDOW_BYTES: u32 = 2048;
/// Long enough that nobody is done when we leave.
const ANSWER_TOKENS: u32 = 400;
/// Parts after which clients hang up, in turn.
const LEAVE_AFTER: [usize; 4] = [1, 2, 7, 30];
/// Times that each client comes back to hang up again.
const ROUNDS: usize = 8;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads one event a second from `clients` answers for a while, then leaves.
pub async fn slow(target: &TargetArgs, clients: usize, hold: Duration) -> Finding {
    let mut finding = Finding::default();
    let target = match connect(target, Some(SLOW_WINDOW_BYTES)).await {
        Ok(found) => Arc::new(found.target),
        Err(error) => {
            finding.problems.push(error);
            return finding;
        }
    };
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let target = target.clone();
        tasks.spawn(async move {
            let mut listening = Listening { pause: Some(READ_EVERY), ..Listening::default() };
            let job = probe(sample_text(30), ANSWER_TOKENS);
            let reply = target.ask_within(hold, &job, &mut listening).await;
            (reply.map_err(|failure| failure.kind), listening.parts.len())
        });
    }
    let (mut ends, mut parts) = (BTreeMap::new(), 0);
    while let Some(Ok((reply, heard))) = tasks.join_next().await {
        let end = match reply {
            Ok(_) => "answered".to_string(),
            // Our own patience ended: the server was still sending.
            Err(FailureKind::Timeout) => "reading".to_string(),
            Err(kind) => format!("{kind:?}"),
        };
        *ends.entry(end).or_insert(0) += 1;
        parts += heard;
    }
    finding.text = format!("{clients} readers of one event a second: {ends:?} after {hold:?}, {parts} events");
    finding
}

/// `clients` hang up in the middle of their answers, several times each.
pub async fn dropped(target: &TargetArgs, clients: usize) -> Finding {
    let mut finding = Finding::default();
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..ROUNDS {
        // Connections of their own, closed with the round.
        let target = match connect(target, None).await {
            Ok(found) => Arc::new(found.target),
            Err(error) => {
                finding.problems.push(error);
                return finding;
            }
        };
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            let target = target.clone();
            tasks.spawn(async move {
                let leave_after = Some(LEAVE_AFTER[(round + client) % LEAVE_AFTER.len()]);
                let mut listening = Listening { leave_after, ..Listening::default() };
                let job = probe(sample_text(30), ANSWER_TOKENS);
                target.ask_within(REQUEST_TIMEOUT, &job, &mut listening).await.map_err(|failure| failure.kind)
            });
        }
        while let Some(Ok(reply)) = tasks.join_next().await {
            let end = reply.map_or_else(|kind| format!("{kind:?}"), |_| "Answered".into());
            *ends.entry(end).or_default() += 1;
        }
    }
    if ends.contains_key("Timeout") || ends.contains_key("Server") {
        finding.problems.push(format!("clients were not answered: {ends:?}"));
    }
    finding.text = format!("{clients} clients hung up, {ROUNDS} times each: {ends:?}");
    finding
}
