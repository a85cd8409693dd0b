//! The CPU backend: SIMD kernels over quantised weights.
//!
//! It knows no model, no file and no request. Start with [`CpuBackend`]; then `panels.rs` (weights as they are repacked
//! at load), `linear.rs`, where most time goes, `simd/` (the kernels written by hand, one file per instruction set),
//! `experts.rs` and `attention/`. `team.rs` has the threads.
//!
//! # Numerics
//! The same bits come out on every instruction set, for any number of threads and whatever else is in the batch:
//! what a row is worth is defined here, once, and not by who computes it.
//! - **Weights** of block formats are repacked at load or after, 16 rows side by side, bit for bit; floats stay in
//!   their stored bytes and are decoded exactly, 256 values at a time.
//! - **Float weights** (F32 F16 BF16 FP8): activations in f32. A dot is spread over 16 lanes: lane `j` takes the
//!   values `j, j + 16, ...` in order, each by one fused multiply-add; the lanes are added as a tree (`j` and `j + 8`,
//!   `j + 4`, `j + 2`, `j + 1`). An FP8 weight is first multiplied by the scale of its block, rounded to f32.
//! - **Block formats**: each row of activations is quantised once to int8 ([`Precision`]: one plane, or two for 16
//!   bits), and all weights that the row meets share it. Blocks of 32 weights (Q8_0, Q4_0, ...) meet activations with
//!   a scale for each 32, blocks of 256 (K-quants, IQ4_XS), whose scales within are integers, activations with a scale
//!   for each 256. For each block in order, with its scale `d` (and minimum `m`), for each plane: `t = d * i` with the
//!   exact integer `i` of all that the scales leave, with minima `t = fma(m, j, t)` with the exact integer `j`, then
//!   `acc = fma(x.d, t, acc)`.
//! - **Attention** runs over an f16 cache in f32, in tiles of 64 and splits of 256 positions counted from position 0: a
//!   score is one chain of fused multiply-adds over the values of the key in order, an output one chain over the
//!   positions of a split; splits are merged in order (see `attention/`).
//! - **exp** and what is built on it are our own polynomial; square roots and divisions are IEEE's. Products are fused
//!   with sums only where it says so, and there always: without hardware for it, a slow exact function is called.

mod activations;
mod attention;
mod experts;
mod isa;
mod limits;
mod linear;
mod low_rank;
mod math;
mod memory;
mod norm;
mod panels;
mod region;
mod rope;
mod route;
mod simd;
mod step;
mod team;
#[cfg(test)]
mod testing;
mod tiles;
mod unpack;
mod weights;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lingqu_backend::{
    AdaptedFfn, AdaptedRows, AttentionSpec, Backend, BackendError, Buffer, Capabilities, ExpertWeights, FfnSource,
    FfnWeights, HostRouting, KvSpec, KvStore, LinearSource, LowRank, LowRankSource, RopePairing, RouteSpec, Routing,
    Step, View, ViewMut, Weight,
};
use lingqu_tensor::{Format, HostTensor};
use lingqu_types::{Batch, BlockId};

pub use isa::{Isa, UnknownIsa};

type Result<T, E = BackendError> = std::result::Result<T, E>;

/// How the backend is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuConfig {
    /// Threads that share each op; 0: as many as the machine gives us.
    pub threads: usize,
    /// The instruction set to use; `None`: the best that the machine has.
    pub isa: Option<Isa>,
    /// How finely activations are rounded where they meet weights of a block format.
    pub precision: Precision,
    /// Weights of block formats are repacked by [`Backend::settle`], not at upload.
    pub later: bool,
}

/// How finely activations are rounded where they meet weights of a block format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// To 127 steps of the largest in a block: what llama.cpp does.
    #[default]
    Int8,
    /// To 32258 steps, at the price of a second integer product.
    Int16,
}

impl Precision {
    /// Planes of int8.
    const fn planes(self) -> usize {
        match self {
            Precision::Int8 => 1,
            Precision::Int16 => 2,
        }
    }
}

/// All cores of this machine as one device.
pub struct CpuBackend {
    capabilities: Capabilities,
    core: Core,
}

/// What every op needs.
pub(crate) struct Core {
    simd: isa::Simd,
    precision: Precision,
    team: team::Team,
    regions: region::Regions,
    /// Where weights are repacked later.
    later: Option<weights::Later>,
    /// One for each member of the team, who alone locks it.
    workers: Vec<Mutex<WorkerScratch>>,
    scratch: Mutex<OpScratch>,
}

