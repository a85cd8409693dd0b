//! What sampling reads: the largest logits of each row, and some rows of many.

use super::place::{Place, select};
use super::random::Random;
use super::report::{Outcome, Subject};
use super::{Problem, Suite, same_bits};
use crate::{Backend, Buffer, TOP_LOGITS_MAX, TopLogits};

struct Logits {
    vocab: usize,
    /// `[rows, vocab]`
    values: Vec<f32>,
    scales: Vec<f32>,
    k: usize,
    place: Place,
}

/// How a row's logits are spread: as it comes, many equal, or none clearly above the others.
fn row(random: &mut Random, vocab: usize) -> Vec<f32> {
    let mut row = random.values(vocab);
    match random.below(4) {
        0 => row.iter_mut().for_each(|v| *v = (*v * 2.0).round() / 2.0), // zeros of both signs among them
        1 => row.iter_mut().for_each(|v| *v *= 1e-20),
        2 => row.iter_mut().for_each(|v| *v *= 20.0),
        _ => {}
    }
    for _ in 0..random.below(4) {
        let at = random.below(vocab);
        row[at] = if vocab > 1 && at > 0 { f32::NEG_INFINITY } else { 7.0 };
    }
    row
}

impl Logits {
    fn random(random: &mut Random, number: usize) -> Self {
        // Around what a block of a kernel may take.
        let vocab = random.pick(&[1, 2, 63, 64, 65, 300, 1000, 4095, 4096, 4097, 9001]);
        let k = random.pick(&[1, 2, 40, 63, 64]).min(vocab).min(TOP_LOGITS_MAX);
        let rows = if vocab > 1000 { random.within(1, 4) } else { random.rows(number) };
        let values = (0..rows).flat_map(|_| row(random, vocab)).collect();
        let scales = (0..rows).map(|_| random.pick(&[1.0, 0.5, 1.0 / 0.7, 1e6])).collect();
        Self { vocab, values, scales, k, place: Place::flat(random, vocab) }
    }

    fn rows(&self) -> usize {
        self.scales.len()
    }

    fn input(&self, backend: &dyn Backend, rows: &[usize]) -> Result<Buffer, Problem> {
        self.place.input(backend, &select(&self.values, self.vocab, rows))
    }

    fn run(&self, backend: &dyn Backend, rows: &[usize]) -> Result<TopLogits, Problem> {
        let x = self.input(backend, rows)?;
        let scales: Vec<f32> = rows.iter().map(|r| self.scales[*r]).collect();
        Ok(backend.top_logits(self.place.view(&x), &scales, self.k)?)
    }
}

const TOP: Subject = Subject { op: "top_logits", format: None };

pub fn check(suite: &mut Suite<'_>, number: usize) {
    if let Err(Problem(problem)) = try_check(suite, number) {
        suite.report.note(TOP, "values", Outcome::failed(problem));
    }
}

fn try_check(suite: &mut Suite<'_>, number: usize) -> Result<(), Problem> {
    let logits = Logits::random(&mut suite.random, number);
    let all: Vec<usize> = (0..logits.rows()).collect();
    let got = logits.run(suite.subject, &all)?;
    suite.report.note(
        TOP,
        "values",
        agree(&got, &TopLogits::of(&logits.values, logits.vocab, &logits.scales, logits.k)),
    );
    for rows in suite.random.selections(logits.rows()) {
        let alone = logits.run(suite.subject, &rows)?;
        let (values, sums) = (select(&got.values, logits.k, &rows), select(&got.sums, 1, &rows));
        let tokens = rows.iter().flat_map(|r| &got.tokens[r * logits.k..][..logits.k]);
        let mut outcome = Outcome::expect(alone.tokens.iter().eq(tokens), "other tokens");
        for bits in [same_bits(&alone.values, &values), same_bits(&alone.sums, &sums)] {
            outcome.failure = outcome.failure.or(bits.failure);
        }
        suite.report.note(TOP, "rows", outcome);
    }
    suite.report.note(TOP, "refusal", sick_rows_have_no_sum(suite.subject, logits)?);
    some_rows(suite)
}

/// The same tokens and values; sums within their tolerance.
fn agree(got: &TopLogits, expected: &TopLogits) -> Outcome {
    let mut outcome = same_bits(&got.values, &expected.values);
    if got.k != expected.k || got.tokens != expected.tokens {
        let first = got.tokens.iter().zip(&expected.tokens).position(|(a, b)| a != b);
        outcome = Outcome::failed(format!("other tokens, from {first:?} on"));
    }
    for (got, expected) in got.sums.iter().zip(&expected.sums).map(|(a, b)| (f64::from(*a), f64::from(*b))) {
        let share = (got - expected).abs() / (TopLogits::SUM_ERROR * expected);
        if share.is_nan() || share > 1.0 {
            return Outcome::failed(format!("a sum of {got:e}, should be {expected:e}"));
        }
        outcome.share = outcome.share.max(share);
    }
    outcome
}

/// Row after row is spoilt in one way or another.
fn sick_rows_have_no_sum(backend: &dyn Backend, mut logits: Logits) -> Result<Outcome, Problem> {
    for (i, row) in logits.values.chunks_exact_mut(logits.vocab).enumerate() {
        let at = i * 7919 % row.len();
        match i % 3 {
            0 => row[at] = f32::NAN,
            1 => row[at] = f32::INFINITY,
            _ => row.fill(f32::NEG_INFINITY),
        }
    }
    let all: Vec<usize> = (0..logits.rows()).collect();
    let sums = logits.run(backend, &all)?.sums;
    Ok(Outcome::expect(sums.iter().all(|sum| sum.is_nan()), "rows with NaN, +inf or nothing above -inf have no sum"))
}

fn some_rows(suite: &mut Suite<'_>) -> Result<(), Problem> {
    let random = &mut suite.random;
    let (heads, len, rows) = (random.within(1, 3), random.within(1, 70), random.within(1, 9));
    let place = Place::heads(random, heads, len);
    let first = random.below(rows);
    let range = first..random.within(first, rows);
    let values = random.values(rows * place.width());
    let buffer = place.input(suite.subject, &values)?;
    let mut got = vec![0.0; range.len() * place.width()];
    suite.subject.read_rows(place.view(&buffer), range.clone(), &mut got)?;
    let expected = &values[range.start * place.width()..range.end * place.width()];
    suite.report.note(Subject { op: "read_rows", format: None }, "values", same_bits(&got, expected));
    Ok(())
}
