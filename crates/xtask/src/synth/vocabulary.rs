//! A tokenizer that every reader takes: byte-level BPE of the 256 bytes and a few merges, padded to the model's size.

use lingqu_testkit::gguf_writer::GgufWriter;

const SPECIALS: [&str; 2] = ["<|begin|>", "<|end|>"];
/// Left and right; Ġ is a space.
const MERGES: [(&str, &str); 4] = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "the")];

/// `tokenizer.ggml.*` for exactly `size` tokens; 0 begins a text and 1 ends it.
pub fn add(writer: GgufWriter, pre_tokenizer: &str, size: usize) -> GgufWriter {
    let mut tokens: Vec<String> = SPECIALS.map(String::from).into();
    tokens.extend((0..=255).map(|byte| byte_letter(byte).to_string()));
    tokens.extend(MERGES.map(|(left, right)| format!("{left}{right}")));
    tokens.extend((tokens.len()..size).map(|id| format!("unused{id}")));
    assert_eq!(tokens.len(), size, "a vocabulary smaller than its bytes");
    // `tokenizer.ggml.token_type`: 3 control, 1 ordinary.
    let types: Vec<i32> = (0..size).map(|id| if id < SPECIALS.len() { 3 } else { 1 }).collect();
    writer
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", pre_tokenizer)
        .str_array("tokenizer.ggml.tokens", &tokens)
        .i32_array("tokenizer.ggml.token_type", &types)
        .str_array("tokenizer.ggml.merges", &MERGES.map(|(left, right)| format!("{left} {right}")))
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 1)
        .u32("tokenizer.ggml.padding_token_id", 1)
        .bool("tokenizer.ggml.add_bos_token", false)
}

/// The letter that stands for a byte (GPT-2's `bytes_to_unicode`): printable bytes are themselves, the others follow
/// each other from U+0100 on.
fn byte_letter(byte: u8) -> char {
    let is_itself = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_itself(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !is_itself(b)).count() as u32;
    char::from_u32(0x100 + before).expect("68 letters from U+0100")
}
