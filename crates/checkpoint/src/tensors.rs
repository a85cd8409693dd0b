//! What a checkpoint knows of each tensor.

use std::borrow::Cow;
use std::sync::Arc;

use lingqu_tensor::{Bytes, Format};

/// A tensor as listed by its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    /// Outermost dimension first, as in PyTorch (GGUF lists them the other way round); empty for a scalar.
    pub shape: Vec<usize>,
    /// `None`: listed, but in a type that cannot be decoded; asking for it is an error.
    pub format: Option<Format>,
    /// The type as the file calls it.
    pub type_name: Cow<'static, str>,
    /// Bytes of the data, without scales that are stored as a tensor of their own.
    pub bytes: usize,
    /// The file that holds it, as errors call it.
    pub file: Arc<str>,
}

impl TensorInfo {
    /// Number of values.
    pub fn values(&self) -> usize {
        self.shape.iter().product() // checked when the file was read
    }
}

/// A tensor and its bytes.
#[derive(Clone, Debug)]
pub struct Entry {
    pub info: TensorInfo,
    pub data: Bytes,
}

/// A stored type: its format, if it has one, and the size of its blocks of values along a row.
#[derive(Clone, Debug)]
pub struct Stored {
    pub format: Option<Format>,
    pub name: Cow<'static, str>,
    pub block_values: usize,
    pub block_bytes: usize,
}

impl From<Format> for Stored {
    fn from(format: Format) -> Self {
        Self {
            format: Some(format),
            name: format.name().into(),
            block_values: format.block_values(),
            block_bytes: format.block_bytes(),
        }
    }
}

impl Stored {
    /// Bytes of a tensor of this shape (outermost dimension first), or what is wrong with the shape.
    pub fn bytes(&self, shape: &[usize]) -> Result<usize, String> {
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(self.block_values) {
            return Err(format!("rows of {row} values are not whole blocks of {}", self.name));
        }
        let values = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        let bytes = values.and_then(|v| (v / self.block_values).checked_mul(self.block_bytes));
        bytes.ok_or_else(|| format!("the shape {shape:?} is too large to count"))
    }
}
