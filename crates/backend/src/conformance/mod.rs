//! The conformance suite: any backend (the subject) against another that is trusted (the oracle) on generated shapes.
//!
//! It uses nothing but the trait, so it runs as well against a device whose memory the host cannot touch. Start with
//! [`run`]. What it checks, each for every format that the subject lists where the op takes a weight:
//!
//! | check | law |
//! |---|---|
//! | values | every value is within [`tolerance`] of the oracle's |
//! | repeat | the same call gives the same bits |
//! | rows | any selection of rows, in any order and number, gives the bits that these rows had among all |
//! | parts | a stacked linear layer gives the bits of its parts alone |
//! | plain | a feed-forward with adapters gives the bits of one without, for rows that have none or one of zeros |
//! | shards | experts spread over two devices and combined give the bits of experts on one |
//! | chunks | a prompt in any chunks, among any other sequences and in any blocks, gives the bits of one chunk |
//! | copy | copied cache blocks give the bits of the originals |
//! | refusal | what cannot be held is an error |
//!
//! Inputs lie in views with other columns around them that hold NaN, and outputs in views whose surroundings must
//! stay as they were.

mod attention;
mod experts;
mod limits;
mod linear;
mod low_rank;
mod place;
mod random;
mod report;
mod route;
mod rows;
pub mod tolerance;
mod top;

use lingqu_tensor::Format;

use crate::{Backend, BackendError, LowRankSource};
use random::Random;
pub use report::{Line, Report};
use report::{Outcome, Subject};

/// How much to test.
#[derive(Clone, Debug)]
pub struct Options {
    /// Shapes and values follow from it alone.
    pub seed: u64,
    /// Generated cases for each op, or for each format of an op that takes weights.
    pub cases_per_op: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 1, cases_per_op: 4 }
    }
}

/// Runs everything. An error of the subject is a failure in the report, as is one of the oracle; a panic is not caught.
pub fn run(subject: &dyn Backend, oracle: &dyn Backend, options: &Options) -> Report {
    let mut report = Report::new(&subject.capabilities().name, &oracle.capabilities().name);
    let formats = &subject.capabilities().weight_formats;
    let random = &mut Random::new(options.seed);
    let mut suite = Suite { subject, oracle, random: Random::new(!options.seed), report: &mut report };
    limits::check(&mut suite);
    let takes_adapters = low_rank::is_taken(&mut suite);
    for number in 0..options.cases_per_op {
        for case in rows::cases(random, number) {
            suite.check(&*case);
        }
        suite.check(&route::Route::random(random, number));
        suite.check(&experts::Combine::random(random, number));
        top::check(&mut suite, number);
        for kind in [attention::Kind::Separate, attention::Kind::Latent] {
            attention::check(&mut suite, kind, number);
        }
        for format in formats {
            let pick = Pick { format: *format, others: formats, number };
            suite.check(&rows::Embed::random(random, pick));
            let linear = linear::Linear::random(random, pick);
            suite.check(&linear);
            linear.check_parts(&mut suite);
            suite.check(&linear::LinearHeads::random(random, pick));
            suite.check(&experts::Ffn::random(random, pick));
            let experts = experts::Experts::random(random, pick);
            suite.check(&experts);
            experts.check_shards(&mut suite);
            if takes_adapters {
                let adapted = low_rank::FfnAdapted::random(random, pick);
                suite.check(&adapted);
                adapted.check_plain(&mut suite);
            }
        }
        for format in LowRankSource::FORMATS.into_iter().filter(|_| takes_adapters) {
            suite.check(&low_rank::AddLowRank::random(random, format, number));
        }
    }
    report
}

/// What a case with weights is made for.
#[derive(Clone, Copy)]
struct Pick<'a> {
    format: Format,
    /// All formats that the subject takes: layers of several matrices mix them.
    others: &'a [Format],
    /// Of the case among those of its kind.
    number: usize,
}

