//! Every instruction set's kernels against the portable ones, bit for bit.

use super::*;
use crate::testing::{self, Random};

const SCHEMES: [(Scheme, u8); 10] = [
    (Scheme { block: 32, group: 32, offset: 128, mins: false }, 255),
    (Scheme { block: 32, group: 32, offset: 8, mins: false }, 15),
    (Scheme { block: 32, group: 32, offset: 16, mins: false }, 31),
    (Scheme { block: 32, group: 32, offset: 0, mins: true }, 31),
    (Scheme { block: 256, group: 16, offset: 0, mins: true }, 3),
    (Scheme { block: 256, group: 32, offset: 0, mins: true }, 31),
    (Scheme { block: 256, group: 16, offset: 4, mins: false }, 7),
    (Scheme { block: 256, group: 16, offset: 32, mins: false }, 63),
    (Scheme { block: 256, group: 32, offset: 128, mins: false }, 241),
    (Scheme { block: 256, group: 32, offset: 0, mins: false }, 127),
];

/// Codes up to `most`, the extremes among them.
fn codes(random: &mut Random, scheme: Scheme, most: u8) -> Box<Codes> {
    let mut codes = Codes::boxed();
    codes.c.as_flattened_mut().iter_mut().for_each(|c| *c = (random.next() % (u64::from(most) + 1)) as u8);
    codes.c[3].fill(most);
    codes.c[4].fill(0);
    let most_s = if scheme.offset == 128 { 32 } else { 128 };
    for row in 0..PANEL_ROWS {
        for group in 0..CHUNK / scheme.group {
            let s = if row == 3 || row == 4 { -most_s } else { (random.next() % 255) as i16 % most_s };
            let m = if row == 3 { 63 } else { (random.next() % 64) as i16 };
            codes.s[row][group] = s;
            codes.m[group / 2][row][group % 2] = m;
        }
    }
    codes.d.as_flattened_mut().iter_mut().for_each(|d| *d = random.unit() - 0.5);
    codes.min.as_flattened_mut().iter_mut().for_each(|m| *m = random.unit() - 0.5);
    codes
}

/// Owns what [`QuantRows`] borrows.
struct Rows {
    block: usize,
    planes: usize,
    stride: usize,
    v: Vec<i8>,
    d: Vec<f32>,
    sums16: Vec<i16>,
    sums32: Vec<i16>,
}

impl Rows {
    fn new(random: &mut Random, rows: usize, planes: usize, [block, stride]: [usize; 2]) -> Self {
        // The extremes, where 16-bit sums would overflow, come in whole rows.
        let v: Vec<i8> = (0..rows * planes * stride)
            .map(|i| match i / (stride * planes) {
                0 => 127,
                1 => -127,
                _ => ((random.next() % 255) as i16 - 127) as i8,
            })
            .collect();
        let d = (0..v.len() / block).map(|_| random.unit()).collect();
        // Sums are in the order of the values, which large blocks are not.
        let place = |i: usize| match block {
            CHUNK => i / CHUNK * CHUNK + place_of(i % CHUNK / 16),
            _ => i,
        };
        let sum = |i: usize| v[place(i * 16)..][..16].iter().map(|&v| i16::from(v)).sum();
        let sums16: Vec<i16> = (0..v.len() / 16).map(sum).collect();
        let sums32 = sums16.as_chunks::<2>().0.iter().map(|[a, b]| a + b).collect();
        Self { block, planes, stride, v, d, sums16, sums32 }
    }

    fn rows(&self) -> QuantRows<'_> {
        let Self { block, planes, stride, ref v, ref d, ref sums16, ref sums32 } = *self;
        QuantRows { block, planes, stride, v, d, sums16, sums32 }
    }
}

