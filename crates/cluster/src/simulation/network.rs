//! Links between the serving process and its workers, with all that can go wrong on the way.
//!
//! A worker is called by its number as an address. What a fault does to TCP is done here to messages: what is lost is
//! sent again later, what is cut off comes when the cut is over, what is garbled is an error to who reads it, and a
//! process that is killed closes its links.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lingqu_fabric::{Caller, Fabric, FabricError, Joined, Judge, Link, Listener, Result, Tag};
use lingqu_testkit::rng::Rng;

use super::turns::{FOREVER, KEY_MIN, Key, Simulated};
use crate::message::{COMPUTE, FAILED, KEEP, LOAD, LOADED, OUTPUTS};

/// Who reads a link.
const CALLEE: usize = 0;
const CALLER: usize = 1;
/// Lost packets are sent again after this, and after twice, four times … this.
const RESEND: Duration = Duration::from_millis(200);

/// How fast everything is while nothing is wrong.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speeds {
    pub latency: Duration,
    /// Of experts of one layer.
    pub load: Duration,
    pub compute: Duration,
}

/// Harm that lasts until a time, or until it has met a message.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Harm {
    /// Nothing passes: it is stopped, or its link is cut.
    pub frozen: Duration,
    /// Messages take longer, by this at most.
    pub slow: (Duration, Duration),
    /// Messages that are lost, in percent.
    pub lossy: (Duration, usize),
    /// The next message to the callee, or to the caller, has another checksum.
    pub garbles: [bool; 2],
    /// The next answer is one that an earlier link was to bring.
    pub repeats: bool,
    /// It shares another secret.
    pub is_stranger: bool,
}

pub(super) struct Network {
    machine: Arc<Simulated>,
    speeds: Speeds,
    state: Mutex<State>,
}

struct State {
    rng: Rng,
    /// By number.
    nodes: BTreeMap<u32, Node>,
    wires: Vec<Wire>,
    /// What must never be said.
    violations: Vec<String>,
    /// Of all that was said, and when.
    trace: u64,
    messages: u64,
}

#[derive(Default)]
struct Node {
    /// Counts its processes; 0 while none listens.
    process: u64,
    processes: u64,
    harm: Harm,
    calls: VecDeque<usize>,
    /// The largest epoch under which it was spoken to.
    epoch: u64,
    /// An answer on a link that is no more.
    old_answer: Option<Frame>,
}

/// One connection.
struct Wire {
    node: u32,
    greeting: Vec<u8>,
    /// The callee's answer to the greeting, and when the caller has it.
    verdict: Option<(Duration, std::result::Result<Vec<u8>, String>)>,
    /// What each side is to read.
    queues: [VecDeque<Frame>; 2],
    /// When each side sees that the other one has closed.
    closed: [Option<Duration>; 2],
    /// Of the last message to each side: no other one overtakes it.
    last: [Duration; 2],
    epoch: Option<u64>,
}

#[derive(Clone)]
struct Frame {
    at: Duration,
    tag: Tag,
    bytes: Vec<u8>,
    is_garbled: bool,
}

fn key(wire: usize, reader: usize) -> Key {
    KEY_MIN + 1000 + (wire * 2 + reader) as Key
}

fn accept_key(node: u32) -> Key {
    KEY_MIN + Key::from(node)
}

impl Network {
    pub fn new(machine: &Arc<Simulated>, speeds: Speeds, seed: u64) -> Arc<Self> {
        let (nodes, wires, violations) = (BTreeMap::new(), Vec::new(), Vec::new());
        let state = State { rng: Rng::new(seed), nodes, wires, violations, trace: 0, messages: 0 };
        Arc::new(Self { machine: Arc::clone(machine), speeds, state: Mutex::new(state) })
    }

