//! Writes GGUF files: tiny ones in memory for tests, huge made-up ones as a stream.
//!
//! It writes what it is told, also what no reader should accept: damaged files are made with `raw_key`, `raw_tensor`
//! and by editing the bytes.

use std::io::{self, Write};

use lingqu_tensor::{Bytes, Format, HostTensor};

/// Value types of the format specification.
pub mod kind {
    pub const U8: u32 = 0;
    pub const U16: u32 = 2;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
}

/// The id of a format in GGUF (`enum ggml_type`). FP8 has none.
pub fn ggml_type(format: Format) -> Option<u32> {
    Some(match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q5_0 => 6,
        Format::Q5_1 => 7,
        Format::Q8_0 => 8,
        Format::Q2K => 10,
        Format::Q3K => 11,
        Format::Q4K => 12,
        Format::Q5K => 13,
        Format::Q6K => 14,
        Format::Iq4Nl => 20,
        Format::Iq4Xs => 23,
        Format::Bf16 => 30,
        Format::Fp8E4M3 => return None,
    })
}

/// A file in the making: keys and tensors, in the order of the calls.
#[derive(Clone, Debug)]
pub struct GgufWriter {
    version: u32,
    alignment: usize,
    keys: u64,
    key_bytes: Vec<u8>,
    tensors: Vec<Tensor>,
}

#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    /// Outermost first.
    shape: Vec<usize>,
    type_id: u32,
    bytes: usize,
    data: Option<Bytes>,
    /// In place of the one that follows from the tensors before.
    offset: Option<u64>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self { version: 3, alignment: 32, keys: 0, key_bytes: Vec::new(), tensors: Vec::new() }
    }
}

impl GgufWriter {
    /// A file that says which architecture it is.
    pub fn new(architecture: &str) -> Self {
        Self::default().str("general.architecture", architecture)
    }

    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Alignment of tensor data, also written as `general.alignment`.
    pub fn alignment(mut self, alignment: u32) -> Self {
        self.alignment = alignment as usize;
        self.u32("general.alignment", alignment)
    }

    /// A key with a value type and its bytes, as given.
    pub fn raw_key(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        push_string(&mut self.key_bytes, key.as_bytes());
        self.key_bytes.extend(kind.to_le_bytes());
        self.key_bytes.extend(value);
        self.keys += 1;
        self
    }

