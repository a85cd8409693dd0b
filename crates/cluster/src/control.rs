//! What operators and a membership service do to a running cluster, and what they can see of it.

use std::sync::{Arc, MutexGuard};

use lingqu_placement::{Move, PlacementError, RebalanceGoal, WorkerId};
use thiserror::Error;

use crate::config::{WORKERS_MAX, WorkerConfig};
use crate::experts::ExpertSet;
use crate::keeper::Keeper;
use crate::members::{Members, Peer, Roster, is_refusal};
use crate::plan::Plan;
use crate::traffic::Traffic;

/// How often a plan is made anew because something changed while it was made.
const PLANS_MAX: usize = 5;

/// A handle of a running [`ClusterExchange`](crate::ClusterExchange); cheap to clone. Every change takes effect between
/// steps, and an expert is given up only once another worker has it.
#[derive(Clone)]
pub struct ClusterControl(pub(crate) Arc<Members>);

/// Why a change is not made.
#[derive(Debug, Error)]
pub enum ControlError {
    #[error("{0} is none of the workers")]
    Unknown(WorkerId),
    #[error("the cluster is shut down")]
    Ended,
    #[error("{WORKERS_MAX} workers are known already")]
    Full,
    #[error("worker {0}: speed and memory_gib are numbers above 0")]
    Figures(u32),
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Another time it may work.
    #[error("not now: {0}")]
    Busy(String),
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Experts that move, or have moved, to another placement.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangeStatus {
    /// From 1.
    pub number: u64,
    /// Loads and drops in all.
    pub moves: usize,
    /// Of those.
    pub done: usize,
    pub loads: usize,
    /// Rows of the busiest worker over the mean, of the worst layer, by the load when it was planned.
    pub imbalance_before: f64,
    pub imbalance_after: f64,
    pub state: ChangeState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeState {
    Running,
    Done,
    /// Why it ended early: what has moved stays there.
    Failed(String),
}

/// A rebalance as it would be.
#[derive(Clone, Debug, PartialEq)]
pub struct RebalancePlan {
    pub moves: Vec<Move>,
    pub imbalance_before: f64,
    pub imbalance_after: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    Ready,
    /// Its experts are on their way to others.
    Draining,
    /// It holds nothing and is asked nothing: it can be stopped.
    Drained,
    /// It is called again and again.
    Away,
    /// It answers, but does not want us, or we do not want it.
    Refused,
    /// It is not called until it joins again.
    Left,
}

impl WorkerState {
    pub const ALL: [Self; 6] = [Self::Ready, Self::Draining, Self::Drained, Self::Away, Self::Refused, Self::Left];

    /// As operators read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Away => "away",
            Self::Refused => "refused",
            Self::Left => "left",
        }
    }
}

#[derive(Clone, Debug)]
pub struct WorkerStatus {
    pub id: WorkerId,
    pub address: String,
    pub state: WorkerState,
    /// Why it is not there.
    pub problem: Option<String>,
    /// Of its connection.
    pub epoch: u64,
    /// It was told to hold nothing.
    pub drains: bool,
    pub experts: usize,
    pub bytes: u64,
    /// None: enough.
    pub memory_bytes: Option<u64>,
    /// Rows times experts that it was given, since the start.
    pub pairs: u64,
}

#[derive(Clone, Debug)]
pub struct ClusterStatus {
    pub workers: Vec<WorkerStatus>,
    pub traffic: Traffic,
    /// Experts that nobody has at the moment.
    pub missing: usize,
    /// The last rebalance, or the one that is under way.
    pub change: Option<ChangeStatus>,
}

impl ClusterStatus {
    /// Rows of the busiest worker over the mean of those that are there, since the start.
    pub fn busiest_over_mean(&self) -> f64 {
        let there = |w: &&WorkerStatus| matches!(w.state, WorkerState::Ready | WorkerState::Draining);
        let pairs: Vec<u64> = self.workers.iter().filter(there).map(|worker| worker.pairs).collect();
        let (busiest, sum) = (pairs.iter().max().copied().unwrap_or(0), pairs.iter().sum::<u64>());
        if sum == 0 { 1.0 } else { busiest as f64 * pairs.len() as f64 / sum as f64 }
    }
}

impl ClusterControl {
    /// A worker that came, or came back, perhaps elsewhere: it is called at once, unless it is there under this address
    /// ([`ClusterControl::leave`] first makes its link a new one in any case). One that nobody knew gets a part of
    /// the experts by a rebalance, once it is there; one that was known gets what was its own.
    ///
    /// # Errors
    /// Figures that are none, or more workers than there may be.
    pub fn join(&self, worker: &WorkerConfig) -> Result<(), ControlError> {
        let is_positive = |value: f64| value.is_finite() && value > 0.0;
        if !is_positive(worker.speed) || worker.memory_gib.is_some_and(|gib| !is_positive(gib)) {
            return Err(ControlError::Figures(worker.id));
        }
        let mut roster = self.open()?;
        let Some(at) = roster.find(WorkerId(worker.id)) else {
            if roster.peers.len() >= WORKERS_MAX {
                return Err(ControlError::Full);
            }
            let at = roster.peers.len();
            roster.peers.push(Peer { is_new: true, ..Peer::new(worker) });
            drop(roster);
            return Ok(Keeper::start(Arc::clone(&self.0), at)?);
        };
        let peer = &mut roster.peers[at];
        (peer.memory_bytes, peer.speed) = (worker.memory_bytes(), worker.speed);
        if peer.address != worker.address || peer.incarnation != worker.incarnation || peer.left {
            peer.address.clone_from(&worker.address);
            peer.incarnation = worker.incarnation;
            peer.epoch += 1; // a call that is under way goes to the wrong one
            peer.disconnect();
            (peer.left, peer.problem) = (false, None);
        }
        if !peer.is_there() {
            peer.summons += 1;
        }
        self.0.tell(&mut roster);
        Ok(())
    }

