//! Who is there, and who holds what: the serving side's view of its workers.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lingqu_fabric::{Fabric, FabricError};
use lingqu_placement::WorkerId;
use thiserror::Error;

use crate::config::{Deadlines, PlacementConfig, WorkerConfig};
use crate::exchange::Parts;
use crate::experts::Held;
use crate::load::ExpertLoad;
use crate::machine::{Changes, Machine};
use crate::message::{FAILED, KEEP, KEPT, LOAD, LOADED, Order};
use crate::plan::Plan;
use crate::session::Session;
use crate::traffic::Traffic;
use crate::wire::WireFormat;
use crate::{ChangeStatus, Model};

/// What the step loop, the keepers and the balancer share.
pub(crate) struct Members {
    pub machine: Arc<dyn Machine>,
    pub fabric: Box<dyn Fabric>,
    pub deadlines: Deadlines,
    pub model: Model,
    pub wire: WireFormat,
    pub config: PlacementConfig,
    /// Chosen at the start: by it a worker knows our links.
    pub server: u64,
    pub roster: Mutex<Roster>,
    /// Somebody came, went or could not be reached, holds or is to hold something else; or all ends.
    pub changed: Changes,
}

pub(crate) struct Roster {
    /// A worker keeps its place, also when it leaves.
    pub peers: Vec<Peer>,
    /// What the first worker said of its arithmetic: all must say the same.
    pub arithmetic: Option<String>,
    pub traffic: Traffic,
    pub load: ExpertLoad,
    /// Grows whenever somebody may have something else to load or to drop: whoever has seen it this high has not.
    pub revision: u64,
    /// Since when experts are missing that nobody has.
    pub outage_since: Option<Instant>,
    /// Given so far to load or to keep experts.
    orders: u64,
    /// The last one, or the one that is under way.
    pub change: Option<ChangeStatus>,
    /// For the balancer.
    pub order: Option<Plan>,
    /// The start is over: who is not there is missing, and no more merely late.
    pub begun: bool,
    pub ends: bool,
}

pub(crate) struct Peer {
    pub id: WorkerId,
    pub address: String,
    /// Of its registration, if workers register.
    pub incarnation: u64,
    /// What it has for experts.
    pub memory_bytes: u64,
    pub speed: f64,
    /// Of the last connection, from 1; also grows when the worker is to be connected anew.
    pub epoch: u64,
    /// None: it cannot be asked; its keeper tries to change that, unless it has left.
    pub session: Option<Session>,
    /// Rows are sent to it for these.
    pub held: Held,
    /// What it is to hold.
    pub wanted: Held,
    /// It could not load something; until it is connected anew it is not asked to load again.
    pub declines: bool,
    /// It is to hold nothing, so that it can be stopped.
    pub drains: bool,
    /// It is not called until it joins again.
    pub left: bool,
    /// It gives up experts at the moment, so that it is not asked to load any.
    pub drops: bool,
    /// It has no part yet and is to get one.
    pub is_new: bool,
    /// How often it was said that it should be called at once.
    pub summons: u64,
    /// Why it was last fenced or not reached.
    pub problem: Option<FabricError>,
    /// Rows times experts that it was given, since the start.
    pub pairs: u64,
}

/// Why a worker did not load.
#[derive(Debug, Error)]
pub(crate) enum LoadError {
    /// It is of no more use.
    #[error(transparent)]
    Link(#[from] FabricError),
    /// In its own words; it goes on.
    #[error("{0}")]
    Declined(String),
}

impl Members {
    pub fn new(parts: Parts<'_>) -> Self {
        let Parts { machine, config, fabric, model, placement, .. } = parts;
        let mut roster = Roster::new(config.workers.iter().map(Peer::new).collect(), ExpertLoad::new(model));
        for peer in &mut roster.peers {
            for (layer, placed) in placement.layers.iter().enumerate() {
                peer.wanted.add(layer, &placed.experts_of(peer.id));
            }
        }
        Self {
            fabric,
            deadlines: config.deadlines,
            model: model.clone(),
            wire: config.wire,
            config: config.placement.clone(),
            server: any_number(),
            roster: Mutex::new(roster),
            changed: Changes::new(Arc::clone(&machine)),
            machine,
        }
    }

    pub fn roster(&self) -> MutexGuard<'_, Roster> {
        self.changed.lock(&self.roster)
    }

    pub fn now(&self) -> Instant {
        self.machine.now()
    }

    /// Lets others at the roster until something changes, or until `deadline`.
    pub fn wait<'a>(&'a self, roster: MutexGuard<'a, Roster>, deadline: Instant) -> MutexGuard<'a, Roster> {
        self.changed.wait(&self.roster, roster, deadline)
    }

