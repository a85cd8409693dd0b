//! Who is there, and who holds what: the serving side's view of its workers.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lingqu_fabric::{Fabric, FabricError};
use lingqu_placement::{Placement, WorkerId};
use thiserror::Error;

use crate::config::Deadlines;
use crate::message::{FAILED, LOAD, LOADED, WireFormat, encode_load};
use crate::session::Session;
use crate::traffic::Traffic;

/// What the step loop and the keepers share.
pub(crate) struct Members {
    pub fabric: Box<dyn Fabric>,
    pub deadlines: Deadlines,
    pub fingerprint: [u8; 32],
    pub wire: WireFormat,
    pub placement: Placement,
    pub adopt: bool,
    pub roster: Mutex<Roster>,
    /// Somebody came, went or could not be reached; or all ends.
    pub changed: Condvar,
}

pub(crate) struct Roster {
    pub peers: Vec<Peer>,
    /// What the first worker said of its arithmetic: all must say the same.
    pub arithmetic: Option<String>,
    pub traffic: Traffic,
    /// Grows whenever experts may have become orphans: whoever has seen it this high need not look for them.
    pub losses: u64,
    /// Since when experts are missing that nobody has.
    pub outage_since: Option<Instant>,
    pub ends: bool,
}

pub(crate) struct Peer {
    pub id: WorkerId,
    pub address: String,
    /// Of the last connection, from 1.
    pub epoch: u64,
    /// None: it cannot be asked; its keeper tries to change that.
    pub session: Option<Session>,
    pub held: Held,
    /// It could not load what was not its own; until it is connected anew it is not asked again.
    pub declines: bool,
    /// Why it was last fenced or not reached.
    pub problem: Option<FabricError>,
}

/// Experts that a worker said it has, by layer.
#[derive(Default)]
pub(crate) struct Held(BTreeMap<usize, Vec<bool>>);

impl Held {
    pub fn has(&self, layer: usize, expert: usize) -> bool {
        self.0.get(&layer).is_some_and(|held| held.get(expert) == Some(&true))
    }

    pub fn add(&mut self, layer: usize, experts: &[usize]) {
        let held = self.0.entry(layer).or_default();
        let len = experts.iter().max().map_or(0, |last| last + 1).max(held.len());
        held.resize(len, false);
        experts.iter().for_each(|&expert| held[expert] = true);
    }

    pub fn count(&self) -> usize {
        self.0.values().map(|held| held.iter().filter(|is| **is).count()).sum()
    }
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
    pub fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets others at the roster until something changes, or until `deadline`.
    pub fn wait<'a>(&self, roster: MutexGuard<'a, Roster>, deadline: Instant) -> MutexGuard<'a, Roster> {
        let wait = deadline.saturating_duration_since(Instant::now());
        self.changed.wait_timeout(roster, wait).unwrap_or_else(PoisonError::into_inner).0
    }

    /// The first layer with experts of the placement that nobody holds, and those of them that fall to `peer` among
    /// the workers that are there.
    pub fn orphans(&self, roster: &Roster, peer: usize) -> Option<(usize, Vec<usize>)> {
        let able = |p: &Peer| p.session.is_some() && !p.declines;
        let all: Vec<usize> = (0..roster.peers.len()).filter(|&p| able(&roster.peers[p])).collect();
        let rank = all.iter().position(|&p| p == peer)?;
        let of_layer = |layer: usize, experts: usize| -> Vec<usize> {
            let is_held = |e: usize| roster.peers.iter().any(|p| p.session.is_some() && p.held.has(layer, e));
            (0..experts).filter(|&e| e % all.len() == rank && !is_held(e)).collect()
        };
        let layers = self.placement.layers.iter().enumerate();
        layers.map(|(layer, placed)| (layer, of_layer(layer, placed.copies.len()))).find(|(_, part)| !part.is_empty())
    }

    /// Asks nothing of a worker any more until it is connected anew, under another epoch.
    pub fn fence(&self, roster: &mut Roster, peer: usize, problem: FabricError) {
        roster.traffic.fenced += 1;
        roster.losses += 1;
        let peer = &mut roster.peers[peer];
        tracing::warn!("{} at {} is fenced: {problem}", peer.id, peer.address);
        peer.session = None;
        peer.held = Held::default();
        peer.problem = Some(problem);
        self.changed.notify_all();
    }
}

impl Roster {
    pub fn new(peers: Vec<Peer>) -> Self {
        Self { peers, arithmetic: None, traffic: Traffic::default(), losses: 0, outage_since: None, ends: false }
    }

    /// Every worker with what was last wrong with it.
    pub fn problems(&self) -> String {
        let of = |peer: &Peer| {
            let problem = match (&peer.session, &peer.problem) {
                (Some(_), _) => "is there".to_owned(),
                (None, Some(problem)) => problem.to_string(),
                (None, None) => "has not answered".to_owned(),
            };
            format!("{} at {}: {problem}", peer.id, peer.address)
        };
        self.peers.iter().map(of).collect::<Vec<_>>().join("; ")
    }
}

/// Has a worker load experts of one layer.
pub(crate) fn load(session: &mut Session, layer: usize, experts: &[usize], deadline: Instant) -> Result<(), LoadError> {
    let asked = session.ask(LOAD, &[&encode_load(layer, experts)], deadline)?;
    let read = |kind: u16, message: &[u8]| match kind {
        LOADED => Ok(()),
        FAILED => Err(LoadError::Declined(String::from_utf8_lossy(message).into_owned())),
        _ => Err(LoadError::Link(FabricError::Corrupt("no answer to a load"))),
    };
    session.answer(asked, deadline, read)?
}
