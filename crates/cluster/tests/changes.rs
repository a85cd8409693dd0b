//! A cluster that changes while steps run: the bits stay those of one process, every expert is always with somebody,
//! and nobody holds more than it has room for.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lingqu_backend::Backend;
use lingqu_cluster::{
    ChangeState, ClusterConfig, ClusterControl, ClusterExchange, ControlError, Model, Placement, RebalanceGoal, Worker,
    WorkerId, WorkerState,
};
use lingqu_model::{Experts, Package};
use lingqu_placement::{LayerPlacement, SHARE_WHOLE};
use lingqu_testkit::proxy::FaultyProxy;
use lingqu_testkit::road::{Condition, Road};
use support::*;

/// Only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(120);
const EVEN: RebalanceGoal = RebalanceGoal { imbalance_wanted: 1.05, loads_max: usize::MAX };

/// A cluster whose exchange computes one run after the other until it is dropped.
struct Cluster {
    package: Arc<Package>,
    backend: Arc<dyn Backend>,
    model: Model,
    workers: Vec<Arc<Worker>>,
    addresses: Vec<String>,
}

impl Cluster {
    fn new(model: &str, workers: u32) -> Self {
        let (package, backend) = (package(model), cpu(None));
        let start = |id| start_seen_worker(shard(&package, &backend), identity(&package, id));
        let (addresses, workers) = (0..workers).map(start).unzip();
        Self { model: shape(&package), package, backend, workers, addresses }
    }

    fn experts(&self) -> usize {
        self.model.experts * self.model.expert_layers().count()
    }

    fn expert_bytes(&self) -> u64 {
        self.model.expert_bytes.iter().max().copied().expect("a layer")
    }

    fn all_on_one(&self) -> Placement {
        let layer = |bytes: &u64| match bytes {
            0 => LayerPlacement::default(),
            _ => LayerPlacement {
                copies: vec![vec![WorkerId(0)]; self.model.experts],
                shares: vec![vec![SHARE_WHOLE]; self.model.experts],
            },
        };
        Placement { layers: self.model.expert_bytes.iter().map(layer).collect() }
    }

    fn expected(&self) -> Vec<Vec<u32>> {
        run(&self.package, &self.backend, Experts::Here)
    }

    /// Runs go on, and somebody watches, while `change` happens; returns how many runs there were.
    fn disturbed(&self, exchange: &Arc<ClusterExchange>, change: impl FnOnce(&ClusterControl)) -> usize {
        let (expected, control) = (self.expected(), exchange.control());
        let (over, runs) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let go = scope.spawn(|| {
                while !over.load(Ordering::SeqCst) || runs.load(Ordering::SeqCst) < 2 {
                    assert!(run(&self.package, &self.backend, behind(exchange)) == expected, "other bits");
                    runs.fetch_add(1, Ordering::SeqCst);
                }
            });
            let watch = scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    let status = control.status();
                    assert_eq!(status.missing, 0, "{:?}", status.workers);
                    for worker in &status.workers {
                        let room = worker.memory_bytes.unwrap_or(u64::MAX);
                        assert!(worker.bytes <= room, "{worker:?}");
                        // What it has in truth; loads wait for drops.
                        let has = self.workers[worker.id.0 as usize].experts() as u64 * self.expert_bytes();
                        assert!(has <= room, "{worker:?} has {has} bytes");
                    }
                    std::thread::sleep(Duration::from_millis(1)); // steps need the lock too
                }
            });
            let change = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| change(&control)));
            over.store(true, Ordering::SeqCst);
            go.join().expect("the bits of one process");
            watch.join().expect("every expert is somewhere");
            change.expect("the change");
        });
        assert_eq!(control.traffic().fenced, 0, "nobody was taken for dead");
        runs.into_inner()
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

fn is(control: &ClusterControl, worker: u32, state: WorkerState) -> bool {
    control.status().workers.iter().any(|w| w.id == WorkerId(worker) && w.state == state)
}

fn held(control: &ClusterControl, worker: u32) -> usize {
    control.status().workers.iter().find(|w| w.id == WorkerId(worker)).map_or(0, |w| w.experts)
}

fn until_changed(control: &ClusterControl, number: u64) {
    until("the rebalance is over", || {
        let change = control.change().filter(|change| change.number >= number);
        match change.map(|change| change.state) {
            Some(ChangeState::Failed(problem)) => panic!("{problem}"),
            state => state == Some(ChangeState::Done),
        }
    });
}

