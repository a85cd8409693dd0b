//! A checkpoint of either kind, behind one interface.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use lingqu_tensor::{BlockScales, Bytes, Format, HostTensor};

use crate::error::{CheckpointError, shown};
use crate::folder::{Folder, is_plain_name};
use crate::gguf::{self, GgufMetadata};
use crate::hugging_face::{self, TEXT_BYTES_MAX};
use crate::tensors::{Entry, TensorInfo};

/// Which kind of files a checkpoint is made of: it decides where config, tokenizer and tensor names come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `config.json`, `tokenizer.json`, safetensors.
    HuggingFace,
    /// Everything in one GGUF file or split set.
    Gguf,
}

/// An open checkpoint: its tensors by name, zero-copy from memory-mapped or embedded files, and its metadata.
///
/// Opening reads and checks headers only. The files must not change while the checkpoint, or a tensor of it, lives.
#[derive(Debug)]
pub struct Checkpoint {
    folder: Folder,
    label: String,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    HuggingFace { config: Bytes, fp8_block: [usize; 2] },
    Gguf { metadata: GgufMetadata, headers: Vec<Bytes> },
}

impl Checkpoint {
    /// Opens a folder with `config.json` and safetensors, a folder with one GGUF model, or a `.gguf` file (of a
    /// split set: any part). A folder that holds both kinds opens as safetensors.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let label = path.display().to_string();
        let metadata = std::fs::metadata(path).map_err(|source| CheckpointError::Io { file: label.clone(), source })?;
        if metadata.is_dir() {
            return Self::open_folder(Folder::Disk(path.into()), label);
        }
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| CheckpointError::file(&label, "has a name that is not UTF-8"))?;
        if name.ends_with(".safetensors") {
            return Err(CheckpointError::file(&label, "open the folder that holds it, with its config.json"));
        }
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => Folder::Disk(parent.into()),
            _ => Folder::Disk(".".into()),
        };
        Self::open_gguf(folder, name, label)
    }

    /// The same from files embedded in the binary: `(name, bytes)` of a Hugging Face folder or of one GGUF model.
    pub fn embedded(files: &[(&str, &'static [u8])]) -> Result<Self, CheckpointError> {
        Self::in_memory(files.iter().map(|&(name, bytes)| (name.into(), Bytes::new(Arc::new(bytes)))).collect())
    }

    /// The same from bytes in memory.
    pub fn in_memory(files: Vec<(String, Bytes)>) -> Result<Self, CheckpointError> {
        let folder = Folder::Memory(files);
        let label = folder.label();
        Self::open_folder(folder, label)
    }

    /// Opens a PEFT folder: `adapter_config.json`, which [`Checkpoint::text`] then reads, and
    /// `adapter_model.safetensors`.
    pub fn open_adapter(path: &Path) -> Result<Self, CheckpointError> {
        Self::adapter(Folder::Disk(path.into()), path.display().to_string())
    }

    /// The same from bytes in memory.
    pub fn adapter_in_memory(files: Vec<(String, Bytes)>) -> Result<Self, CheckpointError> {
        Self::adapter(Folder::Memory(files), "adapter in memory".into())
    }

    fn adapter(folder: Folder, label: String) -> Result<Self, CheckpointError> {
        let model = hugging_face::open_adapter(&folder)?;
        let kind = Kind::HuggingFace { config: model.config, fp8_block: model.fp8_block };
        Self::new(folder, label, model.tensors, kind)
    }

    fn open_folder(folder: Folder, label: String) -> Result<Self, CheckpointError> {
        let names = folder.names()?;
        if names.iter().any(|name| name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")) {
            let model = hugging_face::open(&folder, &names)?;
            let kind = Kind::HuggingFace { config: model.config, fp8_block: model.fp8_block };
            return Self::new(folder, label, model.tensors, kind);
        }
        match gguf::only_gguf(&folder, &names)? {
            Some(name) => Self::open_gguf(folder, &name, label),
            None => Err(CheckpointError::file(&label, "holds neither .safetensors nor .gguf files")),
        }
    }

    fn open_gguf(folder: Folder, name: &str, label: String) -> Result<Self, CheckpointError> {
        let set = gguf::open_set(&folder, name)?;
        Self::new(folder, label, set.tensors, Kind::Gguf { metadata: set.metadata, headers: set.headers })
    }

    fn new(folder: Folder, label: String, entries: Vec<Entry>, kind: Kind) -> Result<Self, CheckpointError> {
        let mut by_name = HashMap::with_capacity(entries.len());
        for (i, entry) in entries.iter().enumerate() {
            let info = &entry.info;
            if let Some(other) = by_name.insert(info.name.clone(), i) {
                let problem = format!("is in {} too", entries[other].info.file);
                return Err(CheckpointError::tensor(&info.file, &info.name, problem));
            }
        }
        Ok(Self { folder, label, entries, by_name, kind })
    }

    pub fn source(&self) -> Source {
        match self.kind {
            Kind::HuggingFace { .. } => Source::HuggingFace,
            Kind::Gguf { .. } => Source::Gguf,
        }
    }

    /// What was opened, as errors call it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A text file of a Hugging Face folder (`config.json`, `tokenizer.json`, `generation_config.json`, …), at most
    /// 128 MiB. `None` where there is no such file, and always for GGUF.
    pub fn text(&self, name: &str) -> Result<Option<Bytes>, CheckpointError> {
        match &self.kind {
            Kind::HuggingFace { .. } if is_plain_name(name) => self.folder.read(name, TEXT_BYTES_MAX),
            _ => Ok(None),
        }
    }

    /// The metadata of a GGUF checkpoint.
    pub fn gguf(&self) -> Option<&GgufMetadata> {
        match &self.kind {
            Kind::Gguf { metadata, .. } => Some(metadata),
            Kind::HuggingFace { .. } => None,
        }
    }

    /// Every tensor, file by file in the order of the data.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.entries.iter().map(|entry| &entry.info)
    }

    /// What the files say of the tensor `name`.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.entry(name).map(|entry| &entry.info)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.info.bytes as u64).sum()
    }

    /// The tensor `name`: a matrix `[rows, cols]`, or a vector or scalar as one row. `None` where there is none.
    /// An FP8 tensor comes with the scales of `NAME_scale_inv`. Zero-copy; nothing of the data is read.
    pub fn tensor(&self, name: &str) -> Result<Option<HostTensor>, CheckpointError> {
        let Some(entry) = self.entry(name) else { return Ok(None) };
        let info = &entry.info;
        let shape = match info.shape[..] {
            [] => [1, 1],
            [cols] => [1, cols],
            [rows, cols] => [rows, cols],
            _ => return fail(info, format!("has the shape {:?}, not that of a vector or matrix", info.shape)),
        };
        let tensor = host_tensor(info, name.to_string(), shape, entry.data.clone())?;
        if tensor.format == Format::Fp8E4M3 { self.with_scales(info, tensor).map(Some) } else { Ok(Some(tensor)) }
    }

    /// The matrix `index` `[rows, cols]` of the 3-D tensor `name` `[n, rows, cols]` (GGUF's merged experts and split
    /// `attn_k_b`, `attn_v_b`), called `name[index]`. `None` where there is no such tensor. Zero-copy.
    pub fn tensor_slice(&self, name: &str, index: usize) -> Result<Option<HostTensor>, CheckpointError> {
        let Some(entry) = self.entry(name) else { return Ok(None) };
        let info = &entry.info;
        let [count, rows, cols] = info.shape[..] else {
            return fail(info, format!("has the shape {:?}, not [n, rows, cols]", info.shape));
        };
        if index >= count {
            return fail(info, format!("has {count} matrices, so none with the index {index}"));
        }
        if info.format == Some(Format::Fp8E4M3) {
            return fail(info, "FP8 is read for matrices only".into());
        }
        let bytes = info.bytes / count;
        let data = entry.data.slice(index * bytes..(index + 1) * bytes).expect("a part of the tensor");
        host_tensor(info, format!("{name}[{index}]"), [rows, cols], data).map(Some)
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|&i| &self.entries[i])
    }

    /// DeepSeek-V3's FP8 release keeps the scales of `w` in `w_scale_inv`: f32, one for each block of the matrix.
    fn with_scales(&self, info: &TensorInfo, tensor: HostTensor) -> Result<HostTensor, CheckpointError> {
        let name = format!("{}_scale_inv", info.name);
        let Some(scales) = self.entry(&name) else {
            return fail(info, format!("is FP8, but its scales '{}' are missing", shown(&name)));
        };
        let [rows_per_block, cols_per_block] = match self.kind {
            Kind::HuggingFace { fp8_block, .. } => fp8_block,
            Kind::Gguf { .. } => return fail(info, "is FP8, which GGUF files do not hold".into()),
        };
        let expected = [tensor.rows.div_ceil(rows_per_block), tensor.cols.div_ceil(cols_per_block)];
        if scales.info.format != Some(Format::F32) || scales.info.shape != expected {
            let held = format!("{} {:?}", scales.info.type_name, scales.info.shape);
            return fail(&scales.info, format!("is {held}, but '{}' needs F32 {expected:?}", shown(&info.name)));
        }
        let scales = BlockScales { data: scales.data.clone(), rows_per_block, cols_per_block };
        tensor.with_scales(scales).map_err(|error| CheckpointError::of_tensor(&info.file, error))
    }

    /// The bytes that [`Checkpoint::fingerprint`] covers first: config, or GGUF headers.
    pub(crate) fn described_by(&self) -> Vec<&[u8]> {
        match &self.kind {
            Kind::HuggingFace { config, .. } => vec![config.as_slice()],
            Kind::Gguf { headers, .. } => headers.iter().map(Bytes::as_slice).collect(),
        }
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

fn host_tensor(info: &TensorInfo, name: String, shape: [usize; 2], data: Bytes) -> Result<HostTensor, CheckpointError> {
    let Some(format) = info.format else {
        return fail(info, format!("is stored as {}, which is not supported", info.type_name));
    };
    if shape.contains(&0) {
        return fail(info, format!("has the shape {:?}, which holds nothing", info.shape));
    }
    HostTensor::new(name, shape, format, data).map_err(|error| CheckpointError::of_tensor(&info.file, error))
}

fn fail<T>(info: &TensorInfo, problem: String) -> Result<T, CheckpointError> {
    Err(CheckpointError::tensor(&info.file, &info.name, problem))
}
