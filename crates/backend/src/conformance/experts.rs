//! The gated feed-forward layer, routed experts, and the sum over their slots.

use lingqu_tensor::Format;

use super::place::{Place, select};
use super::random::Random;
use super::report::{Outcome, Subject};
use super::{Case, Pick, Problem, RunRows, Suite, same_bits, tolerance};
use crate::{Backend, FfnSource, HostRouting, Routing};

/// gate and up in the format picked, down in it or in another, as in files where widths are not whole blocks.
pub fn source(random: &mut Random, shape: [usize; 2], formats: [Format; 2]) -> FfnSource {
    let [hidden, intermediate] = shape;
    FfnSource {
        gate: random.matrix("gate", [intermediate, hidden], formats[0]),
        up: random.matrix("up", [intermediate, hidden], formats[0]),
        down: random.matrix("down", [hidden, intermediate], formats[1]),
    }
}

pub fn formats(random: &mut Random, pick: Pick<'_>) -> [Format; 2] {
    [pick.format, if random.chance() { pick.format } else { random.pick(pick.others) }]
}

pub fn worst_tolerance(formats: [Format; 2]) -> f64 {
    formats.map(tolerance::of_format).into_iter().fold(0.0, f64::max)
}

/// How the errors of a feed-forward layer add up.
pub struct FfnMagnitude {
    gate: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
}

impl FfnMagnitude {
    pub fn new(source: &FfnSource) -> Self {
        Self { gate: source.gate.to_f32(), up: source.up.to_f32(), down: source.down.to_f32() }
    }

    /// x `[hidden]`, result `[hidden]`
    pub fn of(&self, x: &[f32]) -> Vec<f64> {
        let x = tolerance::wide(x);
        let mut gated = Vec::new(); // [intermediate]
        let mut errors = Vec::new();
        for (gate, up) in self.gate.chunks_exact(x.len()).zip(self.up.chunks_exact(x.len())) {
            let (g, u) = (tolerance::dot(gate, &x), tolerance::dot(up, &x));
            let silu = g / (1.0 + (-g).exp());
            gated.push(silu * u);
            // The slope of silu is at most 1.1.
            let (of_gate, of_up) = (tolerance::magnitude(gate, &x), tolerance::magnitude(up, &x));
            errors.push((1.1 * u * of_gate).hypot(silu * of_up));
        }
        let down = |w: &[f32]| {
            let squares: f64 = w.iter().zip(&errors).map(|(w, e)| (f64::from(*w) * e).powi(2)).sum();
            tolerance::magnitude(w, &gated) + squares.sqrt()
        };
        self.down.chunks_exact(gated.len()).map(down).collect()
    }
}

pub struct Ffn {
    formats: [Format; 2],
    source: FfnSource,
    /// `[rows, hidden]`
    x: Vec<f32>,
    places: [Place; 2],
}

impl Ffn {
    pub fn random(random: &mut Random, pick: Pick<'_>) -> Self {
        let formats = formats(random, pick);
        let (hidden, intermediate) = (random.width(&formats[..1]), random.width(&formats[1..]));
        let source = source(random, [hidden, intermediate], formats);
        let places = [Place::flat(random, hidden), Place::flat(random, hidden)];
        let rows = random.rows(pick.number);
        Self { formats, source, x: random.values(rows * hidden), places }
    }
}

impl Case for Ffn {
    fn subject(&self) -> Subject {
        Subject { op: "ffn", format: Some(self.formats[0]) }
    }

    fn rows(&self) -> usize {
        self.x.len() / self.places[0].width()
    }

    fn prepare<'a>(&'a self, backend: &'a dyn Backend) -> Result<RunRows<'a>, Problem> {
        let weights = backend.upload_ffn(&self.source)?;
        let [from, to] = self.places;
        Ok(Box::new(move |rows| {
            let x = from.input(backend, &select(&self.x, from.width(), rows))?;
            let mut out = to.output(backend, rows.len())?;
            backend.ffn(from.view(&x), &weights, to.view_mut(&mut out))?;
            to.result(backend, &out)
        }))
    }

    fn magnitudes(&self) -> Vec<f64> {
        let magnitude = FfnMagnitude::new(&self.source);
        self.x.chunks_exact(self.places[0].width()).flat_map(|x| magnitude.of(x)).collect()
    }

    fn tolerance(&self) -> f64 {
        worst_tolerance(self.formats)
    }
}

