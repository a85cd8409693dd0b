//! What a seed means: the cluster, the requests, and what goes wrong after how many tokens.

use std::fmt;

use lingqu_testkit::rng::Rng;

/// Prompts and the seeds of their samplers; what they should say is computed once, for all runs.
pub const PROMPTS: [(&str, u64); 4] = [("秋天", 11), ("明月", 12), ("The river", 13), ("春眠不觉晓", 14)];
/// Of the longest request.
pub const TOKENS_MAX: u32 = 110;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// kill -9, and nobody in its place.
    Kill,
    /// kill -9, and another process in its place.
    Restart,
    /// SIGSTOP, and SIGCONT after a while.
    Stop,
    /// The link is cut, and joined after a while.
    Cut,
    /// Connections are reset.
    Reset,
    Delay,
    Drop,
    /// A frame to the worker.
    GarbleQuestion,
    /// A frame from the worker.
    GarbleAnswer,
    WrongCheckpoint,
    WrongSecret,
    WrongVersion,
    /// kill -9 of etcd, and another process with its data in its place.
    KillEtcd,
    /// … and another process without its data.
    LoseEtcd,
    /// kill -9 of all workers, and others in their places.
    KillAll,
    /// SIGSTOP of all workers, and SIGCONT.
    StopAll,
}

/// Those of one worker come first.
pub const FAULTS: [Fault; 16] = [
    Fault::Kill,
    Fault::Restart,
    Fault::Stop,
    Fault::Cut,
    Fault::Reset,
    Fault::Delay,
    Fault::Drop,
    Fault::GarbleQuestion,
    Fault::GarbleAnswer,
    Fault::WrongCheckpoint,
    Fault::WrongSecret,
    Fault::WrongVersion,
    Fault::KillEtcd,
    Fault::LoseEtcd,
    Fault::KillAll,
    Fault::StopAll,
];
/// How many of [`FAULTS`] are of one worker, and how many of these need nothing but its process.
const OF_ONE: usize = 12;
const OF_PROCESS: usize = 3;

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill -9",
            Self::Restart => "kill -9, restarted",
            Self::Stop => "SIGSTOP, SIGCONT",
            Self::Cut => "link cut, joined",
            Self::Reset => "connections reset",
            Self::Delay => "packets delayed",
            Self::Drop => "packets dropped",
            Self::GarbleQuestion => "frame to a worker garbled",
            Self::GarbleAnswer => "frame from a worker garbled",
            Self::WrongCheckpoint => "replaced by another checkpoint",
            Self::WrongSecret => "replaced by another secret",
            Self::WrongVersion => "replaced by another version",
            Self::KillEtcd => "etcd: kill -9, restarted",
            Self::LoseEtcd => "etcd: kill -9, restarted without its data",
            Self::KillAll => "all workers: kill -9, restarted",
            Self::StopAll => "all workers: SIGSTOP, SIGCONT",
        })
    }
}

impl Fault {
    /// Whether no copy of an expert is left.
    pub fn is_of_all(self) -> bool {
        matches!(self, Self::KillAll | Self::StopAll)
    }

    pub fn is_of_etcd(self) -> bool {
        matches!(self, Self::KillEtcd | Self::LoseEtcd)
    }

    /// Whether something of ours is on the way to the worker, whatever the site.
    pub fn needs_road(self) -> bool {
        matches!(self, Self::Reset | Self::GarbleQuestion | Self::GarbleAnswer | Self::WrongVersion)
    }
}

/// What happens to one worker, if the fault is of one.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub fault: Fault,
    pub worker: usize,
    /// Tokens of all streams before it begins.
    pub begins: usize,
    /// … and before it ends; or when all streams have ended.
    pub ends: usize,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub workers: usize,
    pub redundancy: f64,
    pub is_narrow: bool,
    /// Which of [`PROMPTS`], and how many tokens of it.
    pub streams: Vec<(usize, u32)>,
    pub events: Vec<Event>,
}

impl Plan {
    /// Whether workers are found in etcd, not in a file.
    pub fn has_etcd(&self) -> bool {
        self.events.iter().any(|event| event.fault.is_of_etcd())
    }

    /// The first fault comes in turn, so that any hundred seeds have them all.
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let first = FAULTS[(seed % FAULTS.len() as u64) as usize];
        let workers = rng.between(2, 4);
        let streams: Vec<(usize, u32)> =
            (0..rng.between(2, 4)).map(|number| (number, rng.between(60, TOKENS_MAX as usize) as u32)).collect();
        let tokens: usize = streams.iter().map(|(_, tokens)| *tokens as usize).sum();
        let worker = rng.below(workers);
        let mut event = |fault, worker| {
            let begins = rng.between(tokens / 20, tokens / 2);
            Event { fault, worker, begins, ends: begins + rng.between(5, tokens / 2) }
        };
        let mut events = vec![event(first, worker)];
        let second = event(Fault::Kill, (worker + 1) % workers);
        // Somebody is always well, unless that is the point.
        if workers > 2 && !first.is_of_all() && rng.chance(40) {
            let fault = FAULTS[rng.below(if first.is_of_etcd() { OF_PROCESS } else { OF_ONE })];
            events.push(Event { fault, ..second });
        }
        events.sort_by_key(|event| event.begins);
        let redundancy = [0.0, 0.5, 1.0][rng.below(3)];
        Self { seed, workers, redundancy, is_narrow: rng.chance(30), streams, events }
    }
}