    fn array<'a, B: AsRef<[u8]>>(self, key: &str, kind: u32, items: impl ExactSizeIterator<Item = B> + 'a) -> Self {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend((items.len() as u64).to_le_bytes());
        items.for_each(|item| value.extend(item.as_ref()));
        self.raw_key(key, kind::ARRAY, &value)
    }

    pub fn u16(self, key: &str, value: u16) -> Self {
        self.raw_key(key, kind::U16, &value.to_le_bytes())
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw_key(key, kind::U32, &value.to_le_bytes())
    }

    pub fn i32(self, key: &str, value: i32) -> Self {
        self.raw_key(key, kind::I32, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw_key(key, kind::F32, &value.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> Self {
        self.raw_key(key, kind::BOOL, &[value.into()])
    }

    pub fn str(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        push_string(&mut bytes, value.as_bytes());
        self.raw_key(key, kind::STRING, &bytes)
    }

    pub fn i32_array(self, key: &str, values: &[i32]) -> Self {
        self.array(key, kind::I32, values.iter().map(|v| v.to_le_bytes()))
    }

    pub fn f32_array(self, key: &str, values: &[f32]) -> Self {
        self.array(key, kind::F32, values.iter().map(|v| v.to_le_bytes()))
    }

    pub fn str_array<S: AsRef<str>>(self, key: &str, values: &[S]) -> Self {
        self.array(
            key,
            kind::STRING,
            values.iter().map(|v| {
                let mut bytes = Vec::new();
                push_string(&mut bytes, v.as_ref().as_bytes());
                bytes
            }),
        )
    }

    /// A matrix, or with one row a vector, under its own name.
    pub fn tensor(self, tensor: &HostTensor) -> Self {
        let shape = if tensor.rows == 1 { vec![tensor.cols] } else { vec![tensor.rows, tensor.cols] };
        let data = tensor.data.clone();
        self.push(&tensor.name, shape, tensor.format, Some(data))
    }

    /// Matrices `[rows, cols]` of one shape and format as one tensor `[n, rows, cols]` (merged experts).
    pub fn stacked(self, name: &str, matrices: &[HostTensor]) -> Self {
        let first = &matrices[0];
        let data: Vec<u8> = matrices.iter().flat_map(|m| m.data.as_slice()).copied().collect();
        self.push(name, vec![matrices.len(), first.rows, first.cols], first.format, Some(data.into()))
    }

    /// A tensor (outermost dimension first) whose bytes come when the file is streamed.
    pub fn declare(self, name: &str, shape: &[usize], format: Format) -> Self {
        self.push(name, shape.to_vec(), format, None)
    }

    /// A tensor with everything as given; `offset` in place of the right one.
    pub fn raw_tensor(mut self, name: &str, shape: &[usize], type_id: u32, data: &[u8], offset: Option<u64>) -> Self {
        let (bytes, data) = (data.len(), Some(data.to_vec().into()));
        self.tensors.push(Tensor { name: name.into(), shape: shape.to_vec(), type_id, bytes, data, offset });
        self
    }

    fn push(mut self, name: &str, shape: Vec<usize>, format: Format, data: Option<Bytes>) -> Self {
        let cols = *shape.last().expect("a dimension");
        let rows: usize = shape.iter().rev().skip(1).product();
        let bytes = format.row_bytes(cols).expect("rows are whole blocks") * rows;
        let type_id = ggml_type(format).expect("GGUF has the format");
        self.tensors.push(Tensor { name: name.into(), shape, type_id, bytes, data, offset: None });
        self
    }

    /// Everything before the tensor data, padded to the alignment.
    pub fn header(&self) -> Vec<u8> {
        let mut header = b"GGUF".to_vec();
        header.extend(self.version.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend(self.keys.to_le_bytes());
        header.extend(&self.key_bytes);
        let mut offset = 0;
        for tensor in &self.tensors {
            push_string(&mut header, tensor.name.as_bytes());
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            // GGUF lists the innermost dimension first.
            tensor.shape.iter().rev().for_each(|&dim| header.extend((dim as u64).to_le_bytes()));
            header.extend(tensor.type_id.to_le_bytes());
            header.extend(tensor.offset.unwrap_or(offset as u64).to_le_bytes());
            offset += tensor.bytes.next_multiple_of(self.alignment);
        }
        header.resize(header.len().next_multiple_of(self.alignment), 0);
        header
    }

    /// Writes the file; `fill` gets the name and byte count of each declared tensor and must write just as many.
    pub fn write_to<W: Write>(
        &self,
        out: &mut W,
        mut fill: impl FnMut(&str, usize, &mut W) -> io::Result<()>,
    ) -> io::Result<()> {
        out.write_all(&self.header())?;
        for tensor in &self.tensors {
            match &tensor.data {
                Some(data) => out.write_all(data.as_slice())?,
                None => fill(&tensor.name, tensor.bytes, out)?,
            }
            let padding = tensor.bytes.next_multiple_of(self.alignment) - tensor.bytes;
            out.write_all(&vec![0; padding])?;
        }
        Ok(())
    }

    /// The whole file in memory; every tensor must have its data.
    pub fn finish(&self) -> Vec<u8> {
        let mut file = Vec::new();
        self.write_to(&mut file, |name, _, _| panic!("tensor '{name}' has no data")).expect("memory takes it all");
        file
    }
}

fn push_string(bytes: &mut Vec<u8>, text: &[u8]) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text);
}
