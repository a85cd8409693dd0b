//! One thread that moves experts while steps go on: as somebody asked, when a worker is new, and by the clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lingqu_placement::{Move, RebalanceGoal};

use crate::experts::Held;
use crate::members::{Members, Peer, Roster};
use crate::plan::Plan;
use crate::{ChangeState, ChangeStatus, ControlError};

/// Rows of the busiest worker over the mean that are good enough.
pub(crate) const IMBALANCE_WANTED: f64 = 1.05;
/// Nobody waits longer for what it does not hear of.
const NEWS: Duration = Duration::from_secs(1);

pub(crate) struct Balancer {
    members: Arc<Members>,
    /// When the load is looked at next.
    due: Option<Instant>,
    /// Of the roster, when there was last nothing to do for new workers.
    revision: u64,
}

/// Why it wakes.
enum Cause {
    Ordered(Plan),
    NewWorker,
    Clock,
    End,
}

impl Balancer {
    pub fn start(members: Arc<Members>) -> std::io::Result<()> {
        let mut balancer = Self { members, due: None, revision: u64::MAX };
        balancer.set_clock();
        let machine = Arc::clone(&balancer.members.machine);
        machine.spawn("balancer".into(), Box::new(|| balancer.run()))
    }

    fn set_clock(&mut self) {
        let every = Duration::from_secs(self.members.config.rebalance_s);
        self.due = (!every.is_zero()).then(|| self.members.now() + every);
    }

    fn run(mut self) {
        loop {
            match self.next() {
                Cause::End => return,
                Cause::Ordered(plan) => {
                    let outcome = self.members.execute(&plan);
                    let mut roster = self.members.roster();
                    if let Err(problem) = &outcome {
                        tracing::warn!("experts did not all move: {problem}");
                        roster.keep_what_is();
                        // Who got nothing is still to get something.
                        let idle = |peer: &&mut Peer| peer.held.is_empty() && !peer.drains;
                        roster.peers.iter_mut().filter(idle).for_each(|peer| peer.is_new = true);
                    }
                    let state = outcome.map_or_else(ChangeState::Failed, |()| ChangeState::Done);
                    roster.change.as_mut().expect("it was begun").state = state;
                    self.members.tell(&mut roster);
                }
                Cause::NewWorker => {
                    if let Err(problem) = self.members.rebalance(|_, _| true) {
                        tracing::info!("new workers have no part yet: {problem}");
                    }
                }
                Cause::Clock => {
                    let gain = self.members.config.rebalance_gain;
                    let is_worth = |roster: &Roster, plan: &Plan| {
                        !plan.moves.is_empty()
                            && roster.load.tells()
                            && plan.imbalance_after <= plan.imbalance_before * (1.0 - gain)
                    };
                    if let Err(problem) = self.members.rebalance(is_worth) {
                        tracing::info!("experts stay where they are: {problem}");
                    }
                    self.set_clock();
                }
            }
        }
    }

    fn next(&mut self) -> Cause {
        let mut roster = self.members.roster();
        loop {
            if roster.ends {
                return Cause::End;
            }
            if let Some(plan) = roster.order.take() {
                return Cause::Ordered(plan);
            }
            let is_new = roster.peers.iter().any(|peer| peer.is_new && peer.can_load());
            if is_new && roster.revision != self.revision {
                self.revision = roster.revision;
                return Cause::NewWorker;
            }
            if self.due.is_some_and(|due| self.members.now() >= due) {
                return Cause::Clock;
            }
            let until = self.due.unwrap_or_else(|| self.members.now() + NEWS);
            roster = self.members.wait(roster, until);
        }
    }
}

impl Members {
    /// Plans and begins, if `is_worth` says so.
    fn rebalance(&self, is_worth: impl Fn(&Roster, &Plan) -> bool) -> Result<(), ControlError> {
        let plan = self.plan(RebalanceGoal { imbalance_wanted: IMBALANCE_WANTED, loads_max: usize::MAX })?;
        let mut roster = self.roster();
        if is_worth(&roster, &plan) { self.begin(&mut roster, plan).map(|_| ()) } else { Ok(()) }
    }

    /// From here on what is held is what is to be held, but for the moves of `plan`, which the balancer makes.
    pub fn begin(&self, roster: &mut Roster, plan: Plan) -> Result<ChangeStatus, ControlError> {
        if roster.change.as_ref().is_some_and(|change| change.state == ChangeState::Running) {
            return Err(ControlError::Busy("experts are moving already".into()));
        }
        if roster.revision != plan.revision {
            return Err(ControlError::Busy("workers came, went or loaded at this moment".into()));
        }
        roster.keep_what_is();
        for peer in &mut roster.peers {
            let takes_part = plan.workers.iter().any(|(id, _)| *id == peer.id);
            // Who is away has a part no more, and gets a new one with its return.
            if !takes_part {
                peer.wanted = Held::default();
            }
            peer.is_new = !takes_part;
        }
        let change = ChangeStatus {
            number: roster.change.as_ref().map_or(1, |last| last.number + 1),
            moves: plan.moves.len(),
            done: 0,
            loads: plan.loads(),
            imbalance_before: plan.imbalance_before,
            imbalance_after: plan.imbalance_after,
            state: ChangeState::Running,
        };
        roster.change = Some(change.clone());
        roster.order = Some(plan);
        self.tell(roster);
        Ok(change)
    }

    /// Moves, batch by batch, each when the one before it is done.
    fn execute(&self, plan: &Plan) -> Result<(), String> {
        let mut before = 0;
        for batch in plan.batches() {
            let mut roster = self.roster();
            roster.apply(batch);
            self.tell(&mut roster);
            loop {
                let done = roster.done(batch);
                roster.change.as_mut().expect("it was begun").done = before + done;
                if done == batch.len() {
                    break;
                }
                roster.hinders(plan)?;
                roster = self.wait(roster, self.now() + NEWS);
            }
            before += batch.len();
        }
        Ok(())
    }
}

impl Roster {
    /// How many of these moves are made.
    fn done(&self, moves: &[Move]) -> usize {
        let is_done = |to_do: &&Move| {
            let (Move::Load(spot) | Move::Drop(spot)) = to_do;
            let Some(peer) = self.find(spot.worker).map(|peer| &self.peers[peer]) else { return false };
            let holds = peer.held.has(spot.layer, spot.expert);
            match to_do {
                Move::Load(_) => holds,
                Move::Drop(_) => !holds && !peer.drops,
            }
        };
        moves.iter().filter(is_done).count()
    }

    /// An error if workers of the plan are not what they were.
    fn hinders(&self, plan: &Plan) -> Result<(), String> {
        if self.ends {
            return Err("the cluster is shut down".into());
        }
        let loads = |id| plan.moves.iter().any(|m| matches!(m, Move::Load(spot) if spot.worker == id));
        for (id, epoch) in &plan.workers {
            let Some(peer) = self.find(*id).map(|peer| &self.peers[peer]) else { continue };
            let problem = match peer {
                peer if !peer.is_there() || peer.epoch != *epoch => "was lost",
                peer if peer.drains => "drains",
                peer if peer.declines && loads(*id) => "could not load",
                _ => continue,
            };
            return Err(format!("{id} {problem}"));
        }
        Ok(())
    }

    /// Whoever is there and stays is to hold what it holds.
    fn keep_what_is(&mut self) {
        for peer in self.peers.iter_mut().filter(|peer| peer.is_there() && !peer.drains) {
            peer.wanted = peer.held.clone();
        }
    }
}
