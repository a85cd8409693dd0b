//! Workers that die, hang up, stall or garble: the bits stay those of one process, or the error comes in time.

mod support;

use std::time::{Duration, Instant};

use lingqu_cluster::{ClusterError, Identity, WorkerId};
use lingqu_fabric::{Fabric, FabricError, Joined, Secret, Tag, TcpFabric};
use lingqu_model::Experts;
use lingqu_testkit::proxy::{Fault, FaultyProxy, From, Harm};
use lingqu_testkit::rng::Rng;
use support::*;

/// Bytes of a handshake and of all loads of these tests, from the caller: harm behind them meets a step.
const QUIET_BYTES: usize = 600;

/// One of two workers is behind a connection that is harmed once, at a seeded byte of the steps.
#[test]
fn harm_on_the_way_changes_no_bit() {
    let (package, backend) = (package("default"), cpu(None));
    let expected = run(&package, &backend, Experts::Here);
    let addresses = start_workers(&package, &backend, 2);
    let mut rng = Rng::new(11);
    let mut fenced = 0;
    for harm in [Harm::Flip, Harm::Cut, Harm::Stall, Harm::Drip] {
        for from in [From::Caller, From::Callee] {
            // With a second copy of every expert, and with none, so that the other worker must load them.
            for redundancy in [1.0, 0.0] {
                let at = (QUIET_BYTES + rng.below(60_000)) as u64;
                let fault = Fault { connection: 0, from, at, harm };
                let proxy = FaultyProxy::start(&addresses[1], Some(fault)).expect("a free port");
                let through = [addresses[0].clone(), proxy.address()];
                let mut config = hasty_config(&through, redundancy);
                config.overlap_rows = if from == From::Callee { 2 } else { 0 };
                let exchange = start(&config, &package, &backend).expect("a cluster");
                assert!(run(&package, &backend, behind(&exchange)) == expected, "{fault:?}, {redundancy}");
                fenced += exchange.traffic().fenced;
            }
        }
    }
    assert!(fenced >= 8, "harm was met by {fenced} steps only");
}

/// A worker is gone for good in the middle of a reply.
#[test]
fn a_lost_worker_is_replaced() {
    let (package, backend) = (package("deepseek-v3-fp8"), cpu(None));
    let expected = run(&package, &backend, Experts::Here);
    for (workers, redundancy) in [(2, 1.0), (2, 0.0), (4, 0.5), (4, 0.0)] {
        let addresses = start_workers(&package, &backend, workers);
        let mut proxies: Vec<Option<FaultyProxy>> =
            addresses.iter().map(|address| FaultyProxy::start(address, None).ok()).collect();
        let through: Vec<String> = proxies.iter().flatten().map(FaultyProxy::address).collect();
        let exchange = start(&config(&through, redundancy), &package, &backend).expect("a cluster");
        // All but the last one, one after the other.
        let mut before = |step: usize| {
            if step % 2 == 1 && step / 2 + 1 < workers as usize {
                proxies[step / 2] = None;
            }
        };
        let found = run_with(&package, &backend, behind(&exchange), &mut before).expect("every step");
        let what = format!("{workers} workers, redundancy {redundancy}");
        assert!(found == expected, "{what}");
        let traffic = exchange.traffic();
        assert_eq!(traffic.fenced, u64::from(workers) - 1, "{what}");
        assert_eq!(traffic.adopted > 0, redundancy < 1.0, "{what}: {traffic:?}");
    }
}

#[test]
fn with_nobody_left_the_step_fails_and_the_next_ones_when_somebody_is_back() {
    let (package, backend) = (package("deepseek-v3-fp8"), cpu(None));
    let expected = run(&package, &backend, Experts::Here);
    let addresses = start_workers(&package, &backend, 2);
    let mut proxy = FaultyProxy::start(&addresses[1], None).ok();
    let through = [addresses[0].clone(), proxy.as_ref().expect("a free port").address()];
    let mut config = config(&through, 0.0);
    config.placement.adopt = false;
    config.deadlines.recovery_ms = 100;
    let exchange = start(&config, &package, &backend).expect("a cluster");
    let mut before = |step| {
        if step == 3 {
            proxy = None;
        }
    };
    let error = run_with(&package, &backend, behind(&exchange), &mut before).expect_err("half of the experts are gone");
    assert!(error.contains("nobody has experts") && error.contains("worker 1 at 127.0.0.1:"), "{error}");
    let error = run_with(&package, &backend, behind(&exchange), &mut |_| {}).expect_err("they are still gone");
    assert!(error.contains("nobody has experts"), "{error}");

    // Waiting for somebody is worth while if the step is given the time.
    let mut config = self::config(&through, 0.0);
    config.workers[1].address.clone_from(&addresses[1]);
    config.placement.adopt = false;
    config.deadlines.recovery_ms = 60_000;
    let fault = Fault { connection: 0, from: From::Callee, at: 5000, harm: Harm::Cut };
    let proxy = FaultyProxy::start(&addresses[1], Some(fault)).expect("a free port");
    config.workers[1].address = proxy.address();
    let exchange = start(&config, &package, &backend).expect("a cluster");
    assert!(run(&package, &backend, behind(&exchange)) == expected, "it came back under another epoch");
    assert_eq!((exchange.traffic().fenced, proxy.connections()), (1, 2));
}

