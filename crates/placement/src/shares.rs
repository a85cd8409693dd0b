//! How the copies of an expert share its rows.
//!
//! Rows are divided so that the sum of load^2 / speed over the workers is least. For given copies the division that
//! does this also gives the busiest worker as little as can be (it is the lexicographically least base of a
//! polymatroid: Fujishige 1980), and it is found by dividing one expert after the other as if all else stood still.

use crate::{LayerPlacement, PlacementInput, SHARE_WHOLE};

/// Rounds over all experts; twice this changed nothing that a share can tell in any test.
const ROUNDS_MAX: usize = 48;

/// One layer by numbers: workers are places in the input, a row may be divided as finely as one likes.
#[derive(Clone, Debug)]
pub(crate) struct Spread {
    /// `[experts][copies]`: who holds it, and how many of its rows that copy gets.
    pub copies: Vec<Vec<(usize, f64)>>,
    /// Rows of each worker.
    pub loads: Vec<f64>,
}

impl Spread {
    /// Divides each expert's `load` over the workers `on`.
    pub fn new(on: impl Iterator<Item = Vec<usize>>, load: &[f64], speeds: &[f64]) -> Self {
        let mut spread = Self { copies: Vec::with_capacity(load.len()), loads: vec![0.0; speeds.len()] };
        for (on, &rows) in on.zip(load) {
            let even = rows / on.len() as f64;
            on.iter().for_each(|&worker| spread.loads[worker] += even);
            spread.copies.push(on.into_iter().map(|worker| (worker, even)).collect());
        }
        spread.settle(speeds);
        spread
    }

    /// Moves rows between copies until that gains no more.
    pub fn settle(&mut self, speeds: &[f64]) {
        let tiny = self.loads.iter().sum::<f64>() / self.loads.len() as f64 * 1e-6;
        for _ in 0..ROUNDS_MAX {
            let mut moved = 0.0;
            for copies in self.copies.iter_mut().filter(|copies| copies.len() > 1) {
                moved += divide(copies, &mut self.loads, speeds);
            }
            if moved <= tiny {
                break;
            }
        }
    }

    pub fn imbalance(&self, speeds: &[f64]) -> f64 {
        imbalance(&self.loads, speeds)
    }

    /// What [`Spread::settle`] makes least.
    pub fn squares(&self, speeds: &[f64]) -> f64 {
        self.loads.iter().zip(speeds).map(|(load, speed)| load * load / speed).sum()
    }

    pub fn into_layer(self, input: &PlacementInput) -> LayerPlacement {
        let mut layer = LayerPlacement::default();
        for copies in self.copies {
            layer.shares.push(whole_shares(&copies));
            layer.copies.push(copies.iter().map(|&(worker, _)| input.workers[worker].id).collect());
        }
        layer
    }
}

/// Time of the busiest over the time if all were equally busy.
pub(crate) fn imbalance(loads: &[f64], speeds: &[f64]) -> f64 {
    let even = loads.iter().sum::<f64>() / speeds.iter().sum::<f64>();
    let busiest = loads.iter().zip(speeds).map(|(load, speed)| load / speed).fold(0.0, f64::max);
    if even > 0.0 { busiest / even } else { 1.0 }
}

/// Divides one expert's rows anew, the others' as they are: fills its workers up to one common level. Returns how many
/// rows changed hands.
fn divide(copies: &mut [(usize, f64)], loads: &mut [f64], speeds: &[f64]) -> f64 {
    let rows: f64 = copies.iter().map(|&(_, rows)| rows).sum();
    for &(worker, rows) in copies.iter() {
        loads[worker] -= rows;
    }
    let level = water_level(copies.iter().map(|&(worker, _)| (loads[worker], speeds[worker])).collect(), rows);
    let mut moved = 0.0;
    let mut left = rows;
    for (worker, had) in copies.iter_mut() {
        let gets = (level * speeds[*worker] - loads[*worker]).clamp(0.0, left);
        left -= gets;
        moved += (gets - *had).abs();
        (loads[*worker], *had) = (loads[*worker] + gets, gets);
    }
    // What rounding left over.
    let (worker, had) = &mut copies[0];
    *had += left;
    loads[*worker] += left;
    moved
}

/// The load / speed that vessels of (load, speed) reach when `rows` are poured over them.
pub(crate) fn water_level(mut vessels: Vec<(f64, f64)>, rows: f64) -> f64 {
    vessels.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
    let (mut load, mut speed, mut level) = (rows, 0.0, f64::INFINITY);
    for (vessel_load, vessel_speed) in vessels {
        if vessel_load / vessel_speed >= level {
            break;
        }
        load += vessel_load;
        speed += vessel_speed;
        level = load / speed;
    }
    level
}

/// Parts of [`SHARE_WHOLE`], rounded so that they add up.
fn whole_shares(copies: &[(usize, f64)]) -> Vec<u32> {
    let rows: f64 = copies.iter().map(|&(_, rows)| rows).sum();
    let part = |copy_rows: f64| if rows > 0.0 { copy_rows / rows } else { 1.0 / copies.len() as f64 };
    let (mut passed, mut given) = (0.0, 0);
    let mut shares: Vec<u32> = Vec::with_capacity(copies.len());
    for &(_, copy_rows) in copies {
        passed += part(copy_rows);
        let until = ((passed * f64::from(SHARE_WHOLE)).round() as u32).clamp(given, SHARE_WHOLE);
        shares.push(until - given);
        given = until;
    }
    *shares.last_mut().expect("an expert has a copy") += SHARE_WHOLE - given;
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_level_out() {
        let check = |on: &[&[usize]], load: &[f64], speeds: &[f64], expected: &[f64]| {
            let spread = Spread::new(on.iter().map(|on| on.to_vec()), load, speeds);
            for (found, expected) in spread.loads.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-3, "{on:?} {load:?}: {:?}", spread.loads);
            }
        };
        check(&[&[0], &[1]], &[3.0, 1.0], &[1.0, 1.0], &[3.0, 1.0]);
        check(&[&[0, 1], &[1]], &[3.0, 1.0], &[1.0, 1.0], &[2.0, 2.0]);
        check(&[&[0, 1]], &[3.0], &[1.0, 2.0], &[1.0, 2.0]);
        // A chain: what the first worker gives away must pass through the middle one.
        check(&[&[0, 1], &[1, 2]], &[6.0, 0.0], &[1.0; 3], &[3.0, 3.0, 0.0]);
        check(&[&[0], &[0, 1], &[1, 2], &[2, 3]], &[1.0, 3.0, 2.0, 2.0], &[1.0; 4], &[2.0; 4]);
        check(&[&[0, 1], &[0, 1]], &[0.0, 0.0], &[1.0, 1.0], &[0.0, 0.0]);
    }

    #[test]
    fn shares_are_whole() {
        let check = |copies: &[f64], expected: &[u32]| {
            let copies: Vec<(usize, f64)> = copies.iter().copied().enumerate().collect();
            assert_eq!(whole_shares(&copies), expected, "{copies:?}");
        };
        check(&[5.0], &[65536]);
        check(&[1.0, 1.0], &[32768, 32768]);
        check(&[1.0, 1.0, 1.0], &[21845, 21846, 21845]);
        check(&[0.0, 2.0], &[0, 65536]);
        check(&[0.0, 0.0], &[32768, 32768]);
    }
}