    /// A worker that is known to be gone: it is not called until it joins again, and others load what it had.
    pub fn leave(&self, worker: WorkerId) -> Result<(), ControlError> {
        let mut roster = self.open()?;
        let at = roster.find(worker).ok_or(ControlError::Unknown(worker))?;
        let peer = &mut roster.peers[at];
        peer.epoch += 1;
        peer.disconnect();
        (peer.left, peer.problem) = (true, None);
        self.0.tell(&mut roster);
        Ok(())
    }

    /// Has others load all that a worker holds, and then asks it nothing more: [`WorkerState::Drained`] says when it
    /// can be stopped. Returns at once. This holds, also if the worker is restarted, until [`ClusterControl::undrain`].
    ///
    /// # Errors
    /// Others that have too little memory, or that are not there.
    pub fn drain(&self, worker: WorkerId) -> Result<(), ControlError> {
        let wanted = {
            let mut roster = self.open()?;
            let at = roster.find(worker).ok_or(ControlError::Unknown(worker))?;
            let peer = &mut roster.peers[at];
            if std::mem::replace(&mut peer.drains, true) {
                return Ok(());
            }
            let wanted = std::mem::take(&mut peer.wanted);
            if !peer.is_there() {
                self.0.tell(&mut roster); // others have its part already
                return Ok(());
            }
            wanted
        };
        let outcome = self.0.give_away();
        if outcome.is_err() {
            let mut roster = self.0.roster();
            if let Some(at) = roster.find(worker) {
                (roster.peers[at].drains, roster.peers[at].wanted) = (false, wanted);
            }
            self.0.tell(&mut roster);
        }
        outcome
    }

    /// Gives a worker work again: what it still has at once, and more by a rebalance.
    pub fn undrain(&self, worker: WorkerId) -> Result<(), ControlError> {
        let mut roster = self.open()?;
        let at = roster.find(worker).ok_or(ControlError::Unknown(worker))?;
        let peer = &mut roster.peers[at];
        if std::mem::replace(&mut peer.drains, false) {
            (peer.is_new, peer.wanted) = (true, peer.held.clone());
            peer.summons += u64::from(!peer.is_there());
            self.0.tell(&mut roster);
        }
        Ok(())
    }

    /// What a rebalance to `goal` would do, by the load so far.
    pub fn plan(&self, goal: RebalanceGoal) -> Result<RebalancePlan, ControlError> {
        let Plan { moves, imbalance_before, imbalance_after, .. } = self.0.plan(goal)?;
        Ok(RebalancePlan { moves, imbalance_before, imbalance_after })
    }

    /// Begins to move experts as [`ClusterControl::plan`] says; [`ClusterControl::change`] tells how far that is.
    ///
    /// # Errors
    /// [`ControlError::Busy`] while others move, workers drain, or experts are with nobody.
    pub fn rebalance(&self, goal: RebalanceGoal) -> Result<ChangeStatus, ControlError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let plan = self.0.plan(goal)?;
            let mut roster = self.open()?;
            if roster.revision == plan.revision || attempts == PLANS_MAX {
                return self.0.begin(&mut roster, plan);
            }
        }
    }

    /// The last rebalance, or the one that is under way.
    pub fn change(&self) -> Option<ChangeStatus> {
        self.0.roster().change.clone()
    }

    /// What was sent and received so far.
    pub fn traffic(&self) -> Traffic {
        self.0.roster().traffic
    }

    /// Rows that each expert got lately, `[layers][experts]`; older ones count less. A load file has this form.
    pub fn load(&self) -> Vec<Vec<u64>> {
        self.0.roster().load.rows()
    }

    pub fn status(&self) -> ClusterStatus {
        let roster = self.0.roster();
        let expert_bytes = &self.0.model.expert_bytes;
        let worker = |peer: &Peer| WorkerStatus {
            id: peer.id,
            address: peer.address.clone(),
            state: state(peer),
            problem: peer.problem.as_ref().filter(|_| !peer.is_there()).map(ToString::to_string),
            epoch: peer.epoch,
            drains: peer.drains,
            experts: peer.held.count(),
            bytes: peer.held.bytes(expert_bytes),
            memory_bytes: Some(peer.memory_bytes).filter(|bytes| *bytes < u64::MAX),
            pairs: peer.pairs,
        };
        ClusterStatus {
            workers: roster.peers.iter().map(worker).collect(),
            traffic: roster.traffic,
            missing: missing(&self.0, &roster),
            change: roster.change.clone(),
        }
    }

    fn open(&self) -> Result<MutexGuard<'_, Roster>, ControlError> {
        let roster = self.0.roster();
        if roster.ends { Err(ControlError::Ended) } else { Ok(roster) }
    }
}

fn state(peer: &Peer) -> WorkerState {
    let is_refused = peer.problem.as_ref().is_some_and(is_refusal);
    match peer {
        Peer { left: true, .. } => WorkerState::Left,
        peer if peer.is_there() && !peer.drains => WorkerState::Ready,
        peer if peer.drains && peer.held.is_empty() && !peer.drops => WorkerState::Drained,
        peer if peer.is_there() => WorkerState::Draining,
        _ if is_refused => WorkerState::Refused,
        _ => WorkerState::Away,
    }
}

fn missing(members: &Members, roster: &Roster) -> usize {
    let of_layer = |layer| {
        let mut missing = ExpertSet::all(members.model.experts);
        roster.peers.iter().filter(|peer| peer.is_there()).for_each(|peer| missing.subtract(peer.held.of(layer)));
        missing.len()
    };
    members.model.expert_layers().map(of_layer).sum()
}
