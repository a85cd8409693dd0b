//! A better placement for a load that has changed, with few moves.

use crate::shares::Spread;
use crate::{LayerPlacement, Placement, PlacementError, PlacementInput};

/// Experts of the busiest worker, and workers to help it, that one step looks at.
const HOT_EXPERTS: usize = 4;
const HELPERS: usize = 4;

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RebalanceGoal {
    /// Layers whose [`Placement::imbalance`] is no greater are left alone: 1.1 is 10% over the mean.
    pub imbalance_wanted: f64,
    /// Experts to load at most, over all layers and workers. 0 changes shares alone.
    pub loads_max: usize,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rebalance {
    pub placement: Placement,
    /// Experts to load; [`crate::moves`] gives the order.
    pub loads: usize,
    /// Of the worst layer, with the shares that `old` has.
    pub imbalance_before: f64,
    /// Of the worst layer.
    pub imbalance_after: f64,
}

/// Adapts `old` to `input.load`: new shares first, which cost nothing, then one expert after the other in whichever
/// layer is worst: copied or moved from its busiest worker to one that has less to do, or exchanged with a cold one
/// there. A layer never gets more copies than `input.redundancy` allows or `old` has.
///
/// # Errors
/// An input that is wrong or a placement that is not one of it.
pub fn rebalance(input: &PlacementInput, old: &Placement, goal: RebalanceGoal) -> Result<Rebalance, PlacementError> {
    input.validate()?;
    old.validate(input)?;
    let worst = |placement: &Placement| {
        (0..placement.layers.len()).map(|layer| placement.imbalance(input, layer)).fold(1.0, f64::max)
    };
    let mut state = State::new(input, old);
    let mut loads_left = goal.loads_max;
    while let Some(layer) = state.worst_layer(goal.imbalance_wanted) {
        match state.best_change(layer, loads_left) {
            Some(change) => loads_left -= state.apply(layer, change),
            None => state.is_stuck[layer] = true,
        }
    }
    let layers = state.spreads.into_iter();
    let placement =
        Placement { layers: layers.map(|s| s.map_or_else(LayerPlacement::default, |s| s.into_layer(input))).collect() };
    let (imbalance_before, imbalance_after) = (worst(old), worst(&placement));
    let had: std::collections::BTreeSet<_> = old.spots().collect();
    let loads = placement.spots().filter(|spot| !had.contains(spot)).count();
    Ok(Rebalance { loads, imbalance_before, imbalance_after, placement })
}

struct State<'a> {
    input: &'a PlacementInput,
    speeds: Vec<f64>,
    /// None where the layer is dense.
    spreads: Vec<Option<Spread>>,
    /// Copies that a layer may have.
    copies_max: Vec<usize>,
    free: Vec<u64>,
    /// Layers that no single change makes better.
    is_stuck: Vec<bool>,
}

/// Copies as (expert, worker).
type Copies = Vec<(usize, usize)>;

/// The copies that leave and those that come, and the layer after it.
struct Change {
    gone: Copies,
    come: Copies,
    spread: Spread,
}

impl<'a> State<'a> {
    fn new(input: &'a PlacementInput, old: &Placement) -> Self {
        let (index, speeds) = (input.index(), input.speeds());
        let spread = |(layer, placed): (usize, &LayerPlacement)| {
            let on = placed.copies.iter().map(|on| on.iter().map(|worker| index[worker]).collect());
            (!placed.is_dense()).then(|| Spread::new(on, &input.load_of(layer), &speeds))
        };
        let spreads: Vec<Option<Spread>> = old.layers.iter().enumerate().map(spread).collect();
        let allowed = input.experts + input.spare_copies();
        let copies = |layer: &LayerPlacement| layer.copies.iter().map(Vec::len).sum::<usize>().max(allowed);
        let workers = input.workers.iter();
        Self {
            free: workers.map(|w| w.memory_bytes - old.bytes_of(w.id, &input.expert_bytes)).collect(),
            copies_max: old.layers.iter().map(copies).collect(),
            is_stuck: vec![false; spreads.len()],
            input,
            speeds,
            spreads,
        }
    }

    fn worst_layer(&self, wanted: f64) -> Option<usize> {
        let imbalance = |layer: usize| self.spreads[layer].as_ref().map_or(1.0, |s| s.imbalance(&self.speeds));
        let open = (0..self.spreads.len()).filter(|&layer| !self.is_stuck[layer] && imbalance(layer) > wanted);
        open.max_by(|&a, &b| imbalance(a).total_cmp(&imbalance(b)).then(b.cmp(&a)))
    }

