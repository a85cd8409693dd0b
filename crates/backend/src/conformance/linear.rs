//! linear (stacked parts, with and without bias) and linear_heads.

use lingqu_tensor::{Format, HostTensor};

use super::place::{Place, select};
use super::random::Random;
use super::report::{Outcome, Subject};
use super::{Case, Pick, Problem, RunRows, Suite, same_bits, tolerance};
use crate::{Backend, LinearSource};

pub struct Linear {
    /// That of the first part.
    format: Format,
    parts: Vec<HostTensor>,
    biases: Vec<HostTensor>,
    /// `[rows, in]`
    x: Vec<f32>,
    from: Place,
    /// Of all parts, then of each.
    to: Vec<Place>,
}

impl Linear {
    pub fn random(random: &mut Random, pick: Pick<'_>) -> Self {
        let mut formats = vec![pick.format];
        for _ in 0..random.below(3) {
            formats.push(if random.chance() { pick.format } else { random.pick(pick.others) });
        }
        let inputs = random.width(&formats);
        let mut part = |format: &Format| {
            let outputs = random.pick(&[1, 2, 7, 16, 32, 33, 64, 65, 96, 128, 130]);
            random.matrix(&format!("part in {format}"), [outputs, inputs], *format)
        };
        let parts: Vec<HostTensor> = formats.iter().map(&mut part).collect();
        let mut biases = Vec::new();
        if random.chance() {
            biases = parts.iter().map(|p| HostTensor::from_f32("bias", [1, p.rows], &random.values(p.rows))).collect();
        }
        let outputs = std::iter::once(parts.iter().map(|p| p.rows).sum()).chain(parts.iter().map(|p| p.rows));
        let to = outputs.map(|width| Place::flat(random, width)).collect();
        let x = random.rows(pick.number) * inputs;
        Self { format: pick.format, x: random.values(x), from: Place::flat(random, inputs), to, parts, biases }
    }

    fn run(&self, backend: &dyn Backend, source: LinearSource<'_>, to: Place, rows: &[usize]) -> Outputs {
        let weight = backend.upload_linear(source)?;
        let x = self.from.input(backend, &select(&self.x, self.from.width(), rows))?;
        let mut out = to.output(backend, rows.len())?;
        backend.linear(self.from.view(&x), &weight, to.view_mut(&mut out))?;
        to.result(backend, &out)
    }

    /// The stacked layer gives the bits of its parts alone.
    pub fn check_parts(&self, suite: &mut Suite<'_>) {
        let compare = || -> Result<Outcome, Problem> {
            let rows: Vec<usize> = (0..self.rows()).collect();
            let all = LinearSource { parts: &self.parts, biases: &self.biases };
            let stacked = self.run(suite.subject, all, self.to[0], &rows)?;
            let mut alone = Vec::new();
            for (i, place) in self.to[1..].iter().enumerate() {
                let biases = if self.biases.is_empty() { &[] } else { &self.biases[i..=i] };
                let part = LinearSource { parts: &self.parts[i..=i], biases };
                alone.push(self.run(suite.subject, part, *place, &rows)?);
            }
            let beside = |r: usize| {
                let part = |(part, y): (&HostTensor, &Vec<f32>)| y[r * part.rows..][..part.rows].to_vec();
                self.parts.iter().zip(&alone).flat_map(part).collect::<Vec<f32>>()
            };
            Ok(same_bits(&stacked, &rows.into_iter().flat_map(beside).collect::<Vec<f32>>()))
        };
        let outcome = compare().unwrap_or_else(|Problem(problem)| Outcome::failed(problem));
        suite.report.note(self.subject(), "parts", outcome);
    }
}

type Outputs = Result<Vec<f32>, Problem>;

impl Case for Linear {
    fn subject(&self) -> Subject {
        Subject { op: "linear", format: Some(self.format) }
    }

    fn rows(&self) -> usize {
        self.x.len() / self.from.width()
    }

