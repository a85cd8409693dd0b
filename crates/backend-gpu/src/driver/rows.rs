//! THE TABLE: one row for each vendor. A further CUDA-like chip is a row here and one in [`Row`].

use std::sync::Arc;

use super::command::CommandCompiler;
use super::emu::Emu;
use super::rtc::{Rtc, RtcNames};
use super::vendor::{Names, Vendor};
use super::{Compiler, Driver, Result};
use crate::config::{Emulation, Environment, MatrixUnits};

/// A family of devices that one driver reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Row {
    /// NVIDIA, by the CUDA driver and NVRTC.
    Cuda,
    /// Hygon DCU (DTK) and AMD (ROCm), by HIP and hipRTC.
    Dcu,
    /// The host's own processor, by its C++ compiler: for tests.
    Emu,
}

impl Row {
    pub const ALL: [Row; 3] = [Row::Cuda, Row::Dcu, Row::Emu];

    /// As `--backend` spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Row::Cuda => "cuda",
            Row::Dcu => "dcu",
            Row::Emu => "emu",
        }
    }

    /// The row whose compiler knows an architecture.
    pub fn of_arch(arch: &str) -> Option<Row> {
        let numbered =
            |prefix| arch.strip_prefix(prefix).is_some_and(|n: &str| n.starts_with(|c: char| c.is_ascii_digit()));
        match () {
            () if numbered("sm_") => Some(Row::Cuda),
            () if numbered("gfx") => Some(Row::Dcu),
            () if ["warp32", "warp64"].contains(&arch) => Some(Row::Emu),
            () => None,
        }
    }

    /// Threads of this architecture that run in step: 64 on AMD's and Hygon's compute chips, 32 elsewhere.
    pub fn warp_of(arch: &str) -> usize {
        let is_wide = arch == "warp64" || arch.starts_with("gfx9") || arch.starts_with("gfx8");
        if is_wide { 64 } else { 32 }
    }

    /// Whether kernels for `arch` have variants for matrix units.
    pub(crate) fn has_matrix_units(self, arch: &str, units: MatrixUnits) -> bool {
        let number = || arch.trim_start_matches("sm_").trim_end_matches(char::is_alphabetic).parse().unwrap_or(0);
        match (self, units) {
            (_, MatrixUnits::Off) => false,
            (Row::Cuda, _) => number() >= 80,
            (Row::Emu, _) => true,
            (Row::Dcu, MatrixUnits::Checked) => false,
            (Row::Dcu, MatrixUnits::Untried) => ["gfx928", "gfx936"].iter().any(|chip| arch.starts_with(chip)),
        }
    }

    /// What the compiler is told.
    pub(crate) fn options(self, arch: &str) -> Vec<String> {
        let warp = format!("-DLQ_WARP={}", Row::warp_of(arch));
        // Products and sums are fused where the source says so and nowhere else, so that one arithmetic holds.
        let own: &[&str] = match self {
            Row::Cuda => &["-DLQ_CUDA=1", "--std=c++17", "--fmad=false", "-default-device"],
            Row::Dcu => &["-DLQ_HIP=1", "-std=c++17", "-O3", "-ffp-contract=off"],
            Row::Emu => &["-DLQ_EMU=1", "-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-w"],
        };
        let target = match self {
            Row::Cuda => Some(format!("-arch={arch}")),
            Row::Dcu => Some(format!("--gpu-architecture={arch}")),
            Row::Emu => None,
        };
        own.iter().map(|o| o.to_string()).chain(target).chain([warp]).collect()
    }

    pub(crate) fn driver(self, emulation: &Emulation) -> Result<Arc<dyn Driver>> {
        Ok(match self {
            Row::Cuda => Arc::new(Vendor::open(&CUDA)?),
            Row::Dcu => Arc::new(Vendor::open(&HIP)?),
            Row::Emu => Arc::new(Emu::new(emulation.clone())),
        })
    }

    pub(crate) fn compiler(self, environment: &Environment) -> Result<Box<dyn Compiler>> {
        Ok(match self {
            Row::Cuda => Box::new(Rtc::open(&NVRTC, environment.nvrtc.as_deref())?),
            Row::Dcu => match Rtc::open(&HIPRTC, environment.hiprtc.as_deref()) {
                Ok(rtc) => Box::new(rtc),
                Err(missing) => Box::new(CommandCompiler::hipcc(environment, missing)?),
            },
            Row::Emu => Box::new(CommandCompiler::host(environment)?),
        })
    }
}

/// A vendor's driver library.
pub(crate) struct VendorRow {
    pub name: &'static str,
    pub libraries: &'static [&'static str],
    /// What to install where none of them is found.
    pub brings: &'static str,
    pub names: Names,
    pub style: Style,
}

/// Where vendors differ in more than names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// A context is retained and made current; architectures are numbers asked from the driver.
    Cuda,
    /// A device is made current; its architecture is a name.
    Hip,
}

