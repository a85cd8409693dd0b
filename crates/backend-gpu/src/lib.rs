//! The accelerator backend: one kernel source, one host side, a table of vendors' drivers.
//!
//! It knows no model, no file and no request, and is built without any GPU toolkit: drivers and compilers are opened
//! at run time. Start with [`GpuBackend`]; `driver/rows.rs` is the table of vendors (a CUDA-like chip is one more row),
//! `kernels.rs` compiles and loads the sources of `/kernels`, and `products.rs`, `attention.rs`, `step.rs`, `sample.rs`
//! and `memory.rs` launch them, through `queue.rs`. `/kernels/README.md` is the contract between both sides.
//!
//! # Numerics
//! Activations between ops are f32, the cache is f16, weights are decoded exactly. On a device without matrix units all
//! arithmetic is f32, too; with them products round their input to bf16 and attention its queries and weights to f16
//! ([`MatrixUnits`]). Each output has one order of operations, whatever else is in the batch and however a call is cut
//! into blocks (`/kernels/README.md`, "Arithmetic contract"); it may differ between warps of 32 and 64, and between
//! devices.
//!
//! # The emulator
//! The row `emu` compiles the same kernels with the host's C++ compiler and runs them here, at warps of 32 and 64 and
//! in any schedule: that is how all of this is tested where there is no accelerator.

mod arguments;
mod attention;
mod cache;
mod codes;
mod config;
mod core;
mod device;
mod driver;
mod kernels;
mod memory;
mod pack;
mod products;
mod queue;
mod sample;
mod step;
mod survey;
#[cfg(test)]
mod tests;
mod weights;

use std::ops::Range;

use lingqu_backend::{
    AttentionSpec, Backend, BackendError, Buffer, Capabilities, ExpertWeights, FfnSource, FfnWeights, HostRouting,
    KvSpec, KvStore, LinearSource, RopePairing, RouteSpec, Routing, Step, TopLogits, View, ViewMut, Weight,
};
use lingqu_tensor::{Format, HostTensor};
use lingqu_types::{Batch, BlockId};

pub use config::{Emulation, Environment, GpuConfig, Graphs, MatrixUnits, Schedule};
pub use driver::rows::Row;
pub use driver::{DeviceInfo, DriverError};
pub use kernels::{BuiltKernels, build_kernels};
pub use survey::{devices, kernels_at_hand, measure_copy_bandwidth};

type Result<T, E = BackendError> = std::result::Result<T, E>;

/// One accelerator.
pub struct GpuBackend {
    capabilities: Capabilities,
    core: core::Core,
}

impl GpuBackend {
    /// Opens the driver and the device, and loads the kernels, compiling them where no cache holds them.
    ///
    /// # Errors
    /// [`BackendError::Device`] with the libraries that were tried and what brings them, the call that failed, or what
    /// the compiler says.
    pub fn new(config: &GpuConfig) -> Result<Self> {
        Ok(Self::of(core::Core::open(config)?))
    }

    /// The device of `config`, where its row has any; asks the driver once. The inner error is why it cannot be used.
    ///
    /// # Errors
    /// Why there is none: no library, and what brings it; no device.
    pub fn find(config: &GpuConfig) -> Result<Result<Self>, DriverError> {
        let driver = config.row.driver(&config.emulation)?;
        if driver.count()? == 0 {
            return Err(DriverError::NoDevice { driver: driver.name() });
        }
        Ok(core::Core::with_driver(config, driver).map(Self::of))
    }

    fn of(core: core::Core) -> Self {
        let name = core.name.clone();
        Self {
            capabilities: Capabilities {
                name,
                weight_formats: Format::ALL.to_vec(),
                host_memory: false,
                checks_numbers: false,
            },
            core,
        }
    }

    /// The device as its driver describes it.
    pub fn device(&self) -> &DeviceInfo {
        &self.core.device.info
    }
}

