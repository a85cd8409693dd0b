//! Input tensors and parameters of the wire as plain values. Nothing that a client says of sizes is believed.

use lingqu_proto::inference::infer_parameter::ParameterChoice;
use lingqu_proto::inference::model_infer_request::InferInputTensor;
use lingqu_proto::inference::{InferParameter, InferTensorContents};
use tonic::Status;

use crate::status::{invalid, too_many};

const TENSORS_MAX: usize = 64;
const ELEMENTS_MAX: usize = 4096;

/// One element of a tensor, or a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Bool(bool),
    Int(i64),
    UInt(u64),
    Float(f64),
    Text(String),
}

/// An input tensor, checked: as many values as its shape says, at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    /// At most two dimensions.
    pub shape: Vec<usize>,
    /// In row-major order.
    pub values: Vec<Value>,
}

/// All input tensors. `raw` holds the contents of each, or is empty.
pub fn tensors(inputs: Vec<InferInputTensor>, raw: Vec<Vec<u8>>) -> Result<Vec<Tensor>, Status> {
    if inputs.len() > TENSORS_MAX {
        return Err(too_many("inputs", inputs.len(), TENSORS_MAX));
    }
    if !raw.is_empty() && raw.len() != inputs.len() {
        let problem = format!("{} contents for {} inputs", raw.len(), inputs.len());
        return Err(invalid("raw_input_contents", problem));
    }
    let mut raw = raw.into_iter();
    let mut tensors: Vec<Tensor> = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.into_iter().enumerate() {
        if input.name.is_empty() {
            return Err(invalid(&format!("inputs[{index}].name"), "is empty"));
        }
        if tensors.iter().any(|t| t.name == input.name) {
            return Err(invalid(&input.name, "is given twice"));
        }
        tensors.push(tensor(input, raw.next())?);
    }
    Ok(tensors)
}

fn tensor(input: InferInputTensor, raw: Option<Vec<u8>>) -> Result<Tensor, Status> {
    let InferInputTensor { name, datatype, shape, contents, .. } = input;
    let (shape, count) = shape_of(&name, &shape)?;
    let values = match (raw, contents) {
        (Some(_), Some(_)) => return Err(invalid(&name, "has both contents and raw_input_contents")),
        (None, None) => return Err(invalid(&name, "has no contents")),
        (Some(bytes), None) => raw_values(&name, &datatype, &bytes, count)?,
        (None, Some(contents)) => typed_values(&name, &datatype, contents, count)?,
    };
    Ok(Tensor { name, shape, values })
}

/// The shape and the number of elements.
fn shape_of(name: &str, shape: &[i64]) -> Result<(Vec<usize>, usize), Status> {
    if shape.len() > 2 {
        return Err(invalid(name, format_args!("a shape of {} dimensions is not taken here", shape.len())));
    }
    let mut count = 1usize;
    let mut dimensions = Vec::with_capacity(shape.len());
    for &dimension in shape {
        let size = usize::try_from(dimension).ok().filter(|&size| size > 0);
        let size = size.ok_or_else(|| invalid(name, format_args!("a dimension of {dimension} holds no element")))?;
        count = count.saturating_mul(size);
        dimensions.push(size);
    }
    match count > ELEMENTS_MAX {
        true => Err(invalid(name, format_args!("the shape {shape:?} holds more than {ELEMENTS_MAX} elements"))),
        false => Ok((dimensions, count)),
    }
}

fn raw_values(name: &str, datatype: &str, bytes: &[u8], count: usize) -> Result<Vec<Value>, Status> {
    /// Elements of `N` bytes each.
    fn fixed<const N: usize>(
        name: &str,
        bytes: &[u8],
        count: usize,
        value: fn([u8; N]) -> Value,
    ) -> Result<Vec<Value>, Status> {
        let (elements, rest) = bytes.as_chunks::<N>();
        if elements.len() != count || !rest.is_empty() {
            let problem = format!("{} bytes of contents are not {count} elements of {N}", bytes.len());
            return Err(invalid(name, problem));
        }
        Ok(elements.iter().map(|&element| value(element)).collect())
    }
    match datatype {
        "BYTES" => raw_texts(name, bytes, count),
        "BOOL" => fixed(name, bytes, count, |[b]: [u8; 1]| Value::Bool(b != 0)),
        "UINT8" => fixed(name, bytes, count, |b| Value::UInt(u8::from_le_bytes(b).into())),
        "UINT16" => fixed(name, bytes, count, |b| Value::UInt(u16::from_le_bytes(b).into())),
        "UINT32" => fixed(name, bytes, count, |b| Value::UInt(u32::from_le_bytes(b).into())),
        "UINT64" => fixed(name, bytes, count, |b| Value::UInt(u64::from_le_bytes(b))),
        "INT8" => fixed(name, bytes, count, |b| Value::Int(i8::from_le_bytes(b).into())),
        "INT16" => fixed(name, bytes, count, |b| Value::Int(i16::from_le_bytes(b).into())),
        "INT32" => fixed(name, bytes, count, |b| Value::Int(i32::from_le_bytes(b).into())),
        "INT64" => fixed(name, bytes, count, |b| Value::Int(i64::from_le_bytes(b))),
        "FP32" => fixed(name, bytes, count, |b| Value::Float(f32::from_le_bytes(b).into())),
        "FP64" => fixed(name, bytes, count, |b| Value::Float(f64::from_le_bytes(b))),
        _ => Err(unknown_datatype(name, datatype)),
    }
}

