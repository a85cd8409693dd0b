//! What adapters add to linear layers, plainly.

use candle_core::{Device, Result as CandleResult, Tensor};
use lingqu_backend::{AdaptedFfn, AdaptedRows, FfnWeights, LowRank, LowRankSource, RANK_MAX, Result, View, ViewMut};

use crate::ffn::Ffn;
use crate::memory::{self, expect_rows};
use crate::upload::{bytes, matrix};
use crate::{device, dots, flat};

/// One source, as f32.
struct Change {
    offset: usize,
    /// `[rank, in]`
    a: Tensor,
    /// `[out, rank]`
    b: Tensor,
    scale: f32,
}

pub fn upload(sources: &[LowRankSource]) -> Result<LowRank> {
    let cols = sources.first().expect("at least one change").a.cols;
    let (mut changes, mut rank, mut rows, mut held) = (Vec::new(), 0, 0, 0);
    for LowRankSource { offset, a, b, scale } in sources {
        assert!(a.cols == cols && b.cols == a.rows && (1..=RANK_MAX).contains(&a.rows), "shape of '{}'", a.name);
        (rank, rows) = (a.rows.max(rank), rows.max(offset + b.rows));
        let (a, b) = (matrix(a)?, matrix(b)?);
        held += bytes(&[a.clone(), b.clone()]);
        changes.push(Change { offset: *offset, a, b, scale: *scale });
    }
    Ok(LowRank::new([rank, rows, cols], held, changes))
}

/// x `[rows, in]`, out `[rows, width]`
fn add(x: &Tensor, adapted: &[AdaptedRows<'_>], out: &mut [f32], width: usize) -> CandleResult<()> {
    for AdaptedRows { rows, change } in adapted {
        assert!(change.cols == x.dim(1)? && change.rows <= width, "shapes of a change");
        let x = x.index_select(&Tensor::new(*rows, &Device::Cpu)?, 0)?; // [adapted rows, in]
        for Change { offset, a, b, scale } in change.storage::<Vec<Change>>() {
            let inner = (dots(&x, a)? * f64::from(*scale))?; // [adapted rows, rank]
            for (row, y) in rows.iter().zip(dots(&inner, b)?.to_vec2::<f32>()?) {
                let out = &mut out[*row as usize * width + offset..][..y.len()];
                out.iter_mut().zip(y).for_each(|(out, y)| *out += y);
            }
        }
    }
    Ok(())
}

pub fn add_low_rank(x: View<'_>, adapted: &[AdaptedRows<'_>], out: ViewMut<'_>) -> Result<()> {
    expect_rows("add_low_rank", x.rows(), out.rows());
    let width = out.width();
    let mut values = vec![0.0; out.rows() * width];
    memory::read(memory::as_view(&out), &mut values);
    flat(x).and_then(|x| add(&x, adapted, &mut values, width)).map_err(device)?;
    memory::write_values(&values, out);
    Ok(())
}

pub fn ffn(x: View<'_>, weights: &FfnWeights, adapted: &[AdaptedFfn<'_>], out: ViewMut<'_>) -> Result<()> {
    expect_rows("ffn_adapted", x.rows(), out.rows());
    assert_eq!(x.width(), weights.hidden, "ffn_adapted: inputs");
    type Which = for<'a> fn(&AdaptedFfn<'a>) -> Option<&'a LowRank>;
    let of = |which: Which| -> Vec<AdaptedRows<'_>> {
        adapted.iter().filter_map(|a| Some(AdaptedRows { rows: a.rows, change: which(a)? })).collect()
    };
    let ([gate, up, down], rows) = (weights.storage::<Ffn>().matrices(), x.rows());
    let (hidden, intermediate) = (weights.hidden, weights.intermediate);
    let changed = |y: Tensor, x: &Tensor, adapted: &[AdaptedRows<'_>]| -> CandleResult<Tensor> {
        let width = y.dim(1)?;
        let mut values = y.flatten_all()?.to_vec1()?;
        add(x, adapted, &mut values, width)?;
        Tensor::from_vec(values, (rows, width), &Device::Cpu)
    };
    let apply = |x: Tensor| -> CandleResult<Tensor> {
        let both = Tensor::cat(&[dots(&x, gate)?, dots(&x, up)?], 1)?; // [rows, 2 * intermediate]
        let both = changed(both, &x, &of(|a| a.gate_up))?;
        let half = |i: usize| both.narrow(1, i * intermediate, intermediate)?.contiguous();
        let inner = (half(0)?.silu()? * half(1)?)?; // [rows, intermediate]
        changed(dots(&inner, down)?, &inner, &of(|a| a.down))
    };
    let y = flat(x).and_then(apply).map_err(device)?; // [rows, hidden]
    debug_assert_eq!(y.dims(), [rows, hidden]);
    memory::write("ffn_adapted", &y, out)
}