#[test]
fn a_worker_is_drained_and_comes_back() {
    for redundancy in [0.0, 0.5] {
        let cluster = Cluster::new("default", 3);
        let exchange = start(&config(&cluster.addresses, redundancy), &cluster.package, &cluster.backend);
        let exchange = exchange.expect("a cluster");
        cluster.disturbed(&exchange, |control| {
            let before = cluster.workers[1].bytes();
            assert!(before > 0 && held(control, 1) > 0);
            control.drain(WorkerId(1)).expect("others have room");
            until("it is empty", || is(control, 1, WorkerState::Drained));
            assert_eq!((cluster.workers[1].experts(), cluster.workers[1].bytes()), (0, 0), "its memory is free");
            let idle = control.status().workers[1].pairs;
            control.rebalance(EVEN).map(|_| ()).expect("two are left");
            until_changed(control, 1);
            assert_eq!(control.status().workers[1].pairs, idle, "it was asked");
            control.undrain(WorkerId(1)).expect("it is known");
            until("it has a part again", || held(control, 1) > 0);
            until_changed(control, 2);
            // How many is a matter of who was asked how often.
            assert!(held(control, 1) * 20 >= cluster.experts(), "{} of {}", held(control, 1), cluster.experts());
        });
    }
}

/// Two of three workers are left out by the placement; then the load is spread.
#[test]
fn experts_follow_the_load() {
    let cluster = Cluster::new("default", 3);
    let config = config(&cluster.addresses, 0.0);
    let exchange = start_placed(&config, &cluster.package, &cluster.backend, cluster.all_on_one());
    assert!(run(&cluster.package, &cluster.backend, behind(&exchange)) == cluster.expected());
    let plan = exchange.control().plan(EVEN).expect("a plan");
    assert!(plan.imbalance_before > 2.9 && plan.imbalance_after < 1.5, "{plan:?}");
    assert_eq!(held(&exchange.control(), 0), cluster.experts(), "planning changes nothing");
    cluster.disturbed(&exchange, |control| {
        let begun = control.rebalance(EVEN).expect("nothing else moves");
        assert!(matches!(control.rebalance(EVEN), Err(ControlError::Busy(_))));
        until_changed(control, begun.number);
        let change = control.change().expect("it was");
        assert_eq!(change.done, change.moves);
    });
    let status = exchange.control().status();
    assert_eq!(status.workers.iter().map(|worker| worker.experts).sum::<usize>(), cluster.experts());
    assert!(status.workers.iter().all(|worker| worker.experts > 0), "{status:?}");
    assert_eq!(status.traffic.moved, status.traffic.dropped);
    for (worker, seen) in cluster.workers.iter().zip(&status.workers) {
        assert_eq!(worker.experts(), seen.experts);
        // No memory is kept for what is gone.
        assert!(worker.bytes() as u64 <= seen.bytes * 2, "{} bytes for {}", worker.bytes(), seen.bytes);
    }
    assert!(run(&cluster.package, &cluster.backend, behind(&exchange)) == cluster.expected());
}

/// Nobody asks; the clock does.
#[test]
fn the_load_is_looked_at_now_and_then() {
    let cluster = Cluster::new("default", 3);
    let mut config = config(&cluster.addresses, 0.0);
    config.placement.rebalance_s = 1;
    let exchange = start_placed(&config, &cluster.package, &cluster.backend, cluster.all_on_one());
    cluster.disturbed(&exchange, |control| {
        until_changed(control, 1);
        assert!((0..3).all(|worker| held(control, worker) > 0), "{:?}", control.status().workers);
    });
}

