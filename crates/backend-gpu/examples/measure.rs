//! Ops at the shapes of DeepSeek-R1 on a device, against the speed at which it copies its own memory:
//! `cargo run --release -p lingqu-backend-gpu --example measure -- cuda`. With `emu` the shapes are tiny and the
//! figures mean nothing: it shows that this program works.
//!
//! Bytes are those that must be read at least once: weights of the experts in use, or the cache. A share of the copy's
//! speed near 1 is the limit of an op that is bound by memory.

use std::time::Instant;

use lingqu_backend::{
    AttentionSpec, Backend, Buffer, FfnSource, HostRouting, KvEntry, KvPrecision, KvSpec, LinearSource, RouteGroups,
    RouteSpec, Routing, Scoring,
};
use lingqu_backend::{BackendError, GroupScore};
use lingqu_backend_gpu::{GpuBackend, GpuConfig, Row, measure_copy_bandwidth};
use lingqu_tensor::{BlockScales, Format, HostTensor};
use lingqu_types::{Batch, BlockId, SequenceSlice};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Shapes of a model, and what to run.
struct Shapes {
    hidden: usize,
    expert: usize,
    dense: usize,
    experts: usize,
    groups: usize,
    top_groups: usize,
    top_k: usize,
    heads: usize,
    latent: usize,
    width: usize,
    rows: &'static [usize],
    sequences: &'static [usize],
    contexts: &'static [usize],
    copy_bytes: usize,
    samples: usize,
    sample_s: f64,
}

/// DeepSeek-R1: config.json of its release.
const R1: Shapes = Shapes {
    hidden: 7168,
    expert: 2048,
    dense: 18432,
    experts: 256,
    groups: 8,
    top_groups: 4,
    top_k: 8,
    heads: 128,
    latent: 512,
    width: 576,
    rows: &[1, 2, 4, 8, 16, 128, 512],
    sequences: &[1, 16, 128],
    contexts: &[4096, 32768],
    copy_bytes: 2 << 30,
    samples: 9,
    sample_s: 0.02,
};

const TINY: Shapes = Shapes {
    hidden: 256,
    expert: 128,
    dense: 512,
    experts: 8,
    groups: 4,
    top_groups: 2,
    top_k: 2,
    heads: 4,
    latent: 16,
    width: 24,
    rows: &[1, 5],
    sequences: &[1, 2],
    contexts: &[40, 300],
    copy_bytes: 1 << 20,
    samples: 3,
    sample_s: 0.0,
};

/// What an op must move and compute, at the least.
#[derive(Clone, Copy)]
struct Work {
    bytes: usize,
    operations: usize,
}

struct Bench<'a> {
    backend: &'a dyn Backend,
    shapes: &'a Shapes,
    copy_gb_s: f64,
    /// Read to wait for the device.
    flag: Buffer,
}

impl Bench<'_> {
    fn wait(&self) -> Result<(), BackendError> {
        self.backend.read(self.flag.view(), &mut [0.0])
    }

    /// Times `op`: samples of several calls each, after one that is not counted.
    fn measure(&self, name: &str, work: Work, mut op: impl FnMut() -> Result<(), BackendError>) -> Result<()> {
        op()?;
        self.wait()?;
        let start = Instant::now();
        op()?;
        self.wait()?;
        let once_s = start.elapsed().as_secs_f64();
        let calls = (self.shapes.sample_s / once_s.max(1e-7)).ceil().clamp(1.0, 1000.0) as usize;
        let mut call_us = Vec::new();
        for _ in 0..self.shapes.samples {
            let start = Instant::now();
            for _ in 0..calls {
                op()?;
            }
            self.wait()?;
            call_us.push(start.elapsed().as_secs_f64() * 1e6 / calls as f64);
        }
        call_us.sort_by(f64::total_cmp);
        let (least, median, most) = (call_us[0], call_us[call_us.len() / 2], call_us[call_us.len() - 1]);
        let gb_s = work.bytes as f64 / median / 1e3;
        println!(
            "{name:<44} {:>9.1} MB {median:>10.1} us ({least:.1} .. {most:.1}) {gb_s:>8.1} GB/s {:>5.2} of copy \
             {:>7.2} TFLOP/s",
            work.bytes as f64 / 1e6,
            gb_s / self.copy_gb_s,
            work.operations as f64 / median / 1e6,
        );
        Ok(())
    }

    /// A buffer of made-up values.
    fn filled(&self, rows: usize, cols: usize) -> Result<Buffer> {
        let mut buffer = self.backend.alloc(rows, cols)?;
        buffer.set_rows(rows);
        let values: Vec<f32> = (0..rows * cols).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect();
        self.backend.write(&values, buffer.view_mut())?;
        Ok(buffer)
    }

    /// Experts of each row, spread as evenly as a shuffle does.
    fn routing(&self, rows: usize) -> Result<(Routing, usize)> {
        let Shapes { experts, top_k, .. } = *self.shapes;
        let mut state = 1u64;
        let mut chosen = Vec::new();
        for _ in 0..rows {
            let row = chosen.len();
            while chosen.len() < row + top_k {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); // Knuth's MMIX
                let expert = (state >> 33) as u32 % experts as u32;
                if !chosen[row..].contains(&expert) {
                    chosen.push(expert);
                }
            }
        }
        let mut in_use = chosen.clone();
        in_use.sort_unstable();
        in_use.dedup();
        let weights = vec![1.0 / top_k as f32; chosen.len()];
        let mut routing = self.backend.alloc_routing(rows, top_k)?;
        self.backend.write_routing(&HostRouting { top_k, experts: chosen, weights }, &mut routing)?;
        Ok((routing, in_use.len()))
    }
}

