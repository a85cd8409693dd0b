//! Who is asked for what: rows and bytes between servers and workers in one layer.
//!
//! A row goes once to each worker that holds one of its experts, with 8 bytes for each pair of row and expert; each
//! pair comes back as a row of its own, for sums must not depend on who holds what (`crates/cluster`, "Same bits").
//! Which experts rows choose is taken as independent, with the measured or even chance of each.

use lingqu_placement::{Placement, SHARE_WHOLE};

use crate::{Fleet, Inventory, Wire, Workload};

/// Row and expert, by number.
const PAIR_BYTES: f64 = 8.0;

/// What one worker does in one layer for a row of any server, on average.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Asked {
    /// Place in the fleet.
    pub device: usize,
    /// Chance that the row meets one of its experts.
    pub hit: f64,
    /// Pairs of the row.
    pub pairs: f64,
    /// Part of the rows that come from other devices.
    pub remote: f64,
}

/// What crosses the network for one token in one layer of experts, and over all layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    pub wire: Wire,
    /// Layers with routed experts.
    pub layers: usize,
    /// Workers on other devices that a token's row goes to.
    pub workers: f64,
    /// Pairs of the row and an expert on another device.
    pub pairs: f64,
    pub out_bytes: f64,
    pub back_bytes: f64,
    /// If each worker sent one sum for a row.
    pub back_bytes_least: f64,
    /// Messages of one server in one decoding step and layer, there and back.
    pub messages: f64,
}

impl Traffic {
    /// Of layer `asked`, for one server that decodes `rows` rows.
    pub(crate) fn of(asked: &[Asked], wire: Wire, hidden: usize, rows: f64, layers: usize) -> Self {
        let sum = |value: &dyn Fn(&Asked) -> f64| asked.iter().map(value).sum::<f64>();
        let workers = sum(&|a| a.remote * a.hit);
        let pairs = sum(&|a| a.remote * a.pairs);
        let (row, back) = (wire.row_bytes(hidden), wire.back_bytes(hidden));
        Self {
            wire,
            layers,
            workers,
            pairs,
            out_bytes: workers * row + pairs * PAIR_BYTES,
            back_bytes: pairs * back,
            back_bytes_least: workers * back,
            messages: 2.0 * sum(&|a| a.remote * (1.0 - (1.0 - a.hit).powf(rows))),
        }
    }
}

/// The layers' experts by worker.
pub(crate) struct Routes<'a> {
    inventory: &'a Inventory,
    fleet: &'a Fleet,
    placement: &'a Placement,
    workload: &'a Workload,
}

impl<'a> Routes<'a> {
    pub fn new(inventory: &'a Inventory, fleet: &'a Fleet, placement: &'a Placement, workload: &'a Workload) -> Self {
        Self { inventory, fleet, placement, workload }
    }

    /// Chance that a row chooses each expert of `layer`.
    fn chances(&self, layer: usize) -> Vec<f64> {
        let (experts, top_k) = (self.inventory.experts(), self.inventory.top_k() as f64);
        let measured = self.workload.load.as_ref().map(|load| &load[layer]);
        let total = measured.map_or(0.0, |rows| rows.iter().map(|&r| r as f64).sum::<f64>());
        match measured.filter(|_| total > 0.0) {
            Some(rows) => rows.iter().map(|&r| (top_k * r as f64 / total).min(1.0)).collect(),
            None => vec![top_k / experts as f64; experts],
        }
    }

    /// For each worker of `layer` with any expert: its place in the fleet and the chances of a row to meet each of its
    /// copies.
    pub fn copies(&self, layer: usize) -> Vec<(usize, Vec<f64>)> {
        let chances = self.chances(layer);
        let mut found: Vec<(usize, Vec<f64>)> = Vec::new();
        let mut at = vec![None; self.fleet.devices.len()];
        let placed = &self.placement.layers[layer];
        for (expert, on) in placed.copies.iter().enumerate() {
            for (worker, &share) in on.iter().zip(&placed.shares[expert]) {
                let device = worker.0 as usize;
                let entry = *at[device].get_or_insert_with(|| {
                    found.push((device, Vec::new()));
                    found.len() - 1
                });
                found[entry].1.push(chances[expert] * f64::from(share) / f64::from(SHARE_WHOLE));
            }
        }
        found
    }

    pub fn asked(&self, layer: usize) -> Vec<Asked> {
        let servers = self.fleet.devices.iter().filter(|d| d.duty.serves()).count() as f64;
        let worker = |(device, chances): (usize, Vec<f64>)| {
            let here = if self.fleet.devices[device].duty.serves() { 1.0 } else { 0.0 };
            Asked {
                device,
                hit: 1.0 - chances.iter().map(|chance| 1.0 - chance).product::<f64>(),
                pairs: chances.iter().sum(),
                remote: (servers - here) / servers,
            }
        };
        self.copies(layer).into_iter().map(worker).collect()
    }
}

/// Bytes that the busiest worker takes and gives for `rows` rows, over its link's bytes a second, and the same for a
/// server with its `rows / servers`: seconds out and back.
pub(crate) fn link_seconds(fleet: &Fleet, asked: &[Asked], traffic: &Traffic, rows: f64, hidden: usize) -> (f64, f64) {
    let servers = fleet.devices.iter().filter(|d| d.duty.serves());
    let (count, slowest) = servers.fold((0.0, f64::INFINITY), |(n, s), d| (n + 1.0, d.link_bytes_per_s.min(s)));
    let (row, answer) = (traffic.wire.row_bytes(hidden), traffic.wire.back_bytes(hidden));
    let mine = rows / count;
    let (mut out, mut back) = (mine * traffic.out_bytes / slowest, mine * traffic.back_bytes / slowest);
    for worker in asked {
        let link = fleet.devices[worker.device].link_bytes_per_s;
        let taken = worker.remote * (worker.hit * row + worker.pairs * PAIR_BYTES);
        out = out.max(rows * taken / link);
        back = back.max(rows * worker.remote * worker.pairs * answer / link);
    }
    (out, back)
}
