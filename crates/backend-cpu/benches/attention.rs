//! Attention against the machine's limits: `cargo bench -p lingqu-backend-cpu --bench attention [-- FILTER]`.
//!
//! For each shape and batch: the median and spread of several runs, the bytes of the cache per second (each entry
//! counted once for a sequence and step) and their share of the read bandwidth, operations per second and their share
//! of what fused multiply-adds alone reach on all threads. The limits are measured before and after, for machines
//! drift.

use std::time::Instant;

use lingqu_backend::{AttentionSpec, Backend, KvEntry, KvPrecision, KvSpec, KvStore};
use lingqu_backend_cpu::{CpuBackend, CpuConfig, Isa};
use lingqu_types::{Batch, BlockId, SequenceSlice};

/// Caches of a case together, at most: as many layers are made and attended in turn.
const CASE_BYTES: usize = 192 << 20;
const LAYERS_MAX: usize = 24;
const BLOCK_TOKENS: usize = 32;
const RUNS: usize = 7;

struct Shape {
    name: &'static str,
    heads: usize,
    entry: KvEntry,
}

impl Shape {
    /// Values of one head's query, of one head's output, and of an entry.
    fn widths(&self) -> [usize; 3] {
        match self.entry {
            KvEntry::Latent { width, v_dim } => [width, v_dim, width],
            KvEntry::Separate { kv_heads, k_dim, v_dim } => [k_dim, v_dim, kv_heads * (k_dim + v_dim)],
        }
    }
}

const SHAPES: [Shape; 3] = [
    Shape { name: "v2-lite", heads: 16, entry: KvEntry::Latent { width: 576, v_dim: 512 } },
    Shape { name: "qwen2", heads: 12, entry: KvEntry::Separate { kv_heads: 2, k_dim: 128, v_dim: 128 } },
    Shape { name: "r1", heads: 128, entry: KvEntry::Latent { width: 576, v_dim: 512 } },
];

/// Sequences that each have `context` tokens in the cache and `rows` more in the step.
struct Load {
    name: &'static str,
    sequences: usize,
    rows: usize,
    context: usize,
}

const LOADS: [Load; 6] = [
    Load { name: "prefill-512", sequences: 1, rows: 512, context: 0 },
    Load { name: "prefill-512-at-4k", sequences: 1, rows: 512, context: 4096 },
    Load { name: "decode-512", sequences: 1, rows: 1, context: 511 },
    Load { name: "decode-4k", sequences: 1, rows: 1, context: 4095 },
    Load { name: "decode-16k", sequences: 1, rows: 1, context: 16383 },
    Load { name: "decode-16x512", sequences: 16, rows: 1, context: 511 },
];

fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut value = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| value()).collect()
}

/// Rows `range` of every sequence; blocks of the sequences lie behind each other.
fn batch(load: &Load, range: std::ops::Range<usize>) -> Batch {
    let blocks = (load.context + load.rows).div_ceil(BLOCK_TOKENS);
    let rows = range.len();
    let sequence = |s: usize| SequenceSlice {
        rows: s * rows..(s + 1) * rows,
        context: range.start,
        blocks: (s * blocks..(s + 1) * blocks).map(|b| BlockId(b as u32)).collect(),
        adapter: None,
    };
    Batch {
        tokens: vec![0; load.sequences * rows],
        sequences: (0..load.sequences).map(sequence).collect(),
        logit_rows: vec![],
    }
}

/// A cache of random entries.
fn cache(backend: &CpuBackend, shape: &Shape, load: &Load, layers: usize) -> KvStore {
    let tokens = load.context + load.rows;
    let blocks = load.sequences * tokens.div_ceil(BLOCK_TOKENS);
    let spec = KvSpec { layers, blocks, block_tokens: BLOCK_TOKENS, entry: shape.entry, precision: KvPrecision::Full };
    let mut kv = backend.alloc_kv(&spec).expect("memory");
    let (kv_heads, k_dim, v_dim) = match shape.entry {
        KvEntry::Latent { width, v_dim } => (1, width, v_dim),
        KvEntry::Separate { kv_heads, k_dim, v_dim } => (kv_heads, k_dim, v_dim),
    };
    for start in (0..tokens).step_by(512) {
        let batch = batch(load, start..(start + 512).min(tokens));
        let rows = batch.rows();
        let step = backend.begin_step(&batch, BLOCK_TOKENS).expect("a step");
        let put = |seed: usize, width: usize| {
            let mut buffer = backend.alloc(rows, width).expect("memory");
            buffer.set_rows(rows);
            backend.write(&values(seed as u64, rows * width), buffer.view_mut()).expect("the host's memory");
            buffer
        };
        let (k, v) = (put(start, kv_heads * k_dim), put(start + 1, kv_heads * v_dim));
        for layer in 0..layers {
            let v = matches!(shape.entry, KvEntry::Separate { .. }).then(|| v.view().split_heads(kv_heads));
            backend.kv_append(&step, &mut kv, layer, k.view().split_heads(kv_heads), v).expect("entries");
        }
    }
    kv
}

struct Limits {
    read: f64,
    /// 10^12 operations a second, of fused multiply-adds on all threads.
    fma: f64,
}

