//! What every op needs: the device, its kernels, and memory that ops reuse.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lingqu_backend::BackendError;

use crate::Result;
use crate::arguments::Argument;
use crate::config::GpuConfig;
use crate::device::{Device, Memory};
use crate::driver::{Address, Driver, DriverError};
use crate::kernels::{self, Kernels, Target};

pub(crate) struct Core {
    /// For people: the row and the device.
    pub name: String,
    // Before the device, which they leave in order.
    kernels: Kernels,
    scratch: Mutex<Scratch>,
    /// Whether the kernels have variants for matrix units.
    pub has_matrix_units: bool,
    /// Memory of steps that are over.
    pub spare_steps: Arc<Mutex<Vec<Memory>>>,
    pub device: Arc<Device>,
}

/// Memory that lives as long as an op, by its use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// Values on their way between host and device.
    Staged,
    /// Activations between the two halves of a feed-forward.
    Inner,
    /// Outputs of experts before they are summed.
    Outer,
    /// Slots by expert.
    Order,
    Tiles,
    TileCount,
    /// Attention's splits before they are merged.
    Partial,
    /// Cache blocks that are copied, and their numbers.
    HeldBlocks,
    BlockPairs,
    /// The largest logits of each row, and of parts of it.
    Top,
    /// Of the sums over rows of logits.
    Scales,
}

const ROOMS: usize = Room::Scales as usize + 1;

/// Held while an op is given to the stream. As the stream runs in order, the next op may have the same memory.
#[derive(Default)]
pub(crate) struct Scratch {
    rooms: [Option<Memory>; ROOMS],
    /// What [`Room::Scales`] holds.
    scales: Vec<f32>,
}

impl Core {
    pub fn open(config: &GpuConfig) -> Result<Self> {
        let row = config.row.name();
        let driver = config.row.driver(&config.emulation).map_err(|e| e.told(row, "the driver"))?;
        Self::with_driver(config, driver)
    }

    /// With a driver of the row that is open already.
    pub fn with_driver(config: &GpuConfig, driver: Arc<dyn Driver>) -> Result<Self> {
        let row = config.row.name();
        let told = |what: &'static str| move |e: DriverError| e.told(row, what);
        let device = Device::open(driver, config.device, config.graphs).map_err(told("opening the device"))?;
        let target = Target::new(config.row, &device.info.arch, config.matrix_units);
        let built = kernels::build(target, &config.environment).map_err(told("the kernels"))?;
        let has_matrix_units = target.has_matrix_units;
        let kernels = Kernels::load(&device, &built.image, has_matrix_units).map_err(told("loading the kernels"))?;
        let name = format!("{row} ({}, {})", device.info.name, device.info.arch);
        Ok(Self { name, kernels, has_matrix_units, scratch: Mutex::default(), spare_steps: Arc::default(), device })
    }

    /// An error of the driver as the seam tells it.
    pub fn told(&self, what: &str) -> impl Fn(DriverError) -> BackendError {
        move |error| error.told(&self.name, what)
    }

    pub fn launch(&self, kernel: &str, grid: [usize; 3], threads: usize, arguments: &[Argument]) -> Result<()> {
        self.kernels.launch(kernel, grid, threads, arguments).map_err(self.told(kernel))
    }

    pub fn scratch(&self) -> MutexGuard<'_, Scratch> {
        lock(&self.scratch)
    }

    /// Threads of a block that is four warps.
    pub fn four_warps(&self) -> usize {
        4 * self.device.info.warp
    }

    /// Memory for `count` values of `value_bytes` bytes; `what` is told where it cannot be had.
    pub fn memory(&self, what: &str, counts: &[usize], value_bytes: usize) -> Result<Memory> {
        let refused = || BackendError::OutOfMemory { what: what.into(), bytes: usize::MAX };
        let bytes = counts.iter().try_fold(value_bytes, |product, n| product.checked_mul(*n)).ok_or_else(refused)?;
        Memory::zeroed(&self.device, bytes).map_err(self.told(what))
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // memory is whole, whatever it holds
}

impl Scratch {
    /// At least `bytes`, of any content, until the next call for the same room.
    pub fn memory(&mut self, core: &Core, room: Room, bytes: usize) -> Result<&Memory> {
        let place = &mut self.rooms[room as usize];
        if place.as_ref().is_none_or(|held| held.bytes() < bytes) {
            *place = None; // before the new one, which may need its memory
            let what = format!("{room:?}, memory of an op");
            *place = Some(Memory::new(&core.device, bytes.next_multiple_of(256)).map_err(core.told(&what))?);
        }
        Ok(place.as_ref().expect("just made"))
    }

    /// Where these scales are. They mostly are those of the step before: then nothing waits for a copy.
    pub fn scales(&mut self, core: &Core, scales: &[f32]) -> Result<Address> {
        let is_held = self.scales == scales;
        let held = std::mem::take(&mut self.scales);
        let memory = self.memory(core, Room::Scales, size_of_val(scales))?;
        if !is_held {
            memory.write(0, scales).map_err(core.told("scales of logits"))?;
        }
        let address = memory.address();
        self.scales = if is_held { held } else { scales.to_vec() };
        Ok(address)
    }

    pub fn address(&mut self, core: &Core, room: Room, bytes: usize) -> Result<Address> {
        Ok(self.memory(core, room, bytes)?.address())
    }
}
