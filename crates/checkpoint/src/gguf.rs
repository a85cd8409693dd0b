//! GGUF, versions 2 and 3: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
//!
//! A header (magic, version, counts), key-value metadata, tensor descriptions, then tensor data at aligned offsets.
//! Every length is checked against the bytes that are there before anything is allocated for it.

mod ggml_type;
mod split;
mod strings;
mod value;

use std::collections::{BTreeMap, HashSet};

pub use split::{only_gguf, open_set};
pub use strings::GgufStrings;
pub use value::{FromGguf, GgufArray, GgufMetadata, GgufValue};

use crate::error::{CheckpointError, shown};
use crate::folder::SourceFile;
use crate::reader::Reader;
use crate::tensors::{Entry, Stored, TensorInfo};

const MAGIC: &[u8; 4] = b"GGUF";
/// From the format specification.
const KEY_BYTES_MAX: usize = 65_535;
/// The specification says 64; a little leeway for other writers.
const TENSOR_NAME_BYTES_MAX: usize = 256;
const DIMS_MAX: u32 = 4;
const ALIGNMENT_DEFAULT: u32 = 32;
/// Alignment is for mapping; more than the largest page in use makes no sense.
const ALIGNMENT_MAX: u32 = 1 << 30;
/// Least bytes of a key-value pair (key length, type, a one-byte value) and of a tensor description.
const KEY_VALUE_BYTES_MIN: usize = 13;
const DESCRIPTION_BYTES_MIN: usize = 24;

/// One parsed file.
pub struct GgufFile {
    pub metadata: GgufMetadata,
    /// In the order of their data.
    pub tensors: Vec<Entry>,
    /// Bytes before the tensor data.
    pub header_bytes: usize,
}

/// Reads the header of `file` and checks that every tensor lies inside it, aligned, and apart from the others.
pub fn parse(file: &SourceFile) -> Result<GgufFile, CheckpointError> {
    let label = &*file.label;
    let mut reader = Reader::new(label, file.bytes.as_slice());
    if reader.take(4, "the magic 'GGUF'")? != MAGIC {
        return Err(CheckpointError::file(label, "is not a GGUF file (it does not start with 'GGUF')"));
    }
    let version = reader.u32("the version")?;
    match version {
        2 | 3 => {}
        1 => return Err(CheckpointError::file(label, "is GGUF version 1; only 2 and 3 are read: convert it again")),
        v if v & 0xffff == 0 && v != 0 => {
            return Err(CheckpointError::file(label, "is a big-endian GGUF file; only little-endian ones are read"));
        }
        v => return Err(CheckpointError::file(label, format!("is GGUF version {v}; only 2 and 3 are read"))),
    }
    let tensors = reader.count(DESCRIPTION_BYTES_MIN, "the number of tensors")?;
    let pairs = reader.count(KEY_VALUE_BYTES_MIN, "the number of metadata keys")?;
    let metadata = read_metadata(&mut reader, label, pairs)?;
    let alignment = alignment(&metadata)?;
    let descriptions = (0..tensors).map(|_| Description::read(&mut reader, label)).collect::<Result<Vec<_>, _>>()?;
    let header_bytes = reader.at();
    let tensors = place(file, descriptions, header_bytes, alignment)?;
    Ok(GgufFile { metadata, tensors, header_bytes })
}

fn read_metadata(reader: &mut Reader, label: &str, pairs: usize) -> Result<GgufMetadata, CheckpointError> {
    let mut entries = BTreeMap::new();
    for _ in 0..pairs {
        let key = reader.string(KEY_BYTES_MAX, "a metadata key")?;
        let kind = reader.u32("the type of a metadata value")?;
        let value = value::read_value(reader, kind, key)?;
        if entries.insert(key.to_string(), value).is_some() {
            return Err(CheckpointError::key(label, key, "is there twice"));
        }
    }
    Ok(GgufMetadata { file: label.to_string(), entries })
}