fn limits(backend: &CpuBackend) -> Limits {
    let read = backend.measure_read_bandwidth(1 << 30).expect("a GiB of memory");
    let fma = fma::peak(backend.isa(), backend.threads());
    println!("limits: read {read:.1} GB/s, fma {fma:.3} Tflop/s");
    Limits { read, fma }
}

fn run(backend: &CpuBackend, shape: &Shape, load: &Load, limits: &Limits) {
    let [k_dim, v_dim, entry_values] = shape.widths();
    let tokens = load.context + load.rows;
    let bytes_of_layer = 2 * load.sequences * tokens * entry_values;
    let layers = (CASE_BYTES / bytes_of_layer).clamp(1, LAYERS_MAX / load.rows.ilog2().max(1) as usize);
    let kv = cache(backend, shape, load, layers);
    let batch = batch(load, load.context..tokens);
    let rows = batch.rows();
    let step = backend.begin_step(&batch, BLOCK_TOKENS).expect("a step");
    let mut q = backend.alloc(rows, shape.heads * k_dim).expect("memory");
    q.set_rows(rows);
    backend.write(&values(7, rows * shape.heads * k_dim), q.view_mut()).expect("the host's memory");
    let mut out = backend.alloc(rows, shape.heads * v_dim).expect("memory");
    out.set_rows(rows);
    let mut once = || {
        let start = Instant::now();
        for layer in 0..layers {
            let spec = AttentionSpec { layer, scale: (k_dim as f32).sqrt().recip() };
            let out = out.view_mut().split_heads(shape.heads);
            backend.attention(&step, q.view().split_heads(shape.heads), &kv, spec, out).expect("attention");
        }
        start.elapsed().as_secs_f64() / layers as f64
    };
    once();
    let mut times: Vec<f64> = (0..RUNS).map(|_| once()).collect();
    times.sort_by(f64::total_cmp);
    let keys: usize = batch.positions().iter().map(|&p| p as usize + 1).sum();
    let operations = 2.0 * (keys * shape.heads * (k_dim + v_dim)) as f64;
    let median = times[times.len() / 2];
    let (read, ops) = (bytes_of_layer as f64 / median / 1e9, operations / median / 1e12);
    println!(
        "{:<28} {:>9.3} ms ({:.3}-{:.3}) {read:>6.2} GB/s {:>3.0}% {:>7.1} Gflop/s {:>3.0}%",
        format!("{} {}", shape.name, load.name),
        median * 1e3,
        times[0] * 1e3,
        times[times.len() - 1] * 1e3,
        read / limits.read * 100.0,
        ops * 1e3,
        ops / limits.fma * 100.0
    );
}

/// What fused multiply-adds reach when all operands are in registers.
mod fma {
    use std::time::Instant;

    use lingqu_backend_cpu::Isa;

    const CHAINS: usize = 12;
    const ROUNDS: usize = 1 << 20;

    /// Operations done.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn avx512() -> usize {
        use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps};
        let mut sums = [_mm512_set1_ps(0.5); CHAINS];
        let (factor, term) = std::hint::black_box((_mm512_set1_ps(0.5), _mm512_set1_ps(0.25)));
        for _ in 0..ROUNDS {
            sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, factor, term));
        }
        std::hint::black_box(sums);
        2 * 16 * CHAINS * ROUNDS
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2() -> usize {
        use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
        let mut sums = [_mm256_set1_ps(0.5); CHAINS];
        let (factor, term) = std::hint::black_box((_mm256_set1_ps(0.5), _mm256_set1_ps(0.25)));
        for _ in 0..ROUNDS {
            sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, factor, term));
        }
        std::hint::black_box(sums);
        2 * 8 * CHAINS * ROUNDS
    }

    /// 10^12 operations a second of all threads together, the best of a few runs.
    pub fn peak(isa: Isa, threads: usize) -> f64 {
        let run = move || match isa {
            // SAFETY: a backend of this set exists, so the machine has its instructions.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => unsafe { avx512() },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2() },
            _ => 0,
        };
        let together = |_| {
            let start = Instant::now();
            let operations: usize = std::thread::scope(|scope| {
                let handles: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
                handles.into_iter().map(|handle| handle.join().expect("no panic")).sum()
            });
            operations as f64 / start.elapsed().as_secs_f64() / 1e12
        };
        (0..7).map(together).fold(0.0, f64::max)
    }
}

fn main() {
    // All words must be in "ISA SHAPE LOAD", as `cargo bench ... -- avx512 v2-lite decode-16k`.
    let filter: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    for isa in [Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| isa.available()) {
        let wanted = |shape: &Shape, load: &Load| {
            let name = format!("{isa} {} {} ", shape.name, load.name);
            // 128 heads take long: one case stands for all.
            (shape.heads < 128 || load.name == "decode-4k") && filter.iter().all(|f| name.contains(&format!("{f} ")))
        };
        let cases = SHAPES.iter().flat_map(|shape| LOADS.iter().map(move |load| (shape, load)));
        let cases: Vec<_> = cases.filter(|(shape, load)| wanted(shape, load)).collect();
        if cases.is_empty() {
            continue;
        }
        let backend = CpuBackend::new(CpuConfig { isa: Some(isa), ..CpuConfig::default() }).expect("this machine's");
        println!("== {isa}, {} threads", backend.threads());
        let limits_now = limits(&backend);
        for (shape, load) in cases {
            run(&backend, shape, load, &limits_now);
        }
        limits(&backend);
    }
}
