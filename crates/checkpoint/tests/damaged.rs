//! Truncated, lying and hostile files: each is refused with an error that says where and why.

mod support;

use lingqu_checkpoint::{Checkpoint, CheckpointError};
use lingqu_tensor::{Format, HostTensor};
use lingqu_testkit::gguf_writer::{GgufWriter, kind};
use lingqu_testkit::safetensors_writer::{SafetensorsWriter, with_header};
use support::{CONFIG, TempFolder, gguf, matrix, open_gguf, open_safetensors, safetensors};

/// `says`: words that the error must hold.
fn refused(opened: Result<Checkpoint, CheckpointError>, says: &[&str]) {
    let error = opened.err().unwrap_or_else(|| panic!("opened, but should say {says:?}")).to_string();
    assert!(!error.contains('\n'), "one line: {error}");
    says.iter().for_each(|word| assert!(error.contains(word), "{word:?} is not in: {error}"));
}

#[test]
fn every_truncation_is_refused() {
    let file = gguf().tensor(&matrix("last", [1, 8], Format::F32)).finish();
    assert!(open_gguf(file.clone()).is_ok());
    for length in 0..file.len() {
        refused(open_gguf(file[..length].to_vec()), &["tiny.gguf"]);
    }
    let file = safetensors().finish();
    for length in 0..file.len() {
        refused(open_safetensors(file[..length].to_vec()), &["model.safetensors"]);
    }
}

#[test]
fn gguf_headers_that_lie() {
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = gguf().finish();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        open_gguf(file)
    };
    let huge = u64::MAX.to_le_bytes();
    refused(patched(0, b"GGML"), &["not a GGUF file"]);
    refused(patched(4, &1u32.to_le_bytes()), &["version 1"]);
    refused(patched(4, &9u32.to_le_bytes()), &["version 9"]);
    refused(patched(4, &3u32.to_be_bytes()), &["big-endian"]);
    refused(patched(8, &huge), &["number of tensors", "18446744073709551615"]);
    refused(patched(16, &huge), &["number of metadata keys"]);
    refused(patched(16, &(1u64 << 40).to_le_bytes()), &["number of metadata keys"]);
    refused(patched(24, &huge), &["a metadata key"]);
    refused(patched(32, &[0xff]), &["a metadata key is not UTF-8"]);
}

#[test]
fn gguf_keys_that_lie() {
    let check = |writer: GgufWriter, says: &[&str]| refused(open_gguf(writer.finish()), says);
    let array =
        |kind: u32, count: u64, rest: &[u8]| [kind.to_le_bytes().as_slice(), &count.to_le_bytes(), rest].concat();
    check(gguf().u32("tiny.block_count", 4), &["'tiny.block_count'", "twice"]);
    check(gguf().raw_key("k", 13, &[]), &["'k'", "unknown type 13"]);
    check(gguf().raw_key("k", kind::BOOL, &[2]), &["'k'", "bool of 2"]);
    check(gguf().raw_key("k", kind::STRING, &u64::MAX.to_le_bytes()), &["'k'"]);
    check(gguf().raw_key("k", kind::STRING, &[2, 0, 0, 0, 0, 0, 0, 0, 0xc3, 0x28]), &["'k'", "UTF-8"]);
    check(gguf().raw_key("k", kind::ARRAY, &array(kind::U32, u64::MAX, &[])), &["'k'"]);
    check(gguf().raw_key("k", kind::ARRAY, &array(kind::U64, 1 << 61, &[])), &["'k'"]);
    check(gguf().raw_key("k", kind::ARRAY, &array(kind::STRING, 1 << 32, &[])), &["'k'"]);
    check(gguf().raw_key("k", kind::ARRAY, &array(99, 1, &[0])), &["'k'", "unknown type 99"]);
    check(gguf().raw_key("k", kind::ARRAY, &array(kind::BOOL, 2, &[1, 7])), &["'k'", "bool of 7"]);
    let nested = (0..100).fold(array(kind::U8, 1, &[0]), |inner, _| array(kind::ARRAY, 1, &inner));
    check(gguf().raw_key("k", kind::ARRAY, &nested), &["'k'", "deeper"]);
    check(gguf().u32("general.alignment", 24), &["general.alignment", "24"]);
    check(gguf().u32("general.alignment", 0), &["general.alignment"]);
    check(gguf().str("general.alignment", "32"), &["general.alignment", "not an integer"]);
    // Names come from the file: no control character of theirs reaches a terminal.
    check(gguf().raw_key("bell\u{7}\n", 13, &[]), &["bell\\u{7}\\n"]);
}

