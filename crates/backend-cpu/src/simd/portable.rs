//! The hand-written kernels in plain Rust: the definition of their bits.

use super::{Dots, FLOAT_ROWS, LANES, LaneSums, PANEL_ROWS, Panel, Tile, Unpacked, X_GROUP, X_STEP};

pub(super) fn tile(tile: Tile<'_>, sums: &mut [[f32; PANEL_ROWS]]) {
    let Tile { scheme, panel, x, start, len, rows } = tile;
    for (&row, acc) in rows.iter().zip(sums) {
        let row = row as usize;
        for at in (0..len).step_by(scheme.group) {
            let group = at / scheme.group;
            let x_at = row * x.cols + start + at;
            let d = x.d[x_at / X_GROUP];
            let sum: i32 = x.sums[x_at / 16..][..scheme.group / 16].iter().sum();
            let mut dot = [-i32::from(scheme.offset) * sum; PANEL_ROWS];
            for quad in 0..scheme.group / 4 {
                let value = |i: usize| X_STEP * i32::from(x.q[i]) + i32::from(x.r[i]);
                let x: [i32; 4] = std::array::from_fn(|k| value(x_at + quad * 4 + k));
                for (dot, q) in dot.iter_mut().zip(&panel.q[at / 4 + quad]) {
                    *dot += (0..4).map(|k| i32::from(q[k]) * x[k]).sum::<i32>();
                }
            }
            for lane in 0..PANEL_ROWS {
                acc[lane] = (panel.d[group][lane] * d).mul_add(dot[lane] as f32, acc[lane]);
                if scheme.mins {
                    acc[lane] = panel.m[group][lane].mul_add(d * sum as f32, acc[lane]);
                }
            }
        }
    }
}

pub(super) fn interleave(unpacked: &Unpacked, panel: &mut Panel) {
    for row in 0..PANEL_ROWS {
        for (quad, q) in unpacked.q[row].as_chunks::<4>().0.iter().enumerate() {
            panel.q[quad][row] = *q;
        }
        for group in 0..16 {
            panel.d[group][row] = unpacked.d[row][group];
            panel.m[group][row] = unpacked.m[row][group];
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
