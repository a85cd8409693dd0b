//! The reference with one fault.

use std::sync::atomic::{AtomicU32, Ordering};

use lingqu_backend::{
    AdaptedFfn, AdaptedRows, AttentionSpec, Backend, Buffer, Capabilities, ExpertWeights, FfnSource, FfnWeights,
    HostRouting, KvSpec, KvStore, LinearSource, LowRank, LowRankSource, Result, RopePairing, RouteSpec, Routing, Step,
    View, ViewMut, Weight,
};
use lingqu_backend_reference::ReferenceBackend;
use lingqu_tensor::{Format, HostTensor};
use lingqu_types::{Batch, BlockId};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    RmsNormForgetsEps,
    /// A kernel that forgets the tail of a row.
    LinearDropsOneInput,
    /// Another kernel, that rounds otherwise, from four rows on.
    LinearDependsOnRows,
    /// A race.
    LinearChangesByCall,
    RopePairsWrongly,
    AddWritesBeside,
    /// The causal mask is off by one within a chunk.
    AttentionLooksAhead,
    /// Splits that depend on how many rows the chunk has.
    AttentionDependsOnChunk,
    FfnSwapsGateAndUp,
    /// A kernel that forgets the tail of the intermediate values.
    FfnDropsOneValue,
    RouteIgnoresBias,
    /// Sums over slots that are not those of `combine`.
    ExpertsRoundOnce,
    /// Copies block after block, so that an early write is read.
    KvCopyInTurn,
    TakesUnlistedFormat,
    LowRankForgetsScale,
    /// The rows of an adapter taken for one run.
    LowRankChangesOtherRows,
    /// The unfused half rounds otherwise.
    FfnAdaptedRoundsOtherwise,
}

pub struct Broken {
    inner: ReferenceBackend,
    capabilities: Capabilities,
    fault: Fault,
    calls: AtomicU32,
}

impl Broken {
    pub fn new(fault: Fault) -> Self {
        // Few formats: the suite runs once for each fault.
        let weight_formats = vec![Format::F32, Format::Q8_0];
        let capabilities =
            Capabilities { name: format!("{fault:?}"), weight_formats, host_memory: true, checks_numbers: false };
        Self { inner: ReferenceBackend::new(), capabilities, fault, calls: AtomicU32::new(0) }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// Refuses what is not listed, as every backend must.
    fn admit(&self, tensor: &HostTensor) -> Result<()> {
        if self.capabilities.weight_formats.contains(&tensor.format) || self.is(Fault::TakesUnlistedFormat) {
            return Ok(());
        }
        let what = tensor.format.to_string();
        Err(lingqu_backend::BackendError::Unsupported { backend: self.capabilities.name.clone(), what })
    }

    fn admit_ffn(&self, source: &FfnSource) -> Result<()> {
        [&source.gate, &source.up, &source.down].into_iter().try_for_each(|t| self.admit(t))
    }

    /// Changes what an op wrote.
    fn edit(&self, out: ViewMut<'_>, change: impl Fn(usize, &mut f32)) -> Result<()> {
        let view = View {
            buffer: out.buffer,
            heads: out.heads,
            head_stride: out.head_stride,
            offset: out.offset,
            len: out.len,
        };
        let mut values = vec![0.0; out.rows() * out.width()];
        self.inner.read(view, &mut values)?;
        values.iter_mut().enumerate().for_each(|(i, v)| change(i, v));
        self.inner.write(&values, out)
    }
}

/// The same view, to be used once more after an op took it.
macro_rules! again {
    ($out:ident) => {
        ViewMut {
            buffer: &mut *$out.buffer,
            heads: $out.heads,
            head_stride: $out.head_stride,
            offset: $out.offset,
            len: $out.len,
        }
    };
}

/// The next f32.
fn nudge(v: &mut f32) {
    *v = f32::from_bits(v.to_bits() + 1);
}

fn without_last_input(w: &HostTensor) -> HostTensor {
    let mut values = w.to_f32();
    values.chunks_exact_mut(w.cols).for_each(|row| row[w.cols - 1] = 0.0);
    HostTensor::from_f32(w.name.clone(), [w.rows, w.cols], &values)
}

impl Backend for Broken {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn alloc(&self, rows_max: usize, cols: usize) -> Result<Buffer> {
        self.inner.alloc(rows_max, cols)
    }

