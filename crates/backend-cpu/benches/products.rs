//! Matrix products against the machine's limits: `cargo bench -p lingqu-backend-cpu --bench products [-- FILTER]`.
//!
//! For each format and number of rows: the median and spread of several runs, the bytes of weights read per second
//! and their share of the read bandwidth, operations per second and their share of the int8 tile peak (or of nothing,
//! where there are no tiles). The limits are measured before and after, for machines drift.

use std::time::Instant;

use lingqu_backend::{AdaptedRows, Backend, FfnSource, HostRouting, LinearSource, LowRankSource};
use lingqu_backend_cpu::{CpuBackend, CpuConfig, Isa, Precision};
use lingqu_tensor::{Format, HostTensor, quant};

/// Weights of a case together: far more than the caches hold.
const CASE_BYTES: usize = 192 << 20;
const RUNS: usize = 7;

/// A matrix of normal values. One row is encoded and repeated, shifted by whole blocks: encoding is slow.
fn matrix(format: Format, [rows, cols]: [usize; 2], seed: u64) -> HostTensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut unit = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let values: Vec<f32> = (0..cols).map(|_| ((0..6).map(|_| unit()).sum::<f32>() - 3.0) * 0.03).collect();
    let mut row = quant::encode_row(format, &values).expect("whole blocks");
    let mut data = Vec::with_capacity(rows * row.len());
    for _ in 0..rows {
        data.extend_from_slice(&row);
        row.rotate_left(format.block_bytes());
    }
    HostTensor::new("w", [rows, cols], format, data.into()).expect("a whole matrix")
}

