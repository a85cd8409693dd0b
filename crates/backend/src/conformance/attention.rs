//! kv_append, attention and kv_copy: prompts in chunks, among other sequences, in blocks out of order.

use std::ops::Range;

use lingqu_types::{Batch, BlockId, SequenceSlice};

use super::place::Place;
use super::random::Random;
use super::report::{Outcome, Subject};
use super::{Problem, Suite, compare, same_bits, tolerance};
use crate::{AttentionSpec, Backend, BackendError, KvEntry, KvPrecision, KvSpec, KvStore};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Separate,
    Latent,
}

/// Several sequences, all of whose queries, keys and values are given.
struct Case {
    kind: Kind,
    entry: KvEntry,
    precision: KvPrecision,
    kv_heads: usize,
    heads: usize,
    k_dim: usize,
    v_dim: usize,
    scale: f32,
    block_tokens: usize,
    layer: usize,
    sequences: Vec<Sequence>,
    places: Places,
}

struct Sequence {
    length: usize,
    /// `[length, heads, k_dim]`
    q: Vec<f32>,
    /// `[length, kv_heads, k_dim]`
    k: Vec<f32>,
    /// `[length, kv_heads, v_dim]`; unused where the key holds the value.
    v: Vec<f32>,
}

struct Places {
    q: Place,
    k: Place,
    v: Place,
    out: Place,
}

const LAYERS: usize = 2;

/// The steps of a run: in each, which positions of which sequences, in that order.
type Schedule = Vec<Vec<(usize, Range<usize>)>>;

pub fn check(suite: &mut Suite<'_>, kind: Kind, number: usize) {
    let case = Case::random(&mut suite.random, kind, number);
    if case.precision == KvPrecision::Int8 {
        // Not every backend has it; one that refuses it has passed.
        let spec = KvSpec { layers: 1, blocks: 1, block_tokens: 1, entry: case.entry, precision: case.precision };
        if let Err(BackendError::Unsupported { .. }) = suite.subject.alloc_kv(&spec) {
            return;
        }
    }
    if let Err(Problem(problem)) = case.check(suite) {
        suite.report.note(case.subject(), "values", Outcome::failed(problem));
    }
}

impl Case {
    fn random(random: &mut Random, kind: Kind, number: usize) -> Self {
        let kv_heads = if kind == Kind::Latent { 1 } else { random.within(1, 3) };
        let heads = kv_heads * random.pick(&[1, 2, 3, 4, 7]);
        let (k_dim, v_dim) = match kind {
            Kind::Separate => (random.pick(&[4, 16, 24, 64, 65]), random.pick(&[4, 16, 33, 64])),
            Kind::Latent => random.pick(&[(24, 16), (72, 64), (48, 33), (17, 16)]),
        };
        let entry = match kind {
            Kind::Separate => KvEntry::Separate { kv_heads, k_dim, v_dim },
            Kind::Latent => KvEntry::Latent { width: k_dim, v_dim },
        };
        let longest = [3, 140, 20, 70][number % 4];
        let mut sequence = || {
            let length = random.within(1, longest);
            let q = random.values(length * heads * k_dim);
            Sequence {
                length,
                q,
                k: random.values(length * kv_heads * k_dim),
                v: random.values(length * kv_heads * v_dim),
            }
        };
        let sequences = (0..number % 4 + 1).map(|_| sequence()).collect();
        let places = Places {
            q: Place::heads(random, heads, k_dim),
            k: Place::heads(random, kv_heads, k_dim),
            v: Place::heads(random, kv_heads, v_dim),
            out: Place::heads(random, heads, v_dim),
        };
        let (layer, block_tokens) = (random.below(LAYERS), random.pick(&[1, 3, 16, 32]));
        let scale = random.pick(&[0.1, 0.3, 1.0]);
        let precision = if number % 3 == 2 { KvPrecision::Int8 } else { KvPrecision::Full };
        Self { kind, entry, precision, kv_heads, heads, k_dim, v_dim, scale, block_tokens, layer, sequences, places }
    }