fn upload_routing(backend: &dyn Backend, host: &HostRouting) -> Result<Routing, Problem> {
    let mut routing = backend.alloc_routing(host.experts.len() / host.top_k + 2, host.top_k)?;
    backend.write_routing(host, &mut routing)?;
    match backend.read_routing(&routing)? == *host {
        true => Ok(routing),
        false => Err(Problem("a routing does not read as it was written".into())),
    }
}

fn select_routing(host: &HostRouting, rows: &[usize]) -> HostRouting {
    let slots = rows.iter().flat_map(|r| r * host.top_k..(r + 1) * host.top_k);
    let (experts, weights) = slots.map(|slot| (host.experts[slot], host.weights[slot])).unzip();
    HostRouting { top_k: host.top_k, experts, weights }
}

fn random_routing(random: &mut Random, rows: usize, experts: usize) -> HostRouting {
    let top_k = random.within(1, experts.min(4));
    // All rows choose among the first few: some experts get many rows and some get none.
    let wanted = random.within(top_k, experts);
    let mut chosen = Vec::new();
    for _ in 0..rows {
        let row = random.shuffled((0..wanted).collect());
        chosen.extend(row[..top_k].iter().map(|e| *e as u32));
    }
    HostRouting { top_k, experts: chosen, weights: random.values(rows * top_k) }
}

pub struct Experts {
    formats: [Format; 2],
    sources: Vec<FfnSource>,
    routing: HostRouting,
    /// `[rows, hidden]`
    x: Vec<f32>,
    places: [Place; 2],
}

impl Experts {
    pub fn random(random: &mut Random, pick: Pick<'_>) -> Self {
        let formats = formats(random, pick);
        let (hidden, intermediate) = (random.width(&formats[..1]), random.width(&formats[1..]));
        let sources = (0..random.within(2, 7)).map(|_| source(random, [hidden, intermediate], formats)).collect();
        let mut experts = Self {
            formats,
            sources,
            routing: HostRouting::default(),
            x: Vec::new(),
            places: [Place::flat(random, hidden), Place::flat(random, hidden)],
        };
        let rows = random.rows(pick.number);
        experts.routing = random_routing(random, rows, experts.sources.len());
        experts.x = random.values(rows * hidden);
        experts
    }

    /// Experts spread over two devices give the bits of all on one: each slot alone, then [`Backend::combine`].
    pub fn check_shards(&self, suite: &mut Suite<'_>) {
        let outcome = self.shards(suite.subject).unwrap_or_else(|Problem(problem)| Outcome::failed(problem));
        suite.report.note(self.subject(), "shards", outcome);
    }

    fn shards(&self, backend: &dyn Backend) -> Result<Outcome, Problem> {
        let rows: Vec<usize> = (0..self.rows()).collect();
        let whole = self.prepare(backend)?(&rows)?;
        let ([from, to], hidden, top_k) = (self.places, self.places[0].width(), self.routing.top_k);
        let mut y = vec![0.0; self.routing.experts.len() * hidden]; // [rows * top_k, hidden]
        let middle = self.sources.len() / 2;
        for shard in [0..middle, middle..self.sources.len()] {
            let weights = backend.upload_experts(&self.sources[shard.clone()])?;
            let here = |slot: &usize| shard.contains(&(self.routing.experts[*slot] as usize));
            let slots: Vec<usize> = (0..self.routing.experts.len()).filter(here).collect();
            if slots.is_empty() {
                continue;
            }
            let local = slots.iter().map(|slot| self.routing.experts[*slot] - shard.start as u32).collect();
            let alone = HostRouting { top_k: 1, experts: local, weights: vec![1.0; slots.len()] };
            let routing = upload_routing(backend, &alone)?;
            let rows: Vec<usize> = slots.iter().map(|slot| slot / top_k).collect();
            let x = from.input(backend, &select(&self.x, hidden, &rows))?;
            let mut out = to.output(backend, slots.len())?;
            backend.experts(from.view(&x), &routing, &weights, to.view_mut(&mut out))?;
            for (slot, of_slot) in slots.iter().zip(to.result(backend, &out)?.chunks_exact(hidden)) {
                y[slot * hidden..][..hidden].copy_from_slice(of_slot);
            }
        }
        let y = from.input(backend, &y)?;
        let mut out = to.output(backend, self.rows())?;
        backend.combine(from.view(&y), &upload_routing(backend, &self.routing)?, to.view_mut(&mut out))?;
        Ok(same_bits(&to.result(backend, &out)?, &whole))
    }
}

impl Case for Experts {
    fn subject(&self) -> Subject {
        Subject { op: "experts", format: Some(self.formats[0]) }
    }

