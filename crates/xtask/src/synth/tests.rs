use lingqu_checkpoint::{Checkpoint, GgufValue};
use lingqu_tensor::{Bytes, Format};

use super::plan::{Layout, Quant, tensors};
use super::shape::{Attention, Mla, Moe, Shape};
use super::{parse, write};

#[test]
fn shapes_have_the_parameters_of_the_releases() {
    // Billions, as the model cards count: without embeddings where they are tied twice over.
    let check = |name: &str, billions: f64| {
        let shape = Shape::named(name).unwrap();
        let values: usize =
            tensors(&shape, Quant::Q8_0, Layout::MergedKvB).iter().map(|t| t.dims.iter().product::<usize>()).sum();
        assert!((values as f64 / 1e9 / billions - 1.0).abs() < 0.01, "{name}: {values}");
    };
    check("deepseek-v2-lite", 15.7);
    check("r1-3-layers", 14.2);
    check("qwen2-1.5b", 1.54);
    check("r1-distill-qwen-7b", 7.62);
    check("r1-distill-llama-8b", 8.03);
    check("smollm2-135m", 0.1345);
}

#[test]
fn formats_are_those_of_llama_quantize() {
    let check = |like: &str, quant: Quant, layout: Layout, rows: &[(&str, Format)]| {
        let plan = tensors(&Shape::named(like).unwrap(), quant, layout);
        for &(name, format) in rows {
            let tensor = plan.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("{like}: no {name}"));
            assert_eq!(tensor.format, format, "{like} {quant:?} {name}");
        }
    };
    let (q4, q8) = (Quant::Q4KM, Quant::Q8_0);
    let v2_lite = [
        ("token_embd.weight", Format::Q4K),
        ("output.weight", Format::Q6K),
        ("output_norm.weight", Format::F32),
        ("blk.0.attn_q.weight", Format::Q4K),
        ("blk.0.attn_kv_a_mqa.weight", Format::Q4K),
        ("blk.0.attn_k_b.weight", Format::Q5_0), // rows of 128
        ("blk.0.attn_v_b.weight", Format::Q4K),  // rows of 512
        ("blk.0.ffn_down.weight", Format::Q8_0), // rows of 10944, first eighth
        ("blk.0.ffn_gate.weight", Format::Q4K),
        ("blk.1.ffn_gate_inp.weight", Format::F32),
        ("blk.2.ffn_down_exps.weight", Format::Q8_0), // rows of 1408
        ("blk.3.ffn_down_exps.weight", Format::Q5_0),
        ("blk.5.ffn_down_exps.weight", Format::Q8_0), // a third one
        ("blk.3.ffn_down_shexp.weight", Format::Q4K), // rows of 2816
        ("blk.26.ffn_down_shexp.weight", Format::Q6K),
        ("blk.3.ffn_up_exps.weight", Format::Q4K),
    ];
    check("deepseek-v2-lite", q4, Layout::SplitKvB, &v2_lite);
    check(
        "deepseek-v2-lite",
        q8,
        Layout::SplitKvB,
        &v2_lite.map(|(name, format)| match format {
            Format::F32 => (name, format),
            _ => (name, Format::Q8_0),
        }),
    );
    let merged = [("blk.0.attn_kv_b.weight", Format::Q6K), ("blk.3.attn_kv_b.weight", Format::Q4K)];
    check("deepseek-v2-lite", q4, Layout::MergedKvB, &merged);
    let r1 = [
        ("blk.1.ffn_down_exps.weight", Format::Q4K),
        ("blk.2.ffn_down_exps.weight", Format::Q6K),
        ("blk.1.exp_probs_b.bias", Format::F32),
        ("blk.1.attn_q_a_norm.weight", Format::F32),
        ("blk.1.attn_q_b.weight", Format::Q4K),
    ];
    check("r1-3-layers", q4, Layout::SplitKvB, &r1);
    let qwen = [
        ("token_embd.weight", Format::Q6K), // it is the head too
        ("blk.0.attn_v.weight", Format::Q6K),
        ("blk.3.attn_v.weight", Format::Q4K),
        ("blk.3.attn_v.bias", Format::F32),
        ("blk.27.ffn_down.weight", Format::Q6K),
    ];
    check("qwen2-1.5b", q4, Layout::SplitKvB, &qwen);
    check("smollm2-135m", q4, Layout::SplitKvB, &[("blk.9.attn_q.weight", Format::Q5_0)]);
}

