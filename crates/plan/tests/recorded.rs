//! The prediction beside what was measured on a machine with two threads (`benches/results.csv`, 2026-11-22).
//!
//! A device is described by that machine's own limits, right before and after each measurement, and by four figures of
//! the kernels that hold for all rows (`docs/plan.md` says where they come from).

use lingqu_model::{ModelConfig, MoeConfig};
use lingqu_plan::{Fleet, Inventory, Plan, Workload};

/// Of the bandwidth that plain loads reach, what kernels reach with weights.
const READ_SHARE: f64 = 0.68;
/// Of the peak of the int8 tiles, what kernels reach with K-quants, and with blocks of 32.
const K_SHARE: f64 = 0.09;
const BLOCK_32_SHARE: f64 = 0.044;
/// Weights unpacked for tiles, for each of the peak's operations.
const UNPACK_SHARE: f64 = 28.6e9 / 8.4e12;
/// Of the same peak: attention's multiply-adds in f32, 0.11 Tflop/s at 8.4 TOPS.
const ATTENTION_SHARE: f64 = 0.11 / 8.4;

struct Measured {
    model: &'static str,
    weights: &'static str,
    what: Rows,
    /// Mean of the limits before and after.
    read_gb_s: f64,
    int8_tops: f64,
    tokens_per_s: f64,
}

#[derive(Clone, Copy, Debug)]
enum Rows {
    Prefill(usize),
    Decode(usize),
}

const fn row(
    (model, weights): (&'static str, &'static str),
    what: Rows,
    (read_gb_s, int8_tops): (f64, f64),
    tokens_per_s: f64,
) -> Measured {
    Measured { model, weights, what, read_gb_s, int8_tops, tokens_per_s }
}

const LITE: (&str, &str) = ("deepseek-v2-lite", "q4_k_m");
const QWEN: (&str, &str) = ("deepseek-r1-distill-qwen-1.5b", "q4_k_m");
const QWEN_8: (&str, &str) = ("deepseek-r1-distill-qwen-1.5b", "q8_0");
const R1: (&str, &str) = ("deepseek-r1", "q4_k_m");

#[rustfmt::skip]
const MEASURED: [Measured; 14] = [
    row(LITE, Rows::Prefill(512), (28.25, 8.35), 81.9),
    row(LITE, Rows::Decode(1), (28.25, 8.35), 10.10),
    row(LITE, Rows::Decode(4), (24.65, 8.46), 14.84),
    row(LITE, Rows::Decode(8), (24.65, 8.46), 18.33),
    row(LITE, Rows::Decode(16), (24.65, 8.46), 23.07),
    row(QWEN, Rows::Prefill(512), (26.95, 8.57), 246.6),
    row(QWEN, Rows::Prefill(512), (31.25, 9.84), 284.8),
    row(QWEN, Rows::Decode(1), (26.95, 8.57), 17.30),
    row(QWEN, Rows::Decode(1), (31.25, 9.84), 22.33),
    row(QWEN, Rows::Decode(16), (26.35, 8.44), 91.9),
    row(QWEN_8, Rows::Prefill(512), (30.1, 8.41), 133.7),
    row(QWEN_8, Rows::Decode(1), (30.1, 8.41), 12.95),
    row(R1, Rows::Prefill(256), (24.2, 6.35), 95.4),
    row(R1, Rows::Decode(1), (24.2, 6.35), 9.81),
];

/// The shapes that were measured: random weights, R1 with 3 layers and half of its experts, Qwen2's tied embedding.
fn shape(name: &str) -> ModelConfig {
    let path = format!("{}/../../models/{name}/config.json", env!("CARGO_MANIFEST_DIR"));
    let mut config = ModelConfig::from_config_json(&std::fs::read_to_string(path).unwrap(), name).unwrap();
    match name {
        "deepseek-r1" => {
            let moe = config.moe.unwrap();
            let mut route = moe.route;
            route.experts = 128;
            config.moe = Some(MoeConfig { route, first_moe_layer: 1, ..moe });
            config.layers = 3;
        }
        "deepseek-r1-distill-qwen-1.5b" => config.tied_embeddings = true,
        _ => {}
    }
    config
}

#[test]
fn what_was_measured_is_predicted_within_20_percent() {
    let mut worst: f64 = 0.0;
    for m in &MEASURED {
        let tops = m.int8_tops;
        let (read, k, block) = (m.read_gb_s * READ_SHARE, tops * K_SHARE, tops * BLOCK_32_SHARE);
        let nodes = format!(
            "[[node]]\nname = \"cpu\"\nmemory_gb = 24\nbandwidth_gb_s = {read}\nbf16_tflops = 0.29\nint8_tops = {k}\n\
             attention_tflops = {}\nhides_reads = false\ntile_rows = 16\nunpack_gweights_s = {}\n\
             tops_by_format = {{ q8_0 = {block}, q5_0 = {block} }}\n",
            tops * ATTENTION_SHARE,
            tops * UNPACK_SHARE * 1e3,
        );
        let fleet = Fleet::parse(&nodes, "nodes.toml").unwrap();
        let (sequences, prefill_rows) = match m.what {
            Rows::Prefill(rows) => (1, rows),
            Rows::Decode(rows) => (rows, 16),
        };
        let workload = Workload { sequences, prefill_rows, context_tokens: 64, ..Workload::default() };
        let inventory = Inventory::from_config(&shape(m.model), m.weights.parse().unwrap()).unwrap();
        let plan = Plan::make(inventory, fleet, workload).unwrap();
        let found = match m.what {
            Rows::Prefill(_) => plan.prefill.tokens_per_s(),
            Rows::Decode(_) => plan.decode.tokens_per_s(),
        };
        let off = found / m.tokens_per_s - 1.0;
        worst = worst.max(off.abs());
        println!(
            "{:<30} {:<7} {:?}: {found:.1} for {} ({:+.0}%)",
            m.model,
            m.weights,
            m.what,
            m.tokens_per_s,
            off * 100.0
        );
        assert!(off.abs() <= 0.20, "{} {:?}: {found} for {}", m.model, m.what, m.tokens_per_s);
    }
    println!("at most {:.0}% off", worst * 100.0);
}