#[test]
fn gguf_tensors_that_lie() {
    let check = |writer: GgufWriter, says: &[&str]| refused(open_gguf(writer.finish()), says);
    let raw = |shape: &[usize], type_id: u32, bytes: usize, offset: Option<u64>| {
        gguf().raw_tensor("bad", shape, type_id, &vec![0; bytes], offset)
    };
    check(gguf().tensor(&matrix("up.weight", [1, 32], Format::F32)), &["'up.weight'", "twice"]);
    check(raw(&[1; 5], 0, 4, None), &["'bad'", "5 dimensions"]);
    check(raw(&[3, 0], 0, 0, None), &["'bad'", "dimension of 0"]);
    check(raw(&[1 << 40, 1 << 40], 0, 4, None), &["'bad'", "too large to count"]);
    check(raw(&[1 << 62, 1], 0, 4, None), &["'bad'", "too large to count"]);
    check(raw(&[1 << 30, 32], 8, 34, None), &["'bad'", "beyond the file"]);
    check(raw(&[33], 8, 34, None), &["'bad'", "33 values are not whole blocks of Q8_0"]);
    check(raw(&[8], 4, 32, None), &["'bad'", "unknown type 4"]);
    check(raw(&[8], 0, 32, Some(3)), &["'bad'", "alignment"]);
    check(raw(&[8], 0, 32, Some(64)), &["inside 'down.weight'"]);
    check(raw(&[8], 0, 32, Some(u64::MAX - 31)), &["'bad'", "beyond the file"]);
    check(raw(&[8], 0, 32, Some(1 << 32)), &["'bad'", "beyond the file"]);
}

#[test]
fn split_sets_that_do_not_fit() {
    let part = |number: u16, count: u16| GgufWriter::new("tiny").u16("split.no", number).u16("split.count", count);
    let check = |files: &[(&str, GgufWriter)], open: &str, says: &[&str]| {
        let files: Vec<_> = files.iter().map(|(name, writer)| (*name, writer.finish())).collect();
        let files: Vec<_> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        let folder = TempFolder::with(&files);
        refused(Checkpoint::open(&folder.path().join(open)), says);
    };
    let (one, two) = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf");
    check(&[(one, part(0, 2))], one, &[two, "is missing"]);
    check(&[(two, part(1, 2))], "", &[one, "is missing"]);
    check(&[(one, part(0, 2)), (two, part(0, 2))], one, &[two, "split.no", "is 0"]);
    check(&[(one, part(0, 3)), (two, part(1, 3))], one, &["split.count", "is 3", "2 parts"]);
    check(&[(one, GgufWriter::new("tiny")), (two, part(1, 2))], one, &["split.count"]);
    check(&[("m.gguf", part(0, 2))], "m.gguf", &["split.count", "name"]);
    let counted = part(0, 2).i32("split.tensors.count", 5);
    check(&[(one, counted), (two, part(1, 2))], one, &["split.tensors.count", "is 5", "hold 0"]);
    let twice = |number| part(number, 2).tensor(&matrix("w", [1, 8], Format::F32));
    check(&[(one, twice(0)), (two, twice(1))], one, &["'w'", one, two]);
    check(&[("a.gguf", gguf()), ("b.gguf", gguf())], "", &["several", "a.gguf", "b.gguf"]);
}