fn alignment(metadata: &GgufMetadata) -> Result<usize, CheckpointError> {
    const KEY: &str = "general.alignment";
    match metadata.u32(KEY)? {
        None => Ok(ALIGNMENT_DEFAULT as usize),
        Some(a) if a.is_power_of_two() && a <= ALIGNMENT_MAX => Ok(a as usize),
        Some(a) => Err(metadata.error(KEY, format!("is {a}, not a power of two up to {ALIGNMENT_MAX}"))),
    }
}

/// A tensor as the header describes it.
struct Description {
    name: String,
    /// Outermost first.
    shape: Vec<usize>,
    stored: Stored,
    bytes: usize,
    /// From the start of the data.
    offset: u64,
}

impl Description {
    fn read(reader: &mut Reader, label: &str) -> Result<Self, CheckpointError> {
        let name = reader.string(TENSOR_NAME_BYTES_MAX, "a tensor name")?.to_string();
        let what = format!("the description of tensor '{}'", shown(&name));
        let fail = |problem: String| Err(CheckpointError::tensor(label, &name, problem));
        let rank = reader.u32(&what)?;
        if rank > DIMS_MAX {
            return fail(format!("has {rank} dimensions; at most {DIMS_MAX} are allowed"));
        }
        let mut shape = Vec::with_capacity(rank as usize);
        for _ in 0..rank {
            match usize::try_from(reader.u64(&what)?) {
                Ok(dim) if dim > 0 => shape.insert(0, dim),
                Ok(_) => return fail("has a dimension of 0".into()),
                Err(_) => return fail("has a dimension too large to count".into()),
            }
        }
        let type_id = reader.u32(&what)?;
        let offset = reader.u64(&what)?;
        let Some(stored) = ggml_type::ggml_type(type_id) else {
            return fail(format!("has the unknown type {type_id}"));
        };
        match stored.bytes(&shape) {
            Ok(bytes) => Ok(Self { name, shape, stored, bytes, offset }),
            Err(problem) => fail(problem),
        }
    }
}

/// Gives each tensor its bytes of the file.
fn place(
    file: &SourceFile,
    mut descriptions: Vec<Description>,
    header_bytes: usize,
    alignment: usize,
) -> Result<Vec<Entry>, CheckpointError> {
    let label = &*file.label;
    let mut names = HashSet::new();
    if let Some(twice) = descriptions.iter().find(|d| !names.insert(d.name.as_str())) {
        return Err(CheckpointError::tensor(label, &twice.name, "is there twice"));
    }
    let data_start = header_bytes.next_multiple_of(alignment);
    descriptions.sort_by_key(|d| d.offset);
    let mut end = 0;
    let mut last = String::new();
    let mut tensors = Vec::with_capacity(descriptions.len());
    for d in descriptions {
        let fail = |problem: String| Err(CheckpointError::tensor(label, &d.name, problem));
        if !d.offset.is_multiple_of(alignment as u64) {
            return fail(format!("starts at {}, which is not a multiple of the alignment {alignment}", d.offset));
        }
        if d.offset < end {
            return fail(format!("starts at {}, inside '{}'", d.offset, shown(&last)));
        }
        let start = usize::try_from(d.offset).ok().and_then(|offset| data_start.checked_add(offset));
        let range = start.and_then(|start| Some(start..start.checked_add(d.bytes)?));
        let Some(data) = range.and_then(|range| file.bytes.slice(range)) else {
            let size = file.bytes.len();
            return fail(format!("its {} bytes at {} of the data lie beyond the file's {size}", d.bytes, d.offset));
        };
        end = d.offset + d.bytes as u64;
        last.clone_from(&d.name);
        let info = TensorInfo {
            name: d.name,
            shape: d.shape,
            format: d.stored.format,
            type_name: d.stored.name,
            bytes: d.bytes,
            file: file.label.clone(),
        };
        tensors.push(Entry { info, data });
    }
    Ok(tensors)
}
