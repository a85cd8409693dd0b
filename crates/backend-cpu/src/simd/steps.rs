//! The order in which a run's records meet its rows, for sets whose kernels read records themselves.

use std::ops::Range;

use super::{CHUNK, OCTETS, QuantRows, Run, STREAMS, Sums, ask};
use crate::panels::{LINE_BYTES, Record};

/// Rows up to which each number has a kernel. For so many a panel is read from its first record to its last by one
/// call, where panels are read in turn.
const FEW_ROWS_MAX: usize = 4;

/// Adds the dots of records with as many rows as the function is made for. It must have the instructions that it uses,
/// and `Run::check` must have passed for the step and these rows.
pub(super) type Kernel = unsafe fn(&Step<'_>, &[u32], &mut [Sums]);

/// The kernels of a scheme.
pub(super) struct Kernels {
    /// For 1 to 4 rows.
    pub few: [Kernel; FEW_ROWS_MAX],
    /// For 8, where there are registers for so many.
    pub eight: Option<Kernel>,
}

impl Kernels {
    /// For the first of so many rows, and for how many of them.
    fn first_of(&self, rows: usize) -> (Kernel, usize) {
        match self.eight {
            Some(kernel) if rows >= 8 => (kernel, 8),
            _ => (self.few[rows.min(FEW_ROWS_MAX) - 1], rows.min(FEW_ROWS_MAX)),
        }
    }
}

/// The [`Kernels`] of a scheme: `$large::<N, PLAN, SCALES>` or `$small::<N, PLAN, MINS>`.
macro_rules! kernels {
    ($scheme:expr, $large:ident, $small:ident, eight: $eight:expr) => {{
        fn kernel<const N: usize>(scheme: &crate::panels::Scheme) -> crate::simd::steps::Kernel {
            use crate::panels::Plan;
            use crate::simd::records::{BYTES, HALVES, HALVES_AND_ONE, TABLE, with_large};
            if scheme.block == crate::simd::CHUNK {
                return with_large!(scheme.plan, $large[N]);
            }
            match (scheme.plan, scheme.mins) {
                (Plan::Bytes, _) => $small::<N, BYTES, false>,
                (Plan::Halves, false) => $small::<N, HALVES, false>,
                (Plan::Halves, true) => $small::<N, HALVES, true>,
                (Plan::HalvesAndOne, false) => $small::<N, HALVES_AND_ONE, false>,
                (Plan::HalvesAndOne, true) => $small::<N, HALVES_AND_ONE, true>,
                (Plan::Table, _) => $small::<N, TABLE, false>,
                (plan, _) => unreachable!("small blocks with {plan:?}"),
            }
        }
        let scheme = $scheme;
        crate::simd::steps::Kernels {
            few: [kernel::<1>(scheme), kernel::<2>(scheme), kernel::<3>(scheme), kernel::<4>(scheme)],
            eight: if $eight { Some(kernel::<8>(scheme)) } else { None },
        }
    }};
}
pub(super) use kernels;

/// One record of a run, or several of one panel that follow each other.
pub(super) struct Step<'a> {
    pub x: QuantRows<'a>,
    /// The first one.
    pub record: Record<'a>,
    pub records: usize,
    /// What will be read soon.
    ahead: Ahead,
}

/// Records that will be read soon, and which of their lines are asked for by this step, one of each in turn and evenly
/// over what is computed meanwhile: all at once the lines would wait for each other, and what is computed for them (a
/// loop of 16 rows on Zen 4 took a third longer), and one stream after the other is slower than all side by side.
#[derive(Clone, Copy)]
struct Ahead {
    streams: [*const u8; STREAMS],
    first: usize,
    end: usize,
    /// Lines asked for with an octet.
    by_octet: usize,
}

impl Ahead {
    const NOTHING: Self = Self { streams: [std::ptr::null(); STREAMS], first: 0, end: 0, by_octet: 0 };

    /// All lines of these records.
    fn all(streams: [*const u8; STREAMS], lines: usize) -> Self {
        Self { streams, first: 0, end: lines, by_octet: lines.div_ceil(OCTETS) }
    }

    /// So many of equal parts, of all `parts`.
    fn part(self, some: Range<usize>, parts: usize) -> Self {
        let [first, end] = [some.start, some.end].map(|part| self.first + (self.end - self.first) * part / parts);
        Self { first, end, by_octet: (end - first).div_ceil(OCTETS), ..self }
    }
}

impl Step<'_> {
    /// Asks for what is to be asked for with this octet.
    #[inline]
    pub fn fetch_ahead(&self, octet: usize) {
        let Ahead { streams, first, end, by_octet } = self.ahead;
        let from = first + octet * by_octet;
        for line in from..end.min(from + by_octet) {
            for stream in streams {
                ask(stream, line);
            }
        }
    }
}

/// kernels: of the run's scheme
///
/// # Safety
/// `Run::check` must have passed; the kernels must be those of the scheme, and the machine must have what they use.
pub(super) unsafe fn run(run: Run<'_>, kernels: Kernels, sums: &mut [Sums]) {
    let Run { panels, first, count, in_turn, x, rows } = run;
    if in_turn && rows.len() <= FEW_ROWS_MAX {
        let kernel = kernels.few[rows.len() - 1];
        let whole = panels.whole_records();
        let parts = [(0, whole), (whole, panels.records() - whole)];
        for (k, sums) in sums.chunks_exact_mut(rows.len()).enumerate() {
            for (number, records) in parts.into_iter().filter(|(_, records)| *records > 0) {
                let record = panels.record(first + k, number);
                let step = Step { x, record, records, ahead: Ahead::NOTHING };
                // SAFETY: the caller's; the kernel is that of so many rows.
                unsafe { kernel(&step, rows, sums) };
            }
        }
        return;
    }
    for (k, record) in run.records() {
        let next = record.start / CHUNK + 1;
        let (beside, k_of, width) = if in_turn { (first + k, 0, 1) } else { (first, k, count) };
        let streams = std::array::from_fn(|i| panels.ahead(beside + i.min(width - 1), next, width));
        let ahead = Ahead::all(streams, record.bytes.len() / LINE_BYTES).part(k_of..k_of + 1, width);
        let sums = &mut sums[k * rows.len()..(k + 1) * rows.len()];
        let mut done = 0;
        while done < rows.len() {
            let (kernel, count) = kernels.first_of(rows.len() - done);
            let these = done..done + count;
            let step = Step { x, record, records: 1, ahead: ahead.part(these.clone(), rows.len()) };
            // SAFETY: the caller's; the kernel is that of so many rows.
            unsafe { kernel(&step, &rows[these.clone()], &mut sums[these]) };
            done += count;
        }
    }
}
