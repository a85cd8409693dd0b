//! The order in which a run's records meet its rows, for sets whose kernels read records themselves.

use super::{IN_TURN_ROWS_MAX, OCTETS, QuantRows, Run, STREAMS, Sums};
use crate::panels::{LINE_BYTES, Record};

/// Rows up to which each number has a kernel.
const FEW_ROWS_MAX: usize = 4;

/// Adds the dots of records with as many rows as the function is made for, whose sums are given from the first record's
/// on. The machine must have the instructions that it uses, and `Run::check` must have passed for the step and these
/// rows.
pub(super) type Kernel = unsafe fn(&Step<'_>, &[u32], &mut [Sums], &mut Ahead);

/// The kernels of a scheme.
pub(super) struct Kernels {
    /// For 1 to 3 rows of panels that are read in turn, from the first record to the last by one call. They ask for
    /// nothing: so few rows wait for memory, and the fewer instructions a core has before it the more lines it finds
    /// to read (with one row Q6_K and Q8_0 took a fifth less on Zen 4).
    pub in_turn: [Kernel; IN_TURN_ROWS_MAX],
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

/// The [`Kernels`] of a scheme: `$large::<N, PLAN, SCALES>` or `$small::<N, ASK, PLAN, MINS>`.
macro_rules! kernels {
    ($scheme:expr, $large:ident, $small:ident, eight: $eight:expr) => {{
        fn kernel<const N: usize, const ASK: bool>(scheme: &crate::panels::Scheme) -> crate::simd::steps::Kernel {
            use crate::panels::Plan;
            use crate::simd::records::{BYTES, HALVES, HALVES_AND_ONE, TABLE, with_large};
            if scheme.block == crate::simd::CHUNK {
                return with_large!(scheme.plan, $large[N, ASK]);
            }
            match (scheme.plan, scheme.mins) {
                (Plan::Bytes, _) => $small::<N, ASK, BYTES, false>,
                (Plan::Halves, false) => $small::<N, ASK, HALVES, false>,
                (Plan::Halves, true) => $small::<N, ASK, HALVES, true>,
                (Plan::HalvesAndOne, false) => $small::<N, ASK, HALVES_AND_ONE, false>,
                (Plan::HalvesAndOne, true) => $small::<N, ASK, HALVES_AND_ONE, true>,
                (Plan::Table, _) => $small::<N, ASK, TABLE, false>,
                (plan, _) => unreachable!("small blocks with {plan:?}"),
            }
        }
        let scheme = $scheme;
        crate::simd::steps::Kernels {
            in_turn: [kernel::<1, false>(scheme), kernel::<2, false>(scheme), kernel::<3, false>(scheme)],
            few: [
                kernel::<1, true>(scheme),
                kernel::<2, true>(scheme),
                kernel::<3, true>(scheme),
                kernel::<4, true>(scheme),
            ],
            eight: if $eight { Some(kernel::<8, true>(scheme)) } else { None },
        }
    }};
}
pub(super) use kernels;

/// Records of a run that follow each other: of one panel, or the same one of panels side by side.
pub(super) struct Step<'a> {
    pub x: QuantRows<'a>,
    /// The first one.
    pub record: Record<'a>,
    pub records: usize,
    pub next: Next,
}

/// How far it is to what belongs to the next record.
#[derive(Clone, Copy)]
pub(super) struct Next {
    /// Bytes to the record itself.
    pub bytes: usize,
    /// To the chunk of a row, as [`QuantRows`] have them.
    pub chunks: usize,
    /// To the sums of the first row.
    pub sums: usize,
}

/// Records that will be read soon. Their lines are asked for one of each in turn and evenly over what is computed
/// meanwhile: all at once the lines would wait for each other, and what is computed for them (a loop of 16 rows on
/// Zen 4 took a third longer), and one stream after the other is slower than all side by side.
pub(super) struct Ahead {
    streams: [*const u8; STREAMS],
    /// Lines of each that are asked for by now, and what an octet adds to them: in parts of 65536.
    asked: usize,
    by_octet: usize,
}

impl Ahead {
    const ONE: usize = 1 << 16;

    /// Asks for nothing as yet.
    fn of(streams: [*const u8; STREAMS]) -> Self {
        Self { streams, asked: 0, by_octet: 0 }
    }

    /// Asks for what is to be asked for with an octet.
    #[inline(always)]
    pub fn octet(&mut self) {
        let from = self.asked / Self::ONE;
        self.asked += self.by_octet;
        for line in from..self.asked / Self::ONE {
            // In assembly because a compiler makes more of this loop than of all that it is in the midst of.
            // SAFETY: hints, of SSE; the streams are in the array.
            unsafe {
                std::arch::asm!(
                    "mov {to}, [{streams}]",
                    "prefetcht0 [{to} + {at}]",
                    "mov {to}, [{streams} + 8]",
                    "prefetcht0 [{to} + {at}]",
                    "mov {to}, [{streams} + 16]",
                    "prefetcht0 [{to} + {at}]",
                    "mov {to}, [{streams} + 24]",
                    "prefetcht0 [{to} + {at}]",
                    to = out(reg) _,
                    streams = in(reg) &self.streams,
                    at = in(reg) line * LINE_BYTES,
                    options(readonly, nostack, preserves_flags),
                );
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
    if in_turn && rows.len() <= IN_TURN_ROWS_MAX {
        let kernel = kernels.in_turn[rows.len() - 1];
        let whole = panels.whole_records();
        let parts = [(0, whole), (whole, panels.records() - whole)];
        for (k, sums) in sums.chunks_exact_mut(rows.len()).enumerate() {
            for (number, records) in parts.into_iter().filter(|(_, records)| *records > 0) {
                let record = panels.record(first + k, number);
                let next = Next { bytes: record.bytes.len(), chunks: x.to_next(), sums: 0 };
                let step = Step { x, record, records, next };
                // SAFETY: the caller's; the kernel is that of so many rows.
                unsafe { kernel(&step, rows, sums, &mut Ahead::of([std::ptr::null(); _])) };
            }
        }
        return;
    }
    let width = if in_turn { 1 } else { count };
    // Lines of each stream with an octet of a row.
    let pace = (panels.record_lines() * Ahead::ONE).div_ceil(width * rows.len() * OCTETS);
    let next = Next { bytes: panels.panel_bytes(), chunks: 0, sums: rows.len() };
    for (group, sums) in sums.chunks_exact_mut(width * rows.len()).enumerate() {
        let first = first + group * width;
        for number in 0..panels.records() {
            let streams = std::array::from_fn(|i| panels.ahead(first + i.min(width - 1), number + 1, width));
            let mut ahead = Ahead::of(streams);
            let step = Step { x, record: panels.record(first, number), records: width, next };
            let mut done = 0;
            while done < rows.len() {
                let (kernel, count) = kernels.first_of(rows.len() - done);
                ahead.by_octet = pace * count;
                // SAFETY: the caller's; the kernel is that of so many rows.
                unsafe { kernel(&step, &rows[done..done + count], &mut sums[done..], &mut ahead) };
                done += count;
            }
        }
    }
}
