//! One thread for each worker: connects, has it load what the placement gives it, looks whether it still lives while
//! nothing is asked of it, and connects again after it was fenced.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lingqu_fabric::FabricError;
use lingqu_placement::WorkerId;

use crate::members::{Held, LoadError, Members, Roster, load};
use crate::message::{Greeting, PING};
use crate::session::{Asked, Session};

/// Waits between attempts to connect: twice as long each time.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

pub(crate) struct Keeper {
    members: Arc<Members>,
    /// Index of the worker.
    peer: usize,
    retry: Duration,
    /// A heartbeat that is to be answered before the next one.
    pinged: Option<Asked>,
    /// Of [`Roster::losses`], how far experts without a holder were looked for.
    losses: u64,
    /// Text of the last problem: told once.
    told: String,
}

impl Keeper {
    pub fn new(members: Arc<Members>, peer: usize) -> Self {
        Self { members, peer, retry: RETRY_MIN, pinged: None, losses: 0, told: String::new() }
    }

    pub fn run(mut self) {
        loop {
            let is_there = self.members.roster().peers[self.peer].session.is_some();
            if is_there {
                self.look();
                self.adopt();
            } else {
                self.call();
            }
            if !self.rest() {
                return;
            }
        }
    }

    /// Until the next heartbeat or attempt; false if all ends. A fence wakes it.
    fn rest(&self) -> bool {
        let mut roster = self.members.roster();
        let is_there = |roster: &Roster| roster.peers[self.peer].session.is_some();
        let was_there = is_there(&roster);
        let heartbeat = Duration::from_millis(self.members.deadlines.heartbeat_ms);
        let until = Instant::now() + if was_there { heartbeat } else { self.retry };
        while !roster.ends && is_there(&roster) == was_there && Instant::now() < until {
            roster = self.members.wait(roster, until);
        }
        !roster.ends
    }

    /// Fences a worker that did not answer the last heartbeat; sends the next one, unless it was heard of meanwhile.
    /// The answer is looked for at the next look, so that no step waits for it.
    fn look(&mut self) {
        let members = Arc::clone(&self.members);
        let mut roster = members.roster();
        let Some(session) = &mut roster.peers[self.peer].session else { return };
        let now = Instant::now();
        let outcome = match self.pinged.take().filter(|asked| session.is_last(*asked)) {
            Some(asked) => session.answer(asked, now, |_, _| ()),
            None => Ok(()),
        };
        let heartbeat = Duration::from_millis(members.deadlines.heartbeat_ms);
        let is_quiet = !session.is_waiting() && session.heard.elapsed() >= heartbeat / 2;
        let outcome = match outcome {
            Ok(()) if is_quiet => session.ask(PING, &[], now + heartbeat).map(|asked| self.pinged = Some(asked)),
            outcome => outcome,
        };
        if let Err(problem) = outcome {
            members.fence(&mut roster, self.peer, problem);
        }
    }

    /// Has the worker load its part of what nobody holds any more, before a step needs it. That goes over a link of its
    /// own, so that steps go on meanwhile, and ends when the lost worker is back.
    fn adopt(&mut self) {
        let members = Arc::clone(&self.members);
        let mut beside = None;
        loop {
            let roster = members.roster();
            if !members.adopt || roster.ends || roster.losses == self.losses {
                return;
            }
            let Some((layer, experts)) = members.orphans(&roster, self.peer) else {
                self.losses = roster.losses;
                return;
            };
            let (id, epoch) = (roster.peers[self.peer].id, roster.peers[self.peer].epoch);
            drop(roster);
            let outcome = self.load_beside(&mut beside, layer, &experts);
            let mut roster = members.roster();
            let peer = &mut roster.peers[self.peer];
            if peer.session.is_none() || peer.epoch != epoch {
                return; // it was lost itself, and perhaps is there again
            }
            match outcome {
                Ok(()) => {
                    tracing::warn!("{id} has adopted {} experts of layer {layer}", experts.len());
                    peer.held.add(layer, &experts);
                    roster.traffic.adopted += experts.len() as u64;
                    members.changed.notify_all();
                }
                Err(error) => {
                    tracing::warn!("{id} adopts nothing of layer {layer}: {error}");
                    peer.declines |= matches!(error, LoadError::Declined(_));
                    roster.losses += 1; // its part falls to others
                    return;
                }
            }
        }
    }

