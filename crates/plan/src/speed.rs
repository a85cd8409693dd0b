//! How long a step takes: a roofline of each part, one after the other, and the exchange between them.
//!
//! A part takes as long as reading its bytes or as computing its operations, whichever is longer, on devices that do
//! both at a time, and the sum of both on those that do not. A layer's experts take as long as the busiest worker's,
//! with the bytes of the distinct experts that it is expected to meet. The exchange runs beside the shared expert, or,
//! where that is faster, the batch goes in two halves, one of which computes while the other is under way; weights are
//! then read twice.

use std::ops::{Add, AddAssign};

use crate::traffic::{Asked, Routes, Traffic, link_seconds};
use crate::{Device, Fleet, Inventory, Part, Piece, Workload};

/// Seconds by what they were spent on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Reading weights and cache.
    pub read_s: f64,
    pub compute_s: f64,
    /// Bytes on links.
    pub link_s: f64,
    /// Messages on their way.
    pub latency_s: f64,
    /// Launches and whatever else a layer costs.
    pub fixed_s: f64,
}

impl Spent {
    pub fn total_s(&self) -> f64 {
        self.read_s + self.compute_s + self.link_s + self.latency_s + self.fixed_s
    }

    /// `(name, seconds)`, the most first.
    pub fn ranking(&self) -> [(&'static str, f64); 5] {
        let mut all = [
            ("memory bandwidth", self.read_s),
            ("compute", self.compute_s),
            ("network bandwidth", self.link_s),
            ("network latency", self.latency_s),
            ("launches", self.fixed_s),
        ];
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all
    }

    /// What bounds it.
    pub fn bound(&self) -> &'static str {
        self.ranking()[0].0
    }

    fn twice(self) -> Self {
        self + self
    }

    fn longer(self, other: Self) -> Self {
        if other.total_s() > self.total_s() { other } else { self }
    }
}

impl Add for Spent {
    type Output = Self;

    fn add(self, o: Self) -> Self {
        Self {
            read_s: self.read_s + o.read_s,
            compute_s: self.compute_s + o.compute_s,
            link_s: self.link_s + o.link_s,
            latency_s: self.latency_s + o.latency_s,
            fixed_s: self.fixed_s + o.fixed_s,
        }
    }
}

impl AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// One kind of step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Rows over all servers.
    pub rows: usize,
    pub spent: Spent,
    /// Layers whose batch goes in halves.
    pub halved_layers: usize,
}

impl Prediction {
    pub fn tokens_per_s(&self) -> f64 {
        self.rows as f64 / self.spent.total_s()
    }
}

/// Rows of one step on one server.
#[derive(Clone, Copy, Debug)]
struct Step {
    rows: f64,
    logit_rows: f64,
    /// Positions that a row looks at, on average.
    positions: f64,
    /// Positions of the cache that are read, for all rows.
    cached: f64,
}

impl Step {
    /// Half of the rows.
    fn half(self) -> Self {
        Self { rows: self.rows / 2.0, cached: self.cached / 2.0, ..self }
    }
}

/// Every sequence gets one token.
pub(crate) fn decode(routes: &Routes, inventory: &Inventory, fleet: &Fleet, workload: &Workload) -> Prediction {
    let rows = workload.sequences as f64 / servers(fleet) as f64;
    let positions = workload.context_tokens as f64;
    let step = Step { rows, logit_rows: rows, positions, cached: rows * positions };
    Predictor { routes, inventory, fleet, workload }.step(step, workload.sequences)
}

/// Every server computes rows of one prompt, from its beginning, and draws one token.
pub(crate) fn prefill(routes: &Routes, inventory: &Inventory, fleet: &Fleet, workload: &Workload) -> Prediction {
    let rows = workload.prefill_rows as f64;
    let step = Step { rows, logit_rows: 1.0, positions: rows / 2.0, cached: rows };
    Predictor { routes, inventory, fleet, workload }.step(step, workload.prefill_rows * servers(fleet))
}

fn servers(fleet: &Fleet) -> usize {
    fleet.devices.iter().filter(|d| d.duty.serves()).count()
}

struct Predictor<'a> {
    routes: &'a Routes<'a>,
    inventory: &'a Inventory,
    fleet: &'a Fleet,
    workload: &'a Workload,
}

/// What a layer does on a device, by how it can be laid side by side.
#[derive(Clone, Copy, Default)]
struct Phases {
    /// Attention, dense part, router.
    first: Spent,
    shared: Spent,
    experts: Spent,
    out: Spent,
    back: Spent,
    latency: Spent,
}

