//! What adapters add: add_low_rank and ffn_adapted. A backend that takes no adapters passes by refusing them.

use lingqu_tensor::{Format, HostTensor};

use super::experts::{self, FfnMagnitude};
use super::place::{Place, select};
use super::random::Random;
use super::report::{Outcome, Subject};
use super::{Case, Pick, Problem, RunRows, Suite, same_bits, tolerance};
use crate::weights::LowRank;
use crate::{AdaptedFfn, AdaptedRows, Backend, BackendError, FfnSource, FfnWeights, LowRankSource, RANK_MAX};

/// Whether the subject takes adapters at all.
pub fn is_taken(suite: &mut Suite<'_>) -> bool {
    let one = || HostTensor::from_f32("one", [1, 1], &[1.0]);
    let source = LowRankSource { offset: 0, a: one(), b: one(), scale: 1.0 };
    let refused = matches!(suite.subject.upload_low_rank(&[source]), Err(BackendError::Unsupported { .. }));
    if refused {
        suite.report.note(Subject { op: "add_low_rank", format: None }, "refusal", Outcome::passed());
    }
    !refused
}

const RANKS: [usize; 12] = [1, 2, 3, 4, 8, 15, 16, 17, 32, 33, 64, RANK_MAX];
/// Few, since the suite merges them.
const RANKS_OF_FFN: [usize; 4] = [1, 2, 5, 17];

/// Changes of some of a layer's parts, which have these outputs.
fn changes(
    random: &mut Random,
    parts: &[usize],
    inputs: usize,
    (format, ranks): (Format, &[usize]),
) -> Vec<LowRankSource> {
    let mut sources = Vec::new();
    let mut offset = 0;
    for (i, &outputs) in parts.iter().enumerate() {
        let is_last_chance = i + 1 == parts.len() && sources.is_empty();
        if is_last_chance || random.chance() {
            let rank = random.pick(ranks);
            let a = random.matrix("lora_A", [rank, inputs], format);
            let b = random.matrix("lora_B", [outputs, rank], format);
            sources.push(LowRankSource { offset, a, b, scale: random.pick(&[0.25, 1.0, 2.0]) });
        }
        offset += outputs;
    }
    sources
}

/// Which of the adapters each row has.
fn adapters_of_rows(random: &mut Random, rows: usize, adapters: usize) -> Vec<Option<usize>> {
    (0..rows).map(|_| random.below(adapters + 1).checked_sub(1)).collect()
}

/// The chosen rows of each adapter, by their place among those chosen.
fn grouped(of_row: &[Option<usize>], chosen: &[usize], adapters: usize) -> Vec<Vec<u32>> {
    let of = |a| (0..chosen.len() as u32).filter(|i| of_row[chosen[*i as usize]] == Some(a)).collect();
    (0..adapters).map(of).collect()
}

pub struct AddLowRank {
    format: Format,
    adapters: Vec<Vec<LowRankSource>>,
    of_row: Vec<Option<usize>>,
    /// `[rows, in]`
    x: Vec<f32>,
    /// What is added to. `[rows, out]`
    y: Vec<f32>,
    places: [Place; 2],
}

impl AddLowRank {
    pub fn random(random: &mut Random, format: Format, number: usize) -> Self {
        let inputs = random.width(&[format]);
        let mut parts = Vec::new();
        for _ in 0..random.within(1, 3) {
            parts.push(random.pick(&[1, 2, 7, 16, 32, 33, 64, 65, 96, 130]));
        }
        let outputs: usize = parts.iter().sum();
        let count = random.within(1, 4);
        let adapters: Vec<_> = (0..count).map(|_| changes(random, &parts, inputs, (format, &RANKS))).collect();
        let rows = random.rows(number);
        let of_row = adapters_of_rows(random, rows, count);
        let places = [Place::flat(random, inputs), Place::flat(random, outputs)];
        Self { format, adapters, of_row, x: random.values(rows * inputs), y: random.values(rows * outputs), places }
    }
}

impl Case for AddLowRank {
    fn subject(&self) -> Subject {
        Subject { op: "add_low_rank", format: Some(self.format) }
    }

    fn rows(&self) -> usize {
        self.of_row.len()
    }

