//! Every instruction set's kernels against the portable ones, bit for bit.

use lingqu_tensor::Format;

#[cfg(target_arch = "x86_64")]
use super::groups::{ChunkOf, LargeRows, SmallRows, TileSums};
use super::*;
use crate::panels::{Scales, Scheme, scheme};
use crate::testing::{self, Random};

/// Panels of arbitrary bits, but for the floats.
fn panels(random: &mut Random, scheme: Scheme, cols: usize, count: usize) -> Panels {
    let octets: Vec<usize> = (0..cols).step_by(CHUNK).map(|start| (cols - start).min(CHUNK) / OCTET).collect();
    let records = (0..count).flat_map(|_| &octets).map(|&octets| record(random, &scheme, octets));
    Panels::of_records(scheme, cols, &records.collect::<Vec<_>>().concat())
}

fn record(random: &mut Random, scheme: &Scheme, octets: usize) -> Vec<u8> {
    let mut record: Vec<u8> = (0..scheme.record_bytes(octets)).map(|_| random.next() as u8).collect();
    // Rows with the extremes of all bits, codes and integers alike.
    for line in record.as_chunks_mut::<64>().0 {
        line[3 * 4..4 * 4].fill(0xff);
        line[4 * 4..5 * 4].fill(0);
        line[5 * 4..6 * 4].fill(0x80);
    }
    if scheme.scales == Scales::Bytes8 {
        // Six bits with a sign: products with 8-bit codes would leave 16 bits otherwise.
        record[..2 * 64].iter_mut().for_each(|s| *s = (*s as i8 >> 2) as u8);
    }
    for half in record[scheme.integer_lines() * 64..scheme.codes_at(octets)].as_chunks_mut::<2>().0 {
        *half = half::f16::from_f32(random.unit() - 0.5).to_le_bytes();
    }
    record
}

/// Owns what [`QuantRows`] borrows.
struct Rows {
    block: usize,
    planes: usize,
    rows: usize,
    chunks: Vec<RowChunk>,
}

impl Rows {
    fn new(random: &mut Random, rows: usize, planes: usize, [block, cols]: [usize; 2]) -> Self {
        let mut chunks = vec![RowChunk::ZERO; cols.div_ceil(CHUNK) * rows * planes];
        for (i, chunk) in chunks.iter_mut().enumerate() {
            // The extremes, where 16-bit sums would overflow, come in whole rows.
            chunk.v = std::array::from_fn(|_| match i / planes % rows {
                0 => 127,
                1 => -127,
                _ => ((random.next() % 255) as i16 - 127) as i8,
            });
            chunk.d = std::array::from_fn(|b| if b < CHUNK / block { random.unit() } else { f32::NAN });
            let sums = |of: usize, to: &mut [i16]| {
                let all = chunk.v.chunks(of).map(|v| v.iter().map(|&v| i16::from(v)).sum());
                all.enumerate().for_each(|(i, sum)| to[pair_place(i)] = sum);
            };
            sums(16, &mut chunk.sums16);
            sums(32, &mut chunk.sums32);
        }
        Self { block, planes, rows, chunks }
    }

    fn rows(&self) -> QuantRows<'_> {
        let Self { block, planes, rows, ref chunks } = *self;
        QuantRows { block, planes, rows, chunks }
    }
}

#[test]
fn records_have_the_same_bits_everywhere() {
    let mut random = Random::new(1);
    let all_rows = 15;
    for format in Format::ALL {
        let Some(scheme) = scheme(format) else { continue };
        for (planes, rows, cols) in [(1, 1, 512), (2, 2, 32), (1, 3, 352), (2, 4, 256), (1, 7, 512), (2, 15, 480)] {
            let cols: usize = if scheme.block == CHUNK { CHUNK * (cols / CHUNK).max(1) } else { cols };
            for count in [1, 3, 4] {
                let panels = &panels(&mut random, scheme, cols, 5);
                let x = Rows::new(&mut random, all_rows, planes, [scheme.block, 512]);
                let rows: Vec<u32> = (0..rows).map(|i| (i * 7 % all_rows) as u32).collect();
                let of = Run { panels, first: 1, count, in_turn: count == 3, x: x.rows(), rows: &rows };
                let mut want: Option<Vec<Sums>> = None;
                for simd in testing::every_simd() {
                    let mut got = vec![[f32::NAN; PANEL_ROWS]; count * rows.len()];
                    run(simd, of, &mut Codes::boxed(), &mut got);
                    let (want, isa) = (want.get_or_insert(got.clone()), simd.isa());
                    assert_eq!(got, *want, "{format}, {planes} planes, {} rows, {cols} columns at {isa}", rows.len());
                }
            }
        }
    }
}

/// Groups of rows of one chunk.
#[cfg(target_arch = "x86_64")]
enum Groups {
    Small(Vec<groups::SmallRows>),
    Large(Vec<groups::LargeRows>),
}