    /// Never held while others run.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics here")
    }

    /// A process begins to listen as worker `node`.
    pub fn start(self: &Arc<Self>, node: u32) -> Box<dyn Listener> {
        let mut state = self.state();
        let it = state.nodes.entry(node).or_default();
        it.processes += 1;
        it.process = it.processes;
        Box::new(SimListener { network: Arc::clone(self), node, process: it.process })
    }

    /// A process ends: so do its links.
    pub fn kill(&self, node: u32) {
        self.hang_up(node);
        let mut state = self.state();
        if let Some(it) = state.nodes.get_mut(&node) {
            (it.process, it.harm.is_stranger) = (0, false);
            it.calls.clear();
        }
        drop(state);
        self.machine.notify(accept_key(node));
    }

    /// Every connection of a worker is reset.
    pub fn hang_up(&self, node: u32) {
        let count = self.state().wires.len();
        for wire in 0..count {
            if self.state().wires[wire].node == node {
                self.close(wire, CALLEE);
                self.close(wire, CALLER);
            }
        }
    }

    /// Changes what is wrong with a worker.
    pub fn harm(&self, node: u32, change: impl FnOnce(&mut Harm)) {
        change(&mut self.state().nodes.entry(node).or_default().harm);
        self.machine.notify_where(|key| (KEY_MIN..Key::MAX).contains(&key));
    }

    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// The same for runs that were the same, and how many messages there were.
    pub fn trace(&self) -> (u64, u64) {
        let state = self.state();
        (state.trace, state.messages)
    }

    /// `side` hangs up.
    fn close(&self, wire: usize, side: usize) {
        let at = self.machine.time() + self.speeds.latency;
        let other = 1 - side;
        let it = &mut self.state().wires[wire];
        let at = at.max(it.last[other]);
        it.closed[other].get_or_insert(at);
        it.closed[side].get_or_insert(Duration::ZERO);
        self.machine.notify(key(wire, other));
        self.machine.notify(key(wire, side));
    }

    fn send(&self, wire: usize, to: usize, message: (Tag, &[&[u8]]), deadline: Instant) -> Result<()> {
        self.machine.breathe();
        let (tag, parts) = message;
        let now = self.machine.time();
        let mut state = self.state();
        let State { rng, nodes, wires, violations, .. } = &mut *state;
        let it = &mut wires[wire];
        let node = nodes.get_mut(&it.node).expect("it was called");
        if it.closed[1 - to].is_some_and(|at| at <= now) {
            return Err(FabricError::Closed);
        }
        if node.harm.frozen > now && rng.chance(20) {
            drop(state); // what the system keeps for a connection is full
            self.machine.sleep(self.machine.time_of(deadline).saturating_sub(now));
            return Err(FabricError::TimedOut);
        }
        if to == CALLEE {
            check_epoch(it, node, tag, violations);
        }
        let work = match tag.kind {
            LOADED => self.speeds.load,
            OUTPUTS => self.speeds.compute,
            _ => Duration::ZERO,
        };
        let mut delay = self.speeds.latency + work + self.speeds.latency.mul_f64(rng.below(100) as f64 / 100.0);
        if node.harm.slow.0 > now {
            delay += node.harm.slow.1.mul_f64(rng.below(100) as f64 / 100.0);
        }
        let mut resend = RESEND;
        while node.harm.lossy.0 > now && rng.chance(node.harm.lossy.1) && resend < RESEND * 16 {
            delay += resend;
            resend *= 2;
        }
        let is_garbled = std::mem::take(&mut node.harm.garbles[to]);
        let frame = Frame { at: (now + delay).max(it.last[to]), tag, bytes: parts.concat(), is_garbled };
        it.last[to] = frame.at;
        if to == CALLER && tag.kind == OUTPUTS {
            if node.harm.repeats
                && let Some(old) = node.old_answer.take()
            {
                node.harm.repeats = false;
                it.queues[to].push_back(Frame { at: frame.at, ..old });
            } else if node.old_answer.is_none() || rng.chance(10) {
                node.old_answer = Some(frame.clone());
            }
        }
        it.queues[to].push_back(frame);
        state.record(now, wire, tag);
        drop(state);
        self.machine.notify(key(wire, to));
        Ok(())
    }

    fn receive(&self, wire: usize, me: usize, deadline: Instant) -> Result<(Tag, Vec<u8>)> {
        let deadline = self.machine.time_of(deadline);
        self.machine.breathe();
        loop {
            let now = self.machine.time();
            let mut state = self.state();
            let State { nodes, wires, .. } = &mut *state;
            let it = &mut wires[wire];
            let frozen = nodes[&it.node].harm.frozen;
            // Whoever closed its own side has nothing to read; who was hung up on reads what came before.
            if it.closed[me] == Some(Duration::ZERO) {
                return Err(FabricError::Closed);
            }
            let arrives = it.queues[me].front().map(|frame| frame.at).or(it.closed[me]).map(|at| at.max(frozen));
            match arrives {
                Some(at) if at <= now => {
                    return match it.queues[me].pop_front() {
                        None => Err(FabricError::Closed),
                        Some(frame) if frame.is_garbled => {
                            Err(FabricError::Corrupt("its message has another checksum"))
                        }
                        Some(frame) => Ok((frame.tag, frame.bytes)),
                    };
                }
                _ if now >= deadline => return Err(FabricError::TimedOut),
                arrives => {
                    drop(state);
                    self.machine.wait_for(key(wire, me), arrives.unwrap_or(FOREVER).min(deadline));
                }
            }
        }
    }

    /// The caller's side of a handshake.
    fn call(&self, node: u32, greeting: &[u8], deadline: Duration) -> Result<(usize, Vec<u8>)> {
        let until = |time: Duration| -> Result<()> {
            self.machine.sleep(time.min(deadline).saturating_sub(self.machine.time()));
            if self.machine.time() >= deadline { Err(FabricError::TimedOut) } else { Ok(()) }
        };
        until(self.machine.time() + self.speeds.latency)?;
        loop {
            let frozen = self.state().nodes.get(&node).map_or(Duration::ZERO, |it| it.harm.frozen);
            if frozen <= self.machine.time() {
                break;
            }
            until(frozen)?;
        }
        let wire = {
            let mut state = self.state();
            let State { nodes, wires, .. } = &mut *state;
            let Some(it) = nodes.get_mut(&node).filter(|it| it.process > 0) else {
                return Err(FabricError::Io { what: "connect", source: ErrorKind::ConnectionRefused.into() });
            };
            if it.harm.is_stranger {
                return Err(FabricError::Unauthenticated);
            }
            let greeting = greeting.to_vec();
            let (queues, closed, last) = Default::default();
            wires.push(Wire { node, greeting, verdict: None, queues, closed, last, epoch: None });
            it.calls.push_back(wires.len() - 1);
            wires.len() - 1
        };
        self.machine.notify(accept_key(node));
        loop {
            let now = self.machine.time();
            let (verdict, is_closed) = {
                let it = &self.state().wires[wire];
                (it.verdict.clone(), it.closed[CALLER].is_some_and(|at| at <= now))
            };
            match verdict {
                Some((at, Ok(answer))) if at <= now => return Ok((wire, answer)),
                Some((at, Err(reason))) if at <= now => return Err(FabricError::Refused(reason)),
                // The callee sends nothing more and hangs up.
                None if is_closed => return Err(FabricError::Unauthenticated),
                _ if now >= deadline => {
                    self.close(wire, CALLER);
                    return Err(FabricError::TimedOut);
                }
                verdict => {
                    let closed = self.state().wires[wire].closed[CALLER];
                    let next = verdict.map(|(at, _)| at).or(closed).unwrap_or(FOREVER);
                    self.machine.wait_for(key(wire, CALLER), next.min(deadline));
                }
            }
        }
    }
}