    fn prepare<'a>(&'a self, backend: &'a dyn Backend) -> Result<RunRows<'a>, Problem> {
        let uploaded = self.adapters.iter().map(|sources| backend.upload_low_rank(sources));
        let uploaded = uploaded.collect::<Result<Vec<LowRank>, _>>()?;
        let [from, to] = self.places;
        Ok(Box::new(move |chosen| {
            let before = select(&self.y, to.width(), chosen);
            let x = from.input(backend, &select(&self.x, from.width(), chosen))?;
            let mut out = to.output_over(backend, &before)?;
            let groups = grouped(&self.of_row, chosen, uploaded.len());
            let some = groups.iter().zip(&uploaded).filter(|(rows, _)| !rows.is_empty());
            let adapted: Vec<AdaptedRows<'_>> = some.map(|(rows, change)| AdaptedRows { rows, change }).collect();
            backend.add_low_rank(from.view(&x), &adapted, to.view_mut(&mut out))?;
            let after = to.result(backend, &out)?;
            let is_touched = |i: &usize| {
                let row = i * to.width()..(i + 1) * to.width();
                self.of_row[chosen[*i]].is_none() && after[row.clone()] != before[row]
            };
            match (0..chosen.len()).find(is_touched) {
                Some(i) => Err(Problem(format!("row {} has no adapter and was changed", chosen[i]))),
                None => Ok(after),
            }
        }))
    }

    fn magnitudes(&self) -> Vec<f64> {
        let [inputs, outputs] = self.places.map(Place::width);
        let mut magnitudes: Vec<f64> = self.y.iter().map(|y| f64::from(y.abs())).collect();
        for ((of, x), out) in self.of_row.iter().zip(self.x.chunks(inputs)).zip(magnitudes.chunks_mut(outputs)) {
            let x = tolerance::wide(x);
            for LowRankSource { offset, a, b, scale } in of.iter().flat_map(|a| &self.adapters[*a]) {
                let (a, b, rank) = (a.to_f32(), b.to_f32(), a.rows);
                let inner: Vec<f64> = a.chunks(inputs).map(|a| tolerance::dot(a, &x)).collect();
                let errors: Vec<f64> = a.chunks(inputs).map(|a| tolerance::magnitude(a, &x)).collect();
                for (b, out) in b.chunks(rank).zip(&mut out[*offset..]) {
                    let squares: f64 = b.iter().zip(&errors).map(|(b, e)| (f64::from(*b) * e).powi(2)).sum();
                    *out += f64::from(*scale) * (tolerance::magnitude(b, &inner) + squares.sqrt());
                }
            }
        }
        magnitudes
    }

    fn tolerance(&self) -> f64 {
        tolerance::of_format(self.format)
    }
}

/// On a backend.
struct Uploaded {
    weights: FfnWeights,
    /// Of gate and up, and of down.
    changes: Vec<[Option<LowRank>; 2]>,
}

/// What one adapter changes of a feed-forward layer.
struct FfnChanges {
    gate_up: Vec<LowRankSource>,
    down: Vec<LowRankSource>,
}

pub struct FfnAdapted {
    formats: [Format; 2],
    /// Of the factors.
    format: Format,
    source: FfnSource,
    adapters: Vec<FfnChanges>,
    of_row: Vec<Option<usize>>,
    /// `[rows, hidden]`
    x: Vec<f32>,
    places: [Place; 2],
}

impl FfnAdapted {
    pub fn random(random: &mut Random, pick: Pick<'_>) -> Self {
        let formats = experts::formats(random, pick);
        let (hidden, intermediate) = (random.width(&formats[..1]), random.width(&formats[1..]));
        let source = experts::source(random, [hidden, intermediate], formats);
        let format = random.pick(&LowRankSource::FORMATS);
        let count = random.within(1, 3);
        let mut change = |i: usize| FfnChanges {
            gate_up: changes(random, &[intermediate; 2], hidden, (format, &RANKS_OF_FFN)),
            // The first adapter changes gate and up alone.
            down: if i == 0 { Vec::new() } else { changes(random, &[hidden], intermediate, (format, &RANKS_OF_FFN)) },
        };
        let adapters = (0..count).map(&mut change).collect();
        let places = [Place::flat(random, hidden), Place::flat(random, hidden)];
        let rows = random.rows(pick.number);
        let of_row = adapters_of_rows(random, rows, count);
        Self { formats, format, source, adapters, of_row, x: random.values(rows * hidden), places }
    }

    /// Uploads the layer and what changes it, or zeros in its place.
    fn upload(&self, backend: &dyn Backend, zero: bool) -> Result<Uploaded, Problem> {
        let zeroed = |s: &LowRankSource| {
            let b = HostTensor::from_f32("zero", [s.b.rows, s.b.cols], &vec![0.0; s.b.rows * s.b.cols]);
            LowRankSource { b, ..s.clone() }
        };
        let upload = |sources: &[LowRankSource]| -> Result<Option<LowRank>, Problem> {
            Ok(match sources {
                [] => None,
                _ if zero => Some(backend.upload_low_rank(&sources.iter().map(zeroed).collect::<Vec<_>>())?),
                _ => Some(backend.upload_low_rank(sources)?),
            })
        };
        let changes = self.adapters.iter().map(|a| Ok([upload(&a.gate_up)?, upload(&a.down)?]));
        Ok(Uploaded { weights: backend.upload_ffn(&self.source)?, changes: changes.collect::<Result<_, Problem>>()? })
    }

