//! How a backend is made, and all that is read from the environment.

use std::path::PathBuf;

pub use crate::device::Graphs;
use crate::driver::rows::Row;

/// What to open.
#[derive(Clone, Debug)]
pub struct GpuConfig {
    pub row: Row,
    /// Number of the device, as its driver counts.
    pub device: usize,
    pub emulation: Emulation,
    pub environment: Environment,
    pub graphs: Graphs,
    pub matrix_units: MatrixUnits,
}

/// Whether products run on a device's matrix units, with activations rounded to bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MatrixUnits {
    /// Where the kernels for them have been checked: NVIDIA from sm_80 on, the emulator.
    #[default]
    Checked,
    /// Also where they never ran: Hygon's gfx928 and gfx936.
    Untried,
    /// All products in f32.
    Off,
}

impl GpuConfig {
    /// The first device of a row.
    pub fn of(row: Row) -> Self {
        Self {
            row,
            device: 0,
            emulation: Emulation::default(),
            environment: Environment::read(),
            graphs: Graphs::default(),
            matrix_units: MatrixUnits::default(),
        }
    }
}

/// How the emulator runs kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emulation {
    /// Threads in step: 32 or 64.
    pub warp: usize,
    pub schedule: Schedule,
    /// Threads of the host that blocks are spread over.
    pub os_threads: u32,
    /// Bytes that the device pretends to have; `None`: those of the machine.
    pub memory_bytes: Option<usize>,
}

impl Default for Emulation {
    fn default() -> Self {
        let os_threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Self { warp: 32, schedule: Schedule::Forward, os_threads, memory_bytes: None }
    }
}

/// The order in which the emulator takes blocks, and threads between two barriers. No result may depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Schedule {
    #[default]
    Forward,
    Reverse,
    /// Any other, by a seed from 2 on.
    Shuffled(u32),
}

impl Schedule {
    pub(crate) fn number(self) -> u32 {
        match self {
            Schedule::Forward => 0,
            Schedule::Reverse => 1,
            Schedule::Shuffled(seed) => seed.max(2),
        }
    }
}

/// What the environment says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// Where compiled kernels are kept; `None`: nowhere. `$XDG_CACHE_HOME/lingqu/kernels`, else under `$HOME/.cache`.
    pub kernel_cache: Option<PathBuf>,
    /// `$LINGQU_NVRTC`, `$LINGQU_HIPRTC`: the library itself, where it is not among the usual ones.
    pub nvrtc: Option<PathBuf>,
    pub hiprtc: Option<PathBuf>,
    /// `$CXX`: the host's C++ compiler.
    pub cxx: Option<PathBuf>,
    /// `$LINGQU_EMU_FLAGS`: more options for it, such as `-fsanitize=address`.
    pub emu_flags: Vec<String>,
}

impl Environment {
    /// The only place where this crate reads the environment.
    pub fn read() -> Self {
        let path = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let cache = path("XDG_CACHE_HOME").filter(|p| p.is_absolute()).or(path("HOME").map(|h| h.join(".cache")));
        let flags = std::env::var("LINGQU_EMU_FLAGS").unwrap_or_default();
        Self {
            kernel_cache: cache.map(|c| c.join("lingqu/kernels")),
            nvrtc: path("LINGQU_NVRTC"),
            hiprtc: path("LINGQU_HIPRTC"),
            cxx: path("CXX"),
            emu_flags: flags.split_whitespace().map(str::to_string).collect(),
        }
    }
}
