//! Products of panels with many rows of activations at once: with AMX as tiles, with AVX-512 two panels at a time.
//!
//! The rows of a job are laid out in groups of 16 ([`Arranged`]); a panel's weights are made ready once for as many
//! groups as stay in the second-level cache.

use std::ops::Range;

use crate::Core;
use crate::activations::Activations;
use crate::linear::{Job, Output, PanelScratch};

/// Rows of activations to a group.
pub(crate) const GROUP_ROWS: usize = 16;
/// Panels that a kernel takes together.
pub(crate) const TOGETHER: usize = 2;

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use none::{Arranged, Scratch, run_panels};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Arranged, Scratch, run_panels};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::isa::Isa;
    use crate::linear::gated;
    use crate::memory::grow;
    use crate::panels::{LINE_BYTES, Panels};
    use crate::simd::amx::{self, Next, TileScratch, Tiles};
    use crate::simd::groups::{ChunkOf, LargeRows, SmallRows, TILE_ROWS, TileSums};
    use crate::simd::twins::Twins;
    use crate::simd::{CHUNK, OCTET, ask};
    use crate::team::{Shares, share};

    const _: () = assert!(TILE_ROWS == GROUP_ROWS && amx::TOGETHER == TOGETHER);

    /// Rows of a job from which groups are faster than a few rows at a time.
    fn rows_min(isa: Isa) -> usize {
        match isa {
            Isa::Amx => 13,
            Isa::Avx512 => 24,
            Isa::Avx2 | Isa::Portable => usize::MAX,
        }
    }

    /// Bytes of activations that a panel meets at once: half of a usual second-level cache.
    const PASS_BYTES: usize = 1 << 20;
    /// Panels whose outputs are written together: a row's then share a page.
    const WRITTEN_PANELS: usize = 8;
    /// Groups of 16 rows in a pass at most.
    const PASS_GROUPS_MAX: usize = 32;

    /// Groups during which the next records are asked for.
    const ASKED_IN: usize = 4;

    /// The rows of each job as tiles. Reused from op to op.
    #[derive(Default)]
    pub(crate) struct Arranged {
        /// First group of each job that has its rows here.
        first: Vec<Option<usize>>,
        /// Of all jobs and planes.
        all_groups: usize,
        /// `[chunk, group]`
        small: Vec<SmallRows>,
        large: Vec<LargeRows>,
    }

    fn blocks(job: &Job<'_>) -> impl Iterator<Item = Option<usize>> {
        [Some(job.matrix), job.up].into_iter().flatten().map(|matrix| matrix.block())
    }

    impl Arranged {
        /// Whether job `i` has its rows here.
        pub fn has(&self, i: usize) -> bool {
            self.first[i].is_some()
        }

        /// Lays out the rows of the jobs for which it is worth it.
        pub fn prepare(&mut self, core: &Core, jobs: &[Job<'_>], x: &Activations) {
            self.first.clear();
            // (job, first row) of each 16 rows.
            let mut sixteens = Vec::new();
            for (i, job) in jobs.iter().enumerate() {
                let rows = job.x_rows.count();
                let grouped = rows >= rows_min(core.simd.isa()) && blocks(job).all(|b| b.is_some());
                self.first.push(grouped.then_some(sixteens.len()));
                if grouped {
                    sixteens.extend((0..rows).step_by(GROUP_ROWS).map(|row| (i, row)));
                }
            }
            for block in [OCTET, CHUNK] {
                let wanted = |i: usize| blocks(&jobs[i]).any(|b| b == Some(block));
                if !sixteens.iter().any(|&(i, _)| wanted(i)) {
                    continue;
                }
                let x = x.quantised(block);
                let all_groups = sixteens.len() * x.planes;
                let chunks = x.count();
                self.all_groups = all_groups;
                let wanted_of = |b: usize| if b == block { chunks * all_groups } else { 0 };
                let small = Shares::new(grow(&mut self.small, wanted_of(OCTET), SmallRows::ZERO));
                let large = Shares::new(grow(&mut self.large, wanted_of(CHUNK), LargeRows::ZERO));
                core.team.run_if_worth(sixteens.len() * GROUP_ROWS * chunks * CHUNK, |member, members| {
                    for at in share(sixteens.len(), member, members) {
                        let (i, first) = sixteens[at];
                        if !wanted(i) {
                            continue;
                        }
                        let rows = &jobs[i].x_rows;
                        let count = (rows.count() - first).min(GROUP_ROWS);
                        let mut of_group = [0; GROUP_ROWS];
                        (0..count).for_each(|k| of_group[k] = rows.get(first + k) as u32);
                        for (plane, chunk) in (0..x.planes).flat_map(|p| (0..chunks).map(move |c| (p, c))) {
                            let to = chunk * all_groups + at * x.planes + plane;
                            let of = ChunkOf { x, plane, chunk, for_tiles: core.simd.isa() == Isa::Amx };
                            // SAFETY: each group is one member's.
                            unsafe {
                                match block {
                                    OCTET => small.part(to..to + 1)[0].arrange(of, &of_group[..count]),
                                    _ => large.part(to..to + 1)[0].arrange(of, &of_group[..count]),
                                }
                            }
                        }
                    }
                });
            }
        }

        /// Where the groups `range` of job `i`, in units of 16 rows, lie in a chunk.
        fn range(&self, i: usize, range: &Range<usize>, planes: usize) -> Range<usize> {
            let first = self.first[i].expect("a job with its rows laid out");
            (first + range.start) * planes..(first + range.end) * planes
        }
    }

    /// What one member works in. Reused from op to op.
    #[derive(Default)]
    pub(crate) struct Scratch {
        tiles: Option<Box<TileScratch>>,
        twins: Option<Box<Twins>>,
        /// Of a panel that is not there.
        spare: Box<TileSums>,
        /// Of gate and up. `[16 rows of activations]`
        sums: [Vec<TileSums>; 2],
    }

    /// Panels of a job whose rows are laid out.
    pub(crate) fn run_panels(
        core: &Core,
        job: &Job<'_>,
        rows: (&Arranged, usize),
        panels: Range<usize>,
        scratch: &mut PanelScratch,
        out: Output,
    ) {
        let groups = job.x_rows.count().div_ceil(GROUP_ROWS);
        let bytes = job.matrix.cols().next_multiple_of(CHUNK) * GROUP_ROWS * core.precision.planes();
        let at_once = (PASS_BYTES / bytes.max(1)).clamp(1, PASS_GROUPS_MAX);
        for first in (0..groups).step_by(at_once) {
            let range = first..groups.min(first + at_once);
            for panel in panels.clone().step_by(WRITTEN_PANELS) {
                let some = panel..panels.end.min(panel + WRITTEN_PANELS);
                run_some_panels(core, job, rows, some, range.clone(), scratch, out);
            }
        }
    }

    /// Panels against groups of 16 rows.
    #[allow(clippy::too_many_arguments)] // the inside of `run_panels`
    fn run_some_panels(
        core: &Core,
        job: &Job<'_>,
        (arranged, i): (&Arranged, usize),
        panels: Range<usize>,
        groups: Range<usize>,
        scratch: &mut PanelScratch,
        out: Output,
    ) {
        let mut sums = std::mem::take(&mut scratch.tiles.sums);
        let count = panels.len() * groups.len();
        for (matrix, sums) in [Some(job.matrix), job.up].into_iter().flatten().zip(&mut sums) {
            let sums = grow(sums, count, TileSums::ZERO); // the first record overwrites them
            let of = matrix.panels().expect("a block format");
            if core.simd.isa() == Isa::Amx {
                tile_sums(core, of, panels.clone(), (arranged, i, &groups), &mut scratch.tiles, sums);
                continue;
            }
            let rows = job.x_rows.count();
            for (panel, sums) in panels.clone().step_by(TOGETHER).zip(sums.chunks_mut(groups.len() * TOGETHER)) {
                twin_sums(core, of, panel, (arranged, i, &groups, rows), &mut scratch.tiles, sums);
            }
        }
        let [values, up] = &mut sums;
        if job.up.is_some() {
            for (values, up) in values[..count].iter_mut().zip(&*up) {
                gated(core.simd, values.0.as_flattened_mut(), up.0.as_flattened());
            }
        }
        for row in groups.start * GROUP_ROWS..job.x_rows.count().min(groups.end * GROUP_ROWS) {
            let of_row = values[row / GROUP_ROWS - groups.start..count].iter().step_by(groups.len());
            // SAFETY: a panel is in one piece of work, and a piece is one member's.
            unsafe { out.write(job, panels.clone(), row, of_row.map(|sums| &sums.0[row % GROUP_ROWS])) };
        }
        scratch.tiles.sums = sums;
    }

    /// The sums of two panels of one matrix, or of one alone. rows: of all groups; sums `[panels, groups]`
    fn twin_sums(
        core: &Core,
        panels: &Panels,
        panel: usize,
        (arranged, job, groups, rows): (&Arranged, usize, &Range<usize>, usize),
        scratch: &mut Scratch,
        sums: &mut [TileSums],
    ) {
        let planes = core.precision.planes();
        let twins = scratch.twins.get_or_insert_with(Twins::boxed);
        let range = arranged.range(job, groups, planes);
        let (first, second) = sums.split_at_mut(groups.len());
        let twin = if second.is_empty() { panel } else { panel + 1 };
        for chunk in 0..panels.records() {
            let at = chunk * arranged.all_groups + range.start;
            let records = [panel, twin].map(|panel| panels.record(panel, chunk));
            // SAFETY: rows are laid out for AVX-512 with VNNI.
            unsafe { twins.fill(records) };
            let lines = records[0].bytes.len() / LINE_BYTES;
            let next = [panel, panel + 1].map(|panel| panels.ahead(panel, chunk + 1, TOGETHER));
            for (of, sums) in first.iter_mut().enumerate() {
                let count = (rows - (groups.start + of) * GROUP_ROWS).min(GROUP_ROWS);
                let of_group = at + of * planes..at + (of + 1) * planes;
                let sums = [sums, second.get_mut(of).unwrap_or(&mut scratch.spare)];
                // What comes next is asked for bit by bit: all at once, the lines would wait for each other.
                let parts = groups.len().min(ASKED_IN);
                if of < parts {
                    let part = lines * of / parts..lines * (of + 1) / parts;
                    next.iter().for_each(|record| part.clone().for_each(|line| ask(*record, line)));
                }
                // SAFETY: as above.
                unsafe {
                    match panels.scheme.block {
                        CHUNK => twins.multiply_large(&arranged.large[of_group], count, chunk == 0, sums),
                        _ => twins.multiply_small(&arranged.small[of_group], count, chunk == 0, sums),
                    }
                }
            }
        }
    }

    /// The sums of some panels of one matrix, with tiles. They meet a chunk of the activations together, which then
    /// stays in the second-level cache. sums `[panels, groups]`
    fn tile_sums(
        core: &Core,
        panels: &Panels,
        some: Range<usize>,
        (arranged, job, groups): (&Arranged, usize, &Range<usize>),
        scratch: &mut Scratch,
        sums: &mut [TileSums],
    ) {
        let block = panels.scheme.block;
        let scratch = scratch.tiles.get_or_insert_with(TileScratch::boxed);
        let range = arranged.range(job, groups, core.precision.planes());
        // SAFETY: rows are laid out for AMX alone; the tiles are dropped before another's are made.
        let tiles = unsafe { Tiles::new(block) };
        for chunk in 0..panels.records() {
            let first = chunk * arranged.all_groups;
            let of_chunk = first + range.start..first + range.end;
            for (panel, sums) in some.clone().step_by(TOGETHER).zip(sums.chunks_mut(groups.len() * TOGETHER)) {
                let records = [panel, (panel + 1).min(some.end - 1)].map(|panel| panels.record(panel, chunk));
                let (after, chunk) =
                    if panel + TOGETHER < some.end { (panel + TOGETHER, chunk) } else { (some.start, chunk + 1) };
                let next = Next {
                    records: [after, after + 1].map(|panel| panels.ahead(panel, chunk, TOGETHER)),
                    lines: records[0].bytes.len() / LINE_BYTES,
                };
                let records = &records[..sums.len() / groups.len()];
                // SAFETY: AMX machines have AVX-512 with VNNI.
                unsafe {
                    match block {
                        CHUNK => {
                            amx::large_chunk(&tiles, records, &arranged.large[of_chunk.clone()], next, scratch, sums)
                        }
                        _ => amx::small_chunk(&tiles, records, &arranged.small[of_chunk.clone()], next, scratch, sums),
                    }
                }
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod none {
    use super::*;

    #[derive(Default)]
    pub(crate) struct Scratch;

    #[derive(Default)]
    pub(crate) struct Arranged;

    impl Arranged {
        pub fn has(&self, _: usize) -> bool {
            false
        }

        pub fn prepare(&mut self, _: &Core, _: &[Job<'_>], _: &Activations) {}
    }

    pub(crate) fn run_panels(
        _: &Core,
        _: &Job<'_>,
        _: (&Arranged, usize),
        _: Range<usize>,
        _: &mut PanelScratch,
        _: Output,
    ) {
        unreachable!("no rows are laid out")
    }
}
