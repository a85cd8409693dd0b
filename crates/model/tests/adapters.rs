//! LoRA adapters: against PEFT's own log-probabilities, against merged weights, and against themselves in company.

mod support;

use lingqu_model::{Adapter, LoadOptions, Package, load};
use lingqu_tensor::{Format, HostTensor};
use lingqu_testkit::rng::Rng;
use lingqu_testkit::safetensors_writer::SafetensorsWriter;
use lingqu_types::AdapterId;
use support::{Golden, GoldenModel, Runner, backends, log_softmax, root};

/// What PEFT has saved, with the log-probabilities it gives.
fn golden_adapters() -> Vec<(GoldenModel, Adapter)> {
    let folder = root().join("testdata/golden/adapters");
    let names = ["llama-all", "llama-attention", "qwen2-stabilised", "deepseek-v3"];
    let read = |name: &str| {
        let text = std::fs::read(folder.join(format!("{name}.golden.json"))).expect(name);
        let golden: Golden = serde_json::from_slice(&text).expect(name);
        let adapter = Adapter::open(name, &folder.join(name)).unwrap_or_else(|error| panic!("{error}"));
        (GoldenModel { name: name.into(), path: folder.join(&golden.model), golden }, adapter)
    };
    names.map(read).into()
}

#[test]
fn logprobs_agree_with_peft() {
    for (model, adapter) in golden_adapters() {
        let package = model.package();
        let text = &model.golden.prompts.last().expect("a prompt").token_ids;
        for (name, backend) in backends() {
            let mut runner = Runner::new(&package, backend);
            let before = runner.logits_of(text);
            runner.adapters[3] = Some(runner.load_adapter(&adapter));
            let report = runner.compare(&model);
            println!("{:<20} {name:<10} {report}", model.name);
            let tolerance = if name == "reference" { 2e-3 } else { 2e-2 };
            assert!(report.mean < tolerance, "{} on {name}: {report}", model.name);
            runner.adapters[3] = None;
            assert!(runner.logits_of(text) == before, "{} on {name}: the base has changed", model.name);
        }
    }
}

/// An adapter in the making.
struct Made {
    rank: usize,
    alpha: f32,
    /// lora_A and lora_B of each module.
    factors: Vec<[HostTensor; 2]>,
}

/// What may be changed in the models of these tests.
const MODULES: [&str; 14] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "self_attn.q_a_proj",
    "self_attn.q_b_proj",
    "self_attn.kv_a_proj_with_mqa",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "mlp.shared_experts.gate_proj",
    "mlp.shared_experts.up_proj",
    "mlp.shared_experts.down_proj",
    "none",
];

fn module_of(tensor: &str) -> Option<&str> {
    let module = tensor.strip_suffix(".weight")?;
    let rest = module.strip_prefix("model.layers.")?;
    let (_, within) = rest.split_once('.')?;
    MODULES.contains(&within).then_some(module)
}