/// Products of panels with groups of rows, of each record in turn, against the portable kernels. product: `(panels,
/// record, its groups, rows in all groups, sums [panel][group])`
#[cfg(target_arch = "x86_64")]
fn check_groups(
    seed: u64,
    for_tiles: bool,
    mut product: impl FnMut(&Panels, usize, &Groups, usize, &mut [Vec<TileSums>]),
) {
    let mut random = Random::new(seed);
    let (all_rows, stride) = (70, 512);
    let portable = testing::every_simd()[0];
    for format in Format::ALL {
        let Some(scheme) = scheme(format) else { continue };
        for (planes, count, cols) in [(1, 1, 512), (2, 16, 32), (1, 17, 352), (2, 33, 256), (1, 69, 512), (1, 48, 480)]
        {
            let cols: usize = if scheme.block == CHUNK { CHUNK * (cols / CHUNK).max(1) } else { cols };
            let panels = &panels(&mut random, scheme, cols, 2);
            let x = Rows::new(&mut random, all_rows, planes, [scheme.block, stride]);
            let rows: Vec<u32> = (0..count).map(|i| (i * 13 % all_rows) as u32).collect();
            let mut got = vec![vec![TileSums([[f32::NAN; 16]; 16]); rows.chunks(16).len()]; 2];
            for chunk in 0..panels.records() {
                let mut groups = match scheme.block {
                    CHUNK => Groups::Large(vec![]),
                    _ => Groups::Small(vec![]),
                };
                for (rows, plane) in rows.chunks(16).flat_map(|rows| (0..planes).map(move |plane| (rows, plane))) {
                    let of = ChunkOf { x: x.rows(), plane, chunk, for_tiles };
                    match &mut groups {
                        Groups::Large(groups) => {
                            groups.push(LargeRows::ZERO);
                            groups.last_mut().unwrap().arrange(of, rows);
                        }
                        Groups::Small(groups) => {
                            groups.push(SmallRows::ZERO);
                            groups.last_mut().unwrap().arrange(of, rows);
                        }
                    }
                }
                product(panels, chunk, &groups, rows.len(), &mut got);
            }
            for (panel, got) in got.iter().enumerate() {
                let mut want = vec![[0.0; PANEL_ROWS]; count];
                let run_of = Run { panels, first: panel, count: 1, in_turn: true, x: x.rows(), rows: &rows };
                run(portable, run_of, &mut Codes::boxed(), &mut want);
                for (i, want) in want.iter().enumerate() {
                    let got = got[i / 16].0[i % 16];
                    assert_eq!(got, *want, "{format}, {planes} planes, row {i} of {count}, {cols} columns");
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn tiles_have_the_same_bits() {
    use amx::{Next, TileScratch, Tiles};
    if !Isa::Amx.available() {
        return println!("tiles are not tested: this machine lacks AMX");
    }
    let scratch = &mut TileScratch::boxed();
    let next = Next { records: [std::ptr::null(); 2], lines: 0 };
    let mut together = false;
    check_groups(5, true, |panels, chunk, groups, _, sums| {
        let mut run = |records: &[_], sums: &mut [TileSums]| {
            // SAFETY: AMX is available, and AVX-512 with it; no other tiles live here.
            unsafe {
                let tiles = &Tiles::new(panels.scheme.block);
                match groups {
                    Groups::Large(groups) => amx::large_chunk(tiles, records, groups, next, scratch, sums),
                    Groups::Small(groups) => amx::small_chunk(tiles, records, groups, next, scratch, sums),
                }
            }
        };
        // By turns both panels at once, and one after the other.
        together = !together;
        let records = [0, 1].map(|panel| panels.record(panel, chunk));
        if together {
            let mut both = sums.concat();
            run(&records, &mut both);
            sums.iter_mut().zip(both.chunks(both.len() / 2)).for_each(|(sums, both)| sums.copy_from_slice(both));
        } else {
            sums.iter_mut().zip(records).for_each(|(sums, record)| run(&[record], sums));
        }
    });
}

#[cfg(target_arch = "x86_64")]
#[test]
fn twins_have_the_same_bits() {
    if !Isa::Avx512.available() {
        return println!("two panels at once are not tested: this machine lacks AVX-512");
    }
    let twins = &mut twins::Twins::boxed();
    check_groups(7, false, |panels, chunk, groups, rows, sums| {
        let [first, second] = sums else { panic!("two panels") };
        // SAFETY: AVX-512 is available.
        unsafe {
            twins.fill([0, 1].map(|panel| panels.record(panel, chunk)));
            for (i, sums) in first.iter_mut().zip(second).enumerate() {
                let (count, fresh, sums) = ((rows - i * 16).min(16), chunk == 0, [sums.0, sums.1]);
                match groups {
                    Groups::Large(groups) => {
                        let planes = groups.len() / rows.div_ceil(16);
                        twins.multiply_large(&groups[i * planes..][..planes], count, fresh, sums);
                    }
                    Groups::Small(groups) => {
                        let planes = groups.len() / rows.div_ceil(16);
                        twins.multiply_small(&groups[i * planes..][..planes], count, fresh, sums);
                    }
                }
            }
        }
    });
}

#[test]
fn dots_have_the_same_bits_everywhere() {
    let (all_rows, x_stride, w_stride) = (9, 64, 48);
    let (w, x) = (testing::normal(3, FLOAT_ROWS * w_stride), testing::normal(4, all_rows * x_stride));
    for (count, len, start) in [(1, 16, 0), (2, 48, 16), (3, 32, 32), (4, 48, 0), (9, 48, 16)] {
        let rows: Vec<u32> = (0..count).map(|i| (i * 5 % all_rows) as u32).collect();
        let dots_of = Dots { w: &w, w_stride, x: &x, x_stride, start, len, rows: &rows };
        let before = vec![[[0.25; LANES]; FLOAT_ROWS]; count];
        let mut want = before.clone();
        portable::dots(dots_of, &mut want);
        for simd in testing::every_simd() {
            let mut got = before.clone();
            dots(simd, dots_of, &mut got);
            assert_eq!(got, want, "{count} rows, {len} values at {}", simd.isa());
        }
    }
}

#[test]
#[should_panic(expected = "assertion failed")]
fn rows_beyond_the_activations_are_refused() {
    let simd = testing::every_simd()[0];
    let x = vec![0.0; 32];
    let dots_of = Dots { w: &[0.0; 128], w_stride: 16, x: &x, x_stride: 16, start: 0, len: 16, rows: &[2] };
    dots(simd, dots_of, &mut [[[0.0; LANES]; FLOAT_ROWS]]);
}
