//! The exchange of a model whose experts live in other processes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lingqu_backend::{Backend, BackendError, Buffer, Exchange, PendingExperts, Result, Routing, View, ViewMut};
use lingqu_fabric::{FRAME_BYTES_MAX, Fabric, FabricError, HEAD_BYTES};
use lingqu_placement::{Placement, PlacementInput, WorkerId, place};

use crate::balancer::Balancer;
use crate::config::ClusterConfig;
use crate::control::ClusterControl;
use crate::keeper::Keeper;
use crate::machine::{Machine, System};
use crate::members::{LoadError, Members, Peer, Roster, is_refusal, load};
use crate::message::{COMPUTE, FAILED, OUTPUTS, PING, Pair, encode_compute};
use crate::session::Asked;
use crate::traffic::Traffic;
use crate::{ClusterError, config::Deadlines};

/// What the exchange must know of a model.
#[derive(Clone, Debug)]
pub struct Model {
    /// Of the checkpoint.
    pub fingerprint: [u8; 32],
    /// Rows of one forward at most.
    pub rows_max: usize,
    pub hidden: usize,
    /// Routed experts of a layer that has any.
    pub experts: usize,
    pub top_k: usize,
    /// Bytes of one expert by layer; 0 where a layer has none.
    pub expert_bytes: Vec<u64>,
}

impl Model {
    /// Layers that have routed experts.
    pub fn expert_layers(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.expert_bytes.len()).filter(|&layer| self.expert_bytes[layer] > 0)
    }
}

/// Sends rows to the workers that hold their experts and sums what comes back, in the order of one process. Workers
/// that fail are fenced, and their rows sent to others.
pub struct ClusterExchange {
    device: Arc<dyn Backend>,
    members: Arc<Members>,
    memory: Mutex<Memory>,
    /// [`ClusterConfig::overlap_rows`]
    overlap_rows: usize,
}

/// What an exchange is made of.
pub(crate) struct Parts<'a> {
    pub machine: Arc<dyn Machine>,
    pub config: &'a ClusterConfig,
    pub fabric: Box<dyn Fabric>,
    pub device: Arc<dyn Backend>,
    pub model: &'a Model,
    pub placement: Placement,
}

/// Used again from step to step.
struct Memory {
    /// `[rows_max * top_k, hidden]`
    outputs: Buffer,
    /// A message on its way.
    message: Vec<u8>,
    /// Of works that are finished, for the next ones: as many as were ever pending together.
    spare: Vec<Work>,
}

/// What one `begin` began.
#[derive(Default)]
struct Work {
    layer: usize,
    hidden: usize,
    top_k: usize,
    /// `[rows, hidden]`
    values: Vec<f32>,
    /// Expert of each slot. `[rows, top_k]`
    experts: Vec<u32>,
    /// Slots that are asked of nobody.
    todo: Vec<u32>,
    sent: Vec<Sent>,
    /// `[rows, top_k, hidden]`
    outputs: Vec<f32>,
}

/// Slots that a worker was asked for.
struct Sent {
    peer: usize,
    asked: Asked,
    deadline: Instant,
    slots: Vec<u32>,
}

impl ClusterExchange {
    /// Places the experts of `model`, connects to the workers and waits until they have loaded.
    ///
    /// # Errors
    /// A worker that refuses us, or that nobody is there in time. Workers that are merely missing are still looked for.
    pub fn start(
        config: &ClusterConfig,
        fabric: Box<dyn Fabric>,
        device: Arc<dyn Backend>,
        model: &Model,
    ) -> Result<Self, ClusterError> {
        let placement = place(&placement_input(config, model)?)?;
        Self::with_placement(config, fabric, device, model, placement)
    }

    /// [`ClusterExchange::start`] with a given placement.
    pub fn with_placement(
        config: &ClusterConfig,
        fabric: Box<dyn Fabric>,
        device: Arc<dyn Backend>,
        model: &Model,
        placement: Placement,
    ) -> Result<Self, ClusterError> {
        Self::on_machine(Parts { machine: Arc::new(System), config, fabric, device, model, placement })
    }

