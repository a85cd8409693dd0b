//! The same bits on every instruction set, for any number of threads, alone or in company, in any chunks.

use std::time::Duration;

use lingqu_backend::{
    AdaptedFfn, AdaptedRows, AttentionSpec, Backend, FfnSource, HostRouting, KvEntry, KvPrecision, KvSpec,
    LinearSource, LowRankSource, RopePairing, RouteSpec, Scoring, Weight,
};
use lingqu_backend_cpu::{CpuBackend, CpuConfig, Isa, Precision};
use lingqu_tensor::{BlockScales, Format, HostTensor, quant};
use lingqu_types::{Batch, BlockId, SequenceSlice};

/// Rows that are multiplied in groups by the sets that do so; two thirds of them, as experts get them, are too.
const MANY_ROWS: usize = 41;

/// Backends that must agree: every instruction set of this machine with 1, 2 and 3 threads, those with 2 of which have
/// repacked nothing yet.
fn backends(precision: Precision) -> Vec<CpuBackend> {
    let sets = Isa::ALL.into_iter().filter(|isa| isa.available());
    let config = |isa, threads| CpuConfig { threads, isa: Some(isa), precision, later: threads == 2 };
    let configs = sets.flat_map(|isa| [1, 2, 3].map(|threads| config(isa, threads)));
    configs.map(|config| CpuBackend::new(config).unwrap()).collect()
}

/// Values in -1..1 that look random (splitmix64).
fn values(seed: u64, count: usize) -> Vec<f32> {
    let value = |i: u64| {
        let mut z = (seed << 32 | i).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count as u64).map(value).collect()
}

fn matrix(seed: u64, format: Format, [rows, cols]: [usize; 2]) -> HostTensor {
    let values = values(seed, rows * cols);
    if format == Format::Fp8E4M3 {
        let blocks = quant::encode_fp8_blocks(&values, [rows, cols], 128);
        let data: Vec<u8> = blocks.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let tensor = HostTensor::new("w", [rows, cols], format, blocks.data.into()).unwrap();
        let scales = BlockScales { data: data.into(), rows_per_block: 128, cols_per_block: 128 };
        return tensor.with_scales(scales).unwrap();
    }
    let bytes: Vec<u8> = values.chunks(cols).flat_map(|row| quant::encode_row(format, row).unwrap()).collect();
    HostTensor::new("w", [rows, cols], format, bytes.into()).unwrap()
}

