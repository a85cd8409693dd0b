//! What configurations come to, against published counts and measured files.

use lingqu_model::ModelConfig;
use lingqu_plan::{Inventory, Weights};

fn config(name: &str) -> ModelConfig {
    let path = format!("{}/../../models/{name}/config.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    ModelConfig::from_config_json(&text, name).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Counts from the makers' pages: rounded as they round.
#[test]
fn real_configurations_have_the_published_size() {
    let check = |name: &str, billions: f64, tolerance: f64| {
        let inventory = Inventory::from_config(&config(name), Weights::Fp8).unwrap();
        let found = inventory.parameters() as f64 / 1e9;
        assert!((found - billions).abs() <= tolerance, "{name}: {found}");
    };
    check("deepseek-r1", 671.0, 0.5);
    check("deepseek-v3", 671.0, 0.5);
    check("deepseek-v3.1", 671.0, 0.5);
    check("deepseek-v2-lite", 15.706, 0.001);
    check("deepseek-r1-distill-qwen-1.5b", 1.777, 0.001);
    check("deepseek-r1-distill-qwen-7b", 7.616, 0.001);
    check("deepseek-r1-distill-qwen-14b", 14.770, 0.001);
    check("deepseek-r1-distill-qwen-32b", 32.764, 0.001);
    check("deepseek-r1-distill-llama-8b", 8.030, 0.001);
    check("deepseek-r1-distill-llama-70b", 70.554, 0.001);
}

/// Files of the same shapes, as `lingqu inspect` counted them (`benches/about.json`).
#[test]
fn formats_are_those_of_real_files() {
    let check = |config: ModelConfig, weights: &str, parameters: u64, bytes: u64| {
        let inventory = Inventory::from_config(&config, weights.parse().unwrap()).unwrap();
        assert_eq!(inventory.parameters(), parameters, "{} {weights}", config.name);
        let off = inventory.total_bytes() as f64 / bytes as f64 - 1.0;
        assert!(off.abs() < 1e-3, "{} {weights}: {} for {bytes}", config.name, inventory.total_bytes());
    };
    check(config("deepseek-v2-lite"), "q4_k_m", 15_706_484_224, 10_363_959_296);
    let mut qwen = config("deepseek-r1-distill-qwen-1.5b");
    qwen.tied_embeddings = true;
    check(qwen.clone(), "q4_k_m", 1_543_714_304, 980_097_536);
    check(qwen, "q8_0", 1_543_714_304, 1_640_622_080);
}

#[test]
fn the_release_of_r1_fits_its_download() {
    // 688.6 GB of safetensors hold the prediction layer too: 11.5 billion parameters and its own embedding and head.
    let inventory = Inventory::from_config(&config("deepseek-r1"), Weights::Fp8).unwrap();
    let gb = inventory.total_bytes() as f64 / 1e9;
    assert!((670.0..676.0).contains(&gb), "{gb}");
    assert_eq!(inventory.expert_bytes()[3], 3 * 7168 * 2048 + 4 * 3 * 7168 * 2048 / 16384);
    assert_eq!(inventory.expert_bytes().iter().filter(|&&bytes| bytes > 0).count(), 58);
}

#[test]
fn weights_have_names() {
    let check = |name: &str, ok: bool| assert_eq!(name.parse::<Weights>().is_ok(), ok, "{name}");
    check("Q4_K_M", true);
    check("fp8", true);
    check("q3_k_xl", false);
    assert_eq!("q8_0".parse::<Weights>().unwrap().to_string(), "q8_0");
}

#[test]
fn giants_are_refused() {
    let check = |change: fn(&mut ModelConfig), says: &str| {
        let mut config = config("deepseek-r1");
        change(&mut config);
        let error = Inventory::from_config(&config, Weights::Fp8).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    check(|c| c.layers = 1 << 24, "layers");
    check(|c| c.vocab_size = usize::MAX, "parameters");
    check(|c| (c.hidden, c.ffn_intermediate) = (1 << 24, 1 << 24), "parameters");
    check(|c| c.moe.as_mut().unwrap().route.experts = 1 << 24, "experts");
}
