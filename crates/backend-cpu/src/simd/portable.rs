//! The hand-written kernels in plain Rust: the definition of their bits.

use super::{CHUNK, Codes, Dots, FLOAT_ROWS, LANES, LaneSums, OCTET, PANEL_ROWS, Run, Sums, pair_place};
use crate::panels::Record;

pub(super) fn record(run: Run<'_>, record: Record<'_>, codes: &Codes, sums: &mut [Sums]) {
    let (Run { x, rows, .. }, Record { scheme, octets, start, .. }) = (run, record);
    let offset = i32::from(scheme.offset);
    for (&row, acc) in rows.iter().zip(sums) {
        for block in 0..octets * OCTET / scheme.block {
            for x in x.chunk(start / CHUNK, row as usize) {
                let at = block * scheme.block;
                let (mut i, mut j) = ([0; PANEL_ROWS], [0; PANEL_ROWS]);
                for group in 0..scheme.block / scheme.group {
                    let v = &x.v[at + group * scheme.group..][..scheme.group];
                    let sum: i32 = v.iter().map(|&v| i32::from(v)).sum();
                    let first = (block * scheme.block + group * scheme.group) / 4;
                    for lane in 0..PANEL_ROWS {
                        let line = |four: usize| &codes.c[first + four][lane * 4..][..4];
                        let products = v.as_chunks::<4>().0.iter().enumerate().map(|(four, v)| {
                            line(four).iter().zip(v).map(|(c, v)| (i32::from(*c) - offset) * i32::from(*v)).sum::<i32>()
                        });
                        let place = pair_place(group);
                        let (s, m) = match scheme.block {
                            CHUNK => (codes.s[group][lane], i32::from(codes.m[place / 2][lane][place % 2])),
                            _ => (1, 1),
                        };
                        i[lane] += s * products.sum::<i32>();
                        j[lane] += m * sum;
                    }
                }
                for lane in 0..PANEL_ROWS {
                    let mut t = codes.d[block][lane] * i[lane] as f32;
                    if scheme.mins {
                        t = codes.min[block][lane].mul_add(j[lane] as f32, t);
                    }
                    acc[lane] = x.d[block].mul_add(t, acc[lane]);
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
