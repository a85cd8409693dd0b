//! Where experts should go, from who holds what now.

use lingqu_placement::{
    LayerPlacement, Move, Placement, PlacementError, PlacementInput, RebalanceGoal, SHARE_WHOLE, Spot, WorkerId, moves,
    rebalance, without,
};

use crate::ControlError;
use crate::experts::Held;
use crate::members::{Members, Peer, Roster};
use crate::tasks::held_by_others;

/// A worker at one moment.
struct Seen {
    id: WorkerId,
    epoch: u64,
    memory_bytes: u64,
    speed: f64,
    held: Held,
}

/// A way to a better placement, from what was held at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Of the roster: the plan is good as long as it stands there.
    pub revision: u64,
    /// In this order.
    pub moves: Vec<Move>,
    /// Workers that take part, with their epochs.
    pub workers: Vec<(WorkerId, u64)>,
    /// Rows of the busiest worker over the mean, of the worst layer.
    pub imbalance_before: f64,
    pub imbalance_after: f64,
}

impl Plan {
    pub fn loads(&self) -> usize {
        self.moves.iter().filter(|m| matches!(m, Move::Load(_))).count()
    }

    /// Moves that need not wait for each other: loads, or drops.
    pub fn batches(&self) -> impl Iterator<Item = &[Move]> {
        self.moves.chunk_by(|a, b| std::mem::discriminant(a) == std::mem::discriminant(b))
    }
}

impl Members {
    /// Gives what a draining worker alone holds to others; false if there is nothing of that kind.
    pub fn rehome(&self, peer: usize) -> Result<bool, ControlError> {
        {
            let roster = self.roster();
            let Peer { drains, held, .. } = &roster.peers[peer];
            let is_promised = |layer| {
                let mut left = held.of(layer).clone();
                left.subtract(&held_by_others(&roster, peer, layer));
                let heirs = roster.peers.iter().filter(|p| p.is_there() && !p.drains && !p.declines);
                heirs.for_each(|p| left.subtract(p.wanted.of(layer)));
                left.is_empty()
            };
            if roster.ends || !drains || self.model.expert_layers().all(is_promised) {
                return Ok(false);
            }
        }
        self.give_away()?;
        Ok(true)
    }

    /// Finds places for all that only draining workers hold, and has it loaded there.
    pub fn give_away(&self) -> Result<(), ControlError> {
        let (seen, lost) = {
            let roster = self.roster();
            let there = || roster.peers.iter().filter(|peer| peer.is_there());
            let lost: Vec<WorkerId> = there().filter(|peer| peer.drains).map(|peer| peer.id).collect();
            let promised = |peer: &Peer| {
                let mut seen = self.seen(peer);
                if !peer.drains && !peer.declines {
                    let layers = self.model.expert_layers();
                    layers.for_each(|l| seen.held.add(l, &peer.wanted.of(l).iter().collect::<Vec<_>>()));
                }
                seen
            };
            (there().map(promised).collect::<Vec<_>>(), lost)
        };
        let placement = self.placement_of(seen.iter().map(|seen| (seen.id, &seen.held)));
        let loss = without(&self.input(&seen, None), &placement, &lost).map_err(refusal)?;
        let mut roster = self.roster();
        roster.apply(&loss.repairs);
        self.tell(&mut roster);
        Ok(())
    }