/// A model of every part, small enough for a test.
fn tiny(moe: bool) -> Shape {
    let mla = Mla {
        q_lora_rank: Some(64),
        kv_lora_rank: 64,
        nope_dim: 32,
        rope_dim: 32,
        v_dim: 32,
        yarn_log_multiplier: 0.1,
    };
    let experts = Moe {
        experts: 8,
        top_k: 2,
        shared_experts: 1,
        intermediate: 96,
        dense_layers: 1,
        is_sigmoid: true,
        groups: (4, 2),
        normalise: true,
        scale: 2.5,
    };
    let small = Shape {
        vocab: 300,
        hidden: 256,
        layers: 3,
        heads: 4,
        intermediate: 512,
        ..Shape::named("qwen2-1.5b").unwrap()
    };
    if !moe {
        return Shape { attention: Attention::Gqa { kv_heads: 2, head_dim: 64, has_qkv_bias: true }, ..small };
    }
    Shape {
        architecture: "deepseek2",
        pre_tokenizer: "deepseek-v3",
        is_tied: false,
        attention: Attention::Mla(mla),
        moe: Some(experts),
        ..small
    }
}

fn file(shape: &Shape, quant: Quant, layout: Layout, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(shape, quant, layout, seed, &mut bytes).unwrap();
    bytes
}

#[test]
fn files_open_and_hold_what_was_planned() {
    let check = |shape: &Shape, quant: Quant, layout: Layout| {
        let bytes = Bytes::from(file(shape, quant, layout, 1));
        let checkpoint = Checkpoint::in_memory(vec![("m.gguf".into(), bytes)]).unwrap();
        let metadata = checkpoint.gguf().unwrap();
        let layers = format!("{}.block_count", shape.architecture);
        assert_eq!(metadata.get(&layers), Some(&GgufValue::U32(3)));
        let plan = tensors(shape, quant, layout);
        assert_eq!(checkpoint.tensors().len(), plan.len());
        for planned in plan.iter().filter(|t| t.dims.len() < 3) {
            let tensor = checkpoint.tensor(&planned.name).unwrap().unwrap();
            assert_eq!(tensor.format, planned.format, "{}", planned.name);
            assert_eq!(tensor.rows * tensor.cols, planned.dims.iter().product::<usize>(), "{}", planned.name);
            check_values(&planned.name, planned.fill, &tensor.to_f32());
        }
        let stacked = checkpoint.info("blk.1.ffn_down_exps.weight").map(|info| info.shape.clone());
        assert_eq!(stacked, shape.moe.as_ref().map(|_| vec![8, 256, 96]));
    };
    for quant in [Quant::Q4KM, Quant::Q8_0] {
        check(&tiny(false), quant, Layout::SplitKvB);
        check(&tiny(true), quant, Layout::SplitKvB);
        check(&tiny(true), quant, Layout::MergedKvB);
    }
}

fn check_values(name: &str, fill: super::plan::Fill, values: &[f32]) {
    use super::plan::Fill;
    let Fill::Normal { std } = fill else {
        assert!(values.iter().all(|&v| v == 1.0), "{name}");
        return;
    };
    if values.len() < 1000 {
        assert!(values.iter().all(|v| v.is_finite()), "{name}");
        return;
    }
    let measured = (values.iter().map(|v| f64::from(v * v)).sum::<f64>() / values.len() as f64).sqrt();
    assert!((measured / f64::from(std) - 1.0).abs() < 0.05, "{name}: {measured} for {std}");
    let rows: Vec<&[f32]> = values.chunks_exact(values.len() / 4).collect();
    assert!(rows[0] != rows[1] && rows[1] != rows[2], "{name}: rows repeat");
}

#[test]
fn the_seed_decides() {
    let of = |seed| file(&tiny(true), Quant::Q4KM, Layout::SplitKvB, seed);
    assert!(of(1) == of(1));
    assert!(of(1) != of(2));
}

#[test]
fn arguments_are_checked() {
    let check = |line: &str, problem: Option<&str>| {
        let parsed = parse(line.split_whitespace().map(String::from)).map(|args| args.seed);
        match problem {
            None => assert_eq!(parsed, Ok(7), "{line}"),
            Some(problem) => assert!(parsed.as_ref().is_err_and(|e| e.contains(problem)), "{line}: {parsed:?}"),
        }
    };
    check("--like qwen2-1.5b --quant q8_0 --out x --seed 7", None);
    check("--like r1-3-layers --quant q4_k_m --out x --merged-kv-b --seed 7", None);
    check("--like gpt-2 --quant q8_0 --out x", Some("deepseek-v2-lite"));
    check("--like qwen2-1.5b --quant q3 --out x", Some("q4_k_m"));
    check("--quant q8_0 --out x", Some("--like"));
    check("--like qwen2-1.5b --out x", Some("--quant"));
    check("--like qwen2-1.5b --quant q8_0", Some("--out"));
    check("--like", Some("needs a value"));
    check("--seed x", Some("--seed"));
    check("--fast", Some("--fast"));
}
