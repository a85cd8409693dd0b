//! GGUF metadata values and their typed look-up.

use std::collections::BTreeMap;
use std::fmt;

use super::strings::GgufStrings;
use crate::error::{CheckpointError, shown};
use crate::reader::Reader;

/// Arrays of arrays at most; real files hold none.
const DEPTH_MAX: usize = 4;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(GgufArray),
}

/// An array of values of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufArray {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(GgufStrings),
    Array(Vec<GgufArray>),
}

/// All metadata of a GGUF file (of a split set: of its first part).
#[derive(Clone, Debug)]
pub struct GgufMetadata {
    pub(super) file: String,
    pub(super) entries: BTreeMap<String, GgufValue>,
}

/// Reads a value of type `kind` (`GGUFValueType` of the format specification).
pub(super) fn read_value(reader: &mut Reader, kind: u32, key: &str) -> Result<GgufValue, CheckpointError> {
    let what = format!("the value of '{}'", shown(key));
    let what = what.as_str();
    Ok(match kind {
        0 => GgufValue::U8(u8::from_le_bytes(reader.array(what)?)),
        1 => GgufValue::I8(i8::from_le_bytes(reader.array(what)?)),
        2 => GgufValue::U16(u16::from_le_bytes(reader.array(what)?)),
        3 => GgufValue::I16(i16::from_le_bytes(reader.array(what)?)),
        4 => GgufValue::U32(u32::from_le_bytes(reader.array(what)?)),
        5 => GgufValue::I32(i32::from_le_bytes(reader.array(what)?)),
        6 => GgufValue::F32(f32::from_le_bytes(reader.array(what)?)),
        7 => GgufValue::Bool(read_bool(reader, what)?),
        8 => GgufValue::String(reader.string(usize::MAX, what)?.to_string()),
        9 => GgufValue::Array(read_array(reader, what, DEPTH_MAX)?),
        10 => GgufValue::U64(u64::from_le_bytes(reader.array(what)?)),
        11 => GgufValue::I64(i64::from_le_bytes(reader.array(what)?)),
        12 => GgufValue::F64(f64::from_le_bytes(reader.array(what)?)),
        _ => return reader.fail(format!("{what} has the unknown type {kind}")),
    })
}

fn read_bool(reader: &mut Reader, what: &str) -> Result<bool, CheckpointError> {
    match reader.array(what)? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => reader.fail(format!("{what} is a bool of {other}")),
    }
}

fn read_array(reader: &mut Reader, what: &str, depth: usize) -> Result<GgufArray, CheckpointError> {
    let kind = reader.u32(what)?;
    if depth == 0 {
        return reader.fail(format!("{what} nests arrays deeper than {DEPTH_MAX}"));
    }
    /// Numbers of one size: their bytes are checked to be there before the vector is made.
    macro_rules! numbers {
        ($variant:ident, $number:ty) => {{
            const BYTES: usize = size_of::<$number>();
            let count = reader.count(BYTES, what)?;
            let bytes = reader.take(count * BYTES, what)?;
            GgufArray::$variant(bytes.as_chunks().0.iter().map(|b| <$number>::from_le_bytes(*b)).collect())
        }};
    }
    Ok(match kind {
        0 => numbers!(U8, u8),
        1 => numbers!(I8, i8),
        2 => numbers!(U16, u16),
        3 => numbers!(I16, i16),
        4 => numbers!(U32, u32),
        5 => numbers!(I32, i32),
        6 => numbers!(F32, f32),
        7 => {
            let count = reader.count(1, what)?;
            GgufArray::Bool((0..count).map(|_| read_bool(reader, what)).collect::<Result<_, _>>()?)
        }
        8 => {
            let count = reader.count(8, what)?;
            let mut strings = GgufStrings::default();
            (0..count).try_for_each(|_| reader.string(usize::MAX, what).map(|string| strings.push(string)))?;
            GgufArray::String(strings)
        }
        9 => {
            let count = reader.count(12, what)?;
            GgufArray::Array((0..count).map(|_| read_array(reader, what, depth - 1)).collect::<Result<_, _>>()?)
        }
        10 => numbers!(U64, u64),
        11 => numbers!(I64, i64),
        12 => numbers!(F64, f64),
        _ => return reader.fail(format!("{what} is an array of the unknown type {kind}")),
    })
}

impl GgufMetadata {
    /// The file, as errors call it.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The value as stored.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.entries.get(key)
    }

    /// Every key and value, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &GgufValue)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value as `T`; `None` where the key is absent, an error where it holds something else.
    pub fn typed<'a, T: FromGguf<'a>>(&'a self, key: &str) -> Result<Option<T>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match T::from_gguf(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.error(key, format!("is {value}, not {}", T::NAME))),
        }
    }

    /// The value as `T`; an error where the key is absent or holds something else.
    pub fn require<'a, T: FromGguf<'a>>(&'a self, key: &str) -> Result<T, CheckpointError> {
        self.typed(key)?.ok_or_else(|| self.error(key, format!("is missing ({} is needed)", T::NAME)))
    }

    /// An error about `key` of this file, for callers that check a value's meaning.
    pub fn error(&self, key: &str, problem: impl Into<String>) -> CheckpointError {
        CheckpointError::key(&self.file, key, problem)
    }

    /// Any integer type that holds a value in range.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, CheckpointError> {
        self.typed(key)
    }

    /// Any integer type that holds a value in range.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, CheckpointError> {
        self.typed(key)
    }

    /// F32 or F64.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, CheckpointError> {
        self.typed(key)
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        self.typed(key)
    }

    pub fn str(&self, key: &str) -> Result<Option<&str>, CheckpointError> {
        self.typed(key)
    }

    /// An array of any integer type with every value in range.
    pub fn u32_array(&self, key: &str) -> Result<Option<Vec<u32>>, CheckpointError> {
        self.typed(key)
    }

    /// An array of any integer type with every value in range.
    pub fn i32_array(&self, key: &str) -> Result<Option<Vec<i32>>, CheckpointError> {
        self.typed(key)
    }

    /// An array of F32 or F64.
    pub fn f32_array(&self, key: &str) -> Result<Option<Vec<f32>>, CheckpointError> {
        self.typed(key)
    }

    pub fn bool_array(&self, key: &str) -> Result<Option<&[bool]>, CheckpointError> {
        self.typed(key)
    }

    pub fn str_array(&self, key: &str) -> Result<Option<&GgufStrings>, CheckpointError> {
        self.typed(key)
    }
}