    /// The outputs of these rows.
    fn run(&self, backend: &dyn Backend, uploaded: &Uploaded, chosen: &[usize]) -> Outputs {
        let [from, to] = self.places;
        let x = from.input(backend, &select(&self.x, from.width(), chosen))?;
        let mut out = to.output(backend, chosen.len())?;
        let groups = grouped(&self.of_row, chosen, self.adapters.len());
        let some = groups.iter().zip(&uploaded.changes).filter(|(rows, _)| !rows.is_empty());
        let adapted: Vec<AdaptedFfn<'_>> = some
            .map(|(rows, [gate_up, down])| AdaptedFfn { rows, gate_up: gate_up.as_ref(), down: down.as_ref() })
            .collect();
        backend.ffn_adapted(from.view(&x), &uploaded.weights, &adapted, to.view_mut(&mut out))?;
        to.result(backend, &out)
    }

    /// Rows without an adapter, and rows whose adapter is zero, have the bits of `ffn`.
    pub fn check_plain(&self, suite: &mut Suite<'_>) {
        let compare = || -> Result<Outcome, Problem> {
            let backend = suite.subject;
            let rows: Vec<usize> = (0..self.rows()).collect();
            let weights = backend.upload_ffn(&self.source)?;
            let [from, to] = self.places;
            let x = from.input(backend, &self.x)?;
            let mut out = to.output(backend, rows.len())?;
            backend.ffn(from.view(&x), &weights, to.view_mut(&mut out))?;
            let plain = to.result(backend, &out)?;
            let zeros = self.run(backend, &self.upload(backend, true)?, &rows)?;
            let zero = same_bits(&zeros, &plain);
            if zero.failure.is_some() {
                return Ok(zero.told(|| "adapters of zeros".into()));
            }
            let mixed = self.run(backend, &self.upload(backend, false)?, &rows)?;
            let without: Vec<usize> = rows.into_iter().filter(|r| self.of_row[*r].is_none()).collect();
            let width = to.width();
            Ok(same_bits(&select(&mixed, width, &without), &select(&plain, width, &without)))
        };
        let outcome = compare().unwrap_or_else(|Problem(problem)| Outcome::failed(problem));
        suite.report.note(self.subject(), "plain", outcome);
    }
}

type Outputs = Result<Vec<f32>, Problem>;

/// The matrix with its changes from output `first` on added to it.
fn merged(matrix: &HostTensor, sources: &[LowRankSource], first: usize) -> HostTensor {
    let (mut values, cols) = (matrix.to_f32(), matrix.cols);
    for LowRankSource { a, b, scale, .. } in sources.iter().filter(|s| s.offset == first) {
        let (a, rank) = (a.to_f32(), a.rows);
        for (row, b) in values.chunks_mut(cols).zip(b.to_f32().chunks(rank)) {
            for (a, b) in a.chunks(cols).zip(b) {
                row.iter_mut().zip(a).for_each(|(w, a)| *w += scale * b * a);
            }
        }
    }
    HostTensor::from_f32("merged", [matrix.rows, cols], &values)
}

impl Case for FfnAdapted {
    fn subject(&self) -> Subject {
        Subject { op: "ffn_adapted", format: Some(self.formats[0]) }
    }

    fn rows(&self) -> usize {
        self.of_row.len()
    }

    fn prepare<'a>(&'a self, backend: &'a dyn Backend) -> Result<RunRows<'a>, Problem> {
        let uploaded = self.upload(backend, false)?;
        Ok(Box::new(move |chosen| self.run(backend, &uploaded, chosen)))
    }

    fn magnitudes(&self) -> Vec<f64> {
        let FfnSource { gate, up, down } = &self.source;
        let of = |adapter: Option<usize>| {
            let none = FfnChanges { gate_up: Vec::new(), down: Vec::new() };
            let changes = adapter.map_or(&none, |a| &self.adapters[a]);
            FfnMagnitude::new(&FfnSource {
                gate: merged(gate, &changes.gate_up, 0),
                up: merged(up, &changes.gate_up, gate.rows),
                down: merged(down, &changes.down, 0),
            })
        };
        let plain = of(None);
        let each: Vec<FfnMagnitude> = (0..self.adapters.len()).map(|a| of(Some(a))).collect();
        let rows = self.of_row.iter().zip(self.x.chunks(self.places[0].width()));
        rows.flat_map(|(of, x)| of.map_or(&plain, |a| &each[a]).of(x)).collect()
    }

    fn tolerance(&self) -> f64 {
        experts::worst_tolerance(self.formats).max(tolerance::of_format(self.format))
    }
}