/// FP8 with a scale for each 128 x 128 values, of made-up bits.
fn fp8(name: &str, rows: usize, cols: usize) -> Result<HostTensor> {
    let values: Vec<u8> = (0..rows * cols).map(|i| (i * 7919 % 1009 % 120) as u8 | (i as u8 & 1) << 7).collect();
    let scales = vec![0.01f32; rows.div_ceil(128) * cols.div_ceil(128)];
    let data: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
    let scales = BlockScales { data: data.into(), rows_per_block: 128, cols_per_block: 128 };
    Ok(HostTensor::new(name, [rows, cols], Format::Fp8E4M3, values.into())?.with_scales(scales)?)
}

/// Row 0 of each sequence comes after `context` others.
fn decode_step(sequences: usize, context: usize, block_tokens: usize) -> Batch {
    let blocks = (context + 1).div_ceil(block_tokens);
    let sequence = |s: usize| SequenceSlice {
        rows: s..s + 1,
        context,
        blocks: (s * blocks..(s + 1) * blocks).map(|b| BlockId(b as u32)).collect(),
        adapter: None,
    };
    Batch { tokens: vec![0; sequences], sequences: (0..sequences).map(sequence).collect(), logit_rows: Vec::new() }
}

/// Absorbed MLA, one new token for each sequence.
fn mla_decode(bench: &Bench<'_>) -> Result<()> {
    let Shapes { heads, latent, width, sequences, contexts, .. } = *bench.shapes;
    const BLOCK_TOKENS: usize = 64;
    for &context in contexts {
        for &count in sequences {
            let batch = decode_step(count, context, BLOCK_TOKENS);
            let blocks = count * (context + 1).div_ceil(BLOCK_TOKENS);
            let entry = KvEntry::Latent { width, v_dim: latent };
            let kv = bench.backend.alloc_kv(&KvSpec {
                layers: 1,
                blocks,
                block_tokens: BLOCK_TOKENS,
                entry,
                precision: KvPrecision::Full,
            })?;
            let step = bench.backend.begin_step(&batch, BLOCK_TOKENS)?;
            let (q, mut out) = (bench.filled(count, heads * width)?, bench.filled(count, heads * latent)?);
            let positions = count * (context + 1);
            let work = Work { bytes: positions * width * 2, operations: 2 * positions * heads * (width + latent) };
            let spec = AttentionSpec { layer: 0, scale: 0.07 };
            bench.measure(&format!("MLA decode, {count} x {context} positions"), work, || {
                let out = out.view_mut().split_heads(heads);
                bench.backend.attention(&step, q.view().split_heads(heads), &kv, spec, out)
            })?;
        }
    }
    Ok(())
}

fn linear(bench: &Bench<'_>) -> Result<()> {
    let Shapes { hidden, dense, rows, .. } = *bench.shapes;
    let block = vec![0.03; 256 * 256];
    let quantised = |format| -> Result<HostTensor> {
        let square = HostTensor::encode("w", [256, 256], format, &block).ok_or("whole blocks")?;
        let row: Vec<u8> = square.data.as_slice()[..square.row_bytes()].repeat(hidden / 256);
        Ok(HostTensor::new("w", [dense, hidden], format, row.repeat(dense).into())?)
    };
    for w in [fp8("w", dense, hidden)?, quantised(Format::Bf16)?, quantised(Format::Q8_0)?, quantised(Format::Q4K)?] {
        let weight = bench.backend.upload_linear(LinearSource::one(&w))?;
        for &rows in rows {
            let (x, mut out) = (bench.filled(rows, hidden)?, bench.filled(rows, dense)?);
            let work = Work { bytes: weight.bytes, operations: 2 * rows * hidden * dense };
            let name = format!("linear {} [{dense}, {hidden}], {rows} rows", w.format);
            bench.measure(&name, work, || bench.backend.linear(x.view(), &weight, out.view_mut()))?;
        }
    }
    Ok(())
}