    fn subject(&self) -> Subject {
        let op = match self.kind {
            Kind::Separate if self.precision == KvPrecision::Int8 => "attention (separate, 8 bits)",
            Kind::Latent if self.precision == KvPrecision::Int8 => "attention (latent, 8 bits)",
            Kind::Separate => "attention (separate)",
            Kind::Latent => "attention (latent)",
        };
        Subject { op, format: None }
    }

    fn check(&self, suite: &mut Suite<'_>) -> Result<(), Problem> {
        let at_once = vec![self.sequences.iter().enumerate().map(|(s, sequence)| (s, 0..sequence.length)).collect()];
        let expected = self.run(suite.oracle, &mut suite.random, &at_once)?;
        let got = self.run(suite.subject, &mut suite.random, &at_once)?;
        for (s, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let outcome = compare(got, expected, &self.magnitudes(&self.sequences[s]), tolerance::ATTENTION);
            suite.report.note(self.subject(), "values", outcome.told(|| self.describe(s)));
        }
        let mut schedules: Vec<(&str, Schedule)> =
            vec![("repeat", at_once), ("chunks", self.one_by_one()), ("chunks", self.ragged(&mut suite.random))];
        for (s, sequence) in self.sequences.iter().enumerate() {
            schedules.push(("rows", vec![vec![(s, 0..sequence.length)]]));
        }
        for (check, schedule) in schedules {
            let again = self.run(suite.subject, &mut suite.random, &schedule)?;
            for (s, again) in again.iter().enumerate().filter(|(_, again)| !again.is_empty()) {
                let outcome =
                    same_bits(again, &got[s]).told(|| format!("{}, {} steps", self.describe(s), schedule.len()));
                suite.report.note(self.subject(), check, outcome);
            }
        }
        let outcome = self.copied(suite.subject, &mut suite.random)?;
        suite.report.note(self.subject(), "copy", outcome);
        Ok(())
    }

    fn describe(&self, s: usize) -> String {
        let Self { entry, precision, heads, block_tokens, .. } = self;
        format!(
            "{entry:?} in {precision:?}, {heads} heads, blocks of {block_tokens}, {} positions",
            self.sequences[s].length
        )
    }

    /// Every step one position of every sequence that has one left.
    fn one_by_one(&self) -> Schedule {
        let longest = self.sequences.iter().map(|s| s.length).max().unwrap_or(0);
        let of_step = |p: usize| {
            let going_on = self.sequences.iter().enumerate().filter(|(_, sequence)| p < sequence.length);
            going_on.map(|(s, _)| (s, p..p + 1)).collect()
        };
        (0..longest).map(of_step).collect()
    }

    /// Steps of chunks of any length, single positions among them, in any order of the sequences.
    fn ragged(&self, random: &mut Random) -> Schedule {
        let mut done = vec![0; self.sequences.len()];
        let mut schedule = Schedule::new();
        while done.iter().zip(&self.sequences).any(|(done, sequence)| *done < sequence.length) {
            let mut step = Vec::new();
            for s in random.shuffled((0..done.len()).collect()) {
                let left = self.sequences[s].length - done[s];
                if left > 0 && random.below(4) > 0 {
                    let chunk = if random.chance() { 1 } else { random.within(1, left.min(40)) };
                    step.push((s, done[s]..done[s] + chunk));
                    done[s] += chunk;
                }
            }
            if !step.is_empty() {
                schedule.push(step);
            }
        }
        schedule
    }

    fn blocks_of(&self, s: usize) -> usize {
        self.sequences[s].length.div_ceil(self.block_tokens)
    }