impl Backend for GpuBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn alloc(&self, rows_max: usize, cols: usize) -> Result<Buffer> {
        memory::alloc(&self.core, rows_max, cols)
    }

    fn alloc_routing(&self, rows_max: usize, top_k: usize) -> Result<Routing> {
        memory::alloc_routing(&self.core, rows_max, top_k)
    }

    fn alloc_kv(&self, spec: &KvSpec) -> Result<KvStore> {
        memory::alloc_kv(&self.core, spec)
    }

    fn kv_copy(&self, kv: &mut KvStore, pairs: &[(BlockId, BlockId)]) -> Result<()> {
        memory::kv_copy(&self.core, kv, pairs)
    }

    fn read(&self, x: View<'_>, out: &mut [f32]) -> Result<()> {
        memory::read(&self.core, x, out)
    }

    fn read_rows(&self, x: View<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        memory::read_rows(&self.core, x, rows, out)
    }

    fn top_logits(&self, x: View<'_>, scales: &[f32], k: usize) -> Result<TopLogits> {
        sample::top_logits(&self.core, x, scales, k)
    }

    fn write(&self, values: &[f32], out: ViewMut<'_>) -> Result<()> {
        memory::write(&self.core, values, out)
    }

    fn read_routing(&self, routing: &Routing) -> Result<HostRouting> {
        memory::read_routing(&self.core, routing)
    }

    fn write_routing(&self, routing: &HostRouting, out: &mut Routing) -> Result<()> {
        memory::write_routing(&self.core, routing, out)
    }

    fn upload_table(&self, tensor: &HostTensor) -> Result<Weight> {
        weights::upload_table(&self.core, tensor)
    }

    fn upload_embedding(&self, tensor: &HostTensor) -> Result<Weight> {
        weights::upload_embedding(&self.core, tensor)
    }

    fn upload_linear(&self, source: LinearSource<'_>) -> Result<Weight> {
        weights::upload_linear(&self.core, source)
    }

    fn upload_heads(&self, heads: &[HostTensor]) -> Result<Weight> {
        weights::upload_heads(&self.core, heads)
    }

    fn upload_ffn(&self, source: &FfnSource) -> Result<FfnWeights> {
        weights::upload_ffn(&self.core, source)
    }

    fn upload_experts(&self, experts: &[FfnSource]) -> Result<ExpertWeights> {
        weights::upload_experts(&self.core, experts)
    }

    fn begin_step(&self, batch: &Batch, block_tokens: usize) -> Result<Step> {
        step::begin(&self.core, batch, block_tokens)
    }

    fn embed(&self, step: &Step, table: &Weight, out: ViewMut<'_>) -> Result<()> {
        products::embed(&self.core, step, table, out)
    }

    fn rms_norm(&self, x: View<'_>, weight: &Weight, eps: f32, out: ViewMut<'_>) -> Result<()> {
        step::rms_norm(&self.core, x, weight, eps, out)
    }

    fn linear(&self, x: View<'_>, weight: &Weight, out: ViewMut<'_>) -> Result<()> {
        products::linear(&self.core, x, weight, out)
    }

    fn linear_heads(&self, x: View<'_>, weight: &Weight, out: ViewMut<'_>) -> Result<()> {
        products::linear_heads(&self.core, x, weight, out)
    }

    fn rope(&self, step: &Step, x: View<'_>, table: &Weight, pairing: RopePairing, out: ViewMut<'_>) -> Result<()> {
        step::rope(&self.core, step, table, pairing, step::Rotated { x, out })
    }

    fn kv_append(&self, step: &Step, kv: &mut KvStore, layer: usize, k: View<'_>, v: Option<View<'_>>) -> Result<()> {
        attention::kv_append(&self.core, step, kv, layer, attention::Fresh { k, v })
    }

    fn attention(&self, step: &Step, q: View<'_>, kv: &KvStore, spec: AttentionSpec, out: ViewMut<'_>) -> Result<()> {
        attention::attention(&self.core, step, kv, spec, attention::Attended { q, out })
    }

    fn ffn(&self, x: View<'_>, weights: &FfnWeights, out: ViewMut<'_>) -> Result<()> {
        products::ffn(&self.core, x, weights, out)
    }

    fn route(&self, logits: View<'_>, bias: Option<&Weight>, spec: &RouteSpec, out: &mut Routing) -> Result<()> {
        products::route(&self.core, logits, bias, spec, out)
    }

    fn experts(&self, x: View<'_>, routing: &Routing, weights: &ExpertWeights, out: ViewMut<'_>) -> Result<()> {
        products::experts(&self.core, x, routing, weights, out)
    }

    fn combine(&self, y: View<'_>, routing: &Routing, out: ViewMut<'_>) -> Result<()> {
        products::combine(&self.core, y, routing, out)
    }

    fn add(&self, x: View<'_>, out: ViewMut<'_>) -> Result<()> {
        step::add(&self.core, x, out)
    }

    fn gather_logit_rows(&self, step: &Step, x: View<'_>, out: ViewMut<'_>) -> Result<()> {
        step::gather_logit_rows(&self.core, step, x, out)
    }
}