const CUDA: VendorRow = VendorRow {
    name: "cuda",
    libraries: &["libcuda.so.1", "libcuda.so"],
    brings: "NVIDIA's driver brings it",
    names: Names {
        init: "cuInit",
        count: "cuDeviceGetCount",
        device_name: "cuDeviceGetName",
        device_bytes: "cuDeviceTotalMem_v2",
        memory_info: "cuMemGetInfo_v2",
        alloc: "cuMemAlloc_v2",
        free: "cuMemFree_v2",
        stream_create: "cuStreamCreate",
        stream_destroy: "cuStreamDestroy_v2",
        wait: "cuStreamSynchronize",
        zero: "cuMemsetD8Async",
        copy_in: "cuMemcpyHtoDAsync_v2",
        copy_out: "cuMemcpyDtoHAsync_v2",
        copy: "cuMemcpyDtoDAsync_v2",
        module_load: "cuModuleLoadData",
        module_unload: "cuModuleUnload",
        function: "cuModuleGetFunction",
        launch: "cuLaunchKernel",
    },
    style: Style::Cuda,
};

const HIP: VendorRow = VendorRow {
    name: "dcu",
    libraries: &[
        "libgalaxyhip.so.5",
        "libgalaxyhip.so",
        "/opt/dtk/hip/lib/libgalaxyhip.so.5",
        "libamdhip64.so.7",
        "libamdhip64.so.6",
        "libamdhip64.so.5",
        "libamdhip64.so",
        "/opt/rocm/lib/libamdhip64.so",
    ],
    brings: "Hygon's DTK or AMD's ROCm brings it (Debian: libamdhip64-5)",
    names: Names {
        init: "hipInit",
        count: "hipGetDeviceCount",
        device_name: "hipDeviceGetName",
        device_bytes: "hipDeviceTotalMem",
        memory_info: "hipMemGetInfo",
        alloc: "hipMalloc",
        free: "hipFree",
        stream_create: "hipStreamCreateWithFlags",
        stream_destroy: "hipStreamDestroy",
        wait: "hipStreamSynchronize",
        zero: "hipMemsetD8Async",
        copy_in: "hipMemcpyHtoDAsync",
        copy_out: "hipMemcpyDtoHAsync",
        copy: "hipMemcpyDtoDAsync",
        module_load: "hipModuleLoadData",
        module_unload: "hipModuleUnload",
        function: "hipModuleGetFunction",
        launch: "hipModuleLaunchKernel",
    },
    style: Style::Hip,
};

const NVRTC: RtcNames = RtcNames {
    name: "NVRTC",
    libraries: &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"],
    brings: "the CUDA toolkit brings it, or `pip install nvidia-cuda-nvrtc-cu12` and LINGQU_NVRTC=its path",
    prefix: "nvrtc",
    image: "CUBIN",
};

const HIPRTC: RtcNames = RtcNames {
    name: "hipRTC",
    libraries: &[
        "libhiprtc.so",
        "libgalaxyhip.so.5",
        "/opt/dtk/hip/lib/libgalaxyhip.so.5",
        "libhiprtc.so.7",
        "libhiprtc.so.6",
        "libhiprtc.so.5",
        "libamdhip64.so.5",
        "libamdhip64.so",
        "/opt/rocm/lib/libhiprtc.so",
    ],
    brings: "Hygon's DTK or AMD's ROCm brings it (Debian: libamdhip64-5), or LINGQU_HIPRTC=its path",
    prefix: "hiprtc",
    image: "Code",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_have_rows_and_warps() {
        let check = |arch: &str, row: Option<Row>, warp: usize| {
            assert_eq!((Row::of_arch(arch), Row::warp_of(arch)), (row, warp), "{arch}");
        };
        check("sm_90", Some(Row::Cuda), 32);
        check("sm_100a", Some(Row::Cuda), 32);
        check("gfx906", Some(Row::Dcu), 64);
        check("gfx928", Some(Row::Dcu), 64);
        check("gfx90a:sramecc+:xnack-", Some(Row::Dcu), 64);
        check("gfx1100", Some(Row::Dcu), 32);
        check("warp64", Some(Row::Emu), 64);
        check("warp32", Some(Row::Emu), 32);
        check("sm_", None, 32);
        check("compute_90", None, 32);
        check("mp_31", None, 32);
    }

    #[test]
    fn matrix_units_are_used_where_they_are_known() {
        let check = |row: Row, arch: &str, expected: [bool; 3]| {
            let of = |units| row.has_matrix_units(arch, units);
            assert_eq!([MatrixUnits::Checked, MatrixUnits::Untried, MatrixUnits::Off].map(of), expected, "{arch}");
        };
        check(Row::Cuda, "sm_75", [false, false, false]);
        check(Row::Cuda, "sm_80", [true, true, false]);
        check(Row::Cuda, "sm_90a", [true, true, false]);
        check(Row::Cuda, "sm_120", [true, true, false]);
        check(Row::Emu, "warp64", [true, true, false]);
        check(Row::Dcu, "gfx906", [false, false, false]);
        check(Row::Dcu, "gfx928:sramecc+", [false, true, false]);
        check(Row::Dcu, "gfx936", [false, true, false]);
    }
}
