//! One safetensors file: u64 header length, JSON header, data.
//! Format: <https://github.com/huggingface/safetensors#format>. Read strictly: no name twice, no gaps, no overlap.

use std::fmt;

use lingqu_tensor::Format;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{CheckpointError, shown};
use crate::folder::SourceFile;
use crate::tensors::{Entry, TensorInfo};

/// From the format's own reader.
const HEADER_BYTES_MAX: u64 = 100_000_000;
const DIMS_MAX: usize = 8;

/// The tensors of `file`, in the order of their data.
pub fn parse(file: &SourceFile) -> Result<Vec<Entry>, CheckpointError> {
    let label = &*file.label;
    let fail = |problem: String| Err(CheckpointError::file(label, problem));
    let bytes = file.bytes.as_slice();
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return fail(format!("is no safetensors file: it holds {} bytes", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX {
        return fail(format!("its header claims {length} bytes; at most {HEADER_BYTES_MAX} are allowed"));
    }
    if length > rest.len() as u64 {
        return fail(format!("its header claims {length} bytes, but only {} follow", rest.len()));
    }
    let (header, data) = rest.split_at(length as usize);
    if header.first() != Some(&b'{') {
        return fail("its header is not a JSON object".into());
    }
    let Header(mut tensors) = match serde_json::from_slice(header) {
        Ok(header) => header,
        Err(error) => return fail(format!("its header is broken: {error}")),
    };
    tensors.sort_by_key(|(_, t)| t.data_offsets);
    let mut end = 0;
    let mut last = "";
    for (name, tensor) in &tensors {
        let [from, to] = tensor.data_offsets;
        if from != end || to < from {
            let after = if last.is_empty() { "the start".into() } else { format!("'{}'", shown(last)) };
            let problem = format!("lies at {from}..{to}, but {after} ends at {end}: no gaps or overlaps are allowed");
            return Err(CheckpointError::tensor(label, name, problem));
        }
        if to > data.len() as u64 {
            let problem = format!("lies at {from}..{to}, but the file holds {} bytes of data", data.len());
            return Err(CheckpointError::tensor(label, name, problem));
        }
        (end, last) = (to, name);
    }
    if end != data.len() as u64 {
        return fail(format!("its tensors end at {end}, but it holds {} bytes of data", data.len()));
    }
    let data_start = bytes.len() - data.len();
    tensors.into_iter().map(|(name, tensor)| entry(file, data_start, name, tensor)).collect()
}

fn entry(file: &SourceFile, data_start: usize, name: String, tensor: Tensor) -> Result<Entry, CheckpointError> {
    let [from, to] = tensor.data_offsets.map(|at| at as usize); // within the file, as checked above
    let bytes = to - from;
    let (stored, bits) = stored(&tensor.dtype);
    let values = tensor.shape.0.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    // A type that is not known is only listed, so its size is taken on trust.
    let expected = bits.map(|bits| values.and_then(|v| v.checked_mul(bits)));
    if values.is_none() || expected.is_some_and(|bits| bits != bytes.checked_mul(8)) {
        let problem =
            format!("{:?} in {} does not take the {bytes} bytes it has", tensor.shape.0, shown(&tensor.dtype));
        return Err(CheckpointError::tensor(&file.label, &name, problem));
    }
    let data = file.bytes.slice(data_start + from..data_start + to).expect("offsets were checked");
    let info = TensorInfo {
        name,
        shape: tensor.shape.0,
        format: stored,
        type_name: stored.map_or(shown(&tensor.dtype).into(), |format| format.name().into()),
        bytes,
        file: file.label.clone(),
    };
    Ok(Entry { info, data })
}

/// The format of a dtype and the bits of one value, as far as known.
fn stored(dtype: &str) -> (Option<Format>, Option<usize>) {
    match dtype {
        "F32" => (Some(Format::F32), Some(32)),
        "F16" => (Some(Format::F16), Some(16)),
        "BF16" => (Some(Format::Bf16), Some(16)),
        "F8_E4M3" => (Some(Format::Fp8E4M3), Some(8)),
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E8M0" => (None, Some(8)),
        "I16" | "U16" => (None, Some(16)),
        "I32" | "U32" => (None, Some(32)),
        "I64" | "U64" | "F64" | "C64" => (None, Some(64)),
        _ => (None, None),
    }
}

/// The JSON header: tensors by name, less `__metadata__`.
struct Header(Vec<(String, Tensor)>);

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Shape,
    data_offsets: [u64; 2],
}

struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;

        impl<'de> Visitor<'de> for Names {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut tensors: Vec<(String, Tensor)> = Vec::new();
                let mut names = std::collections::HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("tensor '{}' is there twice", shown(&name))));
                    }
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        let tensor = map
                            .next_value()
                            .map_err(|error| A::Error::custom(format!("tensor '{}': {error}", shown(&name))))?;
                        tensors.push((name, tensor));
                    }
                }
                Ok(Header(tensors))
            }
        }

        deserializer.deserialize_map(Names)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dims;

        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "at most {DIMS_MAX} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut dims: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(dim) = dims.next_element()? {
                    if shape.len() == DIMS_MAX {
                        return Err(A::Error::custom(format!("more than {DIMS_MAX} dimensions")));
                    }
                    shape.push(dim);
                }
                Ok(Shape(shape))
            }
        }

        deserializer.deserialize_seq(Dims)
    }
}
