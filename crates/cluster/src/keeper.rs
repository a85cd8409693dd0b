//! One thread for each worker: connects, has it load what it is to hold and give up what it is not, looks whether it
//! still lives while nothing is asked of it, and connects again after it was fenced.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lingqu_fabric::FabricError;
use lingqu_placement::WorkerId;

use crate::experts::Held;
use crate::members::{LoadError, Members, Roster, keep, load};
use crate::message::{Greeting, PING};
use crate::session::{Asked, Session};
use crate::tasks::{Task, TaskKind};

/// Waits between attempts to connect: twice as long each time.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Between looks whether a worker has answered what was asked before it gives up experts.
const ANSWERED: Duration = Duration::from_millis(5);

pub(crate) struct Keeper {
    members: Arc<Members>,
    /// Index of the worker.
    peer: usize,
    retry: Duration,
    /// A heartbeat that is to be answered before the next one.
    pinged: Option<Asked>,
    looked: Instant,
    /// Of [`Roster::revision`], how far there is nothing to do.
    revision: u64,
    /// Nothing is loaded or dropped before: the last attempt failed.
    pause: Option<Instant>,
    /// Of the worker, how far they were followed.
    summons: u64,
    /// For loads and drops, so that steps go on meanwhile; with the epoch of the worker.
    beside: Option<(u64, Session)>,
    /// Text of the last problem: told once.
    told: String,
}

impl Keeper {
    fn new(members: Arc<Members>, peer: usize) -> Self {
        let looked = members.now();
        Self {
            members,
            peer,
            retry: RETRY_MIN,
            pinged: None,
            looked,
            revision: u64::MAX,
            pause: None,
            summons: 0,
            beside: None,
            told: String::new(),
        }
    }

    /// Keeps a worker from now on, until all ends.
    pub fn start(members: Arc<Members>, peer: usize) -> std::io::Result<()> {
        let name = format!("worker-{}", members.roster().peers[peer].id.0);
        let (machine, keeper) = (Arc::clone(&members.machine), Self::new(members, peer));
        machine.spawn(name, Box::new(|| keeper.run()))
    }

    fn run(mut self) {
        loop {
            let (is_there, left) = {
                let peer = &self.members.roster().peers[self.peer];
                (peer.is_there(), peer.left)
            };
            let mut is_done = true;
            if is_there {
                self.look();
                is_done = !self.settle();
            } else if !left {
                self.call();
            }
            if is_done && !self.rest() {
                return;
            }
        }
    }

    /// Until the next heartbeat or attempt, or until there is something to do; false if all ends. A fence wakes it.
    fn rest(&mut self) -> bool {
        let mut roster = self.members.roster();
        let was_there = roster.peers[self.peer].is_there();
        let heartbeat = Duration::from_millis(self.members.deadlines.heartbeat_ms);
        let until = self.members.now() + if was_there { heartbeat } else { self.retry };
        loop {
            let peer = &roster.peers[self.peer];
            if peer.summons != self.summons {
                (self.summons, self.retry) = (peer.summons, RETRY_MIN);
                break;
            }
            let has_news = was_there && self.pause.is_none() && roster.revision != self.revision;
            let is_late = self.members.now() >= until && !peer.left;
            if roster.ends || peer.is_there() != was_there || has_news || is_late {
                break;
            }
            let until = if peer.left { self.members.now() + heartbeat } else { until };
            roster = self.members.wait(roster, until);
        }
        !roster.ends
    }

    /// Once in a heartbeat: fences a worker that did not answer the last one; sends the next one, unless it was heard
    /// of meanwhile. The answer is looked for at the next look, so that no step waits for it.
    fn look(&mut self) {
        let members = Arc::clone(&self.members);
        let now = members.now();
        let heartbeat = Duration::from_millis(members.deadlines.heartbeat_ms);
        if now < self.looked + heartbeat {
            return;
        }
        self.looked = now;
        let mut roster = members.roster();
        let Some(session) = &mut roster.peers[self.peer].session else { return };
        let outcome = match self.pinged.take().filter(|asked| session.is_last(*asked)) {
            Some(asked) => session.answer(asked, now, |_, _| ()),
            // A step was given up, and nobody reads the answers to it: they have had their time.
            None if session.is_waiting() && now >= session.asked_at + members.longest_step() => session.catch_up(now),
            None => Ok(()),
        };
        let is_quiet = !session.is_waiting() && now.saturating_duration_since(session.heard) >= heartbeat / 2;
        let outcome = match outcome {
            Ok(()) if is_quiet => session.ask(PING, &[], 0, now + heartbeat).map(|asked| self.pinged = Some(asked)),
            outcome => outcome,
        };
        if let Err(problem) = outcome {
            members.fence(&mut roster, self.peer, problem);
        }
    }

