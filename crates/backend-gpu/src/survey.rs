//! What devices there are, for whoever lists them.

use std::time::Instant;

use crate::config::GpuConfig;
use crate::device::{Device, Graphs, Memory};
use crate::driver::{DeviceInfo, DriverError, Result};
use crate::kernels::{self, Target};

/// Every device of a row, with why one of them cannot be opened.
///
/// # Errors
/// Why the row as a whole cannot be used: no library, and what brings it; no device.
pub fn devices(config: &GpuConfig) -> Result<Vec<Result<DeviceInfo>>> {
    let driver = config.row.driver(&config.emulation)?;
    let count = driver.count()?;
    if count == 0 {
        return Err(DriverError::NoDevice { driver: driver.name() });
    }
    let open = |ordinal| Device::open(driver.clone(), ordinal, Graphs::Off).map(|device| device.info.clone());
    Ok((0..count).map(open).collect())
}

/// GB/s (10^9 bytes) read and written by copies of `bytes` within the device's memory, the best of a few runs. Take
/// much more than its caches hold.
///
/// # Errors
/// Those of the driver, out of memory among them.
pub fn measure_copy_bandwidth(config: &GpuConfig, bytes: usize) -> Result<f64> {
    const COPIES: usize = 8;
    let device = Device::open(config.row.driver(&config.emulation)?, config.device, Graphs::Off)?;
    let (from, to) = (Memory::zeroed(&device, bytes)?, Memory::zeroed(&device, bytes)?);
    let mut seconds_least = f64::INFINITY;
    for _ in 0..4 {
        device.wait()?;
        let start = Instant::now();
        for _ in 0..COPIES {
            to.copy_from(&from, bytes)?;
        }
        device.wait()?;
        seconds_least = seconds_least.min(start.elapsed().as_secs_f64());
    }
    Ok((2 * COPIES * bytes) as f64 / seconds_least / 1e9)
}

/// Whether the kernels for `arch` are in the cache or can be compiled here.
///
/// # Errors
/// The missing compiler, and what brings it.
pub fn kernels_at_hand(config: &GpuConfig, arch: &str) -> Result<()> {
    if kernels::is_cached(Target::new(config.row, arch, config.matrix_units), &config.environment) {
        return Ok(());
    }
    config.row.compiler(&config.environment).map(drop)
}
