//! What a worker is to load or to drop next, from who holds and who is to hold what.

use crate::experts::ExpertSet;
use crate::members::{Members, Peer, Roster};

/// Experts of one layer, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    pub kind: TaskKind,
    pub layer: usize,
    pub experts: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskKind {
    /// Load what it is to hold.
    Own,
    /// Load what nobody holds, and nobody is about to load.
    Adopt,
    /// Give up what others have.
    Drop,
}

impl Members {
    /// The next thing for a worker that is there: first what it is to hold, then what nobody holds, as far as there is
    /// room; then it gives up what it need not hold.
    pub fn task(&self, roster: &Roster, peer: usize) -> Option<Task> {
        let layers = || self.model.expert_layers();
        let find = |kind, of: &dyn Fn(usize) -> Vec<usize>| {
            let mut all = layers().map(|layer| Task { kind, layer, experts: of(layer) });
            all.find(|task| !task.experts.is_empty())
        };
        let able = roster.peers[peer].can_load();
        let load = || find(TaskKind::Own, &|layer| self.missing(&roster.peers[peer], layer));
        let adopt = || find(TaskKind::Adopt, &|layer| self.orphans(roster, peer, layer));
        let drop = || find(TaskKind::Drop, &|layer| self.spare(roster, peer, layer));
        let load = if able { load() } else { None };
        load.or_else(|| if able && roster.begun && self.config.adopt { adopt() } else { None }).or_else(drop)
    }

    /// What `peer` is to hold of a layer and does not, as far as it has room.
    fn missing(&self, peer: &Peer, layer: usize) -> Vec<usize> {
        let mut missing = peer.wanted.of(layer).clone();
        missing.subtract(peer.held.of(layer));
        missing.iter().take(self.room(peer, layer)).collect()
    }

    /// What nobody holds of a layer, and of that the part that falls to `peer` among those who can load it.
    fn orphans(&self, roster: &Roster, peer: usize, layer: usize) -> Vec<usize> {
        let mut orphans = ExpertSet::all(self.model.experts);
        for p in roster.peers.iter().filter(|p| p.is_there()) {
            orphans.subtract(p.held.of(layer));
            if p.can_load() {
                orphans.subtract(p.wanted.of(layer));
            }
        }
        if orphans.is_empty() {
            return Vec::new();
        }
        let able = |&p: &usize| roster.peers[p].can_load() && self.room(&roster.peers[p], layer) > 0;
        let able: Vec<usize> = (0..roster.peers.len()).filter(able).collect();
        let Some(rank) = able.iter().position(|&p| p == peer) else { return Vec::new() };
        let part = orphans.iter().filter(|expert| expert % able.len() == rank);
        part.take(self.room(&roster.peers[peer], layer)).collect()
    }

    /// What `peer` holds of a layer without need: somebody else has it who is to stay.
    fn spare(&self, roster: &Roster, peer: usize, layer: usize) -> Vec<usize> {
        let mut spare = roster.peers[peer].held.of(layer).clone();
        spare.subtract(roster.peers[peer].wanted.of(layer));
        if !spare.is_empty() {
            spare.intersect(&held_by_others(roster, peer, layer));
        }
        spare.iter().collect()
    }
}

/// What others hold of a layer who are there and stay.
pub(crate) fn held_by_others(roster: &Roster, peer: usize, layer: usize) -> ExpertSet {
    let mut held = ExpertSet::default();
    let others = roster.peers.iter().enumerate().filter(|(other, p)| *other != peer && p.is_there() && !p.drains);
    others.for_each(|(_, p)| held.unite(p.held.of(layer)));
    held
}