/// Each element after its length in 4 bytes.
fn raw_texts(name: &str, mut bytes: &[u8], count: usize) -> Result<Vec<Value>, Status> {
    let mut texts = Vec::with_capacity(count);
    for index in 0..count {
        let short = || invalid(name, format_args!("the contents end within element {index} of {count}"));
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (element, rest) = rest.split_at_checked(length).ok_or_else(short)?;
        texts.push(text(name, index, element.to_vec())?);
        bytes = rest;
    }
    match bytes.is_empty() {
        true => Ok(texts),
        false => Err(invalid(name, format_args!("{} bytes of contents follow the last element", bytes.len()))),
    }
}

fn typed_values(name: &str, datatype: &str, contents: InferTensorContents, count: usize) -> Result<Vec<Value>, Status> {
    let InferTensorContents {
        bool_contents,
        int_contents,
        int64_contents,
        uint_contents,
        uint64_contents,
        fp32_contents,
        fp64_contents,
        bytes_contents,
    } = contents;
    let values: Vec<Value> = match datatype {
        "BOOL" => bool_contents.into_iter().map(Value::Bool).collect(),
        "INT8" | "INT16" | "INT32" => int_contents.into_iter().map(|v| Value::Int(v.into())).collect(),
        "INT64" => int64_contents.into_iter().map(Value::Int).collect(),
        "UINT8" | "UINT16" | "UINT32" => uint_contents.into_iter().map(|v| Value::UInt(v.into())).collect(),
        "UINT64" => uint64_contents.into_iter().map(Value::UInt).collect(),
        "FP32" => fp32_contents.into_iter().map(|v| Value::Float(v.into())).collect(),
        "FP64" => fp64_contents.into_iter().map(Value::Float).collect(),
        "BYTES" => {
            let texts = bytes_contents.into_iter().enumerate().map(|(index, bytes)| text(name, index, bytes));
            texts.collect::<Result<_, _>>()?
        }
        _ => return Err(unknown_datatype(name, datatype)),
    };
    match values.len() == count {
        true => Ok(values),
        false => {
            let problem = format!("{} contents of type {datatype} are not the {count} of the shape", values.len());
            Err(invalid(name, problem))
        }
    }
}

fn text(name: &str, index: usize, bytes: Vec<u8>) -> Result<Value, Status> {
    let text = String::from_utf8(bytes);
    text.map(Value::Text).map_err(|_| invalid(name, format_args!("element {index} is not UTF-8")))
}

fn unknown_datatype(name: &str, datatype: &str) -> Status {
    invalid(name, format_args!("the datatype {:?} is not taken here", datatype.chars().take(16).collect::<String>()))
}