    /// How experts should move among those who are there and stay, by the load so far.
    pub fn plan(&self, goal: RebalanceGoal) -> Result<Plan, ControlError> {
        let (seen, load, revision) = {
            let roster = self.roster();
            if roster.ends {
                return Err(ControlError::Ended);
            }
            if let Some(peer) = roster.peers.iter().find(|peer| peer.drains && !peer.held.is_empty()) {
                return Err(ControlError::Busy(format!("{} drains", peer.id)));
            }
            let stay = roster.peers.iter().filter(|peer| peer.is_there() && !peer.drains);
            (stay.map(|peer| self.seen(peer)).collect::<Vec<_>>(), roster.load.rows(), roster.revision)
        };
        let old = self.placement_of(seen.iter().map(|seen| (seen.id, &seen.held)));
        let input = self.input(&seen, Some(load));
        // What rows cost now is what their best division over today's copies would: that is near to what steps do.
        let shared = RebalanceGoal { loads_max: 0, ..goal };
        let imbalance_before = rebalance(&input, &old, shared).map_err(refusal)?.imbalance_after;
        let new = rebalance(&input, &old, goal).map_err(refusal)?;
        let moves = moves(&input, &old, &new.placement).map_err(refusal)?;
        let workers = seen.iter().map(|seen| (seen.id, seen.epoch)).collect();
        Ok(Plan { revision, moves, workers, imbalance_before, imbalance_after: new.imbalance_after })
    }

    /// Every expert on everyone who has it, in equal parts.
    pub fn placement_of<'a>(&self, held: impl Iterator<Item = (WorkerId, &'a Held)>) -> Placement {
        let held: Vec<(WorkerId, &Held)> = held.collect();
        let layer = |layer: usize| {
            let experts = if self.model.expert_bytes[layer] > 0 { self.model.experts } else { 0 };
            let on = |expert| held.iter().filter(|(_, held)| held.has(layer, expert)).map(|(id, _)| *id).collect();
            let copies: Vec<Vec<WorkerId>> = (0..experts).map(on).collect();
            let shares = copies.iter().map(|copies| equal_shares(copies.len() as u32)).collect();
            LayerPlacement { copies, shares }
        };
        Placement { layers: (0..self.model.expert_bytes.len()).map(layer).collect() }
    }

    fn seen(&self, peer: &Peer) -> Seen {
        let Peer { id, epoch, memory_bytes, speed, declines, .. } = *peer;
        let held_bytes = peer.held.bytes(&self.model.expert_bytes);
        // One that could not load has no more room than for what it has.
        let memory_bytes = if declines { held_bytes } else { memory_bytes };
        Seen { id, epoch, memory_bytes, speed, held: peer.held.clone() }
    }

    fn input(&self, seen: &[Seen], load: Option<Vec<Vec<u64>>>) -> PlacementInput {
        let expert_bytes = self.model.expert_bytes.clone();
        let worker = |seen: &Seen| lingqu_placement::Worker {
            id: seen.id,
            memory_bytes: seen.memory_bytes.max(seen.held.bytes(&expert_bytes)),
            speed: seen.speed,
        };
        let workers = seen.iter().map(worker).collect();
        PlacementInput { experts: self.model.experts, expert_bytes, workers, load, redundancy: self.config.redundancy }
    }
}

impl Roster {
    /// What workers are to hold is so much more or less.
    pub fn apply(&mut self, moves: &[Move]) {
        for &to_do in moves {
            let (Move::Load(spot) | Move::Drop(spot)) = to_do;
            let Some(peer) = self.find(spot.worker) else { continue };
            let wanted = &mut self.peers[peer].wanted;
            match to_do {
                Move::Load(Spot { layer, expert, .. }) => wanted.add(layer, &[expert]),
                Move::Drop(Spot { layer, expert, .. }) => wanted.remove(layer, &[expert]),
            }
        }
    }
}

/// What is held may be no placement for a moment: somebody was lost, and others have not loaded yet.
fn refusal(error: PlacementError) -> ControlError {
    match error {
        PlacementError::Given(fault) => ControlError::Busy(fault.to_string()),
        error => ControlError::Placement(error),
    }
}

fn equal_shares(copies: u32) -> Vec<u32> {
    let until = |copy: u32| (u64::from(SHARE_WHOLE) * u64::from(copy) / u64::from(copies)) as u32;
    (0..copies).map(|copy| until(copy + 1) - until(copy)).collect()
}
