//! Measures candle-transformers' quantised models as `llama-bench` does llama.cpp: prints one JSON object with tokens
//! a second of a prompt and of decoding, for each number of streams. Knows candle, nothing of Lingqu; start at `main`.
//!
//! usage: candle-bench MODEL.gguf --prompt N --gen N --batch N,N [--no-warmup]    (threads: RAYON_NUM_THREADS)

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::BufReader;
use std::time::Instant;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Error, Result, Tensor, bail};
use candle_transformers::models::{quantized_llama, quantized_qwen2};

fn main() -> Result<()> {
    let wanted = Wanted::parse(std::env::args().skip(1))?;
    let start = Instant::now();
    let (mut model, vocab) = open(&wanted.path)?;
    let load_s = start.elapsed().as_secs_f64();
    if wanted.warmup {
        run(&mut model, vocab, 1, 16, 2)?;
    }
    let mut results = Vec::new();
    for batch in wanted.batches {
        let (prefill, decode) = run(&mut model, vocab, batch, wanted.prompt, wanted.generate)?;
        let figures = [("prefill_tokens_per_s", Some(prefill)), ("decode_tokens_per_s", decode)];
        let figures = figures.map(|(name, value)| format!("\"{name}\": {}", json(value)));
        results.push(format!("{{\"batch\": {batch}, {}}}", figures.join(", ")));
    }
    println!("{{\"load_s\": {load_s}, \"results\": [{}]}}", results.join(", "));
    Ok(())
}

struct Wanted {
    path: String,
    prompt: usize,
    generate: usize,
    batches: Vec<usize>,
    warmup: bool,
}

impl Wanted {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut wanted = Wanted { path: String::new(), prompt: 512, generate: 64, batches: vec![1], warmup: true };
        while let Some(word) = words.next() {
            let mut numbers = || -> Result<Vec<usize>> {
                let text = words.next().unwrap_or_default();
                text.split(',')
                    .map(|n| n.parse().map_err(|_| Error::msg(format!("{word}: not a number: {n:?}"))))
                    .collect()
            };
            match word.as_str() {
                "--prompt" => wanted.prompt = numbers()?[0],
                "--gen" => wanted.generate = numbers()?[0],
                "--batch" => wanted.batches = numbers()?,
                "--no-warmup" => wanted.warmup = false,
                _ => wanted.path = word,
            }
        }
        if wanted.path.is_empty() || wanted.prompt == 0 || wanted.batches.contains(&0) {
            bail!("usage: candle-bench MODEL.gguf --prompt N --gen N --batch N,N [--no-warmup]");
        }
        Ok(wanted)
    }
}

enum Model {
    Llama(quantized_llama::ModelWeights),
    Qwen2(quantized_qwen2::ModelWeights),
}

impl Model {
    /// Token ids `[streams, tokens]` after `context` others; logits of the last ones `[streams, vocab]`.
    fn forward(&mut self, tokens: &Tensor, context: usize) -> Result<Tensor> {
        match self {
            Self::Llama(model) => model.forward(tokens, context),
            Self::Qwen2(model) => model.forward(tokens, context),
        }
    }

    fn clear(&mut self) {
        match self {
            Self::Llama(model) => model.clear_kv_cache(),
            Self::Qwen2(model) => model.clear_kv_cache(),
        }
    }
}

/// The model and the size of its vocabulary.
fn open(path: &str) -> Result<(Model, u32)> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let content = Content::read(&mut file)?;
    let embedding = content.tensor_infos.get("token_embd.weight").ok_or_else(|| Error::msg("no token_embd.weight"))?;
    let vocab = embedding.shape.dims2()?.0 as u32;
    let name = match content.metadata.get("general.architecture") {
        Some(name) => name.to_string()?.clone(),
        None => bail!("no general.architecture"),
    };
    let model = match name.as_str() {
        "llama" => Model::Llama(quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?),
        "qwen2" => Model::Qwen2(quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?),
        _ => bail!("architecture {name}: only llama and qwen2 are measured"),
    };
    Ok((model, vocab))
}

/// (tokens/s of the prompts, tokens/s of decoding), of all streams together; tokens are random.
fn run(model: &mut Model, vocab: u32, streams: usize, prompt: usize, generate: usize) -> Result<(f64, Option<f64>)> {
    model.clear();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = |tokens: usize| {
        let ids: Vec<u32> = (0..streams * tokens)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u32 % vocab
            })
            .collect();
        Tensor::from_vec(ids, (streams, tokens), &Device::Cpu)
    };
    let tokens = draw(prompt)?;
    let start = Instant::now();
    check(&model.forward(&tokens, 0)?)?;
    let prefill = (streams * prompt) as f64 / start.elapsed().as_secs_f64();
    let steps: Vec<Tensor> = (0..generate).map(|_| draw(1)).collect::<Result<_>>()?;
    let start = Instant::now();
    for (step, tokens) in steps.iter().enumerate() {
        check(&model.forward(tokens, prompt + step)?)?;
    }
    let decode = (streams * generate) as f64 / start.elapsed().as_secs_f64();
    Ok((prefill, (generate > 0).then_some(decode)))
}

/// A model that computes nonsense is not measured.
fn check(logits: &Tensor) -> Result<()> {
    match logits.flatten_all()?.max(0)?.to_scalar::<f32>()? {
        value if value.is_finite() => Ok(()),
        value => bail!("logits of {value}"),
    }
}

fn json(value: Option<f64>) -> String {
    value.map_or("null".into(), |value| value.to_string())
}
