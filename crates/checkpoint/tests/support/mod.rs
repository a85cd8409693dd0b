//! Small valid files that the tests read back or damage.
#![allow(dead_code)] // each test file uses a part

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use lingqu_checkpoint::{Checkpoint, CheckpointError};
use lingqu_tensor::{Format, HostTensor};
use lingqu_testkit::gguf_writer::GgufWriter;
use lingqu_testkit::safetensors_writer::SafetensorsWriter;

pub const CONFIG: &str = r#"{"model_type":"tiny","quantization_config":{"weight_block_size":[4,4]}}"#;

/// Values that differ from place to place and fit every format well.
pub fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 16.0).collect()
}

pub fn matrix(name: &str, shape: [usize; 2], format: Format) -> HostTensor {
    HostTensor::encode(name, shape, format, &values(shape[0] * shape[1])).expect("whole blocks")
}

/// Keys of every kind, a vector, matrices, a stack of two.
pub fn gguf() -> GgufWriter {
    GgufWriter::new("tiny")
        .u32("tiny.block_count", 3)
        .u16("tiny.small", 7)
        .i32("tiny.negative", -1)
        .f32("tiny.rope.freq_base", 10000.0)
        .bool("tiny.flag", true)
        .str("general.name", "小模型")
        .str_array("tokenizer.ggml.tokens", &["a", "", "灵渠"])
        .i32_array("tokenizer.ggml.token_type", &[1, 3, 1])
        .f32_array("tiny.scales", &[0.5, -2.0])
        .tensor(&matrix("norm.weight", [1, 3], Format::F32))
        .tensor(&matrix("down.weight", [5, 32], Format::Q8_0))
        .stacked("experts.weight", &[matrix("0", [2, 32], Format::Q4_0), matrix("1", [2, 32], Format::Q4_0)])
        .tensor(&matrix("up.weight", [2, 256], Format::Q4K))
}

/// A vector, a matrix and an FP8 matrix of ragged blocks.
pub fn safetensors() -> SafetensorsWriter {
    SafetensorsWriter::new()
        .tensor(&matrix("norm.weight", [1, 3], Format::F32))
        .tensor(&matrix("up.weight", [3, 5], Format::Bf16))
        .tensor(&HostTensor::fp8_from_f32("down.weight", [5, 6], &values(30), 4))
}

pub fn open_gguf(file: Vec<u8>) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::in_memory(vec![("tiny.gguf".into(), file.into())])
}

pub fn open_safetensors(file: Vec<u8>) -> Result<Checkpoint, CheckpointError> {
    let config = CONFIG.as_bytes().to_vec();
    Checkpoint::in_memory(vec![("config.json".into(), config.into()), ("model.safetensors".into(), file.into())])
}

/// A folder that goes away at the end of its test.
pub struct TempFolder(PathBuf);

impl TempFolder {
    pub fn with(files: &[(&str, &[u8])]) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("lingqu-checkpoint-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a new folder");
        let folder = Self(path);
        files.iter().for_each(|(name, bytes)| std::fs::write(folder.0.join(name), bytes).expect("a new file"));
        folder
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