    fn alloc_routing(&self, rows_max: usize, top_k: usize) -> Result<Routing> {
        self.inner.alloc_routing(rows_max, top_k)
    }

    fn alloc_kv(&self, spec: &KvSpec) -> Result<KvStore> {
        self.inner.alloc_kv(spec)
    }

    fn kv_copy(&self, kv: &mut KvStore, pairs: &[(BlockId, BlockId)]) -> Result<()> {
        if self.is(Fault::KvCopyInTurn) {
            return pairs.iter().try_for_each(|pair| self.inner.kv_copy(kv, &[*pair]));
        }
        self.inner.kv_copy(kv, pairs)
    }

    fn read(&self, x: View<'_>, out: &mut [f32]) -> Result<()> {
        self.inner.read(x, out)
    }

    fn write(&self, values: &[f32], out: ViewMut<'_>) -> Result<()> {
        self.inner.write(values, out)
    }

    fn read_routing(&self, routing: &Routing) -> Result<HostRouting> {
        self.inner.read_routing(routing)
    }

    fn write_routing(&self, routing: &HostRouting, out: &mut Routing) -> Result<()> {
        self.inner.write_routing(routing, out)
    }

    fn upload_table(&self, tensor: &HostTensor) -> Result<Weight> {
        self.inner.upload_table(tensor)
    }

    fn upload_embedding(&self, tensor: &HostTensor) -> Result<Weight> {
        self.admit(tensor)?;
        self.inner.upload_embedding(tensor)
    }

    fn upload_linear(&self, source: LinearSource<'_>) -> Result<Weight> {
        source.parts.iter().try_for_each(|t| self.admit(t))?;
        if self.is(Fault::LinearDropsOneInput) {
            let parts: Vec<HostTensor> = source.parts.iter().map(without_last_input).collect();
            return self.inner.upload_linear(LinearSource { parts: &parts, biases: source.biases });
        }
        self.inner.upload_linear(source)
    }

    fn upload_heads(&self, heads: &[HostTensor]) -> Result<Weight> {
        heads.iter().try_for_each(|t| self.admit(t))?;
        self.inner.upload_heads(heads)
    }

    fn upload_ffn(&self, source: &FfnSource) -> Result<FfnWeights> {
        self.admit_ffn(source)?;
        let FfnSource { gate, up, down } = source.clone();
        match self.fault {
            Fault::FfnSwapsGateAndUp => self.inner.upload_ffn(&FfnSource { gate: up, up: gate, down }),
            Fault::FfnDropsOneValue => self.inner.upload_ffn(&FfnSource { gate, up, down: without_last_input(&down) }),
            _ => self.inner.upload_ffn(source),
        }
    }

    fn upload_experts(&self, experts: &[FfnSource]) -> Result<ExpertWeights> {
        experts.iter().try_for_each(|e| self.admit_ffn(e))?;
        self.inner.upload_experts(experts)
    }

    fn upload_low_rank(&self, sources: &[LowRankSource]) -> Result<LowRank> {
        let scale = |s: &LowRankSource| if self.is(Fault::LowRankForgetsScale) { 1.0 } else { s.scale };
        let sources: Vec<_> = sources.iter().map(|s| LowRankSource { scale: scale(s), ..s.clone() }).collect();
        self.inner.upload_low_rank(&sources)
    }

    fn begin_step(&self, batch: &Batch, block_tokens: usize) -> Result<Step> {
        self.inner.begin_step(batch, block_tokens)
    }

    fn embed(&self, step: &Step, table: &Weight, out: ViewMut<'_>) -> Result<()> {
        self.inner.embed(step, table, out)
    }

    fn rms_norm(&self, x: View<'_>, weight: &Weight, eps: f32, out: ViewMut<'_>) -> Result<()> {
        let eps = if self.is(Fault::RmsNormForgetsEps) { 0.0 } else { eps };
        self.inner.rms_norm(x, weight, eps, out)
    }

    fn linear(&self, x: View<'_>, weight: &Weight, out: ViewMut<'_>) -> Result<()> {
        let rows = x.rows();
        self.inner.linear(x, weight, again!(out))?;
        if self.is(Fault::LinearDependsOnRows) && rows >= 4 {
            self.edit(out, |_, v| nudge(v))
        } else if self.is(Fault::LinearChangesByCall) && self.calls.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
            self.edit(out, |_, v| nudge(v))
        } else {
            Ok(())
        }
    }