    pub(crate) fn on_machine(parts: Parts<'_>) -> Result<Self, ClusterError> {
        let (config, model, device) = (parts.config, parts.model, Arc::clone(&parts.device));
        // All pairs of a step may fall to one worker, and its answer is one message.
        let pair_bytes =
            config.wire.back().row_bytes(model.hidden).max(config.wire.row_bytes(model.hidden)) + size_of::<Pair>();
        let bytes = (model.rows_max * model.top_k).saturating_mul(pair_bytes);
        if bytes > FRAME_BYTES_MAX {
            return Err(ClusterError::LongSteps { rows_max: model.rows_max, bytes, bytes_max: FRAME_BYTES_MAX });
        }
        let outputs = device.alloc(model.rows_max * model.top_k, model.hidden)?;
        let members = Arc::new(Members::new(parts));
        // Ends the keepers if the start fails.
        let overlap_rows = config.overlap_rows;
        let exchange = Self {
            device,
            members,
            overlap_rows,
            memory: Mutex::new(Memory { outputs, message: Vec::new(), spare: Vec::new() }),
        };
        for peer in 0..config.workers.len() {
            Keeper::start(Arc::clone(&exchange.members), peer).map_err(ClusterError::Thread)?;
        }
        exchange.await_workers(&config.deadlines)?;
        Balancer::start(Arc::clone(&exchange.members)).map_err(ClusterError::Thread)?;
        Ok(exchange)
    }

    fn await_workers(&self, deadlines: &Deadlines) -> Result<(), ClusterError> {
        let until = self.members.now() + Duration::from_millis(deadlines.start_ms);
        let mut roster = self.members.roster();
        loop {
            let is_refused = |peer: &Peer| peer.problem.as_ref().is_some_and(is_refusal);
            // One that registers may have done so anew, and will be called as that; and it keeps nobody else out.
            let registers = |peer: &Peer| peer.incarnation != 0;
            if let Some(peer) = roster.peers.iter_mut().find(|p| is_refused(p) && !registers(p)) {
                let problem = peer.problem.take().expect("just seen");
                return Err(ClusterError::Refused { worker: peer.id, address: peer.address.clone(), problem });
            }
            let missing = roster.peers.iter().filter(|peer| peer.session.is_none()).count();
            let awaited = roster.peers.iter().filter(|peer| peer.session.is_none() && !is_refused(peer)).count();
            if awaited == 0 && missing < roster.peers.len() {
                roster.begun = true;
                self.members.tell(&mut roster); // others take the part of who is refused
                return Ok(());
            }
            if self.members.now() >= until {
                return match missing == roster.peers.len() {
                    true => Err(ClusterError::Nobody(roster.problems())),
                    false => {
                        tracing::warn!("begins without {missing} of the workers: {}", roster.problems());
                        roster.begun = true;
                        self.members.tell(&mut roster);
                        Ok(())
                    }
                };
            }
            roster = self.members.wait(roster, until);
        }
    }

    /// Who is to hold what, by now.
    pub fn placement(&self) -> Placement {
        let roster = self.members.roster();
        self.members.placement_of(roster.peers.iter().map(|peer| (peer.id, &peer.wanted)))
    }

    /// For whoever changes the cluster or looks at it.
    pub fn control(&self) -> ClusterControl {
        ClusterControl(Arc::clone(&self.members))
    }

    #[cfg(test)]
    pub(crate) fn members(&self) -> &Members {
        &self.members
    }

    /// What was sent and received so far.
    pub fn traffic(&self) -> Traffic {
        self.members.roster().traffic
    }

    /// Sends what is to do to workers that hold it, each expert to the one that has least to do yet, and had least so
    /// far; what nobody holds stays to do.
    fn dispatch(&self, roster: &mut Roster, work: &mut Work, message: &mut Vec<u8>) {
        while !work.todo.is_empty() {
            let mut todo: BTreeMap<u32, Vec<u32>> = BTreeMap::new(); // slots by expert
            for slot in work.todo.drain(..) {
                todo.entry(work.experts[slot as usize]).or_default().push(slot);
            }
            let mut busy: Vec<Vec<u32>> = vec![Vec::new(); roster.peers.len()];
            for (expert, slots) in todo {
                let has = |p: &Peer| p.session.is_some() && p.held.has(work.layer, expert as usize);
                let holders = (0..busy.len()).filter(|&peer| has(&roster.peers[peer]));
                match holders.min_by_key(|&peer| (busy[peer].len(), roster.peers[peer].pairs)) {
                    Some(peer) => busy[peer].extend(slots),
                    None => work.todo.extend(slots),
                }
            }
            let before = work.todo.len();
            for (peer, slots) in busy.into_iter().enumerate().filter(|(_, slots)| !slots.is_empty()) {
                self.send(roster, work, message, (peer, slots));
            }
            if work.todo.len() == before {
                return; // nobody was lost on the way
            }
        }
    }