    /// The change of at most `loads_max` loads that helps `layer` most for each of them.
    fn best_change(&self, layer: usize, loads_max: usize) -> Option<Change> {
        let now = self.spreads[layer].as_ref()?;
        let (time, squares) = (now.imbalance(&self.speeds), now.squares(&self.speeds));
        let mut best: Option<((f64, f64), Change)> = None;
        for (gone, come) in self.candidates(layer).into_iter().filter(|(_, come)| come.len() <= loads_max) {
            let spread = changed(now, &gone, &come, &self.speeds);
            let per_load = |gain: f64| gain / come.len() as f64;
            let gain = (
                per_load(time - spread.imbalance(&self.speeds)),
                per_load((squares - spread.squares(&self.speeds)) / squares),
            );
            // Where several workers are the busiest, helping one shows in the squares alone.
            let helps = gain.0 > -1e-9 && gain.1 > 1e-6;
            if helps && best.as_ref().is_none_or(|(found, _)| gain > *found) {
                best = Some((gain, Change { gone, come, spread }));
            }
        }
        best.map(|(_, change)| change)
    }

    /// Pairs of what leaves and what comes that memory and the number of copies allow.
    fn candidates(&self, layer: usize) -> Vec<(Copies, Copies)> {
        let spread = self.spreads[layer].as_ref().expect("a layer with experts");
        let bytes = self.input.expert_bytes[layer];
        let copies: usize = spread.copies.iter().map(Vec::len).sum();
        let time = |w: usize| spread.loads[w] / self.speeds[w];
        let mut workers: Vec<usize> = (0..self.speeds.len()).collect();
        workers.sort_by(|&a, &b| time(a).total_cmp(&time(b)).then(a.cmp(&b)));
        let busiest = *workers.last().expect("a worker");
        let hot = rows_on(spread, busiest);
        let mut candidates = Vec::new();
        for &(_, expert) in hot.iter().take(HOT_EXPERTS) {
            let holds = |w: usize, e: usize| spread.copies[e].iter().any(|&(on, _)| on == w);
            for &helper in workers.iter().filter(|&&w| w != busiest && !holds(w, expert)).take(HELPERS) {
                let come = vec![(expert, helper)];
                if self.free[helper] >= bytes {
                    if copies < self.copies_max[layer] {
                        candidates.push((vec![], come.clone()));
                    }
                    candidates.push((vec![(expert, busiest)], come.clone()));
                }
                let there = rows_on(spread, helper);
                let spare = there.iter().rev().find(|&&(_, e)| spread.copies[e].len() > 1);
                if let Some(&(_, cold)) = spare {
                    candidates.push((vec![(cold, helper)], come.clone()));
                    candidates.push((vec![(cold, helper), (expert, busiest)], come.clone()));
                }
                if let Some(&(_, cold)) = there.iter().rev().find(|&&(_, e)| !holds(busiest, e)) {
                    let come = vec![(expert, helper), (cold, busiest)];
                    candidates.push((vec![(expert, busiest), (cold, helper)], come));
                }
            }
        }
        candidates
    }

    /// Returns how many experts are to be loaded.
    fn apply(&mut self, layer: usize, change: Change) -> usize {
        let bytes = self.input.expert_bytes[layer];
        change.gone.iter().for_each(|&(_, worker)| self.free[worker] += bytes);
        change.come.iter().for_each(|&(_, worker)| self.free[worker] -= bytes);
        self.spreads[layer] = Some(change.spread);
        // Room may have come up for the others.
        self.is_stuck.iter_mut().for_each(|stuck| *stuck = false);
        change.come.len()
    }
}

/// The experts on `worker` with the rows that its copy gets, most first.
fn rows_on(spread: &Spread, worker: usize) -> Vec<(f64, usize)> {
    let experts = spread.copies.iter().enumerate();
    let mut rows: Vec<(f64, usize)> = experts
        .flat_map(|(e, copies)| copies.iter().filter(|(w, _)| *w == worker).map(move |&(_, rows)| (rows, e)))
        .collect();
    rows.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    rows
}

/// `spread` with some copies fewer and some more; the rows of those that leave go to the expert's other copies.
fn changed(spread: &Spread, gone: &[(usize, usize)], come: &[(usize, usize)], speeds: &[f64]) -> Spread {
    let mut spread = spread.clone();
    for &(expert, worker) in come {
        spread.copies[expert].push((worker, 0.0));
    }
    for &(expert, worker) in gone {
        let copies = &mut spread.copies[expert];
        let at = copies.iter().position(|&(w, _)| w == worker).expect("it is there");
        let (_, rows) = copies.remove(at);
        let heir = copies.last_mut().expect("the last copy does not leave");
        heir.1 += rows;
        spread.loads[worker] -= rows;
        spread.loads[heir.0] += rows;
    }
    spread.settle(speeds);
    spread
}
