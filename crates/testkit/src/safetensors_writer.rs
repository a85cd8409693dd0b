//! Writes safetensors files in memory. Headers that no reader should accept are written by `with_header`.

use lingqu_tensor::{Format, HostTensor};

/// A file in the making: tensors in the order of the calls.
#[derive(Clone, Debug, Default)]
pub struct SafetensorsWriter {
    entries: Vec<String>,
    data: Vec<u8>,
}

impl SafetensorsWriter {
    pub fn new() -> Self {
        Self::default()
    }

    /// A matrix, or with one row a vector, under its own name; the scales of an FP8 matrix follow it as
    /// `NAME_scale_inv`.
    pub fn tensor(mut self, tensor: &HostTensor) -> Self {
        let dtype = match tensor.format {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::Bf16 => "BF16",
            Format::Fp8E4M3 => "F8_E4M3",
            other => panic!("safetensors has no {other}"),
        };
        let shape = if tensor.rows == 1 { vec![tensor.cols] } else { vec![tensor.rows, tensor.cols] };
        self = self.raw(&tensor.name, dtype, &shape, tensor.data.as_slice());
        let Some(scales) = &tensor.scales else { return self };
        let shape = [tensor.rows.div_ceil(scales.rows_per_block), tensor.cols.div_ceil(scales.cols_per_block)];
        self.raw(&format!("{}_scale_inv", tensor.name), "F32", &shape, scales.data.as_slice())
    }

    /// A tensor with everything as given. Names must need no escaping in JSON.
    pub fn raw(mut self, name: &str, dtype: &str, shape: &[usize], data: &[u8]) -> Self {
        let from = self.data.len();
        self.data.extend(data);
        let to = self.data.len();
        self.entries.push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{from},{to}]}}"#));
        self
    }

    pub fn finish(&self) -> Vec<u8> {
        with_header(&format!("{{{}}}", self.entries.join(",")), &self.data)
    }
}

/// A file with this header (padded with spaces to 8 bytes, as the reference writer does) and this data.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut padded = header.as_bytes().to_vec();
    padded.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (padded.len() as u64).to_le_bytes().to_vec();
    file.extend(padded);
    file.extend(data);
    file
}
