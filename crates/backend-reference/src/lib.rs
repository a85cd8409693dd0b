//! Every op plainly, on candle tensors in f32: the oracle that the other backends are checked against.
//!
//! Knows no speed and no quantised arithmetic: every weight is decoded to f32 when it is uploaded, so a model takes
//! four bytes a weight here. Start with the `impl Backend` below: an op reads its views as tensors, computes its
//! formula with candle, and writes the result back. [`memory`] has the views, [`dots`] the one product of matrices,
//! [`attention`] the paged cache, [`routing`] the experts.
//!
//! Reproducible by construction: every op but the matrix product works value by value or along one row, and the matrix
//! product ([`dots`]) adds in an order of its own, since candle's chooses its kernel by the number of rows.

mod attention;
mod dots;
mod ffn;
mod low_rank;
mod memory;
mod routing;
mod upload;

use candle_core::{D, Tensor};
use lingqu_backend::{
    AdaptedFfn, AdaptedRows, AttentionSpec, Backend, BackendError, Buffer, Capabilities, ExpertWeights, FfnSource,
    FfnWeights, HostRouting, KvSpec, KvStore, LinearSource, LowRank, LowRankSource, Result, RopePairing, RouteSpec,
    Routing, Step, View, ViewMut, Weight,
};
use lingqu_tensor::{Format, HostTensor};
use lingqu_types::{Batch, BlockId};

use dots::dots;
use memory::{StepData, expect_rows, tensor, tensor_of_out, write};
use upload::{Matrices, Table};

/// The reference. It has no state: weights, buffers and caches live in their handles.
pub struct ReferenceBackend {
    capabilities: Capabilities,
}

impl ReferenceBackend {
    pub fn new() -> Self {
        let name = "reference (candle, f32)".to_owned();
        let capabilities =
            Capabilities { name, weight_formats: Format::ALL.to_vec(), host_memory: true, checks_numbers: false };
        Self { capabilities }
    }
}

impl Default for ReferenceBackend {
    fn default() -> Self {
        Self::new()
    }
}

/// A failure inside candle: memory or the device, since shapes are asserted before.
fn device(error: candle_core::Error) -> BackendError {
    BackendError::Device { backend: "reference".into(), problem: error.to_string() }
}