/// What a lost worker held is loaded by the others before any step needs it.
#[test]
fn orphans_are_adopted_ahead_of_need() {
    let (package, backend) = (package("deepseek-v3-fp8"), cpu(None));
    let shape = shape(&package);
    let addresses = start_workers(&package, &backend, 3);
    let proxy = FaultyProxy::start(&addresses[1], None).expect("a free port");
    let through = [addresses[0].clone(), proxy.address(), addresses[2].clone()];
    let exchange = start(&config(&through, 0.0), &package, &backend).expect("a cluster");
    assert_eq!(exchange.traffic().adopted, 0);
    drop(proxy);
    let own = |layer: &lingqu_placement::LayerPlacement| layer.experts_of(WorkerId(1)).len() as u64;
    let lost: u64 = exchange.placement().layers.iter().map(own).sum();
    assert!(lost >= shape.expert_layers().count() as u64);
    let deadline = Instant::now() + Duration::from_secs(60);
    while exchange.traffic().adopted < lost {
        assert!(Instant::now() < deadline, "{} of {lost} adopted", exchange.traffic().adopted);
        std::thread::yield_now();
    }
    assert!(run(&package, &backend, behind(&exchange)) == run(&package, &backend, Experts::Here));
    assert_eq!(exchange.traffic().adopted, lost, "none was left for a step, and none loaded twice");
}

/// An idle worker that no longer answers is found out by heartbeats, and taken up again once it does.
#[test]
fn heartbeats_find_the_silent() {
    let (package, backend) = (package("deepseek-v3-fp8"), cpu(None));
    let addresses = start_workers(&package, &backend, 2);
    let fault = Fault { connection: 0, from: From::Callee, at: 300, harm: Harm::Stall };
    let proxy = FaultyProxy::start(&addresses[1], Some(fault)).expect("a free port");
    let through = [addresses[0].clone(), proxy.address()];
    let exchange = start(&hasty_config(&through, 0.0), &package, &backend).expect("a cluster");
    let deadline = Instant::now() + Duration::from_secs(30);
    while exchange.traffic().fenced == 0 || proxy.connections() < 2 {
        assert!(Instant::now() < deadline, "nobody found out");
        std::thread::yield_now();
    }
    assert!(run(&package, &backend, behind(&exchange)) == run(&package, &backend, Experts::Here));
}

#[test]
fn who_does_not_belong_is_refused() {
    let (package, backend) = (package("deepseek-v3-fp8"), cpu(None));
    let check = |change: fn(&mut Identity), says: &str| {
        let mut odd = identity(&package, 1);
        change(&mut odd);
        let addresses =
            [(identity(&package, 0)), odd].map(|identity| start_worker(shard(&package, &backend), identity));
        let error = start(&config(&addresses, 0.0), &package, &backend).err().expect(says);
        assert!(matches!(error, ClusterError::Refused { .. }) && error.to_string().contains(says), "{error}");
    };
    check(|odd| odd.fingerprint[0] ^= 1, "another checkpoint: ");
    check(|odd| odd.id = WorkerId(7), "this is worker 7, not worker 1");
    check(|odd| odd.arithmetic = "cpu int16".into(), "it computes by cpu int");

    let address = start_worker(shard(&package, &backend), identity(&package, 0));
    let stranger = TcpFabric::new(Secret::new(b"another secret of tests").expect("long enough"));
    let device = backend.clone();
    let shape = shape(&package);
    let config = config(&[address], 0.0);
    let error = lingqu_cluster::ClusterExchange::start(&config, Box::new(stranger), device, &shape).err();
    let error = error.expect("another secret");
    let is_stranger = matches!(error, ClusterError::Refused { problem: FabricError::Unauthenticated, .. });
    assert!(is_stranger, "{error}");
}

/// Whoever holds the secret may still be wrong: the worker says so and goes on.
#[test]
fn a_worker_survives_odd_messages() {
    const COMPUTE: u16 = 3;
    const PONG: u16 = 6;
    const FAILED: u16 = 7;
    let (package, backend) = (package("deepseek-v3-fp8"), cpu(None));
    let address = start_worker(shard(&package, &backend), identity(&package, 0));
    let soon = || Instant::now() + Duration::from_secs(20);
    let mut greeting: Vec<u8> = [2u32, 0, 0, 0, 0, 5, 0].iter().flat_map(|n| n.to_le_bytes()).collect();
    greeting.extend(package.checkpoint.fingerprint());
    let Joined { mut link, answer } = fabric().connect(&address, &greeting, soon()).expect("admitted");
    assert_eq!(answer, b"cpu int8");
    let numbers = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let mut ask = |kind: u16, message: &[u8]| {
        link.send(Tag { kind, epoch: 5, sequence: 2 }, &[message], soon()).expect("sent");
        let (tag, reply) = link.receive(1 << 20, soon()).expect("an answer");
        assert_eq!((tag.epoch, tag.sequence), (5, 2));
        (tag.kind, String::from_utf8_lossy(reply).into_owned())
    };
    let mut check = |kind: u16, message: &[u8], says: &str| {
        let (kind, text) = ask(kind, message);
        assert!(kind == FAILED && text.contains(says), "{kind}: {text}");
        assert_eq!(ask(5, b""), (PONG, String::new()));
    };
    check(99, b"", "messages of kind 99 are not known");
    check(1, b"short", "another form");
    let order = [1, 0]; // its number, of 64 bits
    let load = |rest: [u32; 3]| numbers(&[&order[..], &rest].concat());
    check(1, &load([1, 1, 9999]), "mlp.experts.9999.gate_proj.weight' is missing");
    check(1, &load([9999, 1, 0]), "is missing");
    check(1, &load([0, u32::MAX, 0]), "another form");
    check(COMPUTE, b"", "another form");
    check(COMPUTE, &numbers(&[1, u32::MAX, u32::MAX]), "another form");
    let hidden = package.config.hidden;
    let mut row = numbers(&[1, 1, 1, 0, 0]);
    row.extend(vec![0; hidden * 4]);
    check(COMPUTE, &row, "expert 0 of layer 1 is not held here");
}