    fn load_beside(&self, beside: &mut Option<Session>, layer: usize, experts: &[usize]) -> Result<(), LoadError> {
        let session = match beside {
            Some(session) => session,
            None => beside.insert(Session::new(self.dial()?.link, 0)),
        };
        load(session, layer, experts, Instant::now() + Duration::from_millis(self.members.deadlines.load_ms))
    }

    fn dial(&self) -> Result<lingqu_fabric::Joined, FabricError> {
        let Members { fabric, deadlines, fingerprint, wire, .. } = &*self.members;
        let (worker, address) = {
            let peer = &self.members.roster().peers[self.peer];
            (peer.id.0, peer.address.clone())
        };
        let greeting = Greeting { worker, wire: *wire, fingerprint: *fingerprint }.encode();
        fabric.connect(&address, &greeting, Instant::now() + Duration::from_millis(deadlines.connect_ms))
    }

    /// Connects under a new epoch, with all that the placement gives to the worker loaded.
    fn call(&mut self) {
        self.pinged = None;
        let members = Arc::clone(&self.members);
        let (id, address, epoch) = {
            let peer = &mut members.roster().peers[self.peer];
            peer.epoch += 1;
            (peer.id, peer.address.clone(), peer.epoch)
        };
        let outcome = self.join(id, &address, epoch);
        let mut roster = members.roster();
        let outcome = outcome.and_then(|joined| {
            let first = roster.arithmetic.get_or_insert_with(|| joined.arithmetic.clone());
            match *first == joined.arithmetic {
                true => Ok(joined),
                false => Err(FabricError::Refused(format!("it computes by {}, others by {first}", joined.arithmetic))),
            }
        });
        let peer = &mut roster.peers[self.peer];
        match outcome {
            Ok(joined) => {
                tracing::info!("{id} at {address} is there, with {} experts", joined.held.count());
                (peer.session, peer.held, peer.problem) = (Some(joined.session), joined.held, None);
                peer.declines = false;
                self.retry = RETRY_MIN;
                self.told.clear();
            }
            Err(problem) => {
                let text = problem.to_string();
                if text != self.told {
                    tracing::warn!("{id} at {address} cannot be used: {text}");
                    self.told = text;
                }
                peer.problem = Some(problem);
                self.retry = (self.retry * 2).min(RETRY_MAX);
            }
        }
        members.changed.notify_all();
    }

    fn join(&self, id: WorkerId, address: &str, epoch: u64) -> Result<Joined, FabricError> {
        let Members { deadlines, placement, .. } = &*self.members;
        let lingqu_fabric::Joined { link, answer } = self.dial()?;
        let arithmetic = String::from_utf8_lossy(&answer).into_owned();
        let (mut session, mut held) = (Session::new(link, epoch), Held::default());
        for (layer, placed) in placement.layers.iter().enumerate() {
            let experts = placed.experts_of(id);
            if experts.is_empty() {
                continue;
            }
            let by = Instant::now() + Duration::from_millis(deadlines.load_ms);
            match load(&mut session, layer, &experts, by) {
                Ok(()) => held.add(layer, &experts),
                Err(LoadError::Link(error)) => return Err(error),
                // What it cannot hold others may.
                Err(LoadError::Declined(problem)) => tracing::warn!("{id} at {address}: {problem}"),
            }
        }
        Ok(Joined { session, held, arithmetic })
    }
}

/// A worker that is ready.
struct Joined {
    session: Session,
    held: Held,
    arithmetic: String,
}
