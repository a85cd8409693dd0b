//! The kernels of `/kernels`: their sources, what compiles them, and the loaded module.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::arguments::Argument;
use crate::cache::{Built, Cache};
use crate::config::{Environment, MatrixUnits};
use crate::device::{Device, Module};
use crate::driver::rows::Row;
use crate::driver::{DriverError, Handle, Launch, Result, Shape, Unit};

const SOURCE: &str = include_str!("../../../kernels/lingqu.cu");
const HEADERS: [(&str, &str); 10] = [
    ("portable.h", include_str!("../../../kernels/portable.h")),
    ("rows.h", include_str!("../../../kernels/rows.h")),
    ("route.h", include_str!("../../../kernels/route.h")),
    ("formats.h", include_str!("../../../kernels/formats.h")),
    ("weights.h", include_str!("../../../kernels/weights.h")),
    ("attention.h", include_str!("../../../kernels/attention.h")),
    ("sample.h", include_str!("../../../kernels/sample.h")),
    ("mma.h", include_str!("../../../kernels/mma.h")),
    ("tiles.h", include_str!("../../../kernels/tiles.h")),
    ("flash.h", include_str!("../../../kernels/flash.h")),
];
const EMU_HEADER: (&str, &str) = ("grid.h", include_str!("../../../kernels/emu/grid.h"));

/// Every kernel that the host launches; `kernels/README.md` has their arguments.
const NAMES: [&str; 30] = [
    "copy",
    "add",
    "gather_rows",
    "rms_norm",
    "rope",
    "combine",
    "kv_append",
    "kv_read_blocks",
    "kv_write_blocks",
    "route",
    "group_slots",
    "embed",
    "linear_r1",
    "linear_r4",
    "linear_r8",
    "gate_up_r1",
    "gate_up_r4",
    "gate_up_r8",
    "grouped_r1",
    "grouped_r4",
    "grouped_r8",
    "attention_rows_q4",
    "attention_rows_q8",
    "attention_rows_q16",
    "attention_splits_q4",
    "attention_splits_q8",
    "attention_splits_q16",
    "attention_merge",
    "top_logits_parts",
    "top_logits",
];
/// Beside these, where the device has matrix units.
const UNIT_NAMES: [&str; 13] = [
    "linear_t8",
    "linear_t16",
    "linear_t64",
    "gate_up_t8",
    "gate_up_t16",
    "gate_up_t64",
    "grouped_t8",
    "grouped_t16",
    "grouped_t64",
    "flash_rows_q16",
    "flash_rows_q64",
    "flash_splits_q16",
    "flash_splits_q64",
];

/// Most blocks that vendors allow along y and z.
const GRID_YZ_MAX: usize = 65_535;

/// What the kernels are compiled for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub row: Row,
    pub arch: &'a str,
    /// With variants for matrix units.
    pub has_matrix_units: bool,
}

impl<'a> Target<'a> {
    pub fn new(row: Row, arch: &'a str, units: MatrixUnits) -> Self {
        Self { row, arch, has_matrix_units: row.has_matrix_units(arch, units) }
    }

    fn options(&self) -> Vec<String> {
        let mut options = self.row.options(self.arch);
        match (self.row, self.has_matrix_units) {
            (Row::Cuda | Row::Emu, false) => options.push("-DLQ_NO_MMA=1".into()),
            (Row::Dcu, true) => options.push("-DLQ_MMAC=1".into()),
            _ => {}
        }
        options
    }
}

/// Hands the unit of all kernels for a target to `take`, with the cache that it belongs in.
fn with_unit<T>(target: Target<'_>, environment: &Environment, take: impl FnOnce(&Unit<'_>, &Cache) -> T) -> T {
    let (row, arch, mut options) = (target.row, target.arch, target.options());
    if row == Row::Emu {
        options.extend(environment.emu_flags.iter().cloned());
    }
    let headers: Vec<(&str, &str)> = match row {
        Row::Emu => HEADERS.iter().copied().chain([EMU_HEADER]).collect(),
        _ => HEADERS.to_vec(),
    };
    let unit = Unit { name: "lingqu.cu", source: SOURCE, headers: &headers, arch, options: &options };
    let cache = Cache { folder: environment.kernel_cache.clone() };
    take(&unit, &cache)
}

/// The image of all kernels for a target, from the cache or the row's compiler.
pub(crate) fn build(target: Target<'_>, environment: &Environment) -> Result<Built> {
    with_unit(target, environment, |unit, cache| cache.image(unit, || target.row.compiler(environment)))
}

/// Whether `build` would need no compiler.
pub(crate) fn is_cached(target: Target<'_>, environment: &Environment) -> bool {
    with_unit(target, environment, |unit, cache| cache.holds(unit))
}

/// Kernels in the cache.
#[derive(Clone, Debug)]
pub struct BuiltKernels {
    pub file: PathBuf,
    /// They were there before.
    pub was_cached: bool,
}

/// Compiles every kernel for an architecture, such as `sm_90` or `gfx928`, into the cache. Needs no device.
///
/// # Errors
/// An architecture that no row knows, a missing compiler with what brings it, what the compiler says, a cache that
/// cannot be written.
pub fn build_kernels(arch: &str, environment: &Environment) -> Result<BuiltKernels> {
    let row = Row::of_arch(arch).ok_or_else(|| DriverError::UnknownArch(arch.into()))?;
    let built = build(Target::new(row, arch, MatrixUnits::default()), environment)?;
    let folder = environment.kernel_cache.as_ref().map_or("the kernel cache".into(), |f| f.display().to_string());
    let file = built.file.ok_or(DriverError::File { path: folder, problem: "cannot be written".into() })?;
    Ok(BuiltKernels { file, was_cached: built.was_cached })
}

/// The loaded module.
pub(crate) struct Kernels {
    device: Arc<Device>,
    functions: HashMap<&'static str, Handle>,
    _module: Module,
}

impl Kernels {
    /// Loads an image and finds all kernels in it.
    pub fn load(device: &Arc<Device>, image: &[u8], has_matrix_units: bool) -> Result<Self> {
        let module = Module::load(device, image)?;
        let of_units = if has_matrix_units { &UNIT_NAMES[..] } else { &[] };
        let all = NAMES.iter().chain(of_units).copied();
        let functions = all.map(|name| Ok((name, module.function(name)?))).collect::<Result<_>>()?;
        Ok(Self { device: device.clone(), functions, _module: module })
    }

    /// Starts `grid` blocks of `threads` threads; nothing where there are no blocks.
    pub fn launch(&self, kernel: &str, grid: [usize; 3], threads: usize, arguments: &[Argument]) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let [x, y, z] = grid;
        assert!(x <= i32::MAX as usize && y <= GRID_YZ_MAX && z <= GRID_YZ_MAX, "{kernel}: a grid of {grid:?}");
        let shape = Shape { grid: grid.map(|n| n as u32), block: [threads as u32, 1, 1], shared_bytes: 0 };
        let (kernel, function) = self.functions.get_key_value(kernel).expect("a kernel of the table");
        self.device.launch(Launch { function: *function, kernel, shape, arguments: arguments.to_vec() })
    }
}