    fn send(&self, roster: &mut Roster, work: &mut Work, message: &mut Vec<u8>, (peer, slots): (usize, Vec<u32>)) {
        let wire = self.members.wire;
        let mut rows: Vec<u32> = slots.iter().map(|slot| slot / work.top_k as u32).collect();
        rows.sort_unstable();
        rows.dedup();
        let place = |slot: &u32| rows.binary_search(&(slot / work.top_k as u32)).expect("a row that is sent") as u32;
        let pair = |slot: &u32| Pair { row: place(slot), expert: work.experts[*slot as usize] };
        let pairs: Vec<Pair> = slots.iter().map(pair).collect();
        message.clear();
        encode_compute(work.layer, rows.len(), &pairs, message);
        for &row in &rows {
            wire.encode(work.hidden, &work.values[row as usize * work.hidden..][..work.hidden], message);
        }
        let [row_bytes, back_bytes] = [wire, wire.back()].map(|wire| wire.row_bytes(work.hidden));
        roster.traffic += Traffic {
            messages: 1,
            messages_min: 2,
            bytes_sent: (HEAD_BYTES + message.len()) as u64,
            bytes_min: (rows.len() * (row_bytes + back_bytes)) as u64,
            ..Traffic::default()
        };
        let deadline = self.members.now() + self.members.deadlines.step(slots.len());
        let session = roster.peers[peer].session.as_mut().expect("only those who are there are asked");
        match session.ask(COMPUTE, &[message], slots.len() * back_bytes, deadline) {
            Ok(asked) => {
                roster.peers[peer].pairs += slots.len() as u64;
                work.sent.push(Sent { peer, asked, deadline, slots });
            }
            Err(problem) => {
                work.todo.extend(slots);
                self.members.fence(roster, peer, problem);
            }
        }
    }

    /// Takes the answers to what was sent; what did not come is to do again.
    fn collect(&self, roster: &mut Roster, work: &mut Work) {
        let (back, hidden) = (self.members.wire.back(), work.hidden);
        for Sent { peer, asked, deadline, slots } in std::mem::take(&mut work.sent) {
            let Some(session) = roster.peers[peer].session.as_mut().filter(|session| session.is_own(asked)) else {
                work.todo.extend(slots); // fenced between begin and finish, and perhaps there again
                continue;
            };
            let row_bytes = back.row_bytes(hidden);
            let outcome = session.answer(asked, deadline, |kind, message| match kind {
                OUTPUTS if message.len() == slots.len() * row_bytes => {
                    for (bytes, &slot) in message.chunks_exact(row_bytes).zip(&slots) {
                        back.decode(hidden, bytes, &mut work.outputs[slot as usize * hidden..][..hidden]);
                    }
                    Ok(message.len())
                }
                FAILED => Err(FabricError::Refused(String::from_utf8_lossy(message).into_owned())),
                _ => Err(FabricError::Corrupt("an answer of another form")),
            });
            match outcome.and_then(|read| read) {
                Ok(bytes) => {
                    let bytes_received = (HEAD_BYTES + bytes) as u64;
                    roster.traffic += Traffic { messages: 1, bytes_received, ..Traffic::default() };
                }
                Err(problem) => {
                    work.todo.extend(slots);
                    self.members.fence(roster, peer, problem);
                }
            }
        }
    }

    /// Has workers that are left load what nobody holds, spread over them. False if nobody could be asked.
    fn adopt(&self, roster: &mut Roster, work: &Work) -> bool {
        let experts: BTreeSet<usize> = work.todo.iter().map(|&slot| work.experts[slot as usize] as usize).collect();
        let experts: Vec<usize> = experts.into_iter().collect();
        let room = |peer: &Peer| if peer.can_load() { self.members.room(peer, work.layer) } else { 0 };
        let able: Vec<usize> = (0..roster.peers.len()).filter(|&peer| room(&roster.peers[peer]) > 0).collect();
        if able.is_empty() || !self.members.config.adopt {
            return false;
        }
        let able = self.living(roster, able);
        for (&peer, part) in able.iter().zip(experts.chunks(experts.len().div_ceil(able.len().max(1)))) {
            let deadline = self.members.now() + Duration::from_millis(self.members.deadlines.load_ms);
            let part = &part[..part.len().min(room(&roster.peers[peer]))];
            let order = roster.order(work.layer, part);
            let Peer { id, session, held, declines, .. } = &mut roster.peers[peer];
            let Some(session) = session else { continue };
            match load(session, &order, deadline) {
                Ok(()) => {
                    tracing::warn!("{id} has adopted {} experts of layer {}", part.len(), work.layer);
                    held.add(work.layer, part);
                    roster.traffic.adopted += part.len() as u64;
                }
                Err(LoadError::Declined(problem)) => {
                    tracing::warn!("{id} adopts nothing: {problem}");
                    *declines = true;
                }
                Err(LoadError::Link(problem)) => self.members.fence(roster, peer, problem),
            }
        }
        true
    }