/// What a member of the team works in. Reused from op to op.
pub(crate) struct WorkerScratch {
    panels: linear::PanelScratch,
    attention: attention::AttentionScratch,
}

/// What an op as a whole works in; held while it runs. Reused from op to op.
#[derive(Default)]
pub(crate) struct OpScratch {
    products: Products,
    grouped: experts::Grouped,
    /// Activations between the two halves of a feed-forward.
    inner: Vec<f32>,
    /// Outputs of experts before they are summed.
    outer: Vec<f32>,
    router: route::RouterScratch,
    /// Between the two products of adapters.
    low_rank: Vec<f32>,
}

/// The input of matrix products.
#[derive(Default)]
pub(crate) struct Products {
    x: activations::Activations,
    /// The same as tiles.
    arranged: tiles::Arranged,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // scratch is whole, whatever it holds
}

impl Core {
    fn new(config: CpuConfig) -> Result<Self> {
        let simd = isa::Simd::choose(config.isa)?;
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let worker = || WorkerScratch { panels: linear::PanelScratch::new(), attention: Default::default() };
        let workers = (0..threads).map(|_| Mutex::new(worker())).collect();
        let team = team::Team::new(threads)?;
        Ok(Self {
            simd,
            precision: config.precision,
            team,
            regions: Default::default(),
            later: config.later.then(Default::default),
            workers,
            scratch: Mutex::default(),
        })
    }

    fn packer(&self) -> weights::Packer<'_> {
        weights::Packer { team: &self.team, regions: &self.regions, later: self.later.as_ref() }
    }

    fn worker(&self, member: usize) -> MutexGuard<'_, WorkerScratch> {
        lock(&self.workers[member])
    }

    fn scratch(&self) -> MutexGuard<'_, OpScratch> {
        lock(&self.scratch)
    }
}

impl CpuBackend {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`BackendError::Device`] where the machine lacks the instruction set or refuses a thread.
    pub fn new(config: CpuConfig) -> Result<Self> {
        let core = Core::new(config)?;
        let (isa, threads) = (core.simd.isa(), core.team.members());
        let plural = if threads == 1 { "" } else { "s" };
        let capabilities = Capabilities {
            name: format!("cpu ({isa}, {threads} thread{plural})"),
            weight_formats: Format::ALL.to_vec(),
            host_memory: true,
            checks_numbers: true,
        };
        Ok(Self { capabilities, core })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.core.simd.isa()
    }

    pub fn threads(&self) -> usize {
        self.core.team.members()
    }

    /// GB/s (10^9 bytes) that all threads together read from a buffer of this many bytes, the best of a few runs.
    /// Take a buffer much larger than the caches.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`]
    pub fn measure_read_bandwidth(&self, buffer_bytes: usize) -> Result<f64> {
        limits::measure(&self.core, buffer_bytes)
    }

    /// 10^12 operations a second that all threads together do on int8 tiles at hand; `None` where AMX is not in use.
    pub fn measure_tile_peak(&self) -> Option<f64> {
        limits::tile_peak(&self.core)
    }
}

