//! A cluster of processes that is drained and rebalanced while a reply is streamed: the tokens are those of one
//! process.

mod support;

use std::path::PathBuf;

use lingqu_proto::v1;
use lingqu_proto::v1::cluster_client::ClusterClient;
use lingqu_proto::v1::generate_event::Event;
use lingqu_proto::v1::rebalance_event;
use support::server::{Server, request, stream};
use support::worker::{Worker, listed};
use support::{Run, lingqu};
use tonic::Code;
use tonic::transport::Channel;

const LONG: u32 = 160;

/// Writes a configuration of workers at `addresses` and gives its path.
fn write(name: &str, addresses: &[String]) -> String {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("rebalance");
    std::fs::create_dir_all(&folder).expect("a folder for tests");
    std::fs::write(folder.join("secret"), "an open secret of tests").expect("written");
    let mut text = "secret_file = \"secret\"\n".to_owned();
    text += &listed(addresses);
    // A busy machine is no failure.
    text += "[deadlines]\nstep_ms = 60000\nconnect_ms = 10000\nheartbeat_ms = 60000\n";
    let path = folder.join(name);
    std::fs::write(&path, text).expect("written");
    path.to_str().expect("a UTF-8 path").to_owned()
}

async fn status(client: &mut ClusterClient<Channel>) -> v1::ClusterStatus {
    client.status(v1::ClusterStatusRequest {}).await.expect("a status").into_inner()
}

/// Drains a worker, or takes that back; the last thing told of it.
async fn drain(client: &mut ClusterClient<Channel>, request: v1::DrainRequest) -> v1::ClusterWorker {
    let mut events = client.drain(request).await.expect("taken").into_inner();
    let mut last = None;
    while let Some(event) = events.message().await.expect("no failure") {
        last = event.worker;
    }
    last.expect("something was told")
}

async fn rebalance(client: &mut ClusterClient<Channel>, dry_run: bool) -> (v1::ClusterPlan, Option<v1::ClusterChange>) {
    let request = v1::RebalanceRequest { dry_run, ..Default::default() };
    let mut events = client.rebalance(request).await.expect("taken").into_inner();
    let (mut plan, mut change) = (None, None);
    while let Some(event) = events.message().await.expect("no failure") {
        match event.event.expect("an event") {
            rebalance_event::Event::Plan(told) => plan = Some(told),
            rebalance_event::Event::Change(told) => change = Some(told),
        }
    }
    (plan.expect("a plan"), change)
}

fn cluster(server: &Server, args: &[&str]) -> Run {
    lingqu(&[&["cluster", "--server", server.address()], args].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_while_experts_move() {
    let expected = {
        let server = Server::start(&[]);
        stream(&mut server.client().await, request(LONG)).await
    };
    let unknown = write("workers.toml", &vec!["127.0.0.1:1".to_owned(); 3]);
    let workers: Vec<Worker> = (0..3).map(|id| Worker::start(&unknown, id, "127.0.0.1:0", &[])).collect();
    let addresses: Vec<String> = workers.iter().map(|worker| worker.address.clone()).collect();
    let server = Server::start(&["--cluster", &write("serve.toml", &addresses)]);
    let mut client = ClusterClient::connect(format!("http://{}", server.address())).await.expect("the port is open");

    assert!(disturbed(&server, &mut client).await == expected);
    until_balanced(&mut client).await;
    let (plan, change) = rebalance(&mut client, false).await;
    let change = change.expect("it was made");
    assert!(change.done && change.problem.is_empty() && change.moves_done == plan.moves_count, "{change:?}");
    assert!(stream(&mut server.client().await, request(LONG)).await == expected);
    let traffic = status(&mut client).await.traffic.expect("counts");
    assert_eq!((traffic.fenced, traffic.adopted), (0, 0));
    tokio::task::spawn_blocking(move || operate(&server)).await.expect("as it should be");
}

/// Token ids of a stream while a worker is drained and comes back.
async fn disturbed(server: &Server, client: &mut ClusterClient<Channel>) -> Vec<u32> {
    let mut inference = server.client().await;
    let mut events = inference.generate(request(LONG)).await.expect("the call is taken").into_inner();
    let mut ids = Vec::new();
    let mut changed = 0;
    while let Some(event) = events.message().await.expect("the stream does not fail") {
        if let Some(Event::Delta(delta)) = event.event {
            ids.extend(delta.token_ids);
        }
        match (changed, ids.len()) {
            (0, 8..) => {
                let worker = drain(client, v1::DrainRequest { worker: 1, undo: false }).await;
                assert_eq!((worker.state(), worker.experts), (v1::WorkerState::Drained, 0), "{worker:?}");
                changed += 1;
            }
            (1, 40..) => {
                drain(client, v1::DrainRequest { worker: 1, undo: true }).await;
                changed += 1;
            }
            (2, 80..) => {
                let (plan, none) = rebalance(client, true).await;
                assert!(none.is_none() && plan.imbalance_after <= plan.imbalance_before, "{plan:?}");
                changed += 1;
            }
            _ => {}
        }
    }
    assert_eq!(changed, 3);
    ids
}

/// Until the worker that came back has a part.
async fn until_balanced(client: &mut ClusterClient<Channel>) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let now = status(client).await;
        assert_eq!(now.experts_missing, 0);
        if now.workers[1].experts > 0 && now.change.as_ref().is_some_and(|change| change.done) {
            break;
        }
        assert!(std::time::Instant::now() < until, "the worker has no part again: {now:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// What an operator does and sees.
fn operate(server: &Server) {
    let run = cluster(server, &["status"]);
    assert!(
        run.code == 0 && run.stdout.contains("ready") && run.stdout.contains("busiest over mean"),
        "{}",
        run.stdout
    );
    let run = cluster(server, &["drain", "9"]);
    assert!(run.code == 1 && run.stderr.contains("worker 9 is none of the workers"), "{}", run.stderr);
    let run = cluster(server, &["drain", "2"]);
    assert!(run.code == 0 && run.stdout.contains("worker 2: drained, experts left 0"), "{}{}", run.stdout, run.stderr);
    let metrics = server.get("/metrics");
    assert!(metrics.contains("lingqu_cluster_workers{state=\"drained\"} 1"), "{metrics}");
    assert!(metrics.contains("lingqu_cluster_worker_experts{worker=\"2\"} 0"), "{metrics}");
}

#[tokio::test]
async fn without_a_cluster_there_is_nothing_to_change() {
    let server = Server::start(&[]);
    let mut client = ClusterClient::connect(format!("http://{}", server.address())).await.expect("the port is open");
    let status = client.status(v1::ClusterStatusRequest {}).await.expect_err("there is none");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
}
