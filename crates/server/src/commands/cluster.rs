//! `lingqu cluster`: a running server's workers, through its gRPC port.

use anyhow::{Context, Error, Result, anyhow, bail};
use lingqu_proto::v1;
use lingqu_proto::v1::cluster_client::ClusterClient;
use lingqu_proto::v1::rebalance_event::Event;
use tonic::Status;
use tonic::transport::Channel;

use crate::cli::{ClusterArgs, ClusterCommand};

pub fn run(args: &ClusterArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let url = if args.server.contains("://") { args.server.clone() } else { format!("http://{}", args.server) };
        let client = ClusterClient::connect(url).await.with_context(|| format!("cannot reach {}", args.server))?;
        match args.command {
            ClusterCommand::Status => status(client).await,
            ClusterCommand::Drain { worker } => drain(client, v1::DrainRequest { worker, undo: false }).await,
            ClusterCommand::Undrain { worker } => drain(client, v1::DrainRequest { worker, undo: true }).await,
            ClusterCommand::Rebalance { dry_run } => rebalance(client, dry_run).await,
        }
    })
}

/// An error in the server's words.
fn said(status: Status) -> Error {
    anyhow!("{}", status.message())
}

async fn status(mut client: ClusterClient<Channel>) -> Result<()> {
    let status = client.status(v1::ClusterStatusRequest {}).await.map_err(said)?.into_inner();
    println!(
        "{:>6}  {:<8}  {:>7}  {:>9}  {:>6}  {:>5}  address",
        "worker", "state", "experts", "GiB", "share", "epoch"
    );
    for worker in &status.workers {
        let (gib, share) = (worker.bytes as f64 / (1u64 << 30) as f64, worker.share * 100.0);
        println!(
            "{:>6}  {:<8}  {:>7}  {gib:>9.3}  {share:>5.1}%  {:>5}  {}{}",
            worker.id,
            state(worker.state()),
            worker.experts,
            worker.epoch,
            worker.address,
            if worker.problem.is_empty() { String::new() } else { format!(": {}", worker.problem) }
        );
    }
    println!("busiest over mean {:.2}", status.busiest_over_mean);
    if status.experts_missing > 0 {
        println!("experts that nobody holds: {}", status.experts_missing);
    }
    if let Some(change) = status.change {
        print_change(&change);
    }
    if let Some(traffic) = status.traffic {
        let per_row = |count: u64| count as f64 / traffic.rows.max(1) as f64;
        println!(
            "for each row and layer: {:.0} bytes (at least {:.0}), {:.2} messages (at least {:.2})",
            per_row(traffic.bytes_sent + traffic.bytes_received),
            per_row(traffic.bytes_min),
            per_row(traffic.messages),
            per_row(traffic.messages_min)
        );
        println!(
            "workers fenced {} | experts adopted {}, moved {}, dropped {}",
            traffic.fenced, traffic.adopted, traffic.moved, traffic.dropped
        );
    }
    Ok(())
}

async fn drain(mut client: ClusterClient<Channel>, request: v1::DrainRequest) -> Result<()> {
    let mut events = client.drain(request).await.map_err(said)?.into_inner();
    while let Some(event) = events.message().await.map_err(said)? {
        let worker = event.worker.context("an empty event")?;
        let left = if request.undo { "experts" } else { "experts left" };
        println!("worker {}: {}, {left} {}", worker.id, state(worker.state()), worker.experts);
    }
    Ok(())
}

async fn rebalance(mut client: ClusterClient<Channel>, dry_run: bool) -> Result<()> {
    let request = v1::RebalanceRequest { dry_run, ..v1::RebalanceRequest::default() };
    let mut events = client.rebalance(request).await.map_err(said)?.into_inner();
    let mut problem = String::new();
    while let Some(event) = events.message().await.map_err(said)? {
        match event.event.context("an empty event")? {
            Event::Plan(plan) => {
                for to_do in &plan.moves {
                    let does = if to_do.drop { "drops" } else { "loads" };
                    println!("worker {} {does} expert {} of layer {}", to_do.worker, to_do.expert, to_do.layer);
                }
                let v1::ClusterPlan { moves_count, loads, imbalance_before, imbalance_after, .. } = plan;
                println!(
                    "{moves_count} moves, {loads} of them loads; busiest over mean, worst layer: \
                     {imbalance_before:.2} -> {imbalance_after:.2}"
                );
            }
            Event::Change(change) => {
                print_change(&change);
                problem = change.problem;
            }
        }
    }
    if problem.is_empty() { Ok(()) } else { bail!("the rebalance ended early: {problem}") }
}

fn print_change(change: &v1::ClusterChange) {
    let v1::ClusterChange { number, moves, moves_done, problem, .. } = change;
    let end = match (change.done, problem.as_str()) {
        (false, _) => ", under way".to_owned(),
        (true, "") => String::new(),
        (true, problem) => format!(", ended early: {problem}"),
    };
    println!("rebalance {number}: {moves_done} of {moves} moves made{end}");
}

fn state(state: v1::WorkerState) -> &'static str {
    match state {
        v1::WorkerState::Unspecified => "unknown",
        v1::WorkerState::Ready => "ready",
        v1::WorkerState::Draining => "draining",
        v1::WorkerState::Drained => "drained",
        v1::WorkerState::Away => "away",
        v1::WorkerState::Refused => "refused",
        v1::WorkerState::Left => "left",
    }
}