impl Predictor<'_> {
    fn step(&self, step: Step, rows: usize) -> Prediction {
        let layers = self.inventory.layers.len();
        let (mut spent, mut halved_layers) = (Spent::default(), 0);
        for layer in 0..layers {
            // The last layer's feed-forward part is computed for the rows whose logits are wanted.
            let ffn_rows = if layer + 1 == layers { step.logit_rows } else { step.rows };
            let whole = self.layer(layer, step, ffn_rows);
            let halves = self.layer(layer, step.half(), ffn_rows / 2.0);
            let (whole, halves) = (self.in_turns(&whole), self.in_halves(&halves));
            let is_halved = step.rows >= 2.0 && halves.total_s() < whole.total_s();
            spent += if is_halved { halves } else { whole };
            halved_layers += usize::from(is_halved);
        }
        let head = self.on_servers(|device| self.part(device, &self.inventory.head, step.logit_rows));
        Prediction { rows, spent: spent + head, halved_layers }
    }

    /// The slowest server's.
    fn on_servers(&self, spent: impl Fn(&Device) -> Spent) -> Spent {
        let servers = self.fleet.devices.iter().filter(|d| d.duty.serves());
        servers.map(spent).fold(Spent::default(), Spent::longer)
    }

    fn part(&self, device: &Device, part: &Part, rows: f64) -> Spent {
        // All rows meet all weights: only the last tile has rows to spare.
        let tiles = (rows / device.tile_rows as f64).ceil() * device.tile_rows as f64;
        bounded(device, part.bytes() as f64, compute_s(device, part, rows, tiles))
    }

    fn attention(&self, device: &Device, step: Step) -> Spent {
        let bytes = step.cached * self.inventory.kv_values() as f64 * self.workload.kv_value_bytes;
        let flops = step.rows * step.positions * self.inventory.attention_flops();
        bounded(device, bytes, flops / device.attention_flops)
    }

    fn layer(&self, layer: usize, step: Step, ffn_rows: f64) -> Phases {
        let parts = &self.inventory.layers[layer];
        let first = self.on_servers(|device| {
            let fixed = Spent { fixed_s: device.layer_s, ..Spent::default() };
            let projections = self.part(device, &parts.attention, step.rows);
            projections + self.attention(device, step) + self.part(device, &parts.ffn, ffn_rows) + fixed
        });
        if parts.expert.0.is_empty() {
            return Phases { first, ..Phases::default() };
        }
        let all_rows = ffn_rows * servers(self.fleet) as f64;
        let asked = self.routes.asked(layer);
        let hidden = self.inventory.config.hidden;
        let traffic = Traffic::of(&asked, self.workload.wire, hidden, ffn_rows, 1);
        let (out_s, back_s) = link_seconds(self.fleet, &asked, &traffic, all_rows, hidden);
        let link = |link_s: f64| Spent { link_s, ..Spent::default() };
        Phases {
            first,
            shared: self.on_servers(|device| self.part(device, &parts.shared, ffn_rows)),
            experts: self.experts(layer, all_rows),
            out: link(out_s),
            back: link(back_s),
            latency: Spent { latency_s: 2.0 * self.latency_s(&asked), ..Spent::default() },
        }
    }

    fn latency_s(&self, asked: &[Asked]) -> f64 {
        let remote = asked.iter().filter(|a| a.remote > 0.0).map(|a| self.fleet.devices[a.device].link_latency_s);
        remote.fold(0.0, f64::max)
    }

    /// The busiest worker's time for `rows` rows of all servers.
    fn experts(&self, layer: usize, rows: f64) -> Spent {
        let expert = &self.inventory.layers[layer].expert;
        let worker = |(device, chances): (usize, Vec<f64>)| {
            let device = &self.fleet.devices[device];
            let distinct: f64 = chances.iter().map(|&chance| 1.0 - (1.0 - chance).powf(rows)).sum();
            let pairs = rows * chances.iter().sum::<f64>();
            // Each expert has another number of rows: half a tile is spare on average.
            let each = if distinct > 0.0 { pairs / distinct } else { 0.0 };
            let tiles = each + (device.tile_rows - 1) as f64 / 2.0;
            let compute_s = distinct * compute_s(device, expert, each, tiles);
            let spent = bounded(device, distinct * expert.bytes() as f64, compute_s);
            let fixed_s = if device.duty.serves() { 0.0 } else { device.layer_s };
            spent + Spent { fixed_s, ..Spent::default() }
        };
        self.routes.copies(layer).into_iter().map(worker).fold(Spent::default(), Spent::longer)
    }

    /// Whether the shared expert and routed ones compete for the same device.
    fn shares_devices(&self) -> bool {
        self.fleet.devices.iter().any(|d| d.duty.serves() && d.duty.works())
    }

    /// One batch: the shared expert beside the exchange.
    fn in_turns(&self, p: &Phases) -> Spent {
        if self.shares_devices() {
            return p.first + p.shared.longer(p.out) + p.experts + p.back + p.latency;
        }
        p.first + p.shared.longer(p.out + p.experts + p.back + p.latency)
    }

    /// Two halves, `p` is one: no device and no link can do both at a time, and each half goes its way in order.
    fn in_halves(&self, p: &Phases) -> Spent {
        let chain = self.in_turns(p);
        let mine = p.first + p.shared;
        let (device, link) = match self.shares_devices() {
            true => ((mine + p.experts).twice(), (p.out + p.back).twice()),
            false => (mine.twice().longer(p.experts.twice()), p.out.longer(p.back).twice()),
        };
        chain.longer(device).longer(link)
    }
}

/// Computing `part` for `rows` rows, which are as much work as `tiles` rows where they go by tiles.
fn compute_s(device: &Device, part: &Part, rows: f64, tiles: f64) -> f64 {
    let by_tiles = rows > device.tile_rows as f64 / 4.0;
    let (rows, unpack_s) = match by_tiles {
        true => (tiles, part.parameters() as f64 / device.unpack_weights_per_s),
        false => (rows, 0.0),
    };
    let seconds = |piece: &Piece| 2.0 * piece.parameters as f64 * rows / device.flops(piece.format);
    part.0.iter().map(seconds).sum::<f64>() + unpack_s
}

/// Reading `bytes` and computing for `compute_s`.
fn bounded(device: &Device, bytes: f64, compute_s: f64) -> Spent {
    let read_s = bytes / device.read_bytes_per_s;
    match (device.hides_reads, read_s > compute_s) {
        (false, _) => Spent { read_s, compute_s, ..Spent::default() },
        (true, true) => Spent { read_s, ..Spent::default() },
        (true, false) => Spent { compute_s, ..Spent::default() },
    }
}