/// Every connection has an epoch, larger than that of the one before; those beside it have none.
fn check_epoch(wire: &mut Wire, node: &mut Node, tag: Tag, violations: &mut Vec<String>) {
    match wire.epoch {
        Some(epoch) if epoch == tag.epoch => {}
        Some(epoch) => violations.push(format!("a link of epoch {epoch} is asked under epoch {}", tag.epoch)),
        None if tag.epoch == 0 || tag.epoch > node.epoch => node.epoch = node.epoch.max(tag.epoch),
        None => violations.push(format!("epoch {} comes after epoch {}", tag.epoch, node.epoch)),
    }
    wire.epoch = Some(tag.epoch);
    if tag.epoch == 0 && ![LOAD, KEEP].contains(&tag.kind) {
        violations.push(format!("a message of kind {} on a link for loads", tag.kind));
    }
}

impl State {
    fn record(&mut self, now: Duration, wire: usize, tag: Tag) {
        for number in [now.as_nanos() as u64, wire as u64, u64::from(tag.kind), tag.epoch, tag.sequence] {
            self.trace = lingqu_testkit::rng::mix(self.trace ^ number);
        }
        self.messages += 1;
    }

    /// A worker that is asked for what it does not have was believed to have it: it is fenced for that, and no bit is
    /// wrong. What comes late over a link that was given up may ask for anything.
    fn check_answer(&mut self, wire: usize, asked: u16, tag: Tag, parts: &[&[u8]]) {
        if asked == COMPUTE && tag.kind == FAILED && self.wires[wire].closed[CALLER].is_none() {
            let problem = String::from_utf8_lossy(&parts.concat()).into_owned();
            self.violations.push(format!("a worker is asked for what it does not have: {problem}"));
        }
    }
}