/// A Rust type that a metadata value can be read as.
pub trait FromGguf<'a>: Sized {
    /// The type as errors name it.
    const NAME: &'static str;

    /// `None` where the value is of another type or out of range.
    fn from_gguf(value: &'a GgufValue) -> Option<Self>;
}

impl GgufValue {
    fn integer(&self) -> Option<i128> {
        Some(match *self {
            GgufValue::U8(v) => v.into(),
            GgufValue::I8(v) => v.into(),
            GgufValue::U16(v) => v.into(),
            GgufValue::I16(v) => v.into(),
            GgufValue::U32(v) => v.into(),
            GgufValue::I32(v) => v.into(),
            GgufValue::U64(v) => v.into(),
            GgufValue::I64(v) => v.into(),
            _ => return None,
        })
    }

    fn array(&self) -> Option<&GgufArray> {
        match self {
            GgufValue::Array(array) => Some(array),
            _ => None,
        }
    }
}

impl GgufArray {
    fn integers<T: TryFrom<i128>>(&self) -> Option<Vec<T>> {
        fn all<N: Copy + Into<i128>, T: TryFrom<i128>>(values: &[N]) -> Option<Vec<T>> {
            values.iter().map(|&v| T::try_from(v.into()).ok()).collect()
        }
        match self {
            GgufArray::U8(v) => all(v),
            GgufArray::I8(v) => all(v),
            GgufArray::U16(v) => all(v),
            GgufArray::I16(v) => all(v),
            GgufArray::U32(v) => all(v),
            GgufArray::I32(v) => all(v),
            GgufArray::U64(v) => all(v),
            GgufArray::I64(v) => all(v),
            _ => None,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            GgufArray::U8(v) => v.len(),
            GgufArray::I8(v) => v.len(),
            GgufArray::U16(v) => v.len(),
            GgufArray::I16(v) => v.len(),
            GgufArray::U32(v) => v.len(),
            GgufArray::I32(v) => v.len(),
            GgufArray::U64(v) => v.len(),
            GgufArray::I64(v) => v.len(),
            GgufArray::F32(v) => v.len(),
            GgufArray::F64(v) => v.len(),
            GgufArray::Bool(v) => v.len(),
            GgufArray::String(v) => v.len(),
            GgufArray::Array(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

macro_rules! from_gguf {
    ($($type:ty, $name:literal, $value:ident => $convert:expr;)*) => {$(
        impl<'a> FromGguf<'a> for $type {
            const NAME: &'static str = $name;

            fn from_gguf($value: &'a GgufValue) -> Option<Self> {
                $convert
            }
        }
    )*};
}

from_gguf! {
    u32, "an integer in u32", value => value.integer()?.try_into().ok();
    u64, "an integer in u64", value => value.integer()?.try_into().ok();
    i32, "an integer in i32", value => value.integer()?.try_into().ok();
    usize, "an integer in usize", value => value.integer()?.try_into().ok();
    f32, "a float", value => match value {
        GgufValue::F32(v) => Some(*v),
        GgufValue::F64(v) => Some(*v as f32),
        _ => None,
    };
    bool, "a bool", value => if let GgufValue::Bool(v) = value { Some(*v) } else { None };
    &'a str, "a string", value => if let GgufValue::String(v) = value { Some(v) } else { None };
    Vec<u32>, "an array of integers in u32", value => value.array()?.integers();
    Vec<i32>, "an array of integers in i32", value => value.array()?.integers();
    Vec<f32>, "an array of floats", value => match value.array()? {
        GgufArray::F32(v) => Some(v.clone()),
        GgufArray::F64(v) => Some(v.iter().map(|&v| v as f32).collect()),
        _ => None,
    };
    &'a [bool], "an array of bools", value => {
        if let GgufArray::Bool(v) = value.array()? { Some(v) } else { None }
    };
    &'a GgufStrings, "an array of strings", value => {
        if let GgufArray::String(v) = value.array()? { Some(v) } else { None }
    };
}

/// One line: long strings are cut, arrays only counted.
impl fmt::Display for GgufValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GgufValue::F32(v) => write!(f, "{v}"),
            GgufValue::F64(v) => write!(f, "{v}"),
            GgufValue::Bool(v) => write!(f, "{v}"),
            GgufValue::String(v) => write!(f, "\"{}\"", shown(v)),
            GgufValue::Array(v) => write!(f, "an array of {} values", v.len()),
            other => write!(f, "{}", other.integer().expect("the other types are integers")),
        }
    }
}
