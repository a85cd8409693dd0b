//! From one placement to another while the service goes on.

use crate::{Placement, PlacementError, PlacementInput, Spot};

/// One thing for a worker to do. Each is finished before the next begins; loads without a drop between them may run
/// side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Map the expert from the checkpoint. Rows may be sent there afterwards.
    Load(Spot),
    /// Forget it. No rows may be sent there from before that on.
    Drop(Spot),
}

/// An order of loads and drops that turns `old` into `new`, in which every expert has a live copy after each move and
/// no worker ever holds more than its memory. It has more loads than the two differ in only where memory is so full
/// that experts can change places through a third place alone.
///
/// # Errors
/// A placement that is not one of `input`, or memory so full that there is no such order (none was found).
pub fn moves(input: &PlacementInput, old: &Placement, new: &Placement) -> Result<Vec<Move>, PlacementError> {
    input.validate()?;
    old.validate(input)?;
    new.validate(input)?;
    let mut change = Change::new(input, old, new);
    let mut detours_left = 2 * change.loads.len() + 16;
    loop {
        let loaded = change.load_what_fits();
        if loaded || change.drop_what_is_spare() {
            continue;
        }
        if change.loads.is_empty() && change.drops.is_empty() {
            return Ok(change.moves);
        }
        if detours_left == 0 || !(change.park() || change.lend_room()) {
            return Err(PlacementError::NoSafeOrder { stuck: change.loads.len() });
        }
        detours_left -= 1;
    }
}

/// What is live, and what is still to do.
struct Change<'a> {
    input: &'a PlacementInput,
    /// Places in `input.workers` that hold it now, `[layers][experts]`.
    live: Vec<Vec<Vec<usize>>>,
    free: Vec<u64>,
    loads: Vec<Place>,
    drops: Vec<Place>,
    moves: Vec<Move>,
}

/// A [`Spot`] whose worker is a place in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    layer: usize,
    expert: usize,
    worker: usize,
}

impl<'a> Change<'a> {
    fn new(input: &'a PlacementInput, old: &Placement, new: &Placement) -> Self {
        let (before, after) = (held(input, old), held(input, new));
        let (mut loads, mut drops) = (Vec::new(), Vec::new());
        for (layer, experts) in before.iter().enumerate() {
            for (expert, had) in experts.iter().enumerate() {
                let gets = &after[layer][expert];
                let place = |&worker: &usize| Place { layer, expert, worker };
                loads.extend(gets.iter().filter(|w| !had.contains(w)).map(place));
                drops.extend(had.iter().filter(|w| !gets.contains(w)).map(place));
            }
        }
        // First those whose arrival lets another copy go.
        loads.sort_by_key(|l| !drops.iter().any(|d| (d.layer, d.expert) == (l.layer, l.expert)));
        let workers = input.workers.iter();
        let free = workers.map(|w| w.memory_bytes - old.bytes_of(w.id, &input.expert_bytes)).collect();
        Self { input, live: before, free, loads, drops, moves: Vec::new() }
    }

    fn bytes(&self, place: Place) -> u64 {
        self.input.expert_bytes[place.layer]
    }

    fn holders(&self, place: Place) -> &[usize] {
        &self.live[place.layer][place.expert]
    }

    fn fits(&self, place: Place) -> bool {
        self.free[place.worker] >= self.bytes(place)
    }

    fn load(&mut self, place: Place) {
        self.free[place.worker] -= self.bytes(place);
        self.live[place.layer][place.expert].push(place.worker);
        self.moves.push(Move::Load(self.spot(place)));
    }

    fn drop(&mut self, place: Place) {
        self.free[place.worker] += self.bytes(place);
        self.live[place.layer][place.expert].retain(|&w| w != place.worker);
        self.moves.push(Move::Drop(self.spot(place)));
    }

    fn spot(&self, place: Place) -> Spot {
        Spot { layer: place.layer, expert: place.expert, worker: self.input.workers[place.worker].id }
    }

    fn load_what_fits(&mut self) -> bool {
        let before = self.loads.len();
        for load in std::mem::take(&mut self.loads) {
            if self.fits(load) { self.load(load) } else { self.loads.push(load) }
        }
        self.loads.len() < before
    }

    fn drop_what_is_spare(&mut self) -> bool {
        let before = self.drops.len();
        for drop in std::mem::take(&mut self.drops) {
            if self.holders(drop).len() > 1 { self.drop(drop) } else { self.drops.push(drop) }
        }
        self.drops.len() < before
    }

    /// All that is left waits for each other in circles: moves one expert out of a full worker to wherever there is
    /// room, for now.
    fn park(&mut self) -> bool {
        let wanted = |drop: &&Place| self.loads.iter().any(|load| load.worker == drop.worker);
        for drop in self.drops.iter().filter(wanted).copied().collect::<Vec<_>>() {
            let room = |&w: &usize| self.fits(Place { worker: w, ..drop }) && !self.holders(drop).contains(&w);
            let Some(worker) = (0..self.free.len()).find(room) else { continue };
            let parked = Place { worker, ..drop };
            self.load(parked);
            self.drop(drop);
            self.drops.retain(|&d| d != drop);
            self.drops.push(parked);
            return true;
        }
        false
    }

    /// No room anywhere: drops one of several copies of an expert, which is loaded again later.
    fn lend_room(&mut self) -> bool {
        let mut best = None;
        for (layer, experts) in self.live.iter().enumerate() {
            for (expert, on) in experts.iter().enumerate().filter(|(_, on)| on.len() > 1) {
                for &worker in on {
                    let is_wanted = self.loads.iter().any(|load| load.worker == worker);
                    let key = (is_wanted, self.input.expert_bytes[layer]);
                    if best.is_none_or(|(found, _)| key > found) {
                        best = Some((key, Place { layer, expert, worker }));
                    }
                }
            }
        }
        let Some((_, place)) = best else { return false };
        self.drop(place);
        self.loads.push(place);
        true
    }
}

fn held(input: &PlacementInput, placement: &Placement) -> Vec<Vec<Vec<usize>>> {
    let index = input.index();
    let experts = |on: &Vec<crate::WorkerId>| on.iter().map(|worker| index[worker]).collect();
    placement.layers.iter().map(|layer| layer.copies.iter().map(experts).collect()).collect()
}