    fn prepare<'a>(&'a self, backend: &'a dyn Backend) -> Result<RunRows<'a>, Problem> {
        let all = LinearSource { parts: &self.parts, biases: &self.biases };
        let weight = backend.upload_linear(all)?;
        Ok(Box::new(move |rows| {
            let x = self.from.input(backend, &select(&self.x, self.from.width(), rows))?;
            let mut out = self.to[0].output(backend, rows.len())?;
            backend.linear(self.from.view(&x), &weight, self.to[0].view_mut(&mut out))?;
            self.to[0].result(backend, &out)
        }))
    }

    fn magnitudes(&self) -> Vec<f64> {
        let inputs = self.from.width();
        let weights: Vec<Vec<f32>> = self.parts.iter().map(HostTensor::to_f32).collect();
        let biases: Vec<f32> = self.biases.iter().flat_map(HostTensor::to_f32).collect();
        let of_row = |x: &[f32]| {
            let x = tolerance::wide(x);
            let mut row = Vec::new();
            for (part, weight) in self.parts.iter().zip(&weights) {
                let share = tolerance::of_format(part.format) / self.tolerance(); // each by its own format
                row.extend(weight.chunks_exact(inputs).map(|w| tolerance::magnitude(w, &x) * share));
            }
            row.iter_mut().zip(&biases).for_each(|(magnitude, bias)| *magnitude += f64::from(bias.abs()));
            row
        };
        self.x.chunks_exact(inputs).flat_map(of_row).collect()
    }

    fn tolerance(&self) -> f64 {
        self.parts.iter().map(|p| tolerance::of_format(p.format)).fold(0.0, f64::max)
    }
}

pub struct LinearHeads {
    format: Format,
    heads: Vec<HostTensor>,
    /// `[rows, heads, in]`
    x: Vec<f32>,
    places: [Place; 2],
}

impl LinearHeads {
    pub fn random(random: &mut Random, pick: Pick<'_>) -> Self {
        let (heads, inputs) = (random.within(1, 5), random.width(&[pick.format]));
        let outputs = random.pick(&[1, 3, 16, 32, 40, 65]);
        let matrix = |_| random.matrix("head", [outputs, inputs], pick.format);
        let matrices: Vec<HostTensor> = (0..heads).map(matrix).collect();
        let rows = random.rows(pick.number);
        let places = [Place::heads(random, heads, inputs), Place::heads(random, heads, outputs)];
        Self { format: pick.format, heads: matrices, x: random.values(rows * heads * inputs), places }
    }
}

impl Case for LinearHeads {
    fn subject(&self) -> Subject {
        Subject { op: "linear_heads", format: Some(self.format) }
    }

    fn rows(&self) -> usize {
        self.x.len() / self.places[0].width()
    }

    fn prepare<'a>(&'a self, backend: &'a dyn Backend) -> Result<RunRows<'a>, Problem> {
        let weight = backend.upload_heads(&self.heads)?;
        let [from, to] = self.places;
        Ok(Box::new(move |rows| {
            let x = from.input(backend, &select(&self.x, from.width(), rows))?;
            let mut out = to.output(backend, rows.len())?;
            backend.linear_heads(from.view(&x), &weight, to.view_mut(&mut out))?;
            to.result(backend, &out)
        }))
    }

    fn magnitudes(&self) -> Vec<f64> {
        let inputs = self.heads[0].cols;
        let weights: Vec<Vec<f32>> = self.heads.iter().map(HostTensor::to_f32).collect();
        let each = |(i, x): (usize, &[f32])| {
            let x = tolerance::wide(x);
            let weight = &weights[i % weights.len()];
            weight.chunks_exact(inputs).map(|w| tolerance::magnitude(w, &x)).collect::<Vec<f64>>()
        };
        self.x.chunks_exact(inputs).enumerate().flat_map(each).collect()
    }

    fn tolerance(&self) -> f64 {
        tolerance::of_format(self.format)
    }
}
