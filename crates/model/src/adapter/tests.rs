//! The parts of reading that need no files.

use lingqu_tensor::HostTensor;

use super::config::AdapterConfig;
use super::site::interleave_heads;

#[test]
fn ranks_and_scales_follow_the_patterns() {
    let check = |more: &str, module: &str, expected: (usize, f32)| {
        let text = format!(r#"{{"peft_type": "LORA", "r": 4, "lora_alpha": 6{more}}}"#);
        let config = AdapterConfig::parse("adapter_config.json", text.as_bytes()).expect(more);
        assert_eq!(config.of(module).expect(more), expected, "{module} of {text}");
    };
    let q = "model.layers.1.self_attn.q_proj";
    check("", q, (4, 1.5));
    check(r#", "use_rslora": true, "bias": "none", "modules_to_save": null"#, q, (4, 3.0));
    check(r#", "rank_pattern": {"q_proj": 2}"#, q, (2, 3.0));
    check(r#", "rank_pattern": {"q_proj": 2}"#, "model.layers.1.self_attn.k_proj", (4, 1.5));
    check(r#", "rank_pattern": {"proj": 2}"#, q, (4, 1.5));
    check(r#", "rank_pattern": {"layers.1.self_attn.q_proj": 8}, "alpha_pattern": {"q_proj": 1}"#, q, (8, 0.125));
    check(r#", "alpha_pattern": {"model.layers.1.self_attn.q_proj": 0.5}, "use_rslora": true"#, q, (4, 0.25));
}

/// The order is that of `permute` in llama.cpp's `convert_hf_to_gguf.py`.
#[test]
fn heads_of_halves_become_heads_of_pairs() {
    let rows: Vec<f32> = (0..24).map(|i| i as f32).collect(); // two heads of six values, rank 2
    let b = HostTensor::from_f32("b", [12, 2], &rows);
    let firsts: Vec<f32> = interleave_heads(&b, 6).unwrap().to_f32().chunks(2).map(|row| row[0] / 2.0).collect();
    assert_eq!(firsts, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0]);
}