/// Runs `op` on a buffer of these rows; gives the output.
fn run(
    backend: &CpuBackend,
    x: &[f32],
    [rows, out_cols]: [usize; 2],
    op: impl Fn(lingqu_backend::View<'_>, lingqu_backend::ViewMut<'_>),
) -> Vec<f32> {
    let mut x_buffer = backend.alloc(rows, x.len() / rows).unwrap();
    x_buffer.set_rows(rows);
    backend.write(x, x_buffer.view_mut()).unwrap();
    let mut out_buffer = backend.alloc(rows, out_cols).unwrap();
    out_buffer.set_rows(rows);
    op(x_buffer.view(), out_buffer.view_mut());
    let mut out = vec![0.0; rows * out_cols];
    backend.read(out_buffer.view(), &mut out).unwrap();
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// All backends give the same for all rows at once, and for the last row alone.
fn check(what: &str, x: &[f32], [rows, out_cols]: [usize; 2], op: impl Fn(&CpuBackend, &[f32], usize) -> Vec<f32>) {
    for precision in [Precision::Int8, Precision::Int16] {
        let mut first: Option<Vec<u32>> = None;
        for backend in backends(precision) {
            let name = &backend.capabilities().name;
            let all = bits(&op(&backend, x, rows));
            let alone = bits(&op(&backend, &x[x.len() / rows * (rows - 1)..], 1));
            assert_eq!(alone, all[out_cols * (rows - 1)..], "{what}: a row alone on {name}, {precision:?}");
            let want = first.get_or_insert_with(|| all.clone());
            assert!(*want == all, "{what}: other bits on {name}, {precision:?}");
        }
        let finite = first.unwrap().iter().all(|&b| f32::from_bits(b).is_finite());
        assert!(finite, "{what}: numbers");
    }
}

#[test]
fn linear_layers() {
    for format in Format::ALL {
        let (cols, outs) = (512, 43);
        let parts = [matrix(1, format, [outs - 5, cols]), matrix(2, Format::Q8_0, [5, cols])];
        let bias = [
            HostTensor::from_f32("b", [1, outs - 5], &values(3, outs - 5)),
            HostTensor::from_f32("b", [1, 5], &[0.5; 5]),
        ];
        for rows in [11, MANY_ROWS] {
            check(&format!("linear {format}"), &values(4, rows * cols), [rows, outs], |backend, x, rows| {
                let weight = backend.upload_linear(LinearSource { parts: &parts, biases: &bias }).unwrap();
                run(backend, x, [rows, outs], |x, out| backend.linear(x, &weight, out).unwrap())
            });
        }
    }
}

#[test]
fn weights_that_settle_bit_by_bit() {
    let config = CpuConfig { threads: 2, later: true, ..CpuConfig::default() };
    let backend = CpuBackend::new(config).unwrap();
    let at_once = CpuBackend::new(CpuConfig { later: false, ..config }).unwrap();
    let (cols, outs, layers, rows) = (512, 2048, 6, 3);
    let x = values(1, rows * cols);
    let upload = |backend: &CpuBackend, layer| {
        let parts = [matrix(layer, Format::Q4K, [outs - 16, cols]), matrix(layer + 9, Format::Q6K, [16, cols])];
        backend.upload_linear(LinearSource { parts: &parts, biases: &[] }).unwrap()
    };
    let linear = |backend: &CpuBackend, weight: &Weight| {
        bits(&run(backend, &x, [rows, outs], |x, out| backend.linear(x, weight, out).unwrap()))
    };
    let weights: Vec<_> = (0..layers).map(|layer| upload(&backend, layer)).collect();
    drop(upload(&backend, 7)); // what is not there any more is no work
    let want: Vec<_> = (0..layers).map(|layer| linear(&at_once, &upload(&at_once, layer))).collect();
    let check = |when: &str| {
        for (layer, (weight, want)) in weights.iter().zip(&want).enumerate() {
            assert!(linear(&backend, weight) == *want, "layer {layer} {when}");
        }
    };
    check("before");
    assert!(!backend.settle(Duration::ZERO).unwrap());
    check("after no time at all");
    let mut slices = 0;
    while !backend.settle(Duration::from_micros(300)).unwrap() {
        check("between slices");
        slices += 1;
    }
    println!("{slices} slices");
    check("in the end");
    assert!(backend.settle(Duration::ZERO).unwrap() && at_once.settle(Duration::ZERO).unwrap());
}

#[test]
fn feed_forwards() {
    for format in Format::ALL {
        let (hidden, inner) = (256, 256);
        let source = |seed| FfnSource {
            gate: matrix(seed, format, [inner, hidden]),
            up: matrix(seed + 1, format, [inner, hidden]),
            down: matrix(seed + 2, format, [hidden, inner]),
        };
        let experts: Vec<FfnSource> = (0..3).map(|e| source(10 * e + 1)).collect();
        for rows in [13, MANY_ROWS] {
            check(&format!("experts {format}"), &values(4, rows * hidden), [rows, hidden], |backend, x, rows| {
                let weights = backend.upload_experts(&experts).unwrap();
                let mut routing = backend.alloc_routing(rows, 2).unwrap();
                // The last row is routed alike alone and in company.
                let slots = (0..rows * 2).map(|slot| (rows * 2 - slot) as u32 % 3).collect();
                let host = HostRouting { top_k: 2, experts: slots, weights: [0.3, 0.7].repeat(rows) };
                backend.write_routing(&host, &mut routing).unwrap();
                run(backend, x, [rows, hidden], |x, out| backend.experts(x, &routing, &weights, out).unwrap())
            });
            check(&format!("ffn {format}"), &values(4, rows * hidden), [rows, hidden], |backend, x, rows| {
                let weights = backend.upload_ffn(&experts[0]).unwrap();
                run(backend, x, [rows, hidden], |x, out| backend.ffn(x, &weights, out).unwrap())
            });
        }
    }
}

#[test]
fn adapters() {
    let (rows, hidden, inner) = (13, 256, 256);
    let change = |seed, format, [out, rank, inputs]: [usize; 3], offset| LowRankSource {
        offset,
        a: matrix(seed, format, [rank, inputs]),
        b: matrix(seed + 1, format, [out, rank]),
        scale: 0.7,
    };
    for format in LowRankSource::FORMATS {
        let changes = [change(1, format, [inner, 9, hidden], 0), change(3, format, [inner - 3, 40, hidden], inner)];
        let down = [change(5, format, [hidden, 17, inner], 0)];
        let source = FfnSource {
            gate: matrix(7, Format::Q8_0, [inner, hidden]),
            up: matrix(8, Format::Bf16, [inner, hidden]),
            down: matrix(9, Format::Q4K, [hidden, inner]),
        };
        // Every other row, the last among them.
        let adapted = |rows: usize| (0..rows as u32).filter(|r| (rows as u32 - r) % 2 == 1).collect::<Vec<u32>>();
        check(&format!("add_low_rank {format}"), &values(4, rows * hidden), [rows, 2 * inner], |backend, x, rows| {
            let change = backend.upload_low_rank(&changes).unwrap();
            let rows_adapted = adapted(rows);
            let some = [AdaptedRows { rows: &rows_adapted, change: &change }];
            run(backend, x, [rows, 2 * inner], |x, out| backend.add_low_rank(x, &some, out).unwrap())
        });
        check(&format!("ffn_adapted {format}"), &values(4, rows * hidden), [rows, hidden], |backend, x, rows| {
            let weights = backend.upload_ffn(&source).unwrap();
            let (gate_up, down) = (backend.upload_low_rank(&changes).unwrap(), backend.upload_low_rank(&down).unwrap());
            let rows_adapted = adapted(rows);
            let some = [AdaptedFfn { rows: &rows_adapted, gate_up: Some(&gate_up), down: Some(&down) }];
            run(backend, x, [rows, hidden], |x, out| backend.ffn_adapted(x, &weights, &some, out).unwrap())
        });
    }
}

#[test]
fn norms_and_sums() {
    let (rows, heads, len) = (7, 3, 37);
    let weight = HostTensor::from_f32("n", [1, len], &values(5, len));
    check("rms_norm", &values(6, rows * heads * len), [rows, heads * len], |backend, x, rows| {
        let weight = backend.upload_table(&weight).unwrap();
        run(backend, x, [rows, heads * len], |x, out| {
            backend.rms_norm(x.split_heads(heads), &weight, 1e-6, out.split_heads(heads)).unwrap();
        })
    });
    check("add", &values(6, rows * len), [rows, len], |backend, x, rows| {
        run(backend, x, [rows, len], |x, out| backend.add(x, out).unwrap())
    });
}

#[test]
fn routes() {
    let (rows, experts, top_k) = (40, 24, 4);
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        let spec = RouteSpec { experts, top_k, scoring, groups: None, normalise: true, scale: 2.5 };
        check("route", &values(7, rows * experts), [rows, top_k], |backend, x, rows| {
            run(backend, x, [rows, top_k], |x, out| {
                let mut routing = backend.alloc_routing(rows, top_k).unwrap();
                routing.set_rows(rows);
                backend.route(x, None, &spec, &mut routing).unwrap();
                backend.write(&backend.read_routing(&routing).unwrap().weights, out).unwrap();
            })
        });
    }
}