    /// A cache full of other numbers, and shuffled block tables for all sequences; the last blocks are spare.
    fn cache(&self, backend: &dyn Backend, random: &mut Random) -> Result<(KvStore, Vec<Vec<BlockId>>), Problem> {
        let needed: usize = (0..self.sequences.len()).map(|s| self.blocks_of(s)).sum();
        let blocks = needed + self.blocks_of(0) + 2;
        let spec = KvSpec {
            layers: LAYERS,
            blocks,
            block_tokens: self.block_tokens,
            entry: self.entry,
            precision: self.precision,
        };
        let mut kv = backend.alloc_kv(&spec)?;
        let rows = blocks * self.block_tokens;
        let used = SequenceSlice {
            rows: 0..rows,
            context: 0,
            blocks: (0..blocks as u32).map(BlockId).collect(),
            adapter: None,
        };
        let batch = Batch { tokens: vec![0; rows], sequences: vec![used], logit_rows: Vec::new() };
        let step = backend.begin_step(&batch, self.block_tokens)?;
        let k = self.places.k.input(backend, &vec![900.0; rows * self.kv_heads * self.k_dim])?;
        let v = self.places.v.input(backend, &vec![-900.0; rows * self.kv_heads * self.v_dim])?;
        for layer in 0..LAYERS {
            let v = (self.kind == Kind::Separate).then(|| self.places.v.view(&v));
            backend.kv_append(&step, &mut kv, layer, self.places.k.view(&k), v)?;
        }
        let mut order = random.shuffled((0..blocks).collect()).into_iter().map(|b| BlockId(b as u32));
        let mut tables: Vec<Vec<BlockId>> =
            (0..self.sequences.len()).map(|s| order.by_ref().take(self.blocks_of(s)).collect()).collect();
        tables.push(order.collect());
        Ok((kv, tables))
    }

    /// Runs a schedule in a fresh cache. `[sequences]` of `[length, heads, v_dim]`, empty where not scheduled.
    fn run(&self, backend: &dyn Backend, random: &mut Random, schedule: &Schedule) -> Result<Vec<Vec<f32>>, Problem> {
        let (mut kv, tables) = self.cache(backend, random)?;
        let mut outputs = vec![Vec::new(); self.sequences.len()];
        for parts in schedule {
            let y = self.step(backend, &mut kv, &tables, parts)?;
            let mut rows = y.chunks_exact(self.heads * self.v_dim);
            for (s, positions) in parts {
                rows.by_ref().take(positions.len()).for_each(|row| outputs[*s].extend_from_slice(row));
            }
        }
        Ok(outputs)
    }

    /// One step: appends, then attends. `[rows, heads, v_dim]`
    fn step(
        &self,
        backend: &dyn Backend,
        kv: &mut KvStore,
        tables: &[Vec<BlockId>],
        parts: &[(usize, Range<usize>)],
    ) -> Result<Vec<f32>, Problem> {
        let mut batch = Batch::default();
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for (s, positions) in parts {
            let (sequence, start) = (&self.sequences[*s], batch.tokens.len());
            batch.tokens.extend(vec![0; positions.len()]);
            let rows = start..start + positions.len();
            batch.sequences.push(SequenceSlice {
                rows,
                context: positions.start,
                blocks: tables[*s].clone(),
                adapter: None,
            });
            let of = |x: &[f32], width: usize| x[positions.start * width..positions.end * width].to_vec();
            q.extend(of(&sequence.q, self.heads * self.k_dim));
            k.extend(of(&sequence.k, self.kv_heads * self.k_dim));
            v.extend(of(&sequence.v, self.kv_heads * self.v_dim));
        }
        let Places { q: q_place, k: k_place, v: v_place, out: out_place } = &self.places;
        let step = backend.begin_step(&batch, self.block_tokens)?;
        let (q, k, v) = (q_place.input(backend, &q)?, k_place.input(backend, &k)?, v_place.input(backend, &v)?);
        let v = (self.kind == Kind::Separate).then(|| v_place.view(&v));
        backend.kv_append(&step, kv, self.layer, k_place.view(&k), v)?;
        let mut out = out_place.output(backend, batch.rows())?;
        let spec = AttentionSpec { layer: self.layer, scale: self.scale };
        backend.attention(&step, q_place.view(&q), kv, spec, out_place.view_mut(&mut out))?;
        out_place.result(backend, &out)
    }

