//! The hand-written kernels in plain Rust: the definition of their bits.

use super::{CHUNK, Dots, FLOAT_ROWS, LANES, LaneSums, PANEL_ROWS, Stretch, Sums, place_of};

pub(super) fn stretch(stretch: Stretch<'_>, sums: &mut [Sums]) {
    let Stretch { scheme, codes, x, start, len, rows, .. } = stretch;
    let offset = i32::from(scheme.offset);
    for (&row, acc) in rows.iter().zip(sums) {
        for (block, at) in (0..len).step_by(scheme.block).enumerate() {
            for plane in 0..x.planes {
                let vector = row as usize * x.planes + plane;
                let v = &x.v[vector * x.stride + start + at..][..scheme.block];
                let d = x.d[(vector * x.stride + start + at) / scheme.block];
                for lane in 0..PANEL_ROWS {
                    let (c, acc) = (&codes.c[lane][at..at + scheme.block], &mut acc[block % 2][lane]);
                    let (mut dot, mut of_min) = (0, 0);
                    for (i, c) in c.as_chunks::<16>().0.iter().enumerate() {
                        let (group, place) = match scheme.block {
                            CHUNK => (i * 16 / scheme.group, place_of(i)),
                            _ => (0, i * 16),
                        };
                        let v = &v[place..place + 16];
                        let product: i32 = (0..16).map(|i| (i32::from(c[i]) - offset) * i32::from(v[i])).sum();
                        let sum: i32 = v.iter().map(|&v| i32::from(v)).sum();
                        let (s, m) = match scheme.block {
                            CHUNK => (i32::from(codes.s[lane][group]), i32::from(codes.m[group / 2][lane][group % 2])),
                            _ => (1, 1),
                        };
                        dot += s * product;
                        of_min += m * sum;
                    }
                    *acc = (codes.d[block][lane] * d).mul_add(dot as f32, *acc);
                    if scheme.mins {
                        *acc = (codes.min[block][lane] * d).mul_add(of_min as f32, *acc);
                    }
                }
            }
        }
    }
}

pub(super) fn dots(dots: Dots<'_>, sums: &mut [LaneSums]) {
    let Dots { w, w_stride, x, x_stride, start, len, rows } = dots;
    for (&row, sums) in rows.iter().zip(sums) {
        let x = &x[row as usize * x_stride + start..][..len];
        for i in 0..FLOAT_ROWS {
            let w = &w[i * w_stride..][..len];
            for (w, x) in w.as_chunks::<LANES>().0.iter().zip(x.as_chunks::<LANES>().0) {
                for lane in 0..LANES {
                    sums[i][lane] = w[lane].mul_add(x[lane], sums[i][lane]);
                }
            }
        }
    }
}