#[test]
fn safetensors_headers_that_lie() {
    let check = |header: &str, data: usize, says: &[&str]| {
        refused(open_safetensors(with_header(header, &vec![0; data])), &[&["model.safetensors"], says].concat());
    };
    let f32_at = |name: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let one = |shape: &str, from, to| format!("{{{}}}", f32_at("w", shape, from, to));
    check(&one("[2]", 0, 8), 9, &["end at 8", "9 bytes"]);
    check(&one("[2]", 0, 8), 7, &["'w'", "0..8", "7 bytes"]);
    check(&one("[2]", 4, 12), 12, &["'w'", "4..12", "no gaps"]);
    check(&one("[2]", 8, 0), 8, &["'w'"]);
    check(&one("[3]", 0, 8), 8, &["'w'", "[3]", "8 bytes"]);
    check(&one("[4611686018427387905, 4]", 0, 8), 8, &["'w'", "8 bytes"]);
    check(&one("[18446744073709551615]", 0, 0), 0, &["'w'"]);
    check(&one("[-1]", 0, 8), 8, &["'w'", "invalid value"]);
    check(&one("[1,1,1,1,1,1,1,1,2]", 0, 8), 8, &["'w'", "8 dimensions"]);
    check(&one("[2]", 0, u64::MAX), 8, &["'w'"]);
    let two = |a: String, b: String| format!("{{{a},{b}}}");
    check(&two(f32_at("a", "[2]", 0, 8), f32_at("b", "[2]", 4, 12)), 12, &["'b'", "'a' ends at 8"]);
    check(&two(f32_at("a", "[2]", 0, 8), f32_at("a", "[1]", 8, 12)), 12, &["'a' is there twice"]);
    check(r#"{"w":{"dtype":"F32","shape":[0]}}"#, 0, &["'w'", "data_offsets"]);
    check(r#"{"w":{"dtype":"F32","dtype":"F16","shape":[0],"data_offsets":[0,0]}}"#, 0, &["'w'", "duplicate"]);
    check(r#"{"w":5}"#, 0, &["'w'"]);
    check("[]", 0, &["not a JSON object"]);
    check("{", 0, &["broken"]);
    check(&format!("{{\"__metadata__\":{}", "[".repeat(100_000)), 0, &["broken"]);
    let raw = |length: u64, rest: &[u8]| [&length.to_le_bytes(), rest].concat();
    refused(open_safetensors(raw(u64::MAX, b"{}")), &["claims 18446744073709551615 bytes"]);
    refused(open_safetensors(raw(100, b"{}")), &["claims 100 bytes", "only 2 follow"]);
    refused(open_safetensors(raw(4, b"{\"\xff\"")), &["broken"]);
    refused(open_safetensors(raw(0, b"")), &["not a JSON object"]);
}

#[test]
fn folders_that_do_not_fit() {
    let shard = SafetensorsWriter::new().tensor(&matrix("a", [1, 8], Format::F32)).finish();
    let config = ("config.json", CONFIG.as_bytes());
    let check = |files: &[(&str, &[u8])], says: &[&str]| {
        refused(Checkpoint::open(TempFolder::with(files).path()), says);
    };
    let index = |json: &'static str| ("model.safetensors.index.json", json.as_bytes());
    let one = ("one.safetensors", shard.as_slice());
    check(&[], &["neither .safetensors nor .gguf"]);
    check(&[one], &["config.json", "missing"]);
    check(&[one, ("config.json", b"{")], &["config.json", "broken"]);
    check(
        &[one, ("config.json", br#"{"quantization_config":{"weight_block_size":[0,128]}}"#)],
        &["config.json", "weight_block_size [0, 128]"],
    );
    check(&[one, config, ("two.safetensors", &shard)], &["'a'", "one.safetensors", "two.safetensors"]);
    check(&[one, config, ("two.safetensors", b"")], &["two.safetensors", "is empty"]);
    check(&[one, config, index(r#"{"weight_map":{"a":"gone.safetensors"}}"#)], &["gone.safetensors", "missing"]);
    check(&[one, config, index(r#"{"weight_map":{"b":"one.safetensors"}}"#)], &["'b'", "one.safetensors", "index"]);
    check(&[one, config, index(r#"{"weight_map":{"a":"../one.safetensors"}}"#)], &["'a'", "not the name of a shard"]);
    check(&[one, config, index(r#"{"weight_map":{"a":"/etc/passwd"}}"#)], &["'a'", "not the name of a shard"]);
    check(&[one, config, index(r#"{"weights":{}}"#)], &["index.json", "broken", "weight_map"]);
    let absent = TempFolder::with(&[]);
    refused(Checkpoint::open(&absent.path().join("absent")), &["absent"]);
    refused(Checkpoint::open(&TempFolder::with(&[one]).path().join("one.safetensors")), &["open the folder"]);
}

#[test]
fn fp8_needs_fitting_scales() {
    let fp8 = |scales: Option<(&str, &[usize], usize)>| {
        let writer = SafetensorsWriter::new().raw("w", "F8_E4M3", &[5, 6], &[0x38; 30]);
        let writer = match scales {
            Some((dtype, shape, bytes)) => writer.raw("w_scale_inv", dtype, shape, &vec![0; bytes]),
            None => writer,
        };
        open_safetensors(writer.finish()).expect("the file itself is good")
    };
    let check = |scales, says: &[&str]| {
        let error = fp8(scales).tensor("w").expect_err("no fitting scales").to_string();
        says.iter().for_each(|word| assert!(error.contains(word), "{word:?} is not in: {error}"));
    };
    assert!(fp8(Some(("F32", &[2, 2], 16))).tensor("w").is_ok());
    check(None, &["'w'", "'w_scale_inv' are missing"]);
    check(Some(("F32", &[1, 2], 8)), &["'w_scale_inv'", "[1, 2]", "[2, 2]"]);
    check(Some(("BF16", &[2, 2], 8)), &["'w_scale_inv'", "BF16"]);
}

#[test]
fn broken_numbers_are_found_by_tensor() {
    let nan = HostTensor::from_f32("w", [1, 2], &[1.0, f32::NAN]);
    let checkpoint = open_safetensors(SafetensorsWriter::new().tensor(&nan).finish()).expect("a good header");
    let error = checkpoint.tensor("w").unwrap().unwrap().check_finite_scales().unwrap_err().to_string();
    assert!(error.contains("'w'") && error.contains("column 1"), "{error}");
}