/// A worker is lost while experts move to it: the rebalance ends early, and nothing else does.
#[test]
fn a_worker_is_lost_in_the_middle() {
    let cluster = Cluster::new("default", 3);
    let expected = cluster.expected();
    let mut early = 0;
    for moves in [0, 1, 10, 40] {
        let mut proxy = FaultyProxy::start(&cluster.addresses[2], None).ok();
        let mut through = cluster.addresses.clone();
        through[2] = proxy.as_ref().expect("a free port").address();
        let config = config(&through, 0.0);
        let exchange = start_placed(&config, &cluster.package, &cluster.backend, cluster.all_on_one());
        let control = exchange.control();
        let mut before = |step| match step {
            2 => {
                control.rebalance(EVEN).expect("nothing else moves");
                until("it moves", || {
                    control.change().is_some_and(|c| c.done >= moves || c.state != ChangeState::Running)
                });
                proxy = None;
            }
            5 => control.join(&worker_config(2, &cluster.addresses[2])).expect("known"),
            _ => {}
        };
        let found = run_with(&cluster.package, &cluster.backend, behind(&exchange), &mut before);
        assert!(found.expect("every step") == expected, "{moves} moves");
        until("it is over", || control.change().is_some_and(|change| change.state != ChangeState::Running));
        let change = control.change().expect("one was begun");
        early += usize::from(change.number > 1 || change.state != ChangeState::Done);
        until("all are there, and have a part", || {
            let status = control.status();
            status.missing == 0 && status.workers.iter().all(|w| w.state == WorkerState::Ready && w.experts > 0)
        });
        assert!(run(&cluster.package, &cluster.backend, behind(&exchange)) == expected, "{moves} moves");
    }
    // After one that ended early another one gives the worker its part.
    assert!(early > 0, "all were over before the loss");
}

/// One that stalls is found out by a sign of life that does not come, not by a load that may take minutes.
#[test]
fn one_that_stalls_adopts_nothing() {
    let cluster = Cluster::new("default", 2);
    let roads: Vec<Road> =
        cluster.addresses.iter().map(|address| Road::start(address, 1).expect("a free port")).collect();
    let through: Vec<String> = roads.iter().map(Road::address).collect();
    let mut config = config(&through, 0.0);
    (config.deadlines.step_ms, config.deadlines.recovery_ms) = (3000, 3000);
    assert!(config.deadlines.load_ms >= 60_000 && config.deadlines.heartbeat_ms >= 10_000);
    let exchange = start_placed(&config, &cluster.package, &cluster.backend, cluster.all_on_one());
    assert!(run(&cluster.package, &cluster.backend, behind(&exchange)) == cluster.expected());
    let began = Instant::now();
    let outcome = run_with(&cluster.package, &cluster.backend, behind(&exchange), &mut |step| {
        if step == 2 {
            roads.iter().for_each(|road| road.set(Condition::Blocked));
        }
    });
    let problem = outcome.expect_err("nobody is left").to_string();
    assert!(problem.contains("nobody has experts"), "{problem}");
    assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
}

/// Memory for hardly more than there is: copies make room first.
#[test]
fn memory_is_never_exceeded() {
    let cluster = Cluster::new("default", 3);
    let of_each = cluster.experts().div_ceil(3) + 4;
    let memory = |config: &mut ClusterConfig, experts: usize| {
        let gib = (experts as u64 * cluster.expert_bytes()) as f64 / (1u64 << 30) as f64;
        config.workers.iter_mut().for_each(|worker| worker.memory_gib = Some(gib));
    };
    let mut tight = config(&cluster.addresses, 0.0);
    memory(&mut tight, of_each);
    let exchange = start(&tight, &cluster.package, &cluster.backend).expect("it fits");
    cluster.disturbed(&exchange, |control| {
        let error = control.drain(WorkerId(0)).expect_err("there is no room");
        assert!(matches!(error, ControlError::Placement(_)) && error.to_string().contains("do not fit"), "{error}");
        assert!(is(control, 0, WorkerState::Ready));
        control.rebalance(RebalanceGoal { imbalance_wanted: 1.0, ..EVEN }).expect("a plan");
        until_changed(control, 1);
    });
    // Every expert twice, so that any one can go: its copies are spare.
    let cluster = Cluster::new("default", 3);
    let mut tight = config(&cluster.addresses, 0.5);
    memory(&mut tight, cluster.experts() / 2);
    let exchange = start(&tight, &cluster.package, &cluster.backend).expect("it fits");
    cluster.disturbed(&exchange, |control| {
        control.drain(WorkerId(2)).expect("spare copies make room");
        until("it is empty", || is(control, 2, WorkerState::Drained));
    });
}

