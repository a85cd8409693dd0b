//! What is written is read back: every format, both kinds of checkpoint, from disk and from memory.

mod support;

use lingqu_checkpoint::{Checkpoint, GgufValue, Source};
use lingqu_tensor::{Format, HostTensor};
use lingqu_testkit::gguf_writer::GgufWriter;
use lingqu_testkit::safetensors_writer::SafetensorsWriter;
use support::{CONFIG, TempFolder, gguf, matrix, open_gguf, open_safetensors, safetensors};

fn same(checkpoint: &Checkpoint, expected: &HostTensor) {
    let name = &expected.name;
    let read = checkpoint.tensor(name).expect(name).expect(name);
    assert_eq!((read.rows, read.cols, read.format), (expected.rows, expected.cols, expected.format), "{name}");
    assert_eq!(read.data.as_slice(), expected.data.as_slice(), "{name}");
    assert_eq!(read.to_f32(), expected.to_f32(), "{name}");
}

#[test]
fn gguf_tensors_of_every_format() {
    let formats = Format::ALL.into_iter().filter(|&f| f != Format::Fp8E4M3);
    let tensors: Vec<HostTensor> = formats.map(|f| matrix(f.name(), [3, 256], f)).collect();
    let writer = tensors.iter().fold(GgufWriter::new("tiny"), |writer, tensor| writer.tensor(tensor));
    let checkpoint = open_gguf(writer.finish()).expect("a good file");
    assert_eq!(checkpoint.source(), Source::Gguf);
    assert_eq!(checkpoint.tensors().len(), 15);
    tensors.iter().for_each(|tensor| same(&checkpoint, tensor));
    assert_eq!(checkpoint.bytes(), tensors.iter().map(|t| t.data.len() as u64).sum::<u64>());
}

#[test]
fn gguf_shapes_are_turned_round_and_stacks_sliced() {
    let checkpoint = open_gguf(gguf().finish()).expect("a good file");
    let shape = |name: &str| checkpoint.info(name).expect(name).shape.clone();
    assert_eq!(shape("norm.weight"), [3]);
    assert_eq!(shape("down.weight"), [5, 32]);
    assert_eq!(shape("experts.weight"), [2, 2, 32]);
    same(&checkpoint, &matrix("norm.weight", [1, 3], Format::F32));
    let slice = checkpoint.tensor_slice("experts.weight", 1).unwrap().unwrap();
    assert_eq!((slice.name.as_str(), slice.rows, slice.cols), ("experts.weight[1]", 2, 32));
    assert_eq!(slice.to_f32(), matrix("1", [2, 32], Format::Q4_0).to_f32());
    assert!(checkpoint.tensor("absent").unwrap().is_none());
    assert!(checkpoint.tensor_slice("absent", 0).unwrap().is_none());
    let misuse = |error: String, says: &str| assert!(error.contains(says), "{error}");
    misuse(checkpoint.tensor("experts.weight").unwrap_err().to_string(), "[2, 2, 32]");
    misuse(checkpoint.tensor_slice("experts.weight", 2).unwrap_err().to_string(), "index 2");
    misuse(checkpoint.tensor_slice("up.weight", 0).unwrap_err().to_string(), "[n, rows, cols]");
}

#[test]
fn gguf_metadata_is_typed() {
    for version in [2, 3] {
        let checkpoint = open_gguf(gguf().version(version).alignment(64).finish()).expect("a good file");
        let meta = checkpoint.gguf().expect("GGUF has metadata");
        assert_eq!(meta.u32("tiny.block_count").unwrap(), Some(3));
        assert_eq!(meta.u32("tiny.small").unwrap(), Some(7), "a u16 is a u32 too");
        assert_eq!(meta.require::<i32>("tiny.negative").unwrap(), -1);
        assert_eq!(meta.f32("tiny.rope.freq_base").unwrap(), Some(10000.0));
        assert_eq!(meta.bool("tiny.flag").unwrap(), Some(true));
        assert_eq!(meta.str("general.name").unwrap(), Some("小模型"));
        let tokens = meta.str_array("tokenizer.ggml.tokens").unwrap().unwrap();
        assert_eq!((tokens.len(), tokens.iter().collect::<Vec<_>>()), (3, vec!["a", "", "灵渠"]));
        assert_eq!(meta.u32_array("tokenizer.ggml.token_type").unwrap().unwrap(), [1, 3, 1]);
        assert_eq!(meta.f32_array("tiny.scales").unwrap().unwrap(), [0.5, -2.0]);
        assert_eq!(meta.get("tiny.small"), Some(&GgufValue::U16(7)));
        assert_eq!(meta.u32("absent").unwrap(), None);
        let wrong = meta.u32("tiny.negative").unwrap_err().to_string();
        assert!(wrong.contains("tiny.gguf") && wrong.contains("'tiny.negative'") && wrong.contains("-1"), "{wrong}");
        let wrong = meta.str("tiny.block_count").unwrap_err().to_string();
        assert!(wrong.contains("is 3, not a string"), "{wrong}");
        let missing = meta.require::<u32>("absent").unwrap_err().to_string();
        assert!(missing.contains("'absent': is missing"), "{missing}");
    }
}