    /// Those of `peers` that give a sign of life now; others are fenced. A load may take long, so one that stalls is
    /// not to be found out by it.
    fn living(&self, roster: &mut Roster, peers: Vec<usize>) -> Vec<usize> {
        let deadline = self.members.now() + self.members.deadlines.step(0);
        let mut asked = Vec::new();
        for peer in peers {
            let Some(session) = &mut roster.peers[peer].session else { continue };
            match session.ask(PING, &[], 0, deadline) {
                Ok(ping) => asked.push((peer, ping)),
                Err(problem) => self.members.fence(roster, peer, problem),
            }
        }
        let mut living = Vec::new();
        for (peer, ping) in asked {
            let Some(session) = &mut roster.peers[peer].session else { continue };
            match session.answer(ping, deadline, |_, _| ()) {
                Ok(()) => living.push(peer),
                Err(problem) => self.members.fence(roster, peer, problem),
            }
        }
        living
    }

    /// Brings every output home, from whomever, or says why that cannot be.
    fn bring(&self, work: &mut Work, message: &mut Vec<u8>) -> Result<()> {
        let mut roster: MutexGuard<'_, Roster> = self.members.roster();
        loop {
            self.collect(&mut roster, work);
            if work.todo.is_empty() {
                roster.outage_since = None;
                return Ok(());
            }
            self.dispatch(&mut roster, work, message);
            if !work.sent.is_empty() || self.adopt(&mut roster, work) {
                continue;
            }
            let since = *roster.outage_since.get_or_insert_with(|| self.members.now());
            let until = since + Duration::from_millis(self.members.deadlines.recovery_ms);
            if self.members.now() >= until {
                let missing: BTreeSet<u32> = work.todo.iter().map(|&slot| work.experts[slot as usize]).collect();
                let problem = format!("nobody has experts {missing:?}: {}", roster.problems());
                return Err(BackendError::Exchange { layer: work.layer, problem });
            }
            roster = self.members.wait(roster, until);
        }
    }
}

impl Exchange for ClusterExchange {
    fn begin(&self, layer: usize, x: View<'_>, routing: &Routing) -> Result<PendingExperts> {
        let (rows, hidden, top_k) = (x.rows(), x.width(), routing.top_k());
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Memory { message, spare, .. } = &mut *memory;
        let mut work = spare.pop().unwrap_or_default();
        (work.layer, work.hidden, work.top_k) = (layer, hidden, top_k);
        // Values and outputs of a work before are all written over.
        work.values.resize(rows * hidden, 0.0);
        work.outputs.resize(rows * top_k * hidden, 0.0);
        self.device.read(x, &mut work.values)?;
        work.experts = self.device.read_routing(routing)?.experts;
        work.todo.extend(0..(rows * top_k) as u32);
        let mut roster = self.members.roster();
        roster.traffic += Traffic { rows: rows as u64, pairs: work.todo.len() as u64, ..Traffic::default() };
        roster.load.count(layer, &work.experts);
        self.dispatch(&mut roster, &mut work, message);
        Ok(PendingExperts(Box::new(work)))
    }

    fn finish(&self, pending: PendingExperts, _: View<'_>, routing: &Routing, out: ViewMut<'_>) -> Result<()> {
        let mut work: Work = *pending.0.downcast().expect("a pending of another exchange");
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Memory { outputs, message, spare } = &mut *memory;
        self.bring(&mut work, message)?;
        outputs.set_rows(work.experts.len());
        self.device.write(&work.outputs, outputs.view_mut())?;
        spare.push(work);
        self.device.combine(outputs.view(), routing, out)
    }

    fn halves(&self, rows: usize) -> bool {
        self.overlap_rows > 0 && rows >= self.overlap_rows
    }
}

impl Drop for ClusterExchange {
    /// Keepers end by themselves, some of them after a deadline; nobody waits for that.
    fn drop(&mut self) {
        let mut roster = self.members.roster();
        roster.ends = true;
        roster.peers.iter_mut().for_each(|peer| peer.session = None);
        self.members.changed.notify_all();
    }
}

/// The cluster as placement sees it.
pub(crate) fn placement_input(config: &ClusterConfig, model: &Model) -> Result<PlacementInput, ClusterError> {
    let workers = config.workers.iter().map(|w| lingqu_placement::Worker {
        id: WorkerId(w.id),
        memory_bytes: w.memory_bytes(),
        speed: w.speed,
    });
    Ok(PlacementInput {
        experts: model.experts,
        expert_bytes: model.expert_bytes.clone(),
        workers: workers.collect(),
        load: config.load()?,
        redundancy: config.placement.redundancy,
    })
}