const BLOCK_TOKENS: usize = 16;

/// Rotates, appends and attends a sequence of `tokens` cut at `cuts`, with a stranger in each step. [tokens, heads, v]
fn attend(backend: &CpuBackend, entry: KvEntry, heads: usize, tokens: usize, cuts: &[usize]) -> Vec<f32> {
    let (kv_heads, k_dim, v_dim) = match entry {
        KvEntry::Separate { kv_heads, k_dim, v_dim } => (kv_heads, k_dim, v_dim),
        KvEntry::Latent { width, v_dim } => (1, width, v_dim),
    };
    let blocks = tokens.div_ceil(BLOCK_TOKENS);
    let spec =
        KvSpec { layers: 2, blocks: blocks + 1, block_tokens: BLOCK_TOKENS, entry, precision: KvPrecision::Full };
    let mut kv = backend.alloc_kv(&spec).unwrap();
    let angles = HostTensor::from_f32("r", [tokens, k_dim], &values(8, tokens * k_dim));
    let angles = backend.upload_table(&angles).unwrap();
    let rows_of = |seed, width: usize| values(seed, (tokens + 1) * width); // the last row is the stranger's
    let (q, k, v) = (rows_of(9, heads * k_dim), rows_of(10, kv_heads * k_dim), rows_of(11, kv_heads * v_dim));
    let mut outputs = Vec::new();
    let mut context = 0;
    for &end in cuts.iter().chain([&tokens]) {
        let count = end - context;
        let table = (0..blocks as u32).rev().map(|b| BlockId(b + 1)).collect();
        let stranger = SequenceSlice { rows: 0..1, context: 3, blocks: vec![BlockId(0)], adapter: None };
        let ours = SequenceSlice { rows: 1..count + 1, context, blocks: table, adapter: None };
        let batch = Batch { tokens: vec![0; count + 1], sequences: vec![stranger, ours], logit_rows: vec![] };
        let step = backend.begin_step(&batch, BLOCK_TOKENS).unwrap();
        let pick = |all: &[f32], width: usize| [&all[tokens * width..], &all[context * width..end * width]].concat();
        let put = |values: Vec<f32>| {
            let mut buffer = backend.alloc(count + 1, values.len() / (count + 1)).unwrap();
            buffer.set_rows(count + 1);
            backend.write(&values, buffer.view_mut()).unwrap();
            buffer
        };
        let (q, k, v) =
            (put(pick(&q, heads * k_dim)), put(pick(&k, kv_heads * k_dim)), put(pick(&v, kv_heads * v_dim)));
        let mut turned = put(vec![0.0; (count + 1) * heads * k_dim]);
        let (from, to) = (q.view().split_heads(heads), turned.view_mut().split_heads(heads));
        backend.rope(&step, from, &angles, RopePairing::Half, to).unwrap();
        let v_view = matches!(entry, KvEntry::Separate { .. }).then(|| v.view().split_heads(kv_heads));
        backend.kv_append(&step, &mut kv, 1, k.view().split_heads(kv_heads), v_view).unwrap();
        let mut out = put(vec![0.0; (count + 1) * heads * v_dim]);
        let spec = AttentionSpec { layer: 1, scale: 0.3 };
        let q = turned.view().split_heads(heads);
        backend.attention(&step, q, &kv, spec, out.view_mut().split_heads(heads)).unwrap();
        let mut read = vec![0.0; (count + 1) * heads * v_dim];
        backend.read(out.view(), &mut read).unwrap();
        outputs.extend_from_slice(&read[heads * v_dim..]);
        context = end;
    }
    outputs
}