    fn rows(&self) -> usize {
        self.x.len() / self.places[0].width()
    }

    fn prepare<'a>(&'a self, backend: &'a dyn Backend) -> Result<RunRows<'a>, Problem> {
        let weights = backend.upload_experts(&self.sources)?;
        let [from, to] = self.places;
        Ok(Box::new(move |rows| {
            let routing = upload_routing(backend, &select_routing(&self.routing, rows))?;
            let x = from.input(backend, &select(&self.x, from.width(), rows))?;
            let mut out = to.output(backend, rows.len())?;
            backend.experts(from.view(&x), &routing, &weights, to.view_mut(&mut out))?;
            to.result(backend, &out)
        }))
    }

    fn magnitudes(&self) -> Vec<f64> {
        let (hidden, top_k) = (self.places[0].width(), self.routing.top_k);
        let experts: Vec<FfnMagnitude> = self.sources.iter().map(FfnMagnitude::new).collect();
        let mut sums = vec![0.0; self.x.len()];
        for (slot, (expert, weight)) in self.routing.experts.iter().zip(&self.routing.weights).enumerate() {
            let row = slot / top_k * hidden..(slot / top_k + 1) * hidden;
            let of_slot = experts[*expert as usize].of(&self.x[row.clone()]);
            sums[row].iter_mut().zip(of_slot).for_each(|(sum, m)| *sum += f64::from(weight.abs()) * m);
        }
        sums
    }

    fn tolerance(&self) -> f64 {
        worst_tolerance(self.formats)
    }
}

pub struct Combine {
    routing: HostRouting,
    /// `[rows, top_k, hidden]`
    y: Vec<f32>,
    places: [Place; 2],
}

impl Combine {
    pub fn random(random: &mut Random, number: usize) -> Self {
        let (rows, hidden) = (random.rows(number), random.width(&[]));
        let routing = random_routing(random, rows, 8);
        let y = random.values(rows * routing.top_k * hidden);
        Self { routing, y, places: [Place::flat(random, hidden), Place::flat(random, hidden)] }
    }
}

impl Case for Combine {
    fn subject(&self) -> Subject {
        Subject { op: "combine", format: None }
    }

    fn rows(&self) -> usize {
        self.routing.experts.len() / self.routing.top_k
    }

    fn prepare<'a>(&'a self, backend: &'a dyn Backend) -> Result<RunRows<'a>, Problem> {
        let [from, to] = self.places;
        Ok(Box::new(move |rows| {
            let routing = upload_routing(backend, &select_routing(&self.routing, rows))?;
            let y = from.input(backend, &select(&self.y, self.routing.top_k * from.width(), rows))?;
            let mut out = to.output(backend, rows.len())?;
            backend.combine(from.view(&y), &routing, to.view_mut(&mut out))?;
            to.result(backend, &out)
        }))
    }

    fn magnitudes(&self) -> Vec<f64> {
        let hidden = self.places[0].width();
        let mut sums = vec![0.0; self.rows() * hidden];
        for (slot, weight) in self.routing.weights.iter().enumerate() {
            let row = &mut sums[slot / self.routing.top_k * hidden..][..hidden];
            let y = &self.y[slot * hidden..][..hidden];
            row.iter_mut().zip(y).for_each(|(sum, y)| *sum += f64::from((weight * y).abs()));
        }
        sums
    }

    fn tolerance(&self) -> f64 {
        tolerance::FLOAT
    }
}

#[cfg(test)]
mod tests {
    use lingqu_tensor::HostTensor;

    use super::*;

    #[test]
    fn the_magnitude_of_a_layer_covers_the_change_of_its_weights() {
        // gate 1, up 2, down 3, x 2: 12 silu(2). Each factor off by 1%: the result moves by about 4 to 5 %.
        let one = |v: f32| HostTensor::from_f32("w", [1, 1], &[v]);
        let of = |share: f32| {
            let (gate, up, down) = (1.0 + share, 2.0 * (1.0 + share), 3.0 * (1.0 + share));
            let g = gate * 2.0;
            f64::from(down * g / (1.0 + (-g).exp()) * up * 2.0)
        };
        let magnitude = FfnMagnitude::new(&FfnSource { gate: one(1.0), up: one(2.0), down: one(3.0) }).of(&[2.0])[0];
        let moved = (of(0.01) - of(0.0)).abs();
        assert!(moved < 0.01 * magnitude && magnitude * 0.01 < 4.0 * moved, "{moved} {magnitude}");
    }
}