    /// Everybody looks what there is to do.
    pub fn tell(&self, roster: &mut Roster) {
        roster.revision += 1;
        self.changed.notify_all();
    }

    /// Asks nothing of a worker any more until it is connected anew, under another epoch.
    pub fn fence(&self, roster: &mut Roster, peer: usize, problem: FabricError) {
        roster.traffic.fenced += 1;
        let peer = &mut roster.peers[peer];
        tracing::warn!("{} at {} is fenced: {problem}", peer.id, peer.address);
        peer.disconnect();
        peer.problem = Some(problem);
        self.tell(roster);
    }

    /// How long a worker may take for any step.
    pub fn longest_step(&self) -> Duration {
        self.deadlines.step(self.model.rows_max * self.model.top_k)
    }

    /// How many more experts of `layer` have room on `peer`.
    pub fn room(&self, peer: &Peer, layer: usize) -> usize {
        let expert_bytes = &self.model.expert_bytes;
        let free = peer.memory_bytes.saturating_sub(peer.held.bytes(expert_bytes));
        usize::try_from(free / expert_bytes[layer].max(1)).unwrap_or(usize::MAX)
    }
}

impl Roster {
    /// The next order about experts of a layer.
    pub fn order(&mut self, layer: usize, experts: &[usize]) -> Order {
        self.orders += 1;
        Order { number: self.orders, layer, experts: experts.to_vec() }
    }

    fn new(peers: Vec<Peer>, load: ExpertLoad) -> Self {
        Self {
            peers,
            arithmetic: None,
            traffic: Traffic::default(),
            load,
            revision: 0,
            outage_since: None,
            orders: 0,
            change: None,
            order: None,
            begun: false,
            ends: false,
        }
    }

    pub fn find(&self, id: WorkerId) -> Option<usize> {
        self.peers.iter().position(|peer| peer.id == id)
    }

    /// Every worker with what was last wrong with it.
    pub fn problems(&self) -> String {
        let of = |peer: &Peer| {
            let problem = match (&peer.session, &peer.problem) {
                (Some(_), _) => "is there".to_owned(),
                (None, Some(problem)) => problem.to_string(),
                (None, None) if peer.left => "has left".to_owned(),
                (None, None) => "has not answered".to_owned(),
            };
            format!("{} at {}: {problem}", peer.id, peer.address)
        };
        self.peers.iter().map(of).collect::<Vec<_>>().join("; ")
    }
}

impl Peer {
    pub fn new(config: &WorkerConfig) -> Self {
        Self {
            id: WorkerId(config.id),
            address: config.address.clone(),
            incarnation: config.incarnation,
            memory_bytes: config.memory_bytes(),
            speed: config.speed,
            epoch: 0,
            session: None,
            held: Held::default(),
            wanted: Held::default(),
            declines: false,
            drains: false,
            left: false,
            drops: false,
            is_new: false,
            summons: 0,
            problem: None,
            pairs: 0,
        }
    }

    pub fn is_there(&self) -> bool {
        self.session.is_some()
    }

    /// Whether experts may be given to it.
    pub fn can_load(&self) -> bool {
        self.is_there() && !self.declines && !self.drains && !self.drops
    }

    pub fn disconnect(&mut self) {
        self.session = None;
        self.held = Held::default();
    }
}

/// Whether a worker that cannot be used will not be better for waiting.
pub(crate) fn is_refusal(problem: &FabricError) -> bool {
    problem.is_verdict()
}

/// Has a worker load experts of one layer.
pub(crate) fn load(session: &mut Session, order: &Order, deadline: Instant) -> Result<(), LoadError> {
    ask(session, (LOAD, LOADED), order, deadline)
}

/// Has a worker forget all experts of one layer but these, as far as no other server wants them.
pub(crate) fn keep(session: &mut Session, order: &Order, deadline: Instant) -> Result<(), LoadError> {
    ask(session, (KEEP, KEPT), order, deadline)
}

fn ask(session: &mut Session, (kind, expected): (u16, u16), order: &Order, deadline: Instant) -> Result<(), LoadError> {
    let asked = session.ask(kind, &[&order.encode()], 0, deadline)?;
    let read = |kind: u16, message: &[u8]| match kind {
        FAILED => Err(LoadError::Declined(String::from_utf8_lossy(message).into_owned())),
        kind if kind == expected => Ok(()),
        _ => Err(LoadError::Link(FabricError::Corrupt("an answer of another kind"))),
    };
    session.answer(asked, deadline, read)?
}

/// Another one in every process, as good as certainly; no secret.
fn any_number() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