/// Routed experts alone, then the whole layer around them: norm, router, experts, shared expert, sums.
fn moe(bench: &Bench<'_>) -> Result<()> {
    let Shapes { hidden, expert, experts, groups, top_groups, top_k, rows, .. } = *bench.shapes;
    let backend = bench.backend;
    let source = FfnSource {
        gate: fp8("gate", expert, hidden)?,
        up: fp8("up", expert, hidden)?,
        down: fp8("down", hidden, expert)?,
    };
    let routed = backend.upload_experts(&vec![source.clone(); experts])?;
    let shared = backend.upload_ffn(&source)?;
    let router = HostTensor::from_f32("router", [experts, hidden], &vec![0.01; experts * hidden]);
    let router = backend.upload_linear(LinearSource::one(&router))?;
    let norm = backend.upload_table(&HostTensor::from_f32("norm", [1, hidden], &vec![1.0; hidden]))?;
    let bias: Vec<f32> = (0..experts).map(|e| (e * 31 % experts) as f32 * 1e-3).collect();
    let bias = backend.upload_table(&HostTensor::from_f32("bias", [1, experts], &bias))?;
    let route_groups = RouteGroups { groups, top_groups, score: GroupScore::Top2Sum };
    let spec = RouteSpec {
        experts,
        top_k,
        scoring: Scoring::Sigmoid,
        groups: Some(route_groups),
        normalise: true,
        scale: 2.5,
    };
    let one = 3 * hidden * expert; // bytes of an expert, and half its operations for a row
    for &rows in rows {
        let (routing, in_use) = bench.routing(rows)?;
        let mut chosen = backend.alloc_routing(rows, top_k)?;
        chosen.set_rows(rows);
        let (x, mut out, mut normed) =
            (bench.filled(rows, hidden)?, bench.filled(rows, hidden)?, bench.filled(rows, hidden)?);
        let (mut logits, mut beside) = (bench.filled(rows, experts)?, bench.filled(rows, hidden)?);
        let work = Work { bytes: in_use * one, operations: 2 * rows * top_k * one };
        bench.measure(&format!("{in_use} of {experts} experts, {rows} rows"), work, || {
            backend.experts(x.view(), &routing, &routed, out.view_mut())
        })?;
        let bytes = (in_use + 1) * one + experts * hidden * 4;
        let operations = 2 * rows * ((top_k + 1) * one + experts * hidden);
        bench.measure(&format!("MoE layer, {rows} rows"), Work { bytes, operations }, || {
            backend.rms_norm(x.view(), &norm, 1e-6, normed.view_mut())?;
            backend.linear(normed.view(), &router, logits.view_mut())?;
            backend.route(logits.view(), Some(&bias), &spec, &mut chosen)?;
            backend.experts(normed.view(), &routing, &routed, out.view_mut())?;
            backend.ffn(normed.view(), &shared, beside.view_mut())?;
            backend.add(beside.view(), out.view_mut())?;
            backend.add(x.view(), out.view_mut())
        })?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let asked = std::env::args().nth(1).unwrap_or_default();
    let row = Row::ALL.into_iter().find(|row| row.name() == asked).ok_or("usage: measure cuda|dcu|emu")?;
    let shapes = if row == Row::Emu { &TINY } else { &R1 };
    let config = GpuConfig::of(row);
    let copy_gb_s = measure_copy_bandwidth(&config, shapes.copy_bytes)?;
    let backend = GpuBackend::new(&config)?;
    let mut flag = backend.alloc(1, 1)?;
    flag.set_rows(1);
    println!("{}: copies its memory at {copy_gb_s:.1} GB/s (read and write)", backend.capabilities().name);
    println!("median of {} samples (least .. most); bytes that must be read at least\n", shapes.samples);
    let bench = Bench { backend: &backend, shapes, copy_gb_s, flag };
    mla_decode(&bench)?;
    linear(&bench)?;
    moe(&bench)
}
