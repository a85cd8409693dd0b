//! What to do when workers are gone.

use crate::shares::Spread;
use crate::{InputError, LayerPlacement, Move, Placement, PlacementError, PlacementInput, Spot, WorkerId};

/// What is missing after a loss, and how the survivors make up for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// (layer, expert) of which no copy is left. Until they are loaded, rows for them must wait.
    pub orphans: Vec<(usize, usize)>,
    /// Loads of the orphans, each after the drops of spare copies that make room for it, where there is none. In order.
    pub repairs: Vec<Move>,
    /// After the repairs, on the survivors alone.
    pub placement: Placement,
}

/// Which experts lost their only copy with the workers `lost`, and where the survivors should load them: where there is
/// memory, on whoever has least to do in that layer. `input` still names the lost workers.
///
/// # Errors
/// An input that is wrong, nobody left, or survivors with too little memory, even without their spare copies.
pub fn without(input: &PlacementInput, placement: &Placement, lost: &[WorkerId]) -> Result<Loss, PlacementError> {
    input.validate()?;
    placement.validate(input)?;
    let index = input.index();
    if let Some(&unknown) = lost.iter().find(|worker| !index.contains_key(worker)) {
        return Err(InputError::UnknownWorker(unknown).into());
    }
    let is_left: Vec<bool> = input.workers.iter().map(|w| !lost.contains(&w.id)).collect();
    if !is_left.contains(&true) {
        return Err(InputError::NobodyLeft.into());
    }
    let mut survivors = Survivors::new(input, placement, is_left);
    let mut orphans = survivors.orphans();
    // The largest first: what is left over holds small ones. Then the hottest.
    let load: Vec<Vec<f64>> = (0..input.expert_bytes.len()).map(|layer| input.load_of(layer)).collect();
    let key = |&(layer, expert): &(usize, usize)| (input.expert_bytes[layer], load[layer][expert]);
    orphans.sort_by(|a, b| key(b).partial_cmp(&key(a)).expect("numbers").then(a.cmp(b)));
    let mut missing_bytes = 0;
    for &(layer, expert) in &orphans {
        if !survivors.adopt(layer, expert, load[layer][expert]) {
            missing_bytes += input.expert_bytes[layer];
        }
    }
    if missing_bytes > 0 {
        return Err(survivors.too_little(missing_bytes));
    }
    orphans.sort();
    let repairs = std::mem::take(&mut survivors.repairs);
    Ok(Loss { orphans, repairs, placement: survivors.placement(&load) })
}

struct Survivors<'a> {
    input: &'a PlacementInput,
    is_left: Vec<bool>,
    /// Places in `input.workers`, `[layers][experts]`; empty for an orphan.
    on: Vec<Vec<Vec<usize>>>,
    /// Rows by layer and worker, copies sharing evenly: good enough to choose who takes an orphan.
    busy: Vec<Vec<f64>>,
    free: Vec<u64>,
    repairs: Vec<Move>,
}

impl<'a> Survivors<'a> {
    fn new(input: &'a PlacementInput, placement: &Placement, is_left: Vec<bool>) -> Self {
        let index = input.index();
        let mut busy = vec![vec![0.0; is_left.len()]; placement.layers.len()];
        let mut on = Vec::with_capacity(placement.layers.len());
        for (layer, placed) in placement.layers.iter().enumerate() {
            let load = input.load_of(layer);
            let left = |on: &Vec<WorkerId>| on.iter().map(|w| index[w]).filter(|&w| is_left[w]).collect();
            let experts: Vec<Vec<usize>> = placed.copies.iter().map(left).collect();
            for (expert, copies) in experts.iter().enumerate() {
                copies.iter().for_each(|&w| busy[layer][w] += load[expert] / copies.len() as f64);
            }
            on.push(experts);
        }
        let workers = input.workers.iter();
        let free = workers.map(|w| w.memory_bytes - placement.bytes_of(w.id, &input.expert_bytes)).collect();
        Self { input, is_left, on, busy, free, repairs: Vec::new() }
    }

    fn orphans(&self) -> Vec<(usize, usize)> {
        let layers = self.on.iter().enumerate();
        layers.flat_map(|(l, on)| (0..on.len()).filter(|&e| on[e].is_empty()).map(move |e| (l, e))).collect()
    }

    /// Finds a place for an orphan; false if there is none.
    fn adopt(&mut self, layer: usize, expert: usize, load: f64) -> bool {
        let bytes = self.input.expert_bytes[layer];
        let left = || (0..self.free.len()).filter(|&w| self.is_left[w]);
        let done = |w: usize| (self.busy[layer][w] + load) / self.input.workers[w].speed;
        let soonest = |a: &usize, b: &usize| done(*a).total_cmp(&done(*b));
        let roomy = left().filter(|&w| self.free[w] >= bytes).min_by(soonest);
        let lender = || left().filter(|&w| self.free[w] + self.spare_bytes(w) >= bytes).min_by(soonest);
        let Some(worker) = roomy.or_else(lender) else { return false };
        while self.free[worker] < bytes {
            self.drop_spare(worker);
        }
        self.free[worker] -= bytes;
        self.busy[layer][worker] += load;
        self.on[layer][expert].push(worker);
        self.repairs.push(Move::Load(Spot { layer, expert, worker: self.input.workers[worker].id }));
        true
    }

    /// Copies on `worker` of experts that live elsewhere too, as (layer, expert).
    fn spares(&self, worker: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let layers = self.on.iter().enumerate();
        layers.flat_map(move |(layer, experts)| {
            let spare = move |&e: &usize| experts[e].len() > 1 && experts[e].contains(&worker);
            (0..experts.len()).filter(spare).map(move |expert| (layer, expert))
        })
    }

    fn spare_bytes(&self, worker: usize) -> u64 {
        self.spares(worker).map(|(layer, _)| self.input.expert_bytes[layer]).sum()
    }

    /// Drops the spare copy that is needed least: of the expert with the most copies.
    fn drop_spare(&mut self, worker: usize) {
        let copies = |&(layer, expert): &(usize, usize)| self.on[layer][expert].len();
        let (layer, expert) = self.spares(worker).max_by_key(copies).expect("the worker has spare copies");
        let load = self.input.load_of(layer)[expert];
        let on = &mut self.on[layer][expert];
        on.iter().for_each(|&w| self.busy[layer][w] -= load / on.len() as f64);
        on.retain(|&w| w != worker);
        on.iter().for_each(|&w| self.busy[layer][w] += load / on.len() as f64);
        self.free[worker] += self.input.expert_bytes[layer];
        self.repairs.push(Move::Drop(Spot { layer, expert, worker: self.input.workers[worker].id }));
    }

    fn too_little(&self, missing_bytes: u64) -> PlacementError {
        let left = || self.input.workers.iter().zip(&self.is_left).filter(|(_, is_left)| **is_left);
        PlacementError::TooLittleMemory {
            needed_bytes: self.input.expert_bytes.iter().map(|bytes| bytes * self.input.experts as u64).sum(),
            spare_bytes: 0,
            memory_bytes: left().fold(0, |sum, (w, _)| sum.saturating_add(w.memory_bytes)),
            workers: left().count(),
            missing_bytes,
        }
    }

    fn placement(self, load: &[Vec<f64>]) -> Placement {
        let speeds = self.input.speeds();
        let layers = self.on.into_iter().zip(load).map(|(on, load)| match on.is_empty() {
            true => LayerPlacement::default(),
            false => Spread::new(on.into_iter(), load, &speeds).into_layer(self.input),
        });
        Placement { layers: layers.collect() }
    }
}