    /// The last position of the first sequence, before and after its blocks moved to each other and to spare ones.
    fn copied(&self, backend: &dyn Backend, random: &mut Random) -> Result<Outcome, Problem> {
        let (mut kv, tables) = self.cache(backend, random)?;
        let length = self.sequences[0].length;
        self.step(backend, &mut kv, &tables, &[(0, 0..length)])?;
        let attend = |kv: &mut KvStore, table: &[BlockId]| {
            let tables = std::slice::from_ref(&table).iter().map(|t| t.to_vec()).collect::<Vec<_>>();
            self.step(backend, kv, &tables, &[(0, length - 1..length)])
        };
        let before = attend(&mut kv, &tables[0])?;
        // To the same blocks, turned by one (each is read before it is overwritten), and to spare blocks as well.
        let (from, spare) = (&tables[0], &tables[self.sequences.len()][..tables[0].len()]);
        let mut turned = from.clone();
        turned.rotate_left(1);
        let pairs: Vec<(BlockId, BlockId)> = from
            .iter()
            .copied()
            .zip(turned.iter().copied())
            .chain(from.iter().copied().zip(spare.iter().copied()))
            .collect();
        backend.kv_copy(&mut kv, &pairs)?;
        let (moved, copied) = (attend(&mut kv, &turned)?, attend(&mut kv, spare)?);
        let moved = same_bits(&moved, &before).told(|| format!("{}, moved", self.describe(0)));
        let copied = same_bits(&copied, &before).told(|| format!("{}, copied", self.describe(0)));
        Ok(if moved.failure.is_some() { moved } else { copied })
    }

    /// How independent errors of each cached number and each score add up. `[length, heads, v_dim]`
    fn magnitudes(&self, sequence: &Sequence) -> Vec<f64> {
        let mut magnitudes = Vec::new();
        for p in 0..sequence.length {
            for h in 0..self.heads {
                magnitudes.extend(self.head_magnitudes(sequence, p, h));
            }
        }
        magnitudes
    }

    /// Position `p`, head `h`. With weights w and result y the value v moves y by w, and the score by w (v - y).
    fn head_magnitudes(&self, sequence: &Sequence, p: usize, h: usize) -> Vec<f64> {
        let q = tolerance::wide(&sequence.q[(p * self.heads + h) * self.k_dim..][..self.k_dim]);
        let at = |seen: usize| seen * self.kv_heads + h / (self.heads / self.kv_heads);
        let key = |seen: usize| &sequence.k[at(seen) * self.k_dim..][..self.k_dim];
        let value = |seen: usize| match self.kind {
            Kind::Latent => tolerance::wide(&key(seen)[..self.v_dim]),
            Kind::Separate => tolerance::wide(&sequence.v[at(seen) * self.v_dim..][..self.v_dim]),
        };
        let scale = f64::from(self.scale);
        let scores: Vec<f64> = (0..=p).map(|seen| scale * tolerance::dot(key(seen), &q)).collect();
        let largest = scores.iter().fold(f64::NEG_INFINITY, |most, s| most.max(*s));
        let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
        let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp() / sum).collect();
        let values: Vec<Vec<f64>> = (0..=p).map(value).collect();
        let of_score = |seen: usize| {
            let squares: f64 = key(seen).iter().zip(&q).map(|(k, q)| (f64::from(*k) * q).powi(2)).sum();
            scale * squares.sqrt()
        };
        let score_errors: Vec<f64> = (0..=p).map(of_score).collect();
        let of_value = |i: usize| {
            let y: f64 = weights.iter().zip(&values).map(|(w, v)| w * v[i]).sum();
            let term = |seen: usize| {
                let v = values[seen][i];
                weights[seen] * v.hypot(score_errors[seen] * (v - y))
            };
            (0..=p).map(|seen| term(seen).powi(2)).sum::<f64>().sqrt()
        };
        (0..self.v_dim).map(of_value).collect()
    }
}