impl Backend for CpuBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn alloc(&self, rows_max: usize, cols: usize) -> Result<Buffer> {
        memory::alloc(rows_max, cols)
    }

    fn alloc_routing(&self, rows_max: usize, top_k: usize) -> Result<Routing> {
        memory::alloc_routing(rows_max, top_k)
    }

    fn alloc_kv(&self, spec: &KvSpec) -> Result<KvStore> {
        memory::alloc_kv(spec)
    }

    fn kv_copy(&self, kv: &mut KvStore, pairs: &[(BlockId, BlockId)]) -> Result<()> {
        memory::kv_copy(kv, pairs);
        Ok(())
    }

    fn read(&self, x: View<'_>, out: &mut [f32]) -> Result<()> {
        memory::read(x, out);
        Ok(())
    }

    fn write(&self, values: &[f32], out: ViewMut<'_>) -> Result<()> {
        memory::write(values, out);
        Ok(())
    }

    fn read_routing(&self, routing: &Routing) -> Result<HostRouting> {
        Ok(memory::read_routing(routing))
    }

    fn write_routing(&self, routing: &HostRouting, out: &mut Routing) -> Result<()> {
        memory::write_routing(routing, out);
        Ok(())
    }

    fn upload_table(&self, tensor: &HostTensor) -> Result<Weight> {
        weights::upload_table(tensor)
    }

    fn upload_embedding(&self, tensor: &HostTensor) -> Result<Weight> {
        weights::upload_embedding(self.core.packer(), tensor)
    }

    fn upload_linear(&self, source: LinearSource<'_>) -> Result<Weight> {
        weights::upload_linear(self.core.packer(), source)
    }

    fn upload_heads(&self, heads: &[HostTensor]) -> Result<Weight> {
        weights::upload_heads(self.core.packer(), heads)
    }

    fn upload_ffn(&self, source: &FfnSource) -> Result<FfnWeights> {
        weights::upload_ffn(self.core.packer(), source)
    }

    fn upload_experts(&self, experts: &[FfnSource]) -> Result<ExpertWeights> {
        weights::upload_experts(self.core.packer(), experts)
    }

    fn upload_low_rank(&self, sources: &[LowRankSource]) -> Result<LowRank> {
        low_rank::upload(sources)
    }

    fn settle(&self, budget: Duration) -> Result<bool> {
        let Some(later) = &self.core.later else { return Ok(true) };
        let until = Instant::now() + budget.min(Duration::from_secs(3600));
        let _no_op_runs = self.core.scratch();
        later.settle(&self.core.team, until)
    }

    fn begin_step(&self, batch: &Batch, block_tokens: usize) -> Result<Step> {
        Ok(step::begin(batch, block_tokens))
    }

    fn embed(&self, step: &Step, table: &Weight, out: ViewMut<'_>) -> Result<()> {
        step::embed(&self.core, step, table, out)
    }

    fn rms_norm(&self, x: View<'_>, weight: &Weight, eps: f32, out: ViewMut<'_>) -> Result<()> {
        norm::rms_norm(&self.core, x, weight, eps, out);
        Ok(())
    }

    fn linear(&self, x: View<'_>, weight: &Weight, out: ViewMut<'_>) -> Result<()> {
        linear::linear(&self.core, x, weight, out)
    }

    fn linear_heads(&self, x: View<'_>, weight: &Weight, out: ViewMut<'_>) -> Result<()> {
        linear::linear_heads(&self.core, x, weight, out)
    }

    fn rope(&self, step: &Step, x: View<'_>, table: &Weight, pairing: RopePairing, out: ViewMut<'_>) -> Result<()> {
        rope::rope(&self.core, step, x, table, pairing, out);
        Ok(())
    }

    fn kv_append(&self, step: &Step, kv: &mut KvStore, layer: usize, k: View<'_>, v: Option<View<'_>>) -> Result<()> {
        attention::kv_append(&self.core, step, kv, layer, k, v);
        Ok(())
    }

    fn attention(&self, step: &Step, q: View<'_>, kv: &KvStore, spec: AttentionSpec, out: ViewMut<'_>) -> Result<()> {
        attention::attention(&self.core, step, q, kv, spec, out);
        Ok(())
    }

    fn ffn(&self, x: View<'_>, weights: &FfnWeights, out: ViewMut<'_>) -> Result<()> {
        experts::ffn(&self.core, x, weights, out)
    }

    fn add_low_rank(&self, x: View<'_>, adapted: &[AdaptedRows<'_>], out: ViewMut<'_>) -> Result<()> {
        low_rank::add_low_rank(&self.core, x, adapted, out)
    }

    fn ffn_adapted(
        &self,
        x: View<'_>,
        weights: &FfnWeights,
        adapted: &[AdaptedFfn<'_>],
        out: ViewMut<'_>,
    ) -> Result<()> {
        low_rank::ffn(&self.core, x, weights, adapted, out)
    }

    fn route(&self, logits: View<'_>, bias: Option<&Weight>, spec: &RouteSpec, out: &mut Routing) -> Result<()> {
        route::route(&self.core, logits, bias, spec, out);
        Ok(())
    }

    fn experts(&self, x: View<'_>, routing: &Routing, weights: &ExpertWeights, out: ViewMut<'_>) -> Result<()> {
        experts::experts(&self.core, x, routing, weights, out)
    }

    fn combine(&self, y: View<'_>, routing: &Routing, out: ViewMut<'_>) -> Result<()> {
        experts::combine(&self.core, y, routing, out);
        Ok(())
    }

    fn add(&self, x: View<'_>, out: ViewMut<'_>) -> Result<()> {
        norm::add(&self.core, x, out);
        Ok(())
    }

    fn gather_logit_rows(&self, step: &Step, x: View<'_>, out: ViewMut<'_>) -> Result<()> {
        step::gather_logit_rows(step, x, out);
        Ok(())
    }
}
