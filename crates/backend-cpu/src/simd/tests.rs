//! Every instruction set's kernels against the portable ones, bit for bit.

use super::*;
use crate::testing::{self, Random, Zeros};

const SCHEMES: [Scheme; 8] = [
    Scheme { group: 32, offset: 128, mins: false },
    Scheme { group: 32, offset: 8, mins: false },
    Scheme { group: 32, offset: 16, mins: false },
    Scheme { group: 32, offset: 0, mins: true },
    Scheme { group: 16, offset: 0, mins: true },
    Scheme { group: 16, offset: 4, mins: false },
    Scheme { group: 16, offset: 32, mins: false },
    Scheme { group: 32, offset: 0, mins: false },
];

fn panel(random: &mut Random, most: u8) -> Box<Panel> {
    let mut panel = Panel::zeros();
    panel
        .q
        .as_flattened_mut()
        .as_flattened_mut()
        .iter_mut()
        .for_each(|q| *q = (random.next() % (u64::from(most) + 1)) as u8);
    panel.d.as_flattened_mut().iter_mut().for_each(|d| *d = random.unit() - 0.5);
    panel.m.as_flattened_mut().iter_mut().for_each(|m| *m = random.unit() - 0.5);
    panel
}

#[test]
fn tiles_have_the_same_bits_everywhere() {
    let mut random = Random::new(1);
    let (all_rows, cols) = (15, 512);
    // The extremes, where 16-bit sums would overflow, come in whole rows.
    let q: Vec<i8> = (0..all_rows * cols)
        .map(|i| match i / cols {
            0 => 127,
            1 => -127,
            _ => (random.next() % 255) as i16 as i8,
        })
        .map(|q| q.max(-127))
        .collect();
    // The second plane has its extremes in the same rows.
    let r: Vec<i8> =
        (0..q.len()).map(|i| if i / cols < 2 { q[i] } else { (random.next() % 255) as u8 as i8 }.max(-127)).collect();
    let d: Vec<f32> = (0..q.len() / 32).map(|_| random.unit()).collect();
    let v: Vec<i32> = q.iter().zip(&r).map(|(&q, &r)| X_STEP * i32::from(q) + i32::from(r)).collect();
    let sums: Vec<i32> = v.chunks(16).map(|v| v.iter().sum()).collect();
    let x = QuantRows { cols, q: &q, r: &r, d: &d, sums: &sums };
    for scheme in SCHEMES {
        let most = if scheme.offset == 128 { 255 } else { 127 };
        let mut panel = panel(&mut random, most);
        panel.q[3] = [[most; 4]; PANEL_ROWS];
        panel.q[4] = [[0; 4]; PANEL_ROWS];
        for (count, len) in [(1, 256), (2, 32), (3, 96), (4, 256), (7, 256), (15, 224)] {
            let rows: Vec<u32> = (0..count).map(|i| (i * 7 % all_rows) as u32).collect();
            let tile_of = Tile { scheme, panel: &panel, x, start: 256, len, rows: &rows };
            let before: Vec<[f32; 16]> = (0..count).map(|_| std::array::from_fn(|_| random.unit())).collect();
            let mut want = before.clone();
            portable::tile(tile_of, &mut want);
            for simd in testing::every_simd() {
                let mut got = before.clone();
                tile(simd, tile_of, &mut got);
                assert_eq!(got, want, "{scheme:?}, {count} rows, {len} values at {}", simd.isa());
            }
        }
    }
}

#[test]
fn panels_are_interleaved_the_same_everywhere() {
    let mut random = Random::new(2);
    let mut unpacked = Unpacked::zeros();
    unpacked.q.as_flattened_mut().iter_mut().for_each(|q| *q = random.next() as u8);
    unpacked.d.as_flattened_mut().iter_mut().for_each(|d| *d = random.unit());
    unpacked.m.as_flattened_mut().iter_mut().for_each(|m| *m = random.unit());
    let mut want = Panel::zeros();
    portable::interleave(&unpacked, &mut want);
    assert_eq!(want.q[5][7][2], unpacked.q[7][22]);
    for simd in testing::every_simd() {
        let mut got = Panel::zeros();
        interleave(simd, &unpacked, &mut got);
        assert!(got.q == want.q && got.d == want.d && got.m == want.m, "{}", simd.isa());
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
