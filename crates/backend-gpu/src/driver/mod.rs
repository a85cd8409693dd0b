//! What a vendor's library must do for us, and the rows that know how: NVIDIA, HIP (Hygon DCU, AMD) and the emulator.
//!
//! Addresses, streams, modules and functions are plain numbers here; [`crate::device`] owns them. All unsafe code of
//! the crate is in this folder.

pub(crate) mod bytes;
pub(crate) mod command;
pub(crate) mod emu;
#[cfg(test)]
pub(crate) mod fake;
mod graph;
pub(crate) mod rows;
pub(crate) mod rtc;
pub(crate) mod vendor;

use lingqu_backend::BackendError;
use thiserror::Error;

use crate::arguments::Argument;

/// An address in device memory. The host cannot read there.
pub type Address = u64;

/// A stream, module or function of a driver.
pub type Handle = u64;

/// What a driver, a compiler or their libraries could not do.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DriverError {
    #[error("none of {tried} can be opened; {brings} ({reason})")]
    NoLibrary { tried: String, reason: String, brings: &'static str },
    #[error("{library} has no function {symbol}")]
    NoSymbol { library: String, symbol: String },
    #[error("{driver} shows no device")]
    NoDevice { driver: &'static str },
    #[error("device {asked} of {count}")]
    WrongDevice { asked: usize, count: usize },
    #[error("{call}: error {code} ({words})")]
    Call { call: String, code: i32, words: String },
    #[error("{call}: out of memory for {bytes} bytes")]
    OutOfMemory { call: String, bytes: usize },
    #[error("the architecture of the device is unknown: {0}")]
    UnknownArch(String),
    #[error("{compiler} cannot compile {unit} for {arch}: {log}")]
    Compile { compiler: String, unit: String, arch: String, log: String },
    #[error("{path}: {problem}")]
    File { path: String, problem: String },
}

pub type Result<T, E = DriverError> = std::result::Result<T, E>;

impl DriverError {
    /// As the seam tells it; `what` was to be held or done.
    pub(crate) fn told(self, backend: &str, what: &str) -> BackendError {
        match self {
            Self::OutOfMemory { bytes, .. } => BackendError::OutOfMemory { what: what.into(), bytes },
            other => BackendError::Device { backend: backend.into(), problem: format!("{what}: {other}") },
        }
    }
}

/// One device as its driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    pub name: String,
    /// What its compiler calls it, such as `sm_90` or `gfx928`; `warp32` or `warp64` of the emulator.
    pub arch: String,
    /// Threads that run in step.
    pub warp: usize,
    pub memory_bytes: usize,
    /// Of these, free now.
    pub free_bytes: usize,
}

/// How a kernel is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    pub shared_bytes: u32,
}

/// One start of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Launch {
    pub function: Handle,
    /// Its name, for errors.
    pub kernel: &'static str,
    pub shape: Shape,
    /// Those of the kernel, in order and type.
    pub arguments: Vec<Argument>,
}

/// The calls of one vendor's library. Work given to a stream runs in order; nothing but `wait` waits for it.
///
/// `bind` comes before any call on a thread. Sizes and addresses are the caller's duty.
pub(crate) trait Driver: Send + Sync {
    fn name(&self) -> &'static str;

    fn count(&self) -> Result<usize>;

    /// The device must be retained.
    fn describe(&self, device: usize) -> Result<DeviceInfo>;

    /// Readies the device for this process.
    fn retain(&self, device: usize) -> Result<Handle>;

    fn release(&self, device: usize) -> Result<()>;

    /// Makes the device current on this thread. `context` is what `retain` gave.
    fn bind(&self, device: usize, context: Handle) -> Result<()>;

    fn alloc(&self, bytes: usize) -> Result<Address>;

    fn free(&self, address: Address) -> Result<()>;

    fn stream_create(&self) -> Result<Handle>;

    fn stream_destroy(&self, stream: Handle) -> Result<()>;

    fn wait(&self, stream: Handle) -> Result<()>;

    fn zero(&self, to: Address, bytes: usize, stream: Handle) -> Result<()>;

    /// `from` may change once this returns and `wait` has been called.
    fn copy_in(&self, to: Address, from: &[u8], stream: Handle) -> Result<()>;

    /// `to` is filled once `wait` has been called.
    fn copy_out(&self, to: &mut [u8], from: Address, stream: Handle) -> Result<()>;

    /// Within the device; the ranges do not overlap.
    fn copy(&self, to: Address, from: Address, bytes: usize, stream: Handle) -> Result<()>;

    fn module_load(&self, image: &[u8]) -> Result<Handle>;

    fn module_unload(&self, module: Handle) -> Result<()>;

    fn function(&self, module: Handle, name: &str) -> Result<Handle>;

    fn launch(&self, launch: &Launch, stream: Handle) -> Result<()>;

    /// Whether the library has graphs; without them the calls below fail.
    fn has_graphs(&self) -> bool;

    /// These launches one after another, ready to be started with one call, any number of times.
    fn graph_create(&self, launches: &[Launch]) -> Result<Handle>;

    fn graph_launch(&self, graph: Handle, stream: Handle) -> Result<()>;

    /// It must not run any more.
    fn graph_destroy(&self, graph: Handle) -> Result<()>;
}

/// One source file on its way through a compiler.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit<'a> {
    pub name: &'a str,
    pub source: &'a str,
    /// Names as the sources include them, and their text.
    pub headers: &'a [(&'a str, &'a str)],
    pub arch: &'a str,
    pub options: &'a [String],
}

/// Source in, an image for `module_load` out.
pub(crate) trait Compiler: Send + Sync {
    fn compile(&self, unit: &Unit<'_>) -> Result<Vec<u8>>;
}