/// Runs `work` some times; seconds, sorted.
fn timed(mut work: impl FnMut()) -> Vec<f64> {
    work();
    let mut times: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

struct Limits {
    read: f64,
    tiles: Option<f64>,
}

fn limits(backend: &CpuBackend) -> Limits {
    let read = backend.measure_read_bandwidth(1 << 30).expect("a GiB of memory");
    let limits = Limits { read, tiles: backend.measure_tile_peak() };
    let tiles = limits.tiles.map_or("none".into(), |t| format!("{t:.2} Tops/s"));
    println!("limits: read {read:.1} GB/s, int8 tiles {tiles}");
    limits
}

fn report(name: &str, times: &[f64], bytes: f64, operations: f64, limits: &Limits) {
    let median = times[times.len() / 2];
    let (read, ops) = (bytes / median / 1e9, operations / median / 1e12);
    let of_tiles = limits.tiles.map_or(String::new(), |t| format!(" {:>4.0}%", ops / t * 100.0));
    println!(
        "{name:<40} {:>9.3} ms ({:.3}-{:.3}) {read:>6.1} GB/s {:>4.0}%  {ops:>6.3} Tops/s{of_tiles}",
        median * 1e3,
        times[0] * 1e3,
        times[times.len() - 1] * 1e3,
        read / limits.read * 100.0
    );
}

fn linear(backend: &CpuBackend, format: Format, shape: [usize; 2], rows: usize, limits: &Limits) {
    let first = matrix(format, shape, 1);
    let layers = (CASE_BYTES / first.data.len()).clamp(1, 64);
    let weights: Vec<_> = (0..layers)
        .map(|i| {
            let parts = [matrix(format, shape, 1 + i as u64)];
            backend.upload_linear(LinearSource { parts: &parts, biases: &[] }).expect("memory")
        })
        .collect();
    let mut x = backend.alloc(rows, shape[1]).expect("memory");
    let values: Vec<f32> = (0..rows * shape[1]).map(|i| ((i * 7919) % 1009) as f32 / 504.0 - 1.0).collect();
    x.set_rows(rows);
    backend.write(&values, x.view_mut()).expect("the host's memory");
    let mut out = backend.alloc(rows, shape[0]).expect("memory");
    out.set_rows(rows);
    let times = timed(|| {
        for weight in &weights {
            backend.linear(x.view(), weight, out.view_mut()).expect("a product");
        }
    });
    let bytes = (layers * first.data.len()) as f64;
    let operations = 2.0 * (layers * rows * shape[0] * shape[1]) as f64;
    report(&format!("{format} {}x{}, {rows} rows", shape[0], shape[1]), &times, bytes, operations, limits);
}

/// A layer of experts as DeepSeek-V2-Lite has it: 64 of width 1408, 6 a row.
fn experts(backend: &CpuBackend, rows: usize, limits: &Limits) {
    let (hidden, width, count, top_k) = (2048, 1408, 64, 6);
    let sources: Vec<FfnSource> = (0..count)
        .map(|i| FfnSource {
            gate: matrix(Format::Q4K, [width, hidden], i),
            up: matrix(Format::Q4K, [width, hidden], i + 100),
            down: matrix(Format::Q5_0, [hidden, width], i + 200),
        })
        .collect();
    let per_expert = sources[0].gate.data.len() + sources[0].up.data.len() + sources[0].down.data.len();
    let weights = backend.upload_experts(&sources).expect("memory");
    let experts: Vec<u32> = (0..rows * top_k).map(|i| ((i * 37 + i / top_k * 11) % count as usize) as u32).collect();
    let mut distinct = experts.clone();
    distinct.sort_unstable();
    distinct.dedup();
    let mut routing = backend.alloc_routing(rows, top_k).expect("memory");
    let host = HostRouting { experts, weights: vec![0.2; rows * top_k], top_k };
    backend.write_routing(&host, &mut routing).expect("the host's memory");
    let mut x = backend.alloc(rows, hidden).expect("memory");
    x.set_rows(rows);
    let values: Vec<f32> = (0..rows * hidden).map(|i| ((i * 7919) % 1009) as f32 / 504.0 - 1.0).collect();
    backend.write(&values, x.view_mut()).expect("the host's memory");
    let mut out = backend.alloc(rows, hidden).expect("memory");
    out.set_rows(rows);
    let times = timed(|| backend.experts(x.view(), &routing, &weights, out.view_mut()).expect("experts"));
    let bytes = (distinct.len() * per_expert) as f64;
    let operations = 2.0 * (rows * top_k * hidden * width * 3) as f64;
    report(&format!("experts 64 x 1408, top 6, {rows} rows"), &times, bytes, operations, limits);
}

/// What adapters of rank 16 add to as many layers as `linear` has, the rows shared out among four of them.
fn adapters(backend: &CpuBackend, rows: usize, limits: &Limits) {
    let (width, rank, layers, count) = (2048, 16, 64, rows.min(4));
    let source = |seed: usize| LowRankSource {
        offset: 0,
        a: matrix(Format::Bf16, [rank, width], 1 + seed as u64),
        b: matrix(Format::Bf16, [width, rank], 1000 + seed as u64),
        scale: 2.0,
    };
    let change = |seed: usize| backend.upload_low_rank(&[source(seed)]).expect("memory");
    let changes: Vec<Vec<_>> = (0..layers).map(|l| (0..count).map(|a| change(l * 4 + a)).collect()).collect();
    let of = |a: usize| (0..rows as u32).filter(|r| *r as usize % count == a).collect::<Vec<u32>>();
    let groups: Vec<Vec<u32>> = (0..count).map(of).collect();
    let mut x = backend.alloc(rows, width).expect("memory");
    x.set_rows(rows);
    let values: Vec<f32> = (0..rows * width).map(|i| ((i * 7919) % 1009) as f32 / 504.0 - 1.0).collect();
    backend.write(&values, x.view_mut()).expect("the host's memory");
    let mut out = backend.alloc(rows, width).expect("memory");
    out.set_rows(rows);
    let times = timed(|| {
        for changes in &changes {
            let some = changes.iter().zip(&groups).map(|(change, rows)| AdaptedRows { rows, change });
            backend.add_low_rank(x.view(), &some.collect::<Vec<_>>(), out.view_mut()).expect("a change");
        }
    });
    let bytes = (layers * count * 2 * rank * width * 2) as f64;
    let operations = 4.0 * (layers * rows * rank * width) as f64;
    report(&format!("{count} adapters of rank 16, {width}, {rows} rows"), &times, bytes, operations, limits);
}

fn main() {
    // All words must be in "ISA PRECISION CASE", as `cargo bench ... -- amx Int8 Q4_K rows=1`.
    let filter: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available() && *isa >= Isa::Avx2) {
        for precision in [Precision::Int8, Precision::Int16] {
            let kind = format!("{isa} {precision:?}");
            let wanted = |case: &str| {
                let name = format!("{kind} {case} ");
                filter.iter().all(|f| name.contains(&format!("{f} ")))
            };
            let formats = [Format::Q4K, Format::Q6K, Format::Q5_0, Format::Q8_0];
            let rows_of_linear = [1, 2, 4, 8, 16, 32, 48, 512];
            let cases = formats.iter().flat_map(|f| rows_of_linear.map(|rows| (*f, rows)));
            let cases: Vec<_> = cases.filter(|(f, rows)| wanted(&format!("{f} rows={rows}"))).collect();
            let of_experts: Vec<_> =
                [1, 4, 16, 512].into_iter().filter(|r| wanted(&format!("experts rows={r}"))).collect();
            let of_adapters: Vec<_> =
                [1, 4, 16, 512].into_iter().filter(|r| wanted(&format!("adapters rows={r}"))).collect();
            if cases.is_empty() && of_experts.is_empty() && of_adapters.is_empty() {
                continue;
            }
            let config = CpuConfig { isa: Some(isa), precision, ..CpuConfig::default() };
            let backend = CpuBackend::new(config).expect("a set that this machine has");
            println!("== {kind}, {} threads", backend.threads());
            let limits_now = limits(&backend);
            for (format, rows) in cases {
                linear(&backend, format, [2048, 2048], rows, &limits_now);
            }
            for rows in of_experts {
                experts(&backend, rows, &limits_now);
            }
            for rows in of_adapters {
                adapters(&backend, rows, &limits_now);
            }
            limits(&backend);
        }
    }
}
