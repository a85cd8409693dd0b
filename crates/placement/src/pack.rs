//! A placement from nothing.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::shares::Spread;
use crate::{LayerPlacement, Placement, PlacementError, PlacementInput, budget};

/// Places every expert, the hot ones several times.
///
/// # Errors
/// Name what is wrong with `input`, or say how much memory is missing.
pub fn place(input: &PlacementInput) -> Result<Placement, PlacementError> {
    input.validate()?;
    let quotas = budget::quotas(input)?;
    let layers = quotas.into_iter().enumerate().map(|(layer, quota)| {
        if input.expert_bytes[layer] == 0 {
            return LayerPlacement::default();
        }
        pack(&input.load_of(layer), quota, &input.speeds()).into_layer(input)
    });
    Ok(Placement { layers: layers.collect() })
}

/// Packs one layer: copies by load, each onto the worker that is done with it first (LPT, Graham 1969), within the
/// workers' quotas. Replicated experts come first, while there are several workers to choose from.
fn pack(load: &[f64], mut quota: Vec<usize>, speeds: &[f64]) -> Spread {
    let spare = quota.iter().sum::<usize>() - load.len();
    let copies = replicas(load, spare, speeds.len());
    let piece = |expert: usize| load[expert] / copies[expert] as f64;
    let mut order: Vec<usize> = (0..load.len()).collect();
    order.sort_by(|&a, &b| {
        let single = |e: usize| copies[e] == 1;
        single(a).cmp(&single(b)).then(piece(b).total_cmp(&piece(a))).then(a.cmp(&b))
    });
    let mut busy = vec![0.0; speeds.len()];
    let mut on: Vec<Vec<usize>> = vec![Vec::new(); load.len()];
    for expert in order {
        for _ in 0..copies[expert] {
            let done = |w: usize| (busy[w] + piece(expert)) / speeds[w];
            let open = (0..speeds.len()).filter(|&w| quota[w] > 0 && !on[expert].contains(&w));
            let best = open.min_by(|&a, &b| done(a).total_cmp(&done(b)).then(quota[b].cmp(&quota[a])));
            // All workers with room left hold it already: it has enough copies.
            let Some(worker) = best else { break };
            on[expert].push(worker);
            quota[worker] -= 1;
            busy[worker] += piece(expert);
        }
    }
    Spread::new(on.into_iter(), load, speeds)
}

/// Copies of each expert: each spare one goes to the expert whose copies have most to do.
fn replicas(load: &[f64], spare: usize, workers: usize) -> Vec<usize> {
    let mut copies = vec![1; load.len()];
    if workers == 1 {
        return copies;
    }
    let mut heap: BinaryHeap<Piece> = load.iter().enumerate().map(|(expert, &load)| Piece { load, expert }).collect();
    for _ in 0..spare {
        let Some(Piece { expert, .. }) = heap.pop() else { break };
        copies[expert] += 1;
        if copies[expert] < workers {
            heap.push(Piece { load: load[expert] / copies[expert] as f64, expert });
        }
    }
    copies
}

/// What one copy of an expert has to do. The greatest is the heaviest, of equals the one of the lowest number.
struct Piece {
    load: f64,
    expert: usize,
}

impl Ord for Piece {
    fn cmp(&self, other: &Self) -> Ordering {
        self.load.total_cmp(&other.load).then(other.expert.cmp(&self.expert))
    }
}

impl PartialOrd for Piece {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Piece {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Piece {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Worker, WorkerId};

    fn zipf(experts: usize, exponent: f64, turn: usize) -> Vec<u64> {
        // Ranks spread over the experts by an odd stride, so that the hot ones are not neighbours.
        let rank = |e: usize| (e * 97 + turn * 13) % experts + 1;
        (0..experts).map(|e| (1e9 / (rank(e) as f64).powf(exponent)) as u64).collect()
    }

    #[test]
    fn the_busiest_worker_is_near_the_mean() {
        let check = |workers: u32, exponent: f64, redundancy: f64, bound: f64| {
            let input = PlacementInput {
                experts: 256,
                expert_bytes: vec![0, 7, 7, 7, 9, 7],
                workers: (0..workers).map(|id| Worker { id: WorkerId(id), memory_bytes: 50_000, speed: 1.0 }).collect(),
                load: Some((0..6).map(|layer| zipf(256, exponent, layer)).collect()),
                redundancy,
            };
            let placement = place(&input).expect("there is room");
            placement.validate(&input).expect("a valid placement");
            for layer in 1..6 {
                let found = placement.imbalance(&input, layer);
                assert!(found <= bound, "{workers} workers, exponent {exponent}, layer {layer}: {found}");
            }
        };
        for workers in [2, 8, 16, 32] {
            check(workers, 1.0, 0.10, 1.10);
        }
        check(32, 0.0, 0.10, 1.10);
        check(64, 1.0, 0.25, 1.10);
        check(32, 1.2, 0.25, 1.10);
    }
}
