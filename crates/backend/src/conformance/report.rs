//! What the suite found: one line for each op, format and check.

use std::fmt;

use lingqu_tensor::Format;

/// What is being checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub op: &'static str,
    pub format: Option<Format>,
}

/// The result of one comparison.
pub(super) struct Outcome {
    /// The worst error as a share of what is allowed; 0 where bits are compared.
    pub share: f64,
    pub failure: Option<String>,
}

impl Outcome {
    pub fn passed() -> Self {
        Self { share: 0.0, failure: None }
    }

    pub fn failed(problem: impl Into<String>) -> Self {
        Self { share: f64::INFINITY, failure: Some(problem.into()) }
    }

    pub fn expect(condition: bool, problem: &str) -> Self {
        if condition { Self::passed() } else { Self::failed(problem) }
    }

    /// Says in a failure what was compared.
    pub fn told(mut self, what: impl Fn() -> String) -> Self {
        self.failure = self.failure.map(|failure| format!("{}: {failure}", what()));
        self
    }
}

/// All comparisons of one op, format and check.
#[derive(Clone, Debug)]
pub struct Line {
    pub op: &'static str,
    /// `None` where the op takes no weight.
    pub format: Option<Format>,
    pub check: &'static str,
    pub comparisons: usize,
    /// The worst error as a share of what is allowed: above 1 fails.
    pub worst_share: f64,
    pub failures: usize,
    /// The first failure in words.
    pub first_failure: Option<String>,
}

impl Line {
    fn format_name(&self) -> &'static str {
        self.format.map_or("-", Format::name)
    }
}

/// The table of a run. Prints as op x format.
#[derive(Clone, Debug)]
pub struct Report {
    subject: String,
    oracle: String,
    lines: Vec<Line>,
}

impl Report {
    pub(super) fn new(subject: &str, oracle: &str) -> Self {
        Self { subject: subject.into(), oracle: oracle.into(), lines: Vec::new() }
    }

    pub(super) fn note(&mut self, subject: Subject, check: &'static str, outcome: Outcome) {
        let Subject { op, format } = subject;
        let same = |line: &Line| (line.op, line.format, line.check) == (op, format, check);
        let at = self.lines.iter().position(same).unwrap_or_else(|| {
            let (comparisons, failures, first_failure) = (0, 0, None);
            self.lines.push(Line { op, format, check, comparisons, worst_share: 0.0, failures, first_failure });
            self.lines.len() - 1
        });
        let line = &mut self.lines[at];
        line.comparisons += 1;
        line.worst_share = line.worst_share.max(outcome.share);
        if let Some(failure) = outcome.failure {
            line.failures += 1;
            line.first_failure.get_or_insert(failure);
        }
    }

    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// The lines that failed.
    pub fn failures(&self) -> Vec<&Line> {
        self.lines.iter().filter(|line| line.failures > 0).collect()
    }

    pub fn passed(&self) -> bool {
        self.failures().is_empty()
    }
}

impl fmt::Display for Report {
    /// A row for each op and format: the worst error as a share of the tolerance, then every other check; then the
    /// failures in words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} against {}", self.subject, self.oracle)?;
        writeln!(f, "{:<22} {:<9} {:>14}  laws", "op", "format", "error/allowed")?;
        let mut lines: Vec<&Line> = self.lines.iter().collect();
        lines.sort_by_key(|line| (line.op, line.format)); // stable: checks stay in the order in which they ran
        for row in lines.chunk_by(|a, b| (a.op, a.format) == (b.op, b.format)) {
            let values = row.iter().find(|line| line.check == "values");
            let error = values.map_or("-".into(), |line| format!("{:.4}", line.worst_share));
            let mark = |line: &&Line| if line.failures > 0 { "FAIL" } else { "ok" };
            let values = values.map_or("", mark);
            write!(f, "{:<22} {:<9} {error:>9} {values:<4} ", row[0].op, row[0].format_name())?;
            for line in row.iter().filter(|line| line.check != "values") {
                write!(f, " {} {}x {},", line.check, line.comparisons, mark(line))?;
            }
            writeln!(f)?;
        }
        for line in self.failures() {
            let (failed, all) = (line.failures, line.comparisons);
            let first = line.first_failure.as_deref().unwrap_or_default();
            writeln!(f, "FAILED {} {} {}, {failed} of {all}: {first}", line.op, line.format_name(), line.check)?;
        }
        let failed = self.failures().len();
        write!(f, "{} of {} checks pass", self.lines.len() - failed, self.lines.len())
    }
}