/// A parameter of a request; `None` if it holds nothing.
pub fn parameter(parameter: InferParameter) -> Option<Value> {
    Some(match parameter.parameter_choice? {
        ParameterChoice::BoolParam(v) => Value::Bool(v),
        ParameterChoice::Int64Param(v) => Value::Int(v),
        ParameterChoice::StringParam(v) => Value::Text(v),
        ParameterChoice::DoubleParam(v) => Value::Float(v),
        ParameterChoice::Uint64Param(v) => Value::UInt(v),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(datatype: &str, shape: &[i64]) -> InferInputTensor {
        let (name, datatype) = ("x".into(), datatype.into());
        InferInputTensor { name, datatype, shape: shape.to_vec(), ..InferInputTensor::default() }
    }

    fn texts(texts: &[&str]) -> Vec<u8> {
        texts.iter().flat_map(|t| [&(t.len() as u32).to_le_bytes()[..], t.as_bytes()].concat()).collect()
    }

    #[test]
    fn raw_contents_are_read() {
        let check = |datatype: &str, shape: &[i64], raw: Vec<u8>, expected: Vec<Value>| {
            let [tensor] = tensors(vec![input(datatype, shape)], vec![raw]).expect(datatype).try_into().expect("one");
            assert_eq!(tensor.values, expected, "{datatype}");
        };
        let text = |t: &str| Value::Text(t.into());
        check("BYTES", &[1], texts(&["你好"]), vec![text("你好")]);
        check("BYTES", &[2, 1], texts(&["a", ""]), vec![text("a"), text("")]);
        check("BOOL", &[1, 2], vec![1, 0], vec![Value::Bool(true), Value::Bool(false)]);
        check("UINT8", &[], vec![200], vec![Value::UInt(200)]);
        check("INT8", &[1], vec![255], vec![Value::Int(-1)]);
        check("UINT16", &[1], vec![1, 2], vec![Value::UInt(513)]);
        check("INT32", &[1], (-7i32).to_le_bytes().to_vec(), vec![Value::Int(-7)]);
        check("INT64", &[1], i64::MIN.to_le_bytes().to_vec(), vec![Value::Int(i64::MIN)]);
        check("UINT64", &[1], u64::MAX.to_le_bytes().to_vec(), vec![Value::UInt(u64::MAX)]);
        check("FP32", &[1], 0.5f32.to_le_bytes().to_vec(), vec![Value::Float(0.5)]);
        check("FP64", &[1], 0.1f64.to_le_bytes().to_vec(), vec![Value::Float(0.1)]);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let check = |input: InferInputTensor, raw: Vec<u8>, problem: &str| {
            let error = tensors(vec![input], vec![raw]).expect_err(problem);
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().starts_with("x: "), "{}", error.message());
            assert!(error.message().contains(problem), "{problem}: {}", error.message());
        };
        check(input("BYTES", &[1]), vec![], "end within element 0");
        check(input("BYTES", &[1]), vec![9, 0, 0, 0, b'a'], "end within element 0");
        check(input("BYTES", &[1]), vec![255; 8], "end within element 0");
        check(input("BYTES", &[1]), texts(&["a", "b"]), "follow the last element");
        check(input("BYTES", &[2]), texts(&["a"]), "end within element 1");
        check(input("BYTES", &[1]), vec![2, 0, 0, 0, 0xff, 0xfe], "not UTF-8");
        check(input("INT32", &[1]), vec![1, 2, 3], "not 1 elements of 4");
        check(input("INT32", &[1]), vec![0; 8], "not 1 elements of 4");
        check(input("FP16", &[1]), vec![0; 2], "datatype \"FP16\"");
        check(input("", &[1]), vec![], "datatype \"\"");
        check(input("BOOL", &[i64::MAX, i64::MAX]), vec![], "more than");
        check(input("BOOL", &[4097]), vec![0; 4097], "more than");
        check(input("BOOL", &[-1]), vec![1], "dimension of -1");
        check(input("BOOL", &[0]), vec![], "dimension of 0");
        check(input("BOOL", &[1, 1, 1]), vec![1], "3 dimensions");
        let both = InferInputTensor { contents: Some(InferTensorContents::default()), ..input("BOOL", &[1]) };
        check(both, vec![1], "both");
    }

    #[test]
    fn typed_contents_are_read_or_refused() {
        let check = |datatype: &str, contents: InferTensorContents, expected: Option<Value>| {
            let input = InferInputTensor { contents: Some(contents), ..input(datatype, &[1]) };
            let got = tensors(vec![input], vec![]);
            match expected {
                Some(value) => assert_eq!(got.expect(datatype)[0].values, [value]),
                None => assert!(got.expect_err(datatype).message().starts_with("x: ")),
            }
        };
        let none = InferTensorContents::default;
        check("INT32", InferTensorContents { int_contents: vec![3], ..none() }, Some(Value::Int(3)));
        check("UINT32", InferTensorContents { uint_contents: vec![3], ..none() }, Some(Value::UInt(3)));
        check(
            "BYTES",
            InferTensorContents { bytes_contents: vec![b"a".into()], ..none() },
            Some(Value::Text("a".into())),
        );
        check("BYTES", InferTensorContents { bytes_contents: vec![vec![0x80]], ..none() }, None);
        check("INT32", InferTensorContents { int_contents: vec![3, 4], ..none() }, None);
        check("INT32", InferTensorContents { int64_contents: vec![3], ..none() }, None);
        check("FP32", none(), None);
    }

    #[test]
    fn tensors_must_agree_with_each_other() {
        let check = |inputs: Vec<InferInputTensor>, raw: Vec<Vec<u8>>, field: &str| {
            let error = tensors(inputs, raw).expect_err(field);
            assert!(error.message().starts_with(&format!("{field}: ")), "{}", error.message());
        };
        let bool = || input("BOOL", &[1]);
        check(vec![bool()], vec![vec![1], vec![1]], "raw_input_contents");
        check(vec![bool(), bool()], vec![vec![1], vec![1]], "x");
        check(vec![InferInputTensor { name: String::new(), ..bool() }], vec![vec![1]], "inputs[0].name");
        check(vec![bool(); TENSORS_MAX + 1], vec![], "inputs");
        check(vec![bool()], vec![], "x");
    }
}