impl Backend for ReferenceBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn alloc(&self, rows_max: usize, cols: usize) -> Result<Buffer> {
        let values = memory::zeroed("a buffer", &[rows_max, cols])?;
        Ok(Buffer::new(rows_max, cols, values))
    }

    fn alloc_routing(&self, rows_max: usize, top_k: usize) -> Result<Routing> {
        memory::zeroed("a routing", &[rows_max, top_k])?;
        let empty = HostRouting { top_k, ..HostRouting::default() };
        Ok(Routing::new(rows_max, top_k, empty))
    }

    fn alloc_kv(&self, spec: &KvSpec) -> Result<KvStore> {
        attention::alloc(spec)
    }

    fn kv_copy(&self, kv: &mut KvStore, pairs: &[(BlockId, BlockId)]) -> Result<()> {
        attention::copy_blocks(kv, pairs);
        Ok(())
    }

    fn read(&self, x: View<'_>, out: &mut [f32]) -> Result<()> {
        assert_eq!(out.len(), x.rows() * x.width(), "read: values");
        memory::read(x, out);
        Ok(())
    }

    fn write(&self, values: &[f32], out: ViewMut<'_>) -> Result<()> {
        assert_eq!(values.len(), out.rows() * out.width(), "write: values");
        memory::write_values(values, out);
        Ok(())
    }

    fn read_routing(&self, routing: &Routing) -> Result<HostRouting> {
        Ok(routing::used(routing))
    }

    fn write_routing(&self, routing: &HostRouting, out: &mut Routing) -> Result<()> {
        routing::store(routing.clone(), out);
        Ok(())
    }

    fn upload_table(&self, tensor: &HostTensor) -> Result<Weight> {
        upload::table(tensor)
    }

    fn upload_embedding(&self, tensor: &HostTensor) -> Result<Weight> {
        upload::table(tensor)
    }

    fn upload_linear(&self, source: LinearSource<'_>) -> Result<Weight> {
        upload::linear(source)
    }

    fn upload_heads(&self, heads: &[HostTensor]) -> Result<Weight> {
        upload::heads(heads)
    }

    fn upload_ffn(&self, source: &FfnSource) -> Result<FfnWeights> {
        let ffn = ffn::upload(source)?;
        let shape = [ffn.hidden(), ffn.intermediate()];
        Ok(FfnWeights::new(shape, ffn.bytes(), ffn))
    }

    fn upload_experts(&self, experts: &[FfnSource]) -> Result<ExpertWeights> {
        ffn::upload_experts(experts)
    }

    fn upload_low_rank(&self, sources: &[LowRankSource]) -> Result<LowRank> {
        low_rank::upload(sources)
    }

    fn begin_step(&self, batch: &Batch, block_tokens: usize) -> Result<Step> {
        if let Err(problem) = batch.validate(block_tokens) {
            panic!("begin_step: {problem}");
        }
        let data = StepData { positions: batch.positions(), batch: batch.clone(), block_tokens };
        Ok(Step::new(batch.rows(), batch.logit_rows.len(), data))
    }

    fn embed(&self, step: &Step, table: &Weight, out: ViewMut<'_>) -> Result<()> {
        expect_rows("embed", step.rows(), out.rows());
        let ids = &step.storage::<StepData>().batch.tokens;
        let y = table.storage::<Table>().rows(ids).map_err(device)?; // [rows, hidden]
        write("embed", &y, out)
    }

    fn rms_norm(&self, x: View<'_>, weight: &Weight, eps: f32, out: ViewMut<'_>) -> Result<()> {
        expect_rows("rms_norm", x.rows(), out.rows());
        assert_eq!(x.len, weight.cols, "rms_norm: values of a head");
        let normalise = |x: Tensor, weight: &Tensor| {
            let mean = x.sqr()?.mean_keepdim(D::Minus1)?; // [rows, heads, 1]
            x.broadcast_div(&(mean + f64::from(eps))?.sqrt()?)?.broadcast_mul(weight)
        };
        let weight = &weight.storage::<Table>().0; // [1, len]
        let y = tensor(x).and_then(|x| normalise(x, weight)).map_err(device)?;
        write("rms_norm", &y, out)
    }

    fn linear(&self, x: View<'_>, weight: &Weight, out: ViewMut<'_>) -> Result<()> {
        expect_rows("linear", x.rows(), out.rows());
        assert_eq!((weight.heads, weight.cols), (1, x.width()), "linear: heads and inputs");
        let y = flat(x).and_then(|x| weight.storage::<Matrices>().apply(0, &x)).map_err(device)?; // [rows, out]
        write("linear", &y, out)
    }

    fn linear_heads(&self, x: View<'_>, weight: &Weight, out: ViewMut<'_>) -> Result<()> {
        expect_rows("linear_heads", x.rows(), out.rows());
        assert_eq!((weight.heads, weight.cols), (x.heads, x.len), "linear_heads: heads and inputs");
        assert_eq!((weight.heads, weight.rows), (out.heads, out.len), "linear_heads: heads and outputs");
        let heads = weight.storage::<Matrices>();
        let each = |x: Tensor| {
            let y: candle_core::Result<Vec<Tensor>> =
                (0..weight.heads).map(|h| heads.apply(h, &x.narrow(1, h, 1)?.squeeze(1)?.contiguous()?)).collect();
            Tensor::stack(&y?, 1)
        };
        let y = tensor(x).and_then(each).map_err(device)?; // [rows, heads, out]
        write("linear_heads", &y, out)
    }

    fn rope(&self, step: &Step, x: View<'_>, table: &Weight, pairing: RopePairing, out: ViewMut<'_>) -> Result<()> {
        expect_rows("rope", step.rows(), x.rows());
        expect_rows("rope", x.rows(), out.rows());
        assert_eq!((x.heads, x.len), (out.heads, out.len), "rope: heads and dimensions");
        assert!(x.len == table.cols && x.len.is_multiple_of(2), "rope: {} dimensions, table {}", x.len, table.cols);
        let half = x.len / 2;
        let rotate = |x: Tensor, angles: Tensor| {
            let cos = angles.narrow(1, 0, half)?.unsqueeze(1)?; // [rows, 1, dim / 2]
            let sin = angles.narrow(1, half, half)?.unsqueeze(1)?;
            let (rows, heads, dim) = x.dims3()?;
            // Pairs last but one (`Half`) or last (`Interleaved`); a, b: [rows, heads, dim / 2].
            let (shape, pair_dim) = match pairing {
                RopePairing::Half => ((rows, heads, 2, half), 2),
                RopePairing::Interleaved => ((rows, heads, half, 2), 3),
            };
            let pairs = x.reshape(shape)?;
            let a = pairs.narrow(pair_dim, 0, 1)?.squeeze(pair_dim)?;
            let b = pairs.narrow(pair_dim, 1, 1)?.squeeze(pair_dim)?;
            let turned_a = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let turned_b = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
            Tensor::stack(&[turned_a, turned_b], pair_dim)?.reshape((rows, heads, dim))
        };
        let angles = table.storage::<Table>().rows(&step.storage::<StepData>().positions); // [rows, dim]
        let y = tensor(x).and_then(|x| rotate(x, angles?)).map_err(device)?;
        write("rope", &y, out)
    }

    fn kv_append(&self, step: &Step, kv: &mut KvStore, layer: usize, k: View<'_>, v: Option<View<'_>>) -> Result<()> {
        attention::append(step, kv, layer, k, v);
        Ok(())
    }

    fn attention(&self, step: &Step, q: View<'_>, kv: &KvStore, spec: AttentionSpec, out: ViewMut<'_>) -> Result<()> {
        attention::attend(step, q, kv, spec, out)
    }

    fn ffn(&self, x: View<'_>, weights: &FfnWeights, out: ViewMut<'_>) -> Result<()> {
        expect_rows("ffn", x.rows(), out.rows());
        assert_eq!(x.width(), weights.hidden, "ffn: inputs");
        let y = flat(x).and_then(|x| weights.storage::<ffn::Ffn>().apply(&x)).map_err(device)?; // [rows, hidden]
        write("ffn", &y, out)
    }

    fn add_low_rank(&self, x: View<'_>, adapted: &[AdaptedRows<'_>], out: ViewMut<'_>) -> Result<()> {
        low_rank::add_low_rank(x, adapted, out)
    }

    fn ffn_adapted(
        &self,
        x: View<'_>,
        weights: &FfnWeights,
        adapted: &[AdaptedFfn<'_>],
        out: ViewMut<'_>,
    ) -> Result<()> {
        low_rank::ffn(x, weights, adapted, out)
    }

    fn route(&self, logits: View<'_>, bias: Option<&Weight>, spec: &RouteSpec, out: &mut Routing) -> Result<()> {
        assert_eq!(logits.width(), spec.experts, "route: experts");
        assert_eq!(out.top_k(), spec.top_k, "route: top_k");
        expect_rows("route", logits.rows(), out.rows());
        let bias = match bias {
            Some(bias) => Some(bias.storage::<Table>().values().map_err(device)?),
            None => None,
        };
        let mut values = vec![0.0; logits.rows() * spec.experts];
        memory::read(logits, &mut values);
        routing::store(routing::choose(&values, bias.as_deref(), spec), out);
        Ok(())
    }

    fn experts(&self, x: View<'_>, routing: &Routing, weights: &ExpertWeights, out: ViewMut<'_>) -> Result<()> {
        expect_rows("experts", x.rows(), out.rows());
        expect_rows("experts", x.rows(), routing.rows());
        assert_eq!(x.width(), weights.hidden, "experts: inputs");
        let routing = routing::used(routing);
        let y = flat(x)
            .and_then(|x| ffn::by_expert(&x, &routing, weights.storage::<Vec<ffn::Ffn>>())) // [rows, top_k, hidden]
            .and_then(|y| routing::weighted_sum(&y, &routing))
            .map_err(device)?; // [rows, hidden]
        write("experts", &y, out)
    }

    fn combine(&self, y: View<'_>, routing: &Routing, out: ViewMut<'_>) -> Result<()> {
        expect_rows("combine", routing.rows(), out.rows());
        expect_rows("combine", routing.rows() * routing.top_k(), y.rows());
        let (routing, hidden) = (routing::used(routing), y.width());
        let rows = routing.weights.len() / routing.top_k;
        let sum = flat(y)
            .and_then(|y| y.reshape((rows, routing.top_k, hidden)))
            .and_then(|y| routing::weighted_sum(&y, &routing))
            .map_err(device)?; // [rows, hidden]
        write("combine", &sum, out)
    }

    fn add(&self, x: View<'_>, out: ViewMut<'_>) -> Result<()> {
        expect_rows("add", x.rows(), out.rows());
        let sum = flat(x).and_then(|x| tensor_of_out(&out)?.flatten_from(1)? + x).map_err(device)?; // [rows, cols]
        write("add", &sum, out)
    }

    fn gather_logit_rows(&self, step: &Step, x: View<'_>, out: ViewMut<'_>) -> Result<()> {
        expect_rows("gather_logit_rows", step.rows(), x.rows());
        expect_rows("gather_logit_rows", step.logit_rows(), out.rows());
        let rows = Table(flat(x).map_err(device)?).rows(&step.storage::<StepData>().batch.logit_rows);
        write("gather_logit_rows", &rows.map_err(device)?, out) // [logit_rows, cols]
    }
}

/// A view as `[rows, heads * len]`.
fn flat(x: View<'_>) -> candle_core::Result<Tensor> {
    tensor(x)?.flatten_from(1)
}
