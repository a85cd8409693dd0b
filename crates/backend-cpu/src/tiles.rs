//! Products of panels with many rows of activations at once, as AMX tiles.
//!
//! The rows of a job are laid out in groups of 16 ([`Arranged`]); a panel's codes are unpacked once for as many groups
//! as stay in the second-level cache.

use std::ops::Range;

use crate::Core;
use crate::activations::Activations;
use crate::linear::{Job, Output, PanelScratch};

/// Rows of activations side by side in a tile.
pub(crate) const COLUMNS: usize = 16;

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use none::{Arranged, Scratch, run_panels};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Arranged, Scratch, run_panels};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::isa::Isa;
    use crate::linear::gated;
    use crate::simd::amx::{self, TileScratch, TileStretch, Tiles};
    use crate::simd::columns::{Columns, Floats, Group, Line, SumPairs, TILE_COLUMNS, TileSums, arrange};
    use crate::simd::{CHUNK, PANEL_ROWS, SMALL};
    use crate::team::{Shares, share};
    use crate::unpack;
    use crate::weights::Matrix;

    const _: () = assert!(TILE_COLUMNS == COLUMNS);

    /// Rows of a job from which tiles are faster than a row at a time.
    const ROWS_MIN: usize = 6;
    /// Bytes of activations that a panel meets while it is unpacked: half of a usual second-level cache.
    const PASS_BYTES: usize = 1 << 20;
    /// Groups of 16 rows in a pass at most.
    const PASS_GROUPS_MAX: usize = 32;

    /// The rows of each job as tiles. Reused from op to op.
    #[derive(Default)]
    pub(crate) struct Arranged {
        /// First group of each job that has its rows here.
        first: Vec<Option<usize>>,
        /// Of all jobs and planes.
        all_groups: usize,
        /// With a scale for each 32 values, and for each 256.
        small: Tiled,
        large: Tiled,
    }

    /// See [`Columns`].
    #[derive(Default)]
    struct Tiled {
        tiles: Vec<Line>,
        d: Vec<Floats>,
        sums16: Vec<SumPairs>,
        sums32: Vec<SumPairs>,
    }

    fn blocks(job: &Job<'_>) -> impl Iterator<Item = Option<usize>> {
        [Some(job.matrix), job.up].into_iter().flatten().map(|m: &Matrix| m.scheme.map(|scheme| scheme.block))
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
                let tiled = core.simd.isa() == Isa::Amx && rows >= ROWS_MIN && blocks(job).all(|b| b.is_some());
                self.first.push(tiled.then_some(sixteens.len()));
                if tiled {
                    sixteens.extend((0..rows).step_by(COLUMNS).map(|row| (i, row)));
                }
            }
            for block in [SMALL, CHUNK] {
                let wanted = |i: usize| blocks(&jobs[i]).any(|b| b == Some(block));
                if sixteens.iter().any(|&(i, _)| wanted(i)) {
                    let x = x.quantised(block);
                    let all_groups = sixteens.len() * x.planes;
                    let chunks = x.stride.div_ceil(CHUNK);
                    let tiled = if block == SMALL { &mut self.small } else { &mut self.large };
                    tiled.resize(chunks * all_groups, block);
                    let shares = tiled.shares();
                    core.team.run_if_worth(sixteens.len() * COLUMNS * x.stride, |member, members| {
                        for at in share(sixteens.len(), member, members) {
                            let (i, first) = sixteens[at];
                            if !wanted(i) {
                                continue;
                            }
                            let rows = &jobs[i].x_rows;
                            let count = (rows.count() - first).min(COLUMNS);
                            let mut of_group = [0; COLUMNS];
                            (0..count).for_each(|k| of_group[k] = rows.get(first + k) as u32);
                            for (plane, chunk) in (0..x.planes).flat_map(|p| (0..chunks).map(move |c| (p, c))) {
                                // SAFETY: each group is one member's; AMX machines have AVX-512.
                                unsafe {
                                    let group = shares.group(chunk * all_groups + at * x.planes + plane, block);
                                    arrange(x, &of_group[..count], [plane, chunk], group);
                                }
                            }
                        }
                    });
                    self.all_groups = all_groups;
                }
            }
        }

        /// The groups `range` of job `i`, in units of 16 rows.
        fn columns(&self, i: usize, range: Range<usize>, [block, planes]: [usize; 2]) -> Columns<'_> {
            let tiled = if block == SMALL { &self.small } else { &self.large };
            let first = (self.first[i].expect("a job with its rows laid out") + range.start) * planes;
            let Tiled { tiles, d, sums16, sums32 } = tiled;
            let (all_groups, groups) = (self.all_groups, range.len() * planes);
            Columns { tiles, d, sums16, sums32, all_groups, first, groups, block, planes }
        }
    }

    struct TiledShares {
        tiles: Shares<Line>,
        d: Shares<Floats>,
        sums16: Shares<SumPairs>,
        sums32: Shares<SumPairs>,
    }

    impl Tiled {
        /// `groups`: chunks of all groups.
        fn resize(&mut self, groups: usize, block: usize) {
            self.tiles.resize(groups * (CHUNK / 4), Line([0; _]));
            self.d.resize(groups * (CHUNK / block), Floats([0.0; _]));
            self.sums16.resize(groups * (CHUNK / 32), SumPairs([[0; _]; _]));
            self.sums32.resize(groups * (CHUNK / 64), SumPairs([[0; _]; _]));
        }

        fn shares(&mut self) -> TiledShares {
            TiledShares {
                tiles: Shares::new(&mut self.tiles),
                d: Shares::new(&mut self.d),
                sums16: Shares::new(&mut self.sums16),
                sums32: Shares::new(&mut self.sums32),
            }
        }
    }

    impl TiledShares {
        /// # Safety
        /// As for [`Shares::part`]: a group is one member's.
        unsafe fn group(&self, at: usize, block: usize) -> Group<'_> {
            let part = |per_group: usize| at * per_group..(at + 1) * per_group;
            // SAFETY: the caller's.
            unsafe {
                Group {
                    tiles: self.tiles.part(part(CHUNK / 4)),
                    d: self.d.part(part(CHUNK / block)),
                    sums16: self.sums16.part(part(CHUNK / 32)),
                    sums32: self.sums32.part(part(CHUNK / 64)),
                }
            }
        }
    }

    /// What one member works in. Reused from op to op.
    #[derive(Default)]
    pub(crate) struct Scratch {
        tiles: Option<Box<TileScratch>>,
        /// `[gate or up, even or odd, 16 rows of activations]`
        sums: [[Vec<TileSums>; 2]; 2],
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
        let groups = job.x_rows.count().div_ceil(COLUMNS);
        let bytes = job.matrix.cols().next_multiple_of(64) * COLUMNS * core.precision.planes();
        let at_once = (PASS_BYTES / bytes.max(1)).clamp(2, PASS_GROUPS_MAX) / 2 * 2;
        for first in (0..groups).step_by(at_once) {
            let range = first..groups.min(first + at_once);
            for panel in panels.clone() {
                run_panel(core, job, rows, panel, range.clone(), scratch, out);
            }
        }
    }

    /// A panel against groups of 16 rows.
    #[allow(clippy::too_many_arguments)] // the inside of `run_panels`
    fn run_panel(
        core: &Core,
        job: &Job<'_>,
        rows: (&Arranged, usize),
        panel: usize,
        groups: Range<usize>,
        scratch: &mut PanelScratch,
        out: Output,
    ) {
        let mut sums = std::mem::take(&mut scratch.tiles.sums);
        for (matrix, sums) in [Some(job.matrix), job.up].into_iter().flatten().zip(&mut sums) {
            panel_sums(core, matrix, panel, (rows.0, rows.1, groups.clone()), scratch, sums);
        }
        let [gate, up] = &sums;
        let (mut values, mut of_up) = (TileSums::ZERO, TileSums::ZERO); // [activation, output]
        for (i, group) in groups.enumerate() {
            finish(job.matrix, [&gate[0][i], &gate[1][i]], &mut values);
            if let Some(matrix) = job.up {
                finish(matrix, [&up[0][i], &up[1][i]], &mut of_up);
                gated(core.simd, values.0.as_flattened_mut(), of_up.0.as_flattened());
            }
            for row in group * COLUMNS..job.x_rows.count().min((group + 1) * COLUMNS) {
                // SAFETY: a panel is in one piece of work, and a piece is one member's.
                unsafe { out.write(job, panel, row, &values.0[row % COLUMNS]) };
            }
        }
        scratch.tiles.sums = sums;
    }

    /// Sums of even and odd blocks to outputs. out `[activation, output]`
    fn finish(matrix: &Matrix, [even, odd]: [&TileSums; 2], out: &mut TileSums) {
        // A row of one small block has no odd ones.
        let has_odd = matrix.scheme.is_some_and(|s| s.block == SMALL) && matrix.cols() > SMALL;
        // SAFETY: AMX machines have AVX-512.
        unsafe { amx::finish(even, has_odd.then_some(odd), out) };
    }

    /// The sums of one matrix. sums `[even or odd, groups]`
    fn panel_sums(
        core: &Core,
        matrix: &Matrix,
        panel: usize,
        (arranged, job, groups): (&Arranged, usize, Range<usize>),
        scratch: &mut PanelScratch,
        sums: &mut [Vec<TileSums>; 2],
    ) {
        let scheme = matrix.scheme.expect("a block format");
        let first = panel * PANEL_ROWS;
        let count = (matrix.rows() - first).min(PANEL_ROWS);
        for sums in sums.iter_mut() {
            sums.resize(groups.len(), TileSums::ZERO); // the first stretch overwrites them
        }
        let columns = arranged.columns(job, groups, [scheme.block, core.precision.planes()]);
        let [even, odd] = sums;
        let tile_scratch = scratch.tiles.tiles.get_or_insert_with(TileScratch::boxed);
        // SAFETY: rows are laid out for AMX alone; the tiles are dropped before another's are made.
        let tiles = unsafe { Tiles::new(scheme.block) };
        for start in (0..matrix.cols()).step_by(CHUNK) {
            let len = (matrix.cols() - start).min(CHUNK);
            let codes = &mut scratch.codes;
            let direct = unpack::prepare(core.simd, matrix.stored(), [first, count], [start, len], codes);
            let stretch = TileStretch { scheme, codes, direct, columns, start, len };
            // SAFETY: AMX machines have AVX-512 with VNNI.
            unsafe { amx::stretch(&tiles, stretch, tile_scratch, [even, odd]) };
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
