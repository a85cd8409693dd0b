//! The prediction beside figures that others published for their clusters. It is a roofline of this project's layout,
//! and their software is not ours: what is checked is that it stays within the factors that `docs/plan.md` reports.

use lingqu_model::ModelConfig;
use lingqu_plan::{Fleet, Inventory, Plan, Workload};

fn plan(weights: &str, nodes: &str, workload: Workload) -> Plan {
    let path = format!("{}/../../models/deepseek-r1/config.json", env!("CARGO_MANIFEST_DIR"));
    let config = ModelConfig::from_config_json(&std::fs::read_to_string(path).unwrap(), "deepseek-r1").unwrap();
    let fleet = Fleet::parse(nodes, "nodes.toml").unwrap();
    let inventory = Inventory::from_config(&config, weights.parse().unwrap()).unwrap();
    Plan::make(inventory, fleet, workload).unwrap()
}

/// Kernels' published figures: FlashMLA 3000 GB/s and 660 TFLOPS, DeepGEMM up to 1550 TFLOPS in FP8, DeepEP 40 GB/s
/// between nodes.
fn hopper(count: usize) -> String {
    format!(
        "[[node]]\nname = \"h800\"\ncount = {count}\nmemory_gb = 80\nbandwidth_gb_s = 3000\nbf16_tflops = 660\n\
         fp8_tflops = 1200\nlink_gb_s = 40\nlink_latency_us = 10\n"
    )
}

fn a800(server_gb: u32, workers: usize) -> String {
    let device = |name: &str, duty: &str, memory_gb: u32, count: usize| {
        format!(
            "[[node]]\nname = \"{name}\"\nduty = \"{duty}\"\ncount = {count}\nmemory_gb = {memory_gb}\n\
             reserve_gb = 1\nbandwidth_gb_s = 1300\nbf16_tflops = 250\nlink_gb_s = 20\nlink_latency_us = 10\n"
        )
    };
    device("server", "server", server_gb, 1) + &device("worker", "worker", 40, workers)
}

#[test]
fn the_published_figures_are_within_known_factors() {
    let check = |name: &str, found: f64, published: f64, factors: std::ops::RangeInclusive<f64>| {
        let factor = found / published;
        println!("{name}: {found:.1} for {published} ({factor:.2}x)");
        assert!(factors.contains(&factor), "{name}: {found} for {published}");
    };
    let hopper_load = |sequences, context_tokens, prefill_rows| Workload {
        sequences,
        context_tokens,
        redundancy: 0.125,
        prefill_rows,
        ..Workload::default()
    };
    // DeepSeek, day 6 of its open-source week: 18 nodes of 8 decode, 4,989 tokens in the cache on average, 20 to 22
    // tokens/s to each user: 88 sequences on a GPU.
    let decode = plan("fp8", &hopper(144), hopper_load(144 * 88, 4989, 128));
    check("DeepSeek, decode, a node", decode.decode.tokens_per_s() / 18.0, 14_800.0, 0.5..=4.0);
    // 4 nodes prefill: 73.7k input tokens/s a node, of which 56.3% came from a cache.
    let prefill = plan("fp8", &hopper(32), hopper_load(32, 4989, 4096));
    check("DeepSeek, prefill, a node", prefill.prefill.tokens_per_s() / 4.0, 73_700.0 * 0.437, 0.5..=8.0);
    // SGLang, May 2025: 9 nodes of 8 H100 decode after 2,000 tokens, 256 sequences on a GPU.
    let sglang = plan("fp8", &hopper(72), hopper_load(72 * 256, 2100, 128));
    check("SGLang, decode, a node", sglang.decode.tokens_per_s() / 9.0, 22_300.0, 0.5..=4.0);
    // Chitu 0.1.0, March 2025: 3 nodes of 8 A800 with 40 GB, FP8 weights computed in BF16.
    let load = |sequences| Workload { sequences, context_tokens: 640, ..Workload::default() };
    let chitu = plan("fp8", &a800(40, 23), load(1));
    check("Chitu, FP8, 1 sequence", chitu.decode.tokens_per_s(), 22.7, 0.5..=4.0);
    let chitu = plan("fp8", &a800(40, 23), load(32));
    check("Chitu, FP8, 32 sequences", chitu.decode.tokens_per_s(), 159.0, 0.5..=8.0);
}
