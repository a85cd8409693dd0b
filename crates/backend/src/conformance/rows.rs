//! Ops without matrices: rms_norm, rope, embed, add, gather_logit_rows.

use lingqu_tensor::{Format, HostTensor};

use super::place::{Place, batch, select};
use super::random::Random;
use super::report::Subject;
use super::{Case, Pick, Problem, RunRows, tolerance};
use crate::{Backend, RopePairing};

const BLOCK_TOKENS: usize = 16;

pub fn cases(random: &mut Random, number: usize) -> Vec<Box<dyn Case>> {
    vec![
        Box::new(RmsNorm::random(random, number)),
        Box::new(Rope::random(random, number, RopePairing::Interleaved)),
        Box::new(Rope::random(random, number, RopePairing::Half)),
        Box::new(Add::random(random, number)),
        Box::new(GatherLogitRows::random(random, number)),
    ]
}

fn subject(op: &'static str) -> Subject {
    Subject { op, format: None }
}

struct RmsNorm {
    heads: usize,
    len: usize,
    eps: f32,
    /// `[rows, heads, len]`
    x: Vec<f32>,
    weight: HostTensor,
    places: [Place; 2],
}

impl RmsNorm {
    fn random(random: &mut Random, number: usize) -> Self {
        let (heads, len) = (random.pick(&[1, 1, 2, 3]), random.pick(&[1, 7, 16, 64, 100, 129, 300]));
        let rows = random.rows(number);
        // Rows of very different sizes, so that eps counts in some.
        let sizes: Vec<f32> = (0..rows).map(|_| random.pick(&[1e-3, 1.0, 50.0])).collect();
        let x = sizes.iter().flat_map(|s| random.values(heads * len).into_iter().map(move |v| v * s)).collect();
        let weight = HostTensor::from_f32("norm", [1, len], &random.values(len));
        let places = [Place::heads(random, heads, len), Place::heads(random, heads, len)];
        Self { heads, len, eps: random.pick(&[1e-6, 1e-5]), x, weight, places }
    }
}

impl Case for RmsNorm {
    fn subject(&self) -> Subject {
        subject("rms_norm")
    }

    fn rows(&self) -> usize {
        self.x.len() / (self.heads * self.len)
    }

    fn prepare<'a>(&'a self, backend: &'a dyn Backend) -> Result<RunRows<'a>, Problem> {
        let weight = backend.upload_table(&self.weight)?;
        let [from, to] = self.places;
        Ok(Box::new(move |rows| {
            let x = from.input(backend, &select(&self.x, self.heads * self.len, rows))?;
            let mut out = to.output(backend, rows.len())?;
            backend.rms_norm(from.view(&x), &weight, self.eps, to.view_mut(&mut out))?;
            to.result(backend, &out)
        }))
    }

    fn magnitudes(&self) -> Vec<f64> {
        let weight = self.weight.to_f32();
        let of_head = |x: &[f32]| -> Vec<f64> {
            let x = tolerance::wide(x);
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let root = (mean + f64::from(self.eps)).sqrt();
            x.iter().zip(&weight).map(|(x, w)| (x / root * f64::from(*w)).abs()).collect()
        };
        self.x.chunks_exact(self.len).flat_map(of_head).collect()
    }

    fn tolerance(&self) -> f64 {
        tolerance::FLOAT
    }
}

struct Rope {
    pairing: RopePairing,
    heads: usize,
    dim: usize,
    /// `[rows, heads, dim]`
    x: Vec<f32>,
    positions: Vec<u32>,
    table: HostTensor,
    places: [Place; 2],
}

impl Rope {
    fn random(random: &mut Random, number: usize, pairing: RopePairing) -> Self {
        let (heads, dim) = (random.within(1, 5), random.pick(&[2, 6, 16, 32, 64, 66]));
        let rows = random.rows(number);
        let positions_max = 90;
        let mut positions = vec![random.below(positions_max) as u32];
        while positions.len() < rows {
            let next = positions[positions.len() - 1] + 1;
            let goes_on = (next as usize) < positions_max && random.below(4) > 0;
            positions.push(if goes_on { next } else { random.below(positions_max) as u32 });
        }
        let table: Vec<f32> = (0..positions_max * dim).map(|_| random.unit()).collect(); // any numbers will do
        let table = HostTensor::from_f32("rope", [positions_max, dim], &table);
        let places = [Place::heads(random, heads, dim), Place::heads(random, heads, dim)];
        Self { pairing, heads, dim, x: random.values(rows * heads * dim), positions, table, places }
    }
}

impl Case for Rope {
    fn subject(&self) -> Subject {
        subject(match self.pairing {
            RopePairing::Interleaved => "rope (interleaved)",
            RopePairing::Half => "rope (half)",
        })
    }

    fn rows(&self) -> usize {
        self.positions.len()
    }

    fn prepare<'a>(&'a self, backend: &'a dyn Backend) -> Result<RunRows<'a>, Problem> {
        let table = backend.upload_table(&self.table)?;
        let [from, to] = self.places;
        Ok(Box::new(move |rows| {
            let positions: Vec<u32> = rows.iter().map(|r| self.positions[*r]).collect();
            let step = backend.begin_step(&batch(vec![0; rows.len()], &positions, BLOCK_TOKENS), BLOCK_TOKENS)?;
            let x = from.input(backend, &select(&self.x, self.heads * self.dim, rows))?;
            let mut out = to.output(backend, rows.len())?;
            backend.rope(&step, from.view(&x), &table, self.pairing, to.view_mut(&mut out))?;
            to.result(backend, &out)
        }))
    }

