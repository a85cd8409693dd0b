//! The product of matrices, row times row, in one fixed order of additions.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// `out[i, j] = x[i] . w[j]`, so `x W^T`. x `[n, k]`, w `[m, k]`, out `[n, m]`
///
/// The bits of `out[i, j]` depend on `x[i]` and `w[j]` alone. Values lie side by side along k.
pub fn dots(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.apply_op2_no_bwd(w, &Dots)
}

struct Dots;

impl CustomOp2 for Dots {
    fn name(&self) -> &'static str {
        "dots"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(x), CpuStorage::F32(w)) = (x, w) else { bail!("dots works on f32") };
        let ((n, k), (m, w_k)) = (xl.shape().dims2()?, wl.shape().dims2()?);
        if k != w_k || (k > 1 && (xl.stride()[1] != 1 || wl.stride()[1] != 1)) {
            bail!("dots of {xl:?} and {wl:?}");
        }
        let mut out = vec![0.0; n * m];
        for j in 0..m {
            let w = &w[wl.start_offset() + j * wl.stride()[0]..][..k];
            for i in 0..n {
                out[i * m + j] = dot(&x[xl.start_offset() + i * xl.stride()[0]..][..k], w);
            }
        }
        Ok((CpuStorage::F32(out), (n, m).into()))
    }
}

/// Eight interleaved sums in f64 (in which a product of two f32 is exact), then their sum in order, then the rest.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0f64; 8];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(*a) * f64::from(*b));
    sums.into_iter().chain(rest).sum::<f64>() as f32
}