/// The fabric of the serving process.
pub(super) struct SimFabric(pub Arc<Network>);

impl Fabric for SimFabric {
    fn connect(&self, address: &str, greeting: &[u8], deadline: Instant) -> Result<Joined> {
        let node = address.parse().expect("addresses are numbers here");
        let deadline = self.0.machine.time_of(deadline);
        let (wire, answer) = self.0.call(node, greeting, deadline)?;
        Ok(Joined { link: Box::new(SimLink::new(&self.0, wire, CALLER)), answer })
    }

    fn listen(&self, _: &str) -> Result<Box<dyn Listener>> {
        unreachable!("workers are given their listeners")
    }
}

struct SimListener {
    network: Arc<Network>,
    node: u32,
    process: u64,
}

impl Listener for SimListener {
    fn address(&self) -> String {
        self.node.to_string()
    }

    fn accept(&self) -> Result<Box<dyn Caller>> {
        loop {
            {
                let mut state = self.network.state();
                let it = state.nodes.get_mut(&self.node).expect("it listens");
                if it.process != self.process {
                    return Err(FabricError::Io { what: "take a call", source: ErrorKind::Other.into() });
                }
                if let Some(wire) = it.calls.pop_front() {
                    return Ok(Box::new(SimCaller { link: SimLink::new(&self.network, wire, CALLEE) }));
                }
            }
            self.network.machine.wait_for(accept_key(self.node), FOREVER);
        }
    }
}

struct SimCaller {
    link: SimLink,
}

impl Caller for SimCaller {
    fn address(&self) -> String {
        "the server".into()
    }

    fn admit(self: Box<Self>, judge: Judge<'_>, _: Instant) -> Result<Box<dyn Link>> {
        let SimLink { network, wire, .. } = &self.link;
        let greeting = network.state().wires[*wire].greeting.clone();
        let verdict = judge(&greeting);
        let at = network.machine.time() + network.speeds.latency * 2;
        network.state().wires[*wire].verdict = Some((at, verdict.clone()));
        network.machine.notify(key(*wire, CALLER));
        match verdict {
            Ok(_) => Ok(Box::new(self.link)),
            Err(reason) => Err(FabricError::Refused(reason)),
        }
    }
}

struct SimLink {
    network: Arc<Network>,
    wire: usize,
    side: usize,
    /// Kind of the last message read.
    read: u16,
    message: Vec<u8>,
}

impl SimLink {
    fn new(network: &Arc<Network>, wire: usize, side: usize) -> Self {
        Self { network: Arc::clone(network), wire, side, read: 0, message: Vec::new() }
    }
}

impl Link for SimLink {
    fn send(&mut self, tag: Tag, parts: &[&[u8]], deadline: Instant) -> Result<()> {
        if self.side == CALLEE {
            self.network.state().check_answer(self.wire, self.read, tag, parts);
        }
        self.network.send(self.wire, 1 - self.side, (tag, parts), deadline)
    }

    fn receive(&mut self, _: usize, deadline: Instant) -> Result<(Tag, &[u8])> {
        let (tag, message) = self.network.receive(self.wire, self.side, deadline)?;
        (self.read, self.message) = (tag.kind, message);
        Ok((tag, &self.message))
    }
}

impl Drop for SimLink {
    fn drop(&mut self) {
        self.network.close(self.wire, self.side);
    }
}
