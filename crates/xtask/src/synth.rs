//! `cargo xtask synth`: a valid GGUF file with a real model's shape and random weights, to measure speed with.
//!
//! Such a file needs no download, is the same everywhere for the same seed, and loads in llama.cpp too. Where to start:
//! [`Shape`](shape::Shape) says what models there are, `plan.rs` which tensors such a model has and in which format
//! llama-quantize would keep them, `values.rs` what is in them, `vocabulary.rs` the tokenizer.

mod metadata;
mod plan;
mod shape;
#[cfg(test)]
mod tests;
mod values;
mod vocabulary;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use lingqu_testkit::gguf_writer::GgufWriter;
use plan::{Layout, Quant};
use shape::Shape;

pub const USAGE: &str = "usage: cargo xtask synth --like MODEL --quant q4_k_m|q8_0 --out FILE [option ...]

  --seed N         other weights of the same kind [default: 1]
  --merged-kv-b    deepseek2 as converted before April 2025: one attn_kv_b instead of attn_k_b and attn_v_b";

/// What was asked for on the command line.
struct Args {
    shape: Shape,
    quant: Quant,
    out: PathBuf,
    layout: Layout,
    seed: u64,
}

/// Writes the file that the arguments ask for.
///
/// # Errors
/// Says which argument is wrong, or which file cannot be written.
pub fn run(args: impl Iterator<Item = String>) -> Result<(), String> {
    let args = parse(args)?;
    let failed = |e: std::io::Error| format!("{}: {e}", args.out.display());
    let file = File::create(&args.out).map_err(failed)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    write(&args.shape, args.quant, args.layout, args.seed, &mut out).map_err(failed)?;
    out.flush().map_err(failed)?;
    let bytes = out.get_ref().metadata().map_err(failed)?.len();
    println!("{}: {:.2} GB", args.out.display(), bytes as f64 / 1e9);
    Ok(())
}

/// The whole file, as a stream: only one tensor's pool of blocks is in memory at a time.
fn write(shape: &Shape, quant: Quant, layout: Layout, seed: u64, out: &mut impl Write) -> std::io::Result<()> {
    let tensors = plan::tensors(shape, quant, layout);
    let mut writer = metadata::add(GgufWriter::new(shape.architecture), shape, quant, layout);
    writer = vocabulary::add(writer, shape.pre_tokenizer, shape.vocab);
    for tensor in &tensors {
        writer = writer.declare(&tensor.name, &tensor.dims, tensor.format);
    }
    let mut planned = tensors.iter();
    writer.write_to(out, |name, bytes, out| {
        let tensor = planned.next().expect("as many as were declared");
        assert_eq!(tensor.name, name, "tensors come in the order in which they were declared");
        values::write(tensor, seed, bytes, out)
    })
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Args, String> {
    let (mut shape, mut quant, mut out) = (None, None, None);
    let (mut layout, mut seed) = (Layout::SplitKvB, 1);
    while let Some(name) = args.next() {
        let mut value = || args.next().ok_or(format!("{name} needs a value\n\n{USAGE}"));
        match name.as_str() {
            "--like" => shape = Some(Shape::named(&value()?)?),
            "--quant" => quant = Some(value()?.parse()?),
            "--out" => out = Some(value()?.into()),
            "--seed" => seed = value()?.parse().map_err(|e| format!("--seed: {e}"))?,
            "--merged-kv-b" => layout = Layout::MergedKvB,
            _ => return Err(format!("unknown argument {name}\n\n{USAGE}")),
        }
    }
    let missing = |name: &str| format!("{name} is missing\n\n{USAGE}\n\nmodels: {}", Shape::names().join(" "));
    Ok(Args {
        shape: shape.ok_or_else(|| missing("--like"))?,
        quant: quant.ok_or_else(|| missing("--quant"))?,
        out: out.ok_or_else(|| missing("--out"))?,
        layout,
        seed,
    })
}
