//! Every GGUF block format, value by value, against the `gguf` Python package (see testdata/golden/README.md).

use std::path::Path;

use lingqu_tensor::{Format, quant};
use serde_json::Value;

fn check(format: Format) {
    let name = format.name().to_lowercase();
    let file = format!("{}/../../testdata/golden/gguf_blocks/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read(Path::new(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let golden: Value = serde_json::from_slice(&text).expect("valid JSON");
    let blocks = golden["blocks_hex"].as_array().expect("blocks");
    assert!(!blocks.is_empty());
    for (number, (hex, values)) in blocks.iter().zip(golden["values"].as_array().expect("values")).enumerate() {
        let hex = hex.as_str().expect("a string of hex digits");
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect();
        let expected: Vec<f32> = values.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        let mut decoded = vec![f32::NAN; expected.len()];
        quant::decode_blocks(format, &bytes, &mut decoded);
        assert_eq!(decoded, expected, "{format}, block {number}");
    }
}

#[test]
fn every_block_format_agrees_exactly() {
    // FP8 is no GGUF format; DeepSeek's own checkpoints hold it.
    Format::ALL.into_iter().filter(|&format| format != Format::Fp8E4M3).for_each(check);
}