    fn linear_heads(&self, x: View<'_>, weight: &Weight, out: ViewMut<'_>) -> Result<()> {
        self.inner.linear_heads(x, weight, out)
    }

    fn rope(&self, step: &Step, x: View<'_>, table: &Weight, pairing: RopePairing, out: ViewMut<'_>) -> Result<()> {
        let pairing = if self.is(Fault::RopePairsWrongly) { RopePairing::Interleaved } else { pairing };
        self.inner.rope(step, x, table, pairing, out)
    }

    fn kv_append(&self, step: &Step, kv: &mut KvStore, layer: usize, k: View<'_>, v: Option<View<'_>>) -> Result<()> {
        self.inner.kv_append(step, kv, layer, k, v)
    }

    fn attention(&self, step: &Step, q: View<'_>, kv: &KvStore, spec: AttentionSpec, out: ViewMut<'_>) -> Result<()> {
        let rows = q.rows();
        self.inner.attention(step, q, kv, spec, again!(out))?;
        let width = out.width();
        match self.fault {
            // As if the next row of the chunk, where there is one, had been seen.
            Fault::AttentionLooksAhead => self.edit(out, |i, v| {
                if i / width + 1 < rows {
                    *v *= 0.9
                }
            }),
            Fault::AttentionDependsOnChunk if rows == 1 => self.edit(out, |_, v| nudge(v)),
            _ => Ok(()),
        }
    }

    fn ffn(&self, x: View<'_>, weights: &FfnWeights, out: ViewMut<'_>) -> Result<()> {
        self.inner.ffn(x, weights, out)
    }

    fn add_low_rank(&self, x: View<'_>, adapted: &[AdaptedRows<'_>], out: ViewMut<'_>) -> Result<()> {
        let filled = |a: &AdaptedRows<'_>| (a.rows[0]..=a.rows[a.rows.len() - 1]).collect::<Vec<u32>>();
        let filled: Vec<Vec<u32>> = adapted.iter().map(filled).collect();
        let all = adapted.iter().zip(&filled).map(|(a, rows)| match self.fault {
            Fault::LowRankChangesOtherRows => AdaptedRows { rows, ..*a },
            _ => *a,
        });
        self.inner.add_low_rank(x, &all.collect::<Vec<_>>(), out)
    }

    fn ffn_adapted(
        &self,
        x: View<'_>,
        weights: &FfnWeights,
        adapted: &[AdaptedFfn<'_>],
        out: ViewMut<'_>,
    ) -> Result<()> {
        self.inner.ffn_adapted(x, weights, adapted, again!(out))?;
        if self.is(Fault::FfnAdaptedRoundsOtherwise) { self.edit(out, |_, v| nudge(v)) } else { Ok(()) }
    }

    fn route(&self, logits: View<'_>, bias: Option<&Weight>, spec: &RouteSpec, out: &mut Routing) -> Result<()> {
        let bias = if self.is(Fault::RouteIgnoresBias) { None } else { bias };
        self.inner.route(logits, bias, spec, out)
    }

    fn experts(&self, x: View<'_>, routing: &Routing, weights: &ExpertWeights, out: ViewMut<'_>) -> Result<()> {
        let top_k = routing.top_k();
        self.inner.experts(x, routing, weights, again!(out))?;
        if self.is(Fault::ExpertsRoundOnce) && top_k > 1 { self.edit(out, |_, v| nudge(v)) } else { Ok(()) }
    }

    fn combine(&self, y: View<'_>, routing: &Routing, out: ViewMut<'_>) -> Result<()> {
        self.inner.combine(y, routing, out)
    }

    fn add(&self, x: View<'_>, out: ViewMut<'_>) -> Result<()> {
        self.inner.add(x, again!(out))?;
        let (end, cols) = (out.offset + out.heads * out.head_stride, out.buffer.cols());
        if self.is(Fault::AddWritesBeside) && end < cols {
            return self.edit(out.buffer.view_mut().cols(end..end + 1), |_, v| *v = 0.0);
        }
        Ok(())
    }

    fn gather_logit_rows(&self, step: &Step, x: View<'_>, out: ViewMut<'_>) -> Result<()> {
        self.inner.gather_logit_rows(step, x, out)
    }
}