fn values(rng: &mut Rng, count: usize, size: f32) -> Vec<f32> {
    (0..count).map(|_| ((rng.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0) * size).collect()
}

impl Made {
    /// Changes every matrix of the package that takes it and that `wanted` names.
    fn new(package: &Package, seed: u64, [rank, zero]: [usize; 2], wanted: impl Fn(&str) -> bool) -> Self {
        let mut rng = Rng::new(seed);
        let mut factors = Vec::new();
        let layer = |name: &str| name.split('.').nth(2).and_then(|l| l.parse::<usize>().ok());
        for tensor in package.checkpoint.tensors() {
            let Some(module) = module_of(&tensor.name).filter(|module| wanted(module)) else { continue };
            if layer(module).is_some_and(|l| l >= package.config.layers) {
                continue; // of the layer that predicts further tokens
            }
            let [out, inputs] = tensor.shape[..] else { panic!("{} is no matrix", tensor.name) };
            let name = |which: &str| format!("base_model.model.{module}.lora_{which}.weight");
            let size = if zero == 1 { 0.0 } else { 0.4 / (rank as f32).sqrt() };
            let a = values(&mut rng, rank * inputs, 1.7 / (inputs as f32).sqrt());
            let b = values(&mut rng, out * rank, size);
            let format = if seed.is_multiple_of(2) { Format::F32 } else { Format::Bf16 };
            let encode =
                |name: String, shape, values: &[f32]| HostTensor::encode(name, shape, format, values).expect("floats");
            factors.push([encode(name("A"), [rank, inputs], &a), encode(name("B"), [out, rank], &b)]);
        }
        assert!(factors.len() > 1, "an adapter that changes something");
        Self { rank, alpha: rank as f32 * 0.5, factors }
    }

    fn config(&self) -> String {
        format!(r#"{{"peft_type":"LORA","r":{},"lora_alpha":{},"bias":"none"}}"#, self.rank, self.alpha)
    }

    fn adapter(&self, name: &str) -> Adapter {
        let writer = self.factors.iter().flatten().fold(SafetensorsWriter::new(), |w, tensor| w.tensor(tensor));
        open(name, &self.config(), writer.finish()).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// `W + scale B A` of every matrix.
    fn merged(&self, package: &Package) -> Package {
        let mut writer = SafetensorsWriter::new();
        for info in package.checkpoint.tensors() {
            let tensor = package.checkpoint.tensor(&info.name).expect("it reads").expect("it is there");
            let is_of = |[a, _]: &&[HostTensor; 2]| {
                module_of(&info.name).is_some_and(|m| a.name == format!("base_model.model.{m}.lora_A.weight"))
            };
            let Some([a, b]) = self.factors.iter().find(is_of) else {
                writer = writer.tensor(&tensor);
                continue;
            };
            let (mut merged, a, b, scale) = (tensor.to_f32(), a.to_f32(), b.to_f32(), f64::from(self.alpha));
            let scale = scale / self.rank as f64;
            for (row, b) in merged.chunks_mut(tensor.cols).zip(b.chunks(self.rank)) {
                for (i, w) in row.iter_mut().enumerate() {
                    let products = b.iter().enumerate();
                    let dot: f64 = products.map(|(k, b)| f64::from(*b) * f64::from(a[k * tensor.cols + i])).sum();
                    *w = (f64::from(*w) + scale * dot) as f32;
                }
            }
            writer = writer.tensor(&HostTensor::from_f32(info.name.clone(), [tensor.rows, tensor.cols], &merged));
        }
        let config = package.checkpoint.text("config.json").expect("it reads").expect("it is there");
        let (config, weights) = (config.as_slice().to_vec().leak(), writer.finish().leak());
        Package::embedded(&[("config.json", config), ("model.safetensors", weights)]).expect("the merged model")
    }
}

fn open(name: &str, config: &str, weights: Vec<u8>) -> Result<Adapter, lingqu_model::ModelError> {
    let config = config.as_bytes().to_vec().into();
    let weights = weights.into();
    Adapter::in_memory(
        name,
        vec![("adapter_config.json".into(), config), ("adapter_model.safetensors".into(), weights)],
    )
}

fn package(name: &str) -> Package {
    Package::open(&root().join("testdata/golden/models").join(name)).expect(name)
}

#[test]
fn adapters_equal_merged_weights() {
    let check = |name: &str, seed: u64, rank: usize| {
        let package = package(name);
        let made = Made::new(&package, seed, [rank, 0], |_| true);
        let text: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % package.config.vocab_size as u32).collect();
        let (_, reference) = backends().remove(0);
        let expected = Runner::new(&made.merged(&package), reference.clone()).logits_of(&text);
        let mut runner = Runner::new(&package, reference);
        let plain = runner.logits_of(&text);
        runner.adapters[3] = Some(runner.load_adapter(&made.adapter("made")));
        let found = runner.logits_of(&text);
        let mean = |a: &[Vec<f32>], b: &[Vec<f32>]| {
            let differences = a.iter().zip(b).flat_map(|(a, b)| {
                let (a, b) = (log_softmax(a), log_softmax(b));
                a.into_iter().zip(b).map(|(a, b)| (a - b).abs()).collect::<Vec<f64>>()
            });
            differences.sum::<f64>() / (text.len() * package.config.vocab_size) as f64
        };
        let (error, moved) = (mean(&found, &expected), mean(&plain, &expected));
        println!("{name:<24} rank {rank}: moved by {moved:.3}, error {error:.1e}");
        assert!(error < 1e-5 && moved > 0.1, "{name}: mean difference {error:.1e}, of {moved:.3} that it makes");
    };
    check("qwen2-f32", 1, 8);
    check("qwen2-tied-bf16", 2, 1);
    check("llama-gqa-bf16", 3, 64);
    check("deepseek-v3-f32", 4, 5);
    check("deepseek-v2-lite-bf16", 5, 16);
}

/// Several adapters, one of attention alone, one of feed-forwards alone, and the base, side by side: the bits of each
/// alone. An adapter of zeros gives the bits of the base.
#[test]
fn company_changes_no_bit() {
    for name in ["qwen2-f32", "llama-q4_k.gguf", "deepseek-v3-fp8"] {
        let package = package(name);
        // Names as Hugging Face has them, whatever the base is stored in.
        let named = match name {
            "llama-q4_k.gguf" => None,
            _ => Some(&package),
        };
        let adapters: Vec<Adapter> = match named {
            Some(package) => vec![
                Made::new(package, 6, [4, 0], |_| true).adapter("all"),
                Made::new(package, 7, [7, 0], |module| module.contains("self_attn")).adapter("attention"),
                Made::new(package, 8, [20, 0], |module| module.contains("mlp")).adapter("feed-forward"),
                Made::new(package, 9, [3, 1], |_| true).adapter("zeros"),
            ],
            None => for_gguf(&package),
        };
        let vocab = package.config.vocab_size as u32;
        let texts: Vec<Vec<u32>> = (0..8u32).map(|s| (0..20 + s).map(|i| (i * 31 + s * 7) % vocab).collect()).collect();
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        for (backend_name, backend) in backends() {
            let mut runner = Runner::new(&package, backend);
            let ids: Vec<AdapterId> = adapters.iter().map(|a| runner.load_adapter(a)).collect();
            let of = [None, Some(ids[0]), Some(ids[1]), Some(ids[2]), None, Some(ids[0]), Some(ids[3]), Some(ids[2])];
            let mut alone = Vec::new();
            for (text, adapter) in texts.iter().zip(of) {
                runner.adapters[0] = adapter;
                alone.push(runner.last_logits(&[text], &[1]).remove(0));
            }
            runner.adapters = of;
            let together = runner.last_logits(&texts, &[5, 1, 11, 3]);
            for (i, (found, expected)) in together.iter().zip(&alone).enumerate() {
                assert!(found == expected, "{name} on {backend_name}: sequence {i}");
            }
            runner.adapters[0] = None;
            let base = runner.last_logits(&[texts[6]], &[4]).remove(0);
            assert!(base == alone[6], "{name} on {backend_name}: zeros change the base");
            assert!(base != runner_with(&mut runner, ids[0], texts[6]), "{name}: an adapter changes nothing");
        }
    }
}

fn runner_with(runner: &mut Runner, adapter: AdapterId, text: &[u32]) -> Vec<f32> {
    runner.adapters[0] = Some(adapter);
    runner.last_logits(&[text], &[4]).remove(0)
}

/// The same for a base without Hugging Face's names.
fn for_gguf(package: &Package) -> Vec<Adapter> {
    let config = &package.config;
    let lingqu_model::AttentionConfig::Gqa(gqa) = &config.attention else { panic!("a Llama") };
    let (hidden, q, kv) = (config.hidden, gqa.heads * gqa.head_dim, gqa.kv_heads * gqa.head_dim);
    let shapes = [
        ("self_attn.q_proj", [q, hidden]),
        ("self_attn.k_proj", [kv, hidden]),
        ("self_attn.o_proj", [hidden, q]),
        ("mlp.up_proj", [config.ffn_intermediate, hidden]),
        ("mlp.down_proj", [hidden, config.ffn_intermediate]),
    ];
    let make = |(seed, rank, size, part): (u64, usize, f32, &str)| {
        let mut rng = Rng::new(seed);
        let mut factors = Vec::new();
        for layer in 0..config.layers {
            for (module, [out, inputs]) in shapes.into_iter().filter(|(module, _)| module.contains(part)) {
                let name = |which: &str| format!("base_model.model.model.layers.{layer}.{module}.lora_{which}.weight");
                let a = values(&mut rng, rank * inputs, 1.7 / (inputs as f32).sqrt());
                let b = values(&mut rng, out * rank, size);
                factors.push([
                    HostTensor::from_f32(name("A"), [rank, inputs], &a),
                    HostTensor::from_f32(name("B"), [out, rank], &b),
                ]);
            }
        }
        Made { rank, alpha: 2.0, factors }.adapter(&format!("{part} {seed}"))
    };
    [(1, 4, 0.2, ""), (2, 7, 0.2, "self_attn"), (3, 20, 0.2, "mlp"), (4, 3, 0.0, "")].map(make).into()
}

/// Whatever is wrong with an adapter is said, with the file and the field or tensor.
#[test]
fn what_cannot_be_applied_is_named() {
    let (package, deepseek) = (package("llama-gqa-bf16"), package("deepseek-v3-f32"));
    let load_into = |base: &Package, adapter: &Adapter| {
        let (_, backend) = backends().remove(0);
        let options = LoadOptions { batch_rows_max: 1, logit_rows_max: 1, context_tokens_max: 4, speculate: false };
        load(base, backend, &options, &mut |_| {}).expect("the base").load_adapter(adapter).map(|_| ())
    };
    let hidden = package.config.hidden;
    let factor = |name: &str, shape: [usize; 2]| HostTensor::from_f32(name, shape, &vec![0.1; shape[0] * shape[1]]);
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    let check = |base: &Package, config: &str, tensors: &[HostTensor], says: &str| {
        let weights = tensors.iter().fold(SafetensorsWriter::new(), |w, t| w.tensor(t)).finish();
        let result = open("broken", config, weights).and_then(|adapter| load_into(base, &adapter));
        let error = result.expect_err(says).to_string();
        assert!(error.contains(says), "{error} instead of {says}");
    };
    let plain = r#"{"peft_type":"LORA","r":2,"lora_alpha":4}"#;
    let pair = |module: &str, [out, rank, inputs]: [usize; 3]| {
        [
            factor(&format!("{module}.lora_A.weight"), [rank, inputs]),
            factor(&format!("{module}.lora_B.weight"), [out, rank]),
        ]
    };
    let good = pair(q, [package.config.hidden, 2, hidden]);

    for (field, value) in [
        ("peft_type", r#""IA3""#),
        ("bias", r#""all""#),
        ("use_dora", "true"),
        ("modules_to_save", r#"["lm_head"]"#),
        ("layer_replication", "[[0, 1]]"),
        ("init_lora_weights", r#""pissa_niter_4""#),
        ("r", "257"),
        ("r", "0"),
        ("lora_alpha", "1e300"),
        ("rank_pattern", r#"{".*": 3}"#),
        ("rank_pattern", r#"{"q_proj": 3, "self_attn.q_proj": 4}"#),
        ("alpha_pattern", "[1]"),
    ] {
        let base = serde_json::from_str::<serde_json::Value>(plain).unwrap();
        let mut object = base.as_object().unwrap().clone();
        object.insert(field.into(), serde_json::from_str(value).unwrap());
        check(&package, &serde_json::to_string(&object).unwrap(), &good, field);
    }
    check(&package, "[]", &good, "adapter_config.json");
    check(&package, plain, &good[..1], "has one of its two factors");
    check(&package, plain, &[], "changes nothing");
    check(
        &package,
        plain,
        &[factor("base_model.model.lm_head.weight", [2, 2])],
        "'base_model.model.lm_head.weight' is no",
    );
    check(&package, plain, &pair("base_model.model.lm_head", [4, 2, hidden]), "changes no linear layer");
    check(&package, plain, &pair(q, [hidden, 3, hidden]), "is of rank 3, but adapter_config.json says 2");
    check(&package, plain, &pair(q, [hidden, 2, hidden + 1]), "has shape [2, ");
    check(&package, plain, &pair(q, [hidden + 1, 2, hidden]), "has shape [");
    check(&package, plain, &pair(&q.replace('0', "9"), [hidden, 2, hidden]), "is of layer 9, but the model has");
    check(&package, plain, &pair(&q.replace("q_proj", "q_a_proj"), [hidden, 2, hidden]), "no such linear layer");
    let of_deepseek = |module: &str| pair(&format!("base_model.model.model.layers.1.{module}"), [8, 2, 8]);
    check(&deepseek, plain, &of_deepseek("self_attn.kv_b_proj"), "kv_b_proj is absorbed");
    check(&deepseek, plain, &of_deepseek("mlp.experts.3.up_proj"), "routed experts");
    check(&deepseek, plain, &of_deepseek("mlp.shared_experts.up_proj"), "no such linear layer");
    let mut broken = good.clone();
    broken[1] = HostTensor::from_f32(broken[1].name.clone(), [hidden, 2], &vec![f32::NAN; 2 * hidden]);
    check(&package, plain, &broken, "NaN");
}