#[test]
fn workers_come_go_and_move() {
    let cluster = Cluster::new("default", 3);
    let exchange = start(&config(&cluster.addresses[..2], 1.0), &cluster.package, &cluster.backend).expect("a cluster");
    cluster.disturbed(&exchange, |control| {
        assert!(matches!(control.leave(WorkerId(2)), Err(ControlError::Unknown(WorkerId(2)))));
        control.join(&worker_config(2, &cluster.addresses[2])).expect("room for one");
        until("it has a part", || held(control, 2) > 0);
        until_changed(control, 1);
        control.join(&worker_config(2, &cluster.addresses[2])).expect("known");
        let epoch = control.status().workers[2].epoch;
        // Somewhere else from now on.
        let proxy = FaultyProxy::start(&cluster.addresses[2], None).expect("a free port");
        control.join(&worker_config(2, &proxy.address())).expect("known");
        until("it is called there", || is(control, 2, WorkerState::Ready) && control.status().workers[2].epoch > epoch);
        control.join(&worker_config(2, &cluster.addresses[2])).expect("known");
        until("it is called here again", || is(control, 2, WorkerState::Ready));
        // Each expert has another copy: nothing is missing.
        control.drain(WorkerId(2)).expect("others have all");
        until("it is empty", || is(control, 2, WorkerState::Drained));
        control.leave(WorkerId(2)).expect("known");
        assert!(is(control, 2, WorkerState::Left));
    });
}

/// What others adopted is given up when its own worker is back.
#[test]
fn adopted_copies_are_dropped() {
    let cluster = Cluster::new("deepseek-v3-fp8", 3);
    let exchange = start(&config(&cluster.addresses, 0.0), &cluster.package, &cluster.backend).expect("a cluster");
    let control = exchange.control();
    let before: Vec<usize> = control.status().workers.iter().map(|worker| worker.experts).collect();
    let found = run_with(&cluster.package, &cluster.backend, behind(&exchange), &mut |step| match step {
        2 => control.leave(WorkerId(1)).expect("known"),
        5 => {
            until("others have it all", || control.status().missing == 0);
            control.join(&worker_config(1, &cluster.addresses[1])).expect("known");
        }
        _ => {}
    });
    assert!(found.expect("every step") == cluster.expected());
    until("its own again", || {
        let status = control.status();
        status.workers.iter().map(|worker| worker.experts).eq(before.iter().copied())
    });
    until("their memory is free", || {
        cluster.workers.iter().zip(&before).all(|(worker, &experts)| worker.experts() == experts)
    });
    assert!(run(&cluster.package, &cluster.backend, behind(&exchange)) == cluster.expected());
    assert_eq!(control.traffic().fenced, 0);
}

/// What one server gives up another one may need.
#[test]
fn servers_share_workers() {
    let cluster = Cluster::new("deepseek-v3-fp8", 2);
    let config = config(&cluster.addresses, 0.0);
    let one = start(&config, &cluster.package, &cluster.backend).expect("a cluster");
    let other = start(&config, &cluster.package, &cluster.backend).expect("a cluster");
    let experts = cluster.workers[1].experts();
    cluster.disturbed(&other, |_| {
        one.control().drain(WorkerId(1)).expect("the other one has room");
        until("it is empty", || is(&one.control(), 1, WorkerState::Drained));
        assert!(run(&cluster.package, &cluster.backend, behind(&one)) == cluster.expected());
    });
    assert_eq!(cluster.workers[1].experts(), experts, "the other server needs them");
    drop(other);
    let changed = one.control();
    changed.undrain(WorkerId(1)).expect("known");
    until_changed(&changed, 1);
    assert!(run(&cluster.package, &cluster.backend, behind(&one)) == cluster.expected());
}

#[test]
fn what_cannot_be_is_said() {
    let cluster = Cluster::new("deepseek-v3-fp8", 1);
    let exchange = start(&config(&cluster.addresses, 0.0), &cluster.package, &cluster.backend).expect("a cluster");
    let control = exchange.control();
    let check = |error: Result<(), ControlError>, says: &str| {
        let error = error.expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    };
    check(control.drain(WorkerId(7)), "worker 7 is none of the workers");
    check(control.drain(WorkerId(0)), "no worker is left");
    assert!(is(&control, 0, WorkerState::Ready));
    let mut odd = worker_config(3, "127.0.0.1:1");
    odd.speed = f64::NAN;
    check(control.join(&odd), "worker 3: speed and memory_gib");
    drop(exchange);
    check(control.drain(WorkerId(0)), "shut down");
    check(control.rebalance(EVEN).map(|_| ()), "shut down");
}
