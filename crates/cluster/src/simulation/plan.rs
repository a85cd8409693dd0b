//! What a seed means: the cluster, how fast it is, and what goes wrong when.

use std::path::PathBuf;
use std::time::Duration;

use lingqu_testkit::rng::Rng;

use super::network::Speeds;
use crate::config::FabricName;
use crate::{ClusterConfig, Deadlines, PlacementConfig, WireFormat, WorkerConfig};

pub(super) const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// A worker that does not belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Impostor {
    Fingerprint,
    Number,
    Arithmetic,
    Secret,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The process ends; another one takes its place after the time.
    Kill,
    /// Stopped, or cut off from the network.
    Freeze,
    /// Connections are reset.
    HangUp,
    /// The next message to this side (0: the worker) is garbled.
    Garble(usize),
    /// The next answer is preceded by one of an earlier connection.
    Repeat,
    /// Messages are late by this at most.
    Slow(Duration),
    /// Packets of this share are lost, in percent.
    Lossy(usize),
    /// One that does not belong is in its place.
    Replace(Impostor),
    /// It cannot load; then it is killed, and another one can.
    Decline,
    /// It is told to hold nothing, and then that it may.
    Drain,
    /// It leaves, and joins again.
    Leave,
    /// Experts move by the load so far.
    Rebalance,
}

/// A fault of one worker and how long it lasts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub node: u32,
    pub fault: Fault,
    pub begins: Duration,
    pub ends: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub config: ClusterConfig,
    pub speeds: Speeds,
    /// In the order of their beginning; those of one worker do not overlap.
    pub events: Vec<Event>,
    /// Pauses before each step.
    pub pauses: Vec<Duration>,
    /// Of what happens inside.
    pub seed: u64,
}

/// Before this nothing is wrong but with those that are wrong from the start.
const QUIET: Duration = ms(300);

impl Plan {
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let workers = rng.between(1, 4) as u32;
        let latency = Duration::from_micros(rng.between(50, 2000) as u64);
        let speeds = Speeds { latency, load: ms(rng.between(1, 100) as u64), compute: ms(rng.between(0, 5) as u64) };
        let config = draw_config(&mut rng, workers);
        let mut events: Vec<Event> = (0..workers).flat_map(|node| draw_events(&mut rng, node)).collect();
        // Who may load only what is its own cannot take over the part of another.
        let moves = |event: &Event| matches!(event.fault, Fault::Drain | Fault::Leave | Fault::Rebalance);
        events.retain(|event| config.placement.adopt || !moves(event));
        events.sort_by_key(|event| (event.begins, event.node));
        let pauses = (0..rng.between(4, 10)).map(|_| draw_pause(&mut rng)).collect();
        Self { config, speeds, events, pauses, seed: rng.next_u64() }
    }

    /// When nothing is wrong any more.
    pub fn heals(&self) -> Duration {
        self.events.iter().map(|event| event.ends).max().unwrap_or(QUIET)
    }
}

fn draw_config(rng: &mut Rng, workers: u32) -> ClusterConfig {
    let worker = |id: u32| WorkerConfig { id, address: id.to_string(), memory_gib: None, speed: 1.0, incarnation: 0 };
    let redundancy = [0.0, 0.0, 0.3, 0.5, 1.0, 2.0][rng.below(6)];
    let rebalance_s = [0, 0, 2][rng.below(3)];
    ClusterConfig {
        workers: (0..workers).map(worker).collect(),
        fabric: FabricName::Tcp,
        secret_file: PathBuf::new(),
        tls: None,
        wire: [WireFormat::F32, WireFormat::F32, WireFormat::Bf16, WireFormat::Int8][rng.below(4)],
        overlap_rows: 0,
        placement: PlacementConfig { redundancy, adopt: rng.chance(80), rebalance_s, ..PlacementConfig::default() },
        deadlines: Deadlines {
            step_ms: 500,
            row_ms: 0,
            connect_ms: 300,
            load_ms: 2000,
            heartbeat_ms: [100, 200, 1000][rng.below(3)],
            // Longer than the pause between calls, so that whoever is well is there before it is over.
            recovery_ms: 9000,
            start_ms: 3000,
            ..Deadlines::default()
        },
    }
}

/// Steps follow each other, or there is nothing to do for a while.
fn draw_pause(rng: &mut Rng) -> Duration {
    match rng.below(4) {
        0 => ms(rng.below(2000) as u64),
        1 => ms(rng.below(200) as u64),
        _ => Duration::ZERO,
    }
}

fn draw_events(rng: &mut Rng, node: u32) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    for _ in 0..[0, 1, 1, 2, 3][rng.below(5)] {
        let after = events.last().map_or(QUIET, |event| event.ends);
        let begins = after + ms([rng.below(50), rng.below(1000), rng.below(4000)][rng.below(3)] as u64);
        let lasts =
            ms([rng.between(1, 50), rng.between(50, 1000), rng.between(1000, 4000), 15_000][rng.below(4)] as u64);
        let impostors = [Impostor::Fingerprint, Impostor::Number, Impostor::Arithmetic, Impostor::Secret];
        let fault = match rng.below(15) {
            0..3 => Fault::Kill,
            3..5 => Fault::Freeze,
            5 => Fault::HangUp,
            6 => Fault::Garble(rng.below(2)),
            7 => Fault::Repeat,
            8 => Fault::Slow(ms(rng.between(1, 1000) as u64)),
            9 => Fault::Lossy(rng.between(1, 60)),
            10 => Fault::Replace(impostors[rng.below(4)]),
            11 => Fault::Decline,
            12 => Fault::Drain,
            13 => Fault::Leave,
            _ => Fault::Rebalance,
        };
        events.push(Event { node, fault, begins, ends: begins + lasts });
    }
    events
}