#[test]
fn split_sets_open_by_any_part() {
    let part = |number: u16| GgufWriter::default().u16("split.no", number).u16("split.count", 3);
    let first = part(0).str("general.architecture", "tiny").i32("split.tensors.count", 2).finish();
    let second = part(1).tensor(&matrix("a", [2, 32], Format::Q8_0)).finish();
    let third = part(2).tensor(&matrix("b", [2, 32], Format::F16)).finish();
    let names = [1, 2, 3].map(|n| format!("tiny-{n:05}-of-00003.gguf"));
    let folder = TempFolder::with(&[(&names[0], &first), (&names[1], &second), (&names[2], &third)]);
    let paths = names.iter().map(|name| folder.path().join(name)).chain([folder.path().to_path_buf()]);
    for path in paths {
        let checkpoint = Checkpoint::open(&path).expect("a good set");
        same(&checkpoint, &matrix("a", [2, 32], Format::Q8_0));
        same(&checkpoint, &matrix("b", [2, 32], Format::F16));
        assert_eq!(checkpoint.gguf().unwrap().str("general.architecture").unwrap(), Some("tiny"));
        assert!(checkpoint.info("b").unwrap().file.ends_with("-00003-of-00003.gguf"));
    }
}

#[test]
fn safetensors_with_fp8_scales() {
    let checkpoint = open_safetensors(safetensors().finish()).expect("a good file");
    assert_eq!(checkpoint.source(), Source::HuggingFace);
    assert!(checkpoint.gguf().is_none());
    same(&checkpoint, &matrix("norm.weight", [1, 3], Format::F32));
    same(&checkpoint, &matrix("up.weight", [3, 5], Format::Bf16));
    let fp8 = HostTensor::fp8_from_f32("down.weight", [5, 6], &support::values(30), 4);
    same(&checkpoint, &fp8);
    let scales = checkpoint.tensor("down.weight").unwrap().unwrap().scales.expect("FP8 has scales");
    assert_eq!((scales.rows_per_block, scales.cols_per_block), (4, 4), "from config.json");
    assert_eq!(checkpoint.text("config.json").unwrap().unwrap().as_slice(), CONFIG.as_bytes());
    assert!(checkpoint.text("tokenizer.json").unwrap().is_none());
    assert!(checkpoint.text("../config.json").unwrap().is_none());
}

#[test]
fn shards_open_through_their_index() {
    let a = SafetensorsWriter::new().tensor(&matrix("a", [2, 8], Format::F32)).finish();
    // The index leaves out `extra`, and takes `a` from the first shard only.
    let b = SafetensorsWriter::new()
        .tensor(&matrix("b", [3, 4], Format::F16))
        .tensor(&matrix("extra", [1, 1], Format::F16))
        .tensor(&matrix("a", [1, 1], Format::F16))
        .finish();
    let index = br#"{"metadata":{"total_size":1},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#;
    let files = [
        ("config.json", b"{}".as_slice()),
        ("one.safetensors", &a),
        ("two.safetensors", &b),
        ("model.safetensors.index.json", index),
    ];
    let folder = TempFolder::with(&files);
    let checkpoint = Checkpoint::open(folder.path()).expect("a good folder");
    assert_eq!(checkpoint.tensors().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    same(&checkpoint, &matrix("a", [2, 8], Format::F32));
    same(&checkpoint, &matrix("b", [3, 4], Format::F16));
}

#[test]
fn types_without_a_format_are_listed_only() {
    let writer = safetensors().raw("positions", "I64", &[2], &[0; 16]).raw("odd", "F4_NEW", &[3], &[0; 2]);
    let checkpoint = open_safetensors(writer.finish()).expect("a good file");
    let info = checkpoint.info("positions").expect("listed");
    assert_eq!((info.format, &*info.type_name, info.bytes), (None, "I64", 16));
    let error = checkpoint.tensor("odd").unwrap_err().to_string();
    assert!(error.contains("'odd'") && error.contains("F4_NEW"), "{error}");
    let checkpoint = open_gguf(gguf().raw_tensor("old", &[256], 16, &[0; 66], None).finish()).expect("a good file");
    let error = checkpoint.tensor("old").unwrap_err().to_string();
    assert!(error.contains("'old'") && error.contains("IQ2_XXS"), "{error}");
}

#[test]
fn embedded_and_mapped_files_are_alike() {
    let file = gguf().finish();
    let folder = TempFolder::with(&[("tiny.gguf", &file)]);
    let mapped = Checkpoint::open(&folder.path().join("tiny.gguf")).expect("a good file");
    let embedded = Checkpoint::embedded(&[("tiny.gguf", file.leak())]).expect("a good file");
    for info in mapped.tensors().filter(|t| t.shape.len() < 3) {
        same(&embedded, &mapped.tensor(&info.name).unwrap().unwrap());
    }
    assert_eq!(mapped.fingerprint(), embedded.fingerprint());
}

#[test]
fn fingerprints_tell_checkpoints_apart() {
    let base = open_safetensors(safetensors().finish()).unwrap().fingerprint();
    assert_eq!(base, open_safetensors(safetensors().finish()).unwrap().fingerprint());
    let mut tuned = safetensors().finish();
    *tuned.last_mut().unwrap() ^= 1;
    assert_ne!(base, open_safetensors(tuned).unwrap().fingerprint(), "a weight");
    let more = safetensors().tensor(&matrix("more", [1, 1], Format::F32));
    assert_ne!(base, open_safetensors(more.finish()).unwrap().fingerprint(), "a tensor");
    let gguf_base = open_gguf(gguf().finish()).unwrap().fingerprint();
    assert_ne!(gguf_base, open_gguf(gguf().u32("tiny.other", 1).finish()).unwrap().fingerprint(), "a key");
}