    /// Has the worker load or drop one layer's part of what it has to; true if there may be more. That goes over a link
    /// of its own, so that steps go on meanwhile.
    fn settle(&mut self) -> bool {
        let members = Arc::clone(&self.members);
        if self.pause.is_some_and(|until| self.members.now() < until) {
            return false;
        }
        self.pause = None;
        match members.rehome(self.peer) {
            Ok(false) => {}
            Ok(true) => return true,
            Err(error) => self.tell(format!("what it holds has no other place: {error}")),
        }
        let mut roster = members.roster();
        let task = match roster.ends || !roster.peers[self.peer].is_there() {
            true => None,
            false => members.task(&roster, self.peer),
        };
        let Some(task) = task else {
            self.revision = roster.revision;
            self.beside = None;
            return false;
        };
        let epoch = roster.peers[self.peer].epoch;
        if task.kind == TaskKind::Drop {
            // From here on no row is sent there.
            let peer = &mut roster.peers[self.peer];
            peer.held.remove(task.layer, &task.experts);
            peer.drops = true;
        }
        drop(roster);
        let outcome = match task.kind {
            TaskKind::Drop => self.give_up(epoch, task.layer),
            TaskKind::Own | TaskKind::Adopt => self.load_beside(epoch, &task),
        };
        self.settled(epoch, &task, outcome);
        true
    }

    fn settled(&mut self, epoch: u64, task: &Task, outcome: Result<(), LoadError>) {
        let mut roster = self.members.roster();
        let Roster { peers, traffic, .. } = &mut *roster;
        let peer = &mut peers[self.peer];
        let (id, layer, count) = (peer.id, task.layer, task.experts.len());
        peer.drops = false;
        if peer.session.is_none() || peer.epoch != epoch {
            return; // it was lost itself, and perhaps is there again
        }
        match (task.kind, outcome) {
            (TaskKind::Drop, Ok(())) => {
                traffic.dropped += count as u64;
                tracing::info!("{id} has given up {count} experts of layer {layer}");
            }
            (TaskKind::Own, Ok(())) => {
                peer.held.add(layer, &task.experts);
                traffic.moved += count as u64;
                tracing::info!("{id} has loaded {count} experts of layer {layer}");
            }
            (TaskKind::Adopt, Ok(())) => {
                peer.held.add(layer, &task.experts);
                traffic.adopted += count as u64;
                tracing::warn!("{id} has adopted {count} experts of layer {layer}");
            }
            (kind, Err(error)) => {
                tracing::warn!("{id} could not do its task ({kind:?}, layer {layer}): {error}");
                // Its part falls to others.
                peer.declines |= kind != TaskKind::Drop && matches!(error, LoadError::Declined(_));
                self.beside = None;
                self.pause = Some(self.members.now() + Duration::from_millis(self.members.deadlines.heartbeat_ms));
            }
        }
        self.members.tell(&mut roster);
    }

    fn load_beside(&mut self, epoch: u64, task: &Task) -> Result<(), LoadError> {
        let order = self.members.roster().order(task.layer, &task.experts);
        let deadline = self.members.now() + Duration::from_millis(self.members.deadlines.load_ms);
        load(self.beside(epoch)?, &order, deadline)
    }

    /// Has the worker forget what it does not hold any more, once all that was asked before is answered.
    fn give_up(&mut self, epoch: u64, layer: usize) -> Result<(), LoadError> {
        self.await_answers();
        let order = {
            let mut roster = self.members.roster();
            let kept: Vec<usize> = roster.peers[self.peer].held.of(layer).iter().collect();
            roster.order(layer, &kept)
        };
        let deadline = self.members.now() + Duration::from_millis(self.members.deadlines.load_ms);
        keep(self.beside(epoch)?, &order, deadline)
    }

    /// Until the steps that are under way have their answers from the worker, or have had their time.
    fn await_answers(&self) {
        let until = self.members.now() + self.members.longest_step();
        let mut roster = self.members.roster();
        let Some(last) = roster.peers[self.peer].session.as_ref().map(Session::last) else { return };
        // A heartbeat is asked only when all else is answered, and nobody reads its answer meanwhile.
        while self.pinged != Some(last) && !roster.ends && self.members.now() < until {
            let session = &roster.peers[self.peer].session;
            if session.as_ref().is_none_or(|session| session.is_answered(last)) {
                return;
            }
            roster = self.members.wait(roster, until.min(self.members.now() + ANSWERED));
        }
    }