/// Something that could not be computed, in words.
#[derive(Debug)]
struct Problem(String);

impl From<BackendError> for Problem {
    fn from(error: BackendError) -> Self {
        Self(error.to_string())
    }
}

/// Computes the given rows of a case, any of them in any order: `[rows given, width]`.
type RunRows<'a> = Box<dyn Fn(&[usize]) -> Result<Vec<f32>, Problem> + 'a>;

/// One generated input of one op that works row by row.
trait Case {
    fn subject(&self) -> Subject;

    fn rows(&self) -> usize;

    /// Uploads what the op needs.
    fn prepare<'a>(&'a self, backend: &'a dyn Backend) -> Result<RunRows<'a>, Problem>;

    /// The size to which the error of each value is compared. `[rows, width]`
    fn magnitudes(&self) -> Vec<f64>;

    /// Largest error, as a share of the magnitude.
    fn tolerance(&self) -> f64;
}

/// A run of the suite.
struct Suite<'a> {
    subject: &'a dyn Backend,
    oracle: &'a dyn Backend,
    random: Random,
    report: &'a mut Report,
}

impl Suite<'_> {
    /// values, repeat and rows.
    fn check(&mut self, case: &dyn Case) {
        if let Err(Problem(problem)) = self.try_check(case) {
            self.report.note(case.subject(), "values", Outcome::failed(problem));
        }
    }

    fn try_check(&mut self, case: &dyn Case) -> Result<(), Problem> {
        let all: Vec<usize> = (0..case.rows()).collect();
        let expected = case.prepare(self.oracle)?(&all)?;
        let run = case.prepare(self.subject)?;
        let got = run(&all)?;
        let width = got.len() / case.rows();
        let magnitudes = case.magnitudes();
        self.report.note(case.subject(), "values", compare(&got, &expected, &magnitudes, case.tolerance()));
        self.report.note(case.subject(), "repeat", same_bits(&run(&all)?, &got));
        for selection in self.random.selections(case.rows()) {
            let alone = run(&selection)?;
            let among: Vec<f32> = selection.iter().flat_map(|r| &got[r * width..][..width]).copied().collect();
            let outcome = same_bits(&alone, &among).told(|| format!("{} rows of {}", selection.len(), case.rows()));
            self.report.note(case.subject(), "rows", outcome);
        }
        Ok(())
    }
}

/// The worst error as a share of what is allowed.
fn compare(got: &[f32], expected: &[f32], magnitudes: &[f64], tolerance: f64) -> Outcome {
    if got.len() != expected.len() || got.len() != magnitudes.len() {
        let lengths = (got.len(), expected.len(), magnitudes.len());
        return Outcome::failed(format!("values of subject, oracle and suite: {lengths:?}"));
    }
    let mut worst = Outcome::passed();
    for (i, ((got, expected), magnitude)) in got.iter().zip(expected).zip(magnitudes).enumerate() {
        let allowed = tolerance * magnitude + 1e-30;
        let error = (f64::from(*got) - f64::from(*expected)).abs() / allowed;
        let share = if error.is_nan() { f64::INFINITY } else { error };
        if share > worst.share {
            let failure = (share > 1.0).then(|| format!("value {i} is {got}, should be {expected} +- {allowed:.2e}"));
            worst = Outcome { share, failure };
        }
    }
    worst
}

/// Whether all values are the same, bit for bit but for the sign of zero.
fn same_bits(got: &[f32], expected: &[f32]) -> Outcome {
    let same = |(a, b): (&f32, &f32)| a == b || a.to_bits() == b.to_bits();
    if got.len() != expected.len() {
        return Outcome::failed(format!("{} values instead of {}", got.len(), expected.len()));
    }
    match got.iter().zip(expected).position(|pair| !same(pair)) {
        Some(i) => Outcome::failed(format!("value {i} is {:e}, was {:e}", got[i], expected[i])),
        None => Outcome::passed(),
    }
}