    fn magnitudes(&self) -> Vec<f64> {
        let largest = |x: &[f32]| x.iter().fold(0f32, |most, x| most.max(x.abs()));
        self.x.chunks_exact(self.dim).flat_map(|x| vec![f64::from(largest(x)); self.dim]).collect()
    }

    fn tolerance(&self) -> f64 {
        tolerance::FLOAT
    }
}

/// The token embedding, in any format.
pub struct Embed {
    format: Format,
    table: HostTensor,
    tokens: Vec<u32>,
    place: Place,
}

impl Embed {
    pub fn random(random: &mut Random, pick: Pick<'_>) -> Self {
        let (vocab, hidden) = (random.within(3, 40), random.width(&[pick.format]));
        let tokens = (0..random.rows(pick.number)).map(|_| random.below(vocab) as u32).collect();
        let table = random.matrix("embedding", [vocab, hidden], pick.format);
        Self { format: pick.format, table, tokens, place: Place::flat(random, hidden) }
    }
}

impl Case for Embed {
    fn subject(&self) -> Subject {
        Subject { op: "embed", format: Some(self.format) }
    }

    fn rows(&self) -> usize {
        self.tokens.len()
    }

    fn prepare<'a>(&'a self, backend: &'a dyn Backend) -> Result<RunRows<'a>, Problem> {
        let table = backend.upload_embedding(&self.table)?;
        Ok(Box::new(move |rows| {
            let tokens: Vec<u32> = rows.iter().map(|r| self.tokens[*r]).collect();
            let step = backend.begin_step(&batch(tokens, &vec![3; rows.len()], BLOCK_TOKENS), BLOCK_TOKENS)?;
            let mut out = self.place.output(backend, rows.len())?;
            backend.embed(&step, &table, self.place.view_mut(&mut out))?;
            self.place.result(backend, &out)
        }))
    }

    /// The largest value of the row: a block's value may be the difference of two larger numbers.
    fn magnitudes(&self) -> Vec<f64> {
        let (values, hidden) = (self.table.to_f32(), self.table.cols);
        let largest = |row: &[f32]| f64::from(row.iter().fold(0f32, |most, x| most.max(x.abs())));
        self.tokens.iter().flat_map(|t| vec![largest(&values[*t as usize * hidden..][..hidden]); hidden]).collect()
    }

    fn tolerance(&self) -> f64 {
        tolerance::FLOAT
    }
}

struct Add {
    width: usize,
    /// `[rows, width]` of each
    terms: [Vec<f32>; 2],
    places: [Place; 2],
}

impl Add {
    fn random(random: &mut Random, number: usize) -> Self {
        let (width, rows) = (random.width(&[]), random.rows(number));
        let terms = [random.values(rows * width), random.values(rows * width)];
        let place = Place::flat(random, width);
        Self { width, terms, places: [place, place.elsewhere(random)] }
    }
}

impl Case for Add {
    fn subject(&self) -> Subject {
        subject("add")
    }

    fn rows(&self) -> usize {
        self.terms[0].len() / self.width
    }

    fn prepare<'a>(&'a self, backend: &'a dyn Backend) -> Result<RunRows<'a>, Problem> {
        let [from, to] = self.places;
        Ok(Box::new(move |rows| {
            let x = from.input(backend, &select(&self.terms[0], self.width, rows))?;
            let mut out = to.output_over(backend, &select(&self.terms[1], self.width, rows))?;
            backend.add(from.view(&x), to.view_mut(&mut out))?;
            to.result(backend, &out)
        }))
    }

    fn magnitudes(&self) -> Vec<f64> {
        self.terms[0].iter().zip(&self.terms[1]).map(|(a, b)| f64::from(a.abs() + b.abs())).collect()
    }

    fn tolerance(&self) -> f64 {
        tolerance::FLOAT
    }
}

struct GatherLogitRows {
    width: usize,
    /// `[rows, width]`
    x: Vec<f32>,
    places: [Place; 2],
}

impl GatherLogitRows {
    fn random(random: &mut Random, number: usize) -> Self {
        let (width, rows) = (random.width(&[]), random.rows(number));
        let place = Place::flat(random, width);
        Self { width, x: random.values(rows * width), places: [place, place.elsewhere(random)] }
    }
}

impl Case for GatherLogitRows {
    fn subject(&self) -> Subject {
        subject("gather_logit_rows")
    }

    fn rows(&self) -> usize {
        self.x.len() / self.width
    }

    /// The rows given are those whose logits the batch of all rows asks for.
    fn prepare<'a>(&'a self, backend: &'a dyn Backend) -> Result<RunRows<'a>, Problem> {
        let [from, to] = self.places;
        Ok(Box::new(move |rows| {
            let mut wanted = rows.to_vec();
            wanted.sort_unstable();
            wanted.dedup();
            let mut batch = batch(vec![0; self.rows()], &vec![0; self.rows()], BLOCK_TOKENS);
            batch.logit_rows = wanted.iter().map(|r| *r as u32).collect();
            let step = backend.begin_step(&batch, BLOCK_TOKENS)?;
            let x = from.input(backend, &self.x)?;
            let mut out = to.output(backend, wanted.len())?;
            backend.gather_logit_rows(&step, from.view(&x), to.view_mut(&mut out))?;
            let gathered = to.result(backend, &out)?;
            let places: Vec<usize> = rows.iter().map(|r| wanted.binary_search(r).expect("wanted")).collect();
            Ok(select(&gathered, self.width, &places))
        }))
    }

    fn magnitudes(&self) -> Vec<f64> {
        self.x.iter().map(|x| f64::from(x.abs())).collect()
    }

    fn tolerance(&self) -> f64 {
        tolerance::FLOAT
    }
}
