//! Workers that register: a server means one incarnation of a worker, and another one answers nothing.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use lingqu_backend::Backend;
use lingqu_cluster::{ClusterConfig, ClusterExchange, Worker, WorkerConfig, WorkerState};
use lingqu_model::{Experts, Package};
use support::*;

/// Only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(120);

struct Registered {
    package: Arc<Package>,
    backend: Arc<dyn Backend>,
    workers: Vec<Arc<Worker>>,
    addresses: Vec<String>,
}

impl Registered {
    /// Workers 0 and 1 as incarnations 10 and 11.
    fn new() -> Self {
        let (package, backend) = (package("default"), cpu(None));
        let start = |id| start_seen_worker(shard(&package, &backend), identity(&package, id));
        let (addresses, workers): (Vec<String>, Vec<Arc<Worker>>) = (0..2).map(start).unzip();
        workers.iter().zip(10..).for_each(|(worker, incarnation)| worker.admit_as(incarnation));
        Self { package, backend, workers, addresses }
    }

    fn worker(&self, id: u32, incarnation: u64) -> WorkerConfig {
        WorkerConfig { incarnation, ..worker_config(id, &self.addresses[id as usize]) }
    }

    fn config(&self, incarnations: [u64; 2]) -> ClusterConfig {
        let mut config = hasty_config(&self.addresses, 0.0);
        config.workers = incarnations.into_iter().zip(0..).map(|(of, id)| self.worker(id, of)).collect();
        config
    }

    fn runs(&self, exchange: &Arc<ClusterExchange>) {
        let expected = run(&self.package, &self.backend, Experts::Here);
        assert!(run(&self.package, &self.backend, behind(exchange)) == expected, "other bits");
    }
}

fn until(exchange: &ClusterExchange, worker: usize, state: WorkerState) {
    let until = Instant::now() + PATIENCE;
    loop {
        let status = exchange.control().status().workers.swap_remove(worker);
        if status.state == state {
            return;
        }
        assert!(Instant::now() < until, "{status:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn one_that_is_meant_as_another_is_not_used() {
    let cluster = Registered::new();
    let exchange = start(&cluster.config([10, 9]), &cluster.package, &cluster.backend).expect("the first is there");
    until(&exchange, 1, WorkerState::Refused);
    let problem = exchange.control().status().workers[1].problem.clone();
    assert!(problem.is_some_and(|problem| problem.contains("this is worker 1 as incarnation 11, not 9")));
    cluster.runs(&exchange);
    exchange.control().join(&cluster.worker(1, 11)).expect("it is known");
    until(&exchange, 1, WorkerState::Ready);
    cluster.runs(&exchange);
    // Where workers do not register a refusal ends the start, and one that is registered refuses.
    let refused = start(&hasty_config(&cluster.addresses, 0.0), &cluster.package, &cluster.backend);
    assert!(refused.is_err_and(|error| error.to_string().contains("as incarnation 1")));
}

#[test]
fn one_that_is_fenced_answers_nothing_until_it_is_registered_anew() {
    let cluster = Registered::new();
    let exchange = start(&cluster.config([10, 11]), &cluster.package, &cluster.backend).expect("both are there");
    cluster.runs(&exchange);
    // Again as what it was: links from before are none of its links.
    for incarnation in [12, 12] {
        let fenced = exchange.traffic().fenced;
        cluster.workers[1].fence();
        until(&exchange, 1, WorkerState::Refused);
        assert!(exchange.traffic().fenced > fenced, "a link lived on");
        cluster.runs(&exchange);
        cluster.workers[1].admit_as(incarnation);
        exchange.control().join(&cluster.worker(1, incarnation)).expect("it is known");
        until(&exchange, 1, WorkerState::Ready);
        cluster.runs(&exchange);
    }
}