#[test]
fn attention_over_several_splits_in_any_chunks() {
    let tokens = 1100;
    let entries =
        [(KvEntry::Separate { kv_heads: 2, k_dim: 20, v_dim: 70 }, 4), (KvEntry::Latent { width: 24, v_dim: 16 }, 3)];
    for (entry, heads) in entries {
        let mut first: Option<Vec<u32>> = None;
        for (i, backend) in backends(Precision::Int8).iter().enumerate() {
            let all_cuts: [&[usize]; 3] = [&[], &[1, 31, 64, 1023, 1024, 1025, 1099], &[700, 1056]];
            let out = attend(backend, entry, heads, tokens, all_cuts[i % 3]);
            assert!(out.iter().all(|v| v.is_finite()));
            let want = first.get_or_insert_with(|| bits(&out));
            assert!(*want == bits(&out), "{entry:?} on {}", backend.capabilities().name);
        }
        let long = attend_plainly(entry, heads, tokens);
        let worst =
            first.unwrap().iter().zip(long).map(|(a, b)| (f64::from(f32::from_bits(*a)) - b).abs()).fold(0.0, f64::max);
        assert!(worst < 2e-3, "{entry:?}: off by {worst}");
    }
}

/// The same in f64, straight from the definition.
fn attend_plainly(entry: KvEntry, heads: usize, tokens: usize) -> Vec<f64> {
    let (kv_heads, k_dim, v_dim) = match entry {
        KvEntry::Separate { kv_heads, k_dim, v_dim } => (kv_heads, k_dim, v_dim),
        KvEntry::Latent { width, v_dim } => (1, width, v_dim),
    };
    let angles = values(8, tokens * k_dim);
    let (q, k) = (values(9, (tokens + 1) * heads * k_dim), values(10, (tokens + 1) * kv_heads * k_dim));
    let v = match entry {
        KvEntry::Separate { .. } => values(11, (tokens + 1) * kv_heads * v_dim),
        KvEntry::Latent { .. } => k.chunks(k_dim).flat_map(|k| k[..v_dim].to_vec()).collect(),
    };
    let mut out = Vec::new();
    for row in 0..tokens {
        let angles = &angles[row * k_dim..][..k_dim];
        for head in 0..heads {
            let q = &q[(row * heads + head) * k_dim..][..k_dim];
            let half = k_dim / 2;
            let turned: Vec<f64> = (0..k_dim)
                .map(|i| {
                    let (cos, sin) = (f64::from(angles[i % half]), f64::from(angles[half + i % half]));
                    let (a, b) = (f64::from(q[i % half]), f64::from(q[half + i % half]));
                    if i < half { a * cos - b * sin } else { a * sin + b * cos }
                })
                .collect();
            let group = head / (heads / kv_heads);
            let at = |p: usize, dim: usize| (p * kv_heads + group) * dim;
            let score =
                |p: usize| -> f64 { (0..k_dim).map(|i| turned[i] * f64::from(k[at(p, k_dim) + i])).sum::<f64>() * 0.3 };
            let scores: Vec<f64> = (0..=row).map(score).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for i in 0..v_dim {
                let value: f64 = weights.iter().enumerate().map(|(p, w)| w * f64::from(v[at(p, v_dim) + i])).sum();
                out.push(value / sum);
            }
        }
    }
    out
}