#[test]
fn stretches_have_the_same_bits_everywhere() {
    let mut random = Random::new(1);
    let all_rows = 15;
    for (scheme, most) in SCHEMES {
        let codes = codes(&mut random, scheme, most);
        for (planes, count, len) in [(1, 1, 256), (2, 2, 32), (1, 3, 96), (2, 4, 256), (1, 7, 256), (2, 15, 224)] {
            let len = if scheme.block == CHUNK { CHUNK } else { len };
            let x = Rows::new(&mut random, all_rows, planes, [scheme.block, 512]);
            let rows: Vec<u32> = (0..count).map(|i| (i * 7 % all_rows) as u32).collect();
            let of = Stretch { scheme, codes: &codes, direct: None, x: x.rows(), start: 256, len, rows: &rows };
            let before: Vec<Sums> = (0..count).map(|_| [std::array::from_fn(|_| random.unit()); 2]).collect();
            let mut want = before.clone();
            portable::stretch(of, &mut want);
            for simd in testing::every_simd() {
                let mut got = before.clone();
                stretch(simd, of, &mut got);
                assert_eq!(got, want, "{scheme:?}, {planes} planes, {count} rows, {len} values at {}", simd.isa());
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn tiles_have_the_same_bits() {
    use amx::{TileScratch, TileStretch, Tiles};
    use columns::{Columns, Floats, Group, Line, SumPairs, TileSums, arrange};
    if !Isa::Amx.available() {
        return println!("tiles are not tested: this machine lacks AMX");
    }
    let mut random = Random::new(5);
    let (all_rows, stride) = (70, 512);
    for (scheme, most) in SCHEMES {
        let codes = codes(&mut random, scheme, most);
        for (planes, count, len) in [(1, 1, 256), (2, 16, 32), (1, 17, 96), (2, 33, 256), (1, 69, 256), (1, 48, 224)] {
            let len = if scheme.block == CHUNK { CHUNK } else { len };
            let x = Rows::new(&mut random, all_rows, planes, [scheme.block, stride]);
            let rows: Vec<u32> = (0..count).map(|i| (i * 13 % all_rows) as u32).collect();
            let of = Stretch { scheme, codes: &codes, direct: None, x: x.rows(), start: 256, len, rows: &rows };
            let mut want = vec![[[0.0; PANEL_ROWS]; 2]; count];
            portable::stretch(of, &mut want);

            let sixteens = rows.chunks(16).len();
            let groups = sixteens * planes;
            let (chunks, first) = (stride / CHUNK, 3); // three groups of others come before
            let all_groups = first + groups;
            let all = chunks * all_groups;
            let mut tiles = vec![Line([5; 64]); all * (CHUNK / 4)];
            let mut d = vec![Floats([5.0; 16]); all * (CHUNK / scheme.block)];
            let mut sums16 = vec![SumPairs([[5; 2]; 16]); all * (CHUNK / 32)];
            let mut sums32 = vec![SumPairs([[5; 2]; 16]); all * (CHUNK / 64)];
            for (i, rows) in rows.chunks(16).enumerate() {
                for (plane, chunk) in (0..planes).flat_map(|p| (0..chunks).map(move |c| (p, c))) {
                    let at = chunk * all_groups + first + i * planes + plane;
                    let part = |per_group: usize| at * per_group..(at + 1) * per_group;
                    let group = Group {
                        tiles: &mut tiles[part(CHUNK / 4)],
                        d: &mut d[part(CHUNK / scheme.block)],
                        sums16: &mut sums16[part(CHUNK / 32)],
                        sums32: &mut sums32[part(CHUNK / 64)],
                    };
                    // SAFETY: AMX is available, and AVX-512 with it.
                    unsafe { arrange(x.rows(), rows, [plane, chunk], group) };
                }
            }
            let (tiles, d, sums16, sums32) = (&tiles[..], &d[..], &sums16[..], &sums32[..]);
            let columns = Columns { tiles, d, sums16, sums32, all_groups, first, groups, block: scheme.block, planes };
            let mut got = [vec![TileSums::ZERO; sixteens], vec![TileSums::ZERO; sixteens]];
            let [even, odd] = &mut got;
            // SAFETY: as above; no other tiles live here.
            unsafe {
                let stretch = TileStretch { scheme, codes: &codes, direct: None, columns, start: 256, len };
                amx::stretch(&Tiles::new(scheme.block), stretch, &mut TileScratch::boxed(), [even, odd]);
            }
            for (i, want) in want.iter().enumerate() {
                for (parity, want) in want.iter().enumerate() {
                    let got: [f32; 16] = std::array::from_fn(|lane| got[parity][i / 16].0[lane][i % 16]);
                    assert_eq!(got, *want, "{scheme:?}, {planes} planes, row {i} of {count}, {len} values");
                }
            }
        }
    }
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
