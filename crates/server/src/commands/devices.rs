//! `lingqu devices`: what can compute here, and why the rest cannot.

use std::io::Write;

use anyhow::Result;
use lingqu_backend_cpu::{CpuBackend, CpuConfig};
use lingqu_backend_gpu::{GpuConfig, Row};

use crate::cli::DevicesArgs;
use crate::figures::bytes;

/// Bytes streamed to measure memory: well past any cache, and within any device.
const BANDWIDTH_BYTES: usize = 1 << 30;

pub fn run(args: &DevicesArgs) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let cpu = CpuBackend::new(CpuConfig::default())?;
    let measured = if args.measure { Some(cpu.measure_read_bandwidth(BANDWIDTH_BYTES)?) } else { None };
    let tiles = if args.measure { cpu.measure_tile_peak() } else { None };
    let name = &lingqu_backend::Backend::capabilities(&cpu).name;
    let tiles = tiles.map_or(String::new(), |tops| format!(", {tops:.2} TOPS int8"));
    writeln!(out, "{:<8} {name}{}{tiles}", "cpu", bandwidth(measured, "read"))?;
    for row in Row::ALL {
        write_row(&mut out, row, args.measure)?;
    }
    Ok(())
}

/// A row of drivers: its devices, or why there are none; and whether its kernels can be compiled here.
fn write_row(out: &mut impl Write, row: Row, measure: bool) -> Result<()> {
    let config = GpuConfig::of(row);
    let name = row.name();
    let devices = match lingqu_backend_gpu::devices(&config) {
        Ok(devices) => devices,
        Err(why) => return Ok(writeln!(out, "{name:<8} cannot be used: {why}")?),
    };
    for (device, found) in devices.into_iter().enumerate() {
        let label = format!("{name}:{device}");
        let info = match found {
            Ok(info) => info,
            Err(why) => {
                writeln!(out, "{label:<8} cannot be used: {why}")?;
                continue;
            }
        };
        let config = GpuConfig { device, ..config.clone() };
        let measured = match measure && row != Row::Emu {
            true => Some(lingqu_backend_gpu::measure_copy_bandwidth(&config, BANDWIDTH_BYTES)?),
            false => None,
        };
        let (all, free) = (bytes(info.memory_bytes), bytes(info.free_bytes));
        let bandwidth = bandwidth(measured, "copied");
        writeln!(out, "{label:<8} {}, {}, {all} ({free} free){bandwidth}", info.name, info.arch)?;
        if let Err(why) = lingqu_backend_gpu::kernels_at_hand(&config, &info.arch) {
            writeln!(out, "{:<8} its kernels cannot be compiled here: {why}", "")?;
        }
    }
    Ok(())
}

fn bandwidth(measured: Option<f64>, how: &str) -> String {
    measured.map_or(String::new(), |gb| format!(", {gb:.1} GB/s {how}"))
}