    fn beside(&mut self, epoch: u64) -> Result<&mut Session, FabricError> {
        let beside = match self.beside.take().filter(|(of, _)| *of == epoch) {
            Some(beside) => beside,
            None => (epoch, Session::new(Arc::clone(&self.members.machine), self.dial()?.link, 0)),
        };
        Ok(&mut self.beside.insert(beside).1)
    }

    fn dial(&self) -> Result<lingqu_fabric::Joined, FabricError> {
        let Members { fabric, deadlines, model, wire, server, .. } = &*self.members;
        let (worker, incarnation, address) = {
            let peer = &self.members.roster().peers[self.peer];
            (peer.id.0, peer.incarnation, peer.address.clone())
        };
        let (wire, server, fingerprint) = (*wire, *server, model.fingerprint);
        let greeting = Greeting { worker, wire, incarnation, server, fingerprint }.encode();
        fabric.connect(&address, &greeting, self.members.now() + Duration::from_millis(deadlines.connect_ms))
    }

    /// Connects under a new epoch, with all that the worker is to hold loaded.
    fn call(&mut self) {
        (self.pinged, self.beside, self.pause) = (None, None, None);
        let members = Arc::clone(&self.members);
        let (id, address, epoch, wanted) = {
            let peer = &mut members.roster().peers[self.peer];
            peer.epoch += 1;
            self.summons = peer.summons;
            (peer.id, peer.address.clone(), peer.epoch, peer.wanted.clone())
        };
        let outcome = self.join(id, &address, epoch, &wanted);
        let mut roster = members.roster();
        if roster.peers[self.peer].epoch != epoch {
            return; // it has left or moved meanwhile
        }
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
                peer.declines = joined.declines;
                roster.outage_since = None; // perhaps what was missing has come
                self.retry = RETRY_MIN;
                self.looked = self.members.now();
                self.told.clear();
                members.tell(&mut roster); // others may drop what it has
            }
            Err(problem) => {
                let text = format!("at {address} it cannot be used: {problem}");
                peer.problem = Some(problem);
                members.changed.notify_all();
                drop(roster);
                self.retry = (self.retry * 2).min(RETRY_MAX);
                self.tell(text);
            }
        }
    }

    /// Into the log, unless it was told last.
    fn tell(&mut self, text: String) {
        if text != self.told {
            let id = self.members.roster().peers[self.peer].id;
            tracing::warn!("{id}: {text}");
            self.told = text;
        }
    }

    fn join(&self, id: WorkerId, address: &str, epoch: u64, wanted: &Held) -> Result<Joined, FabricError> {
        let Members { deadlines, model, .. } = &*self.members;
        let lingqu_fabric::Joined { link, answer } = self.dial()?;
        let arithmetic = String::from_utf8_lossy(&answer).into_owned();
        let session = Session::new(Arc::clone(&self.members.machine), link, epoch);
        let mut joined = Joined { session, held: Held::default(), declines: false, arithmetic };
        let by = || self.members.now() + Duration::from_millis(deadlines.load_ms);
        // First it makes room: what it has from earlier epochs may be another part.
        for layer in model.expert_layers() {
            let experts: Vec<usize> = wanted.of(layer).iter().collect();
            let order = self.members.roster().order(layer, &experts);
            match keep(&mut joined.session, &order, by()) {
                Ok(()) => {}
                Err(LoadError::Link(error)) => return Err(error),
                Err(LoadError::Declined(problem)) => tracing::warn!("{id} at {address}: {problem}"),
            }
        }
        for layer in model.expert_layers().filter(|&layer| !wanted.of(layer).is_empty()) {
            let experts: Vec<usize> = wanted.of(layer).iter().collect();
            let order = self.members.roster().order(layer, &experts);
            match load(&mut joined.session, &order, by()) {
                Ok(()) => joined.held.add(layer, &experts),
                Err(LoadError::Link(error)) => return Err(error),
                // What it cannot hold others may.
                Err(LoadError::Declined(problem)) => {
                    tracing::warn!("{id} at {address}: {problem}");
                    joined.declines = true;
                }
            }
        }
        Ok(joined)
    }
}

/// A worker that is ready.
struct Joined {
    session: Session,
    held: Held,
    /// It could not load all.
    declines: bool,
    arithmetic: String,
}
