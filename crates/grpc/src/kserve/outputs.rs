//! Output tensors: which are wanted, and how they are written.

use lingqu_proto::inference::model_infer_request::InferRequestedOutputTensor;
use lingqu_proto::inference::model_infer_response::InferOutputTensor;
use lingqu_proto::inference::{InferTensorContents, ModelInferResponse};
use tonic::Status;

use crate::status::invalid;

pub const TEXT: &str = "text_output";
pub const REASONING: &str = "reasoning_output";
pub const FINISH_REASON: &str = "finish_reason";
pub const NUM_INPUT_TOKENS: &str = "num_input_tokens";
pub const NUM_OUTPUT_TOKENS: &str = "num_output_tokens";
pub const CUMULATIVE_LOGPROB: &str = "cumulative_logprob";

/// Outputs by name, with their datatypes.
pub const OUTPUTS: [(&str, &str); 6] = [
    (TEXT, "BYTES"),
    (REASONING, "BYTES"),
    (FINISH_REASON, "BYTES"),
    (NUM_INPUT_TOKENS, "UINT32"),
    (NUM_OUTPUT_TOKENS, "UINT32"),
    (CUMULATIVE_LOGPROB, "FP32"),
];

/// Outputs that a request is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted(Vec<&'static str>);

impl Wanted {
    /// Those that are `named`, and those that `returns` adds; if none is named, all but the log-probability.
    pub fn new(named: &[InferRequestedOutputTensor], returns: &[&'static str]) -> Result<Self, Status> {
        let mut wanted: Vec<&str> = Vec::new();
        for output in named {
            let known = OUTPUTS.iter().find(|(name, _)| *name == output.name);
            let (name, _) = known.ok_or_else(|| {
                let names = OUTPUTS.map(|(name, _)| name).join(", ");
                invalid("outputs", format_args!("this model has none of that name, but {names}"))
            })?;
            wanted.push(name);
        }
        if named.is_empty() {
            wanted.extend(OUTPUTS.map(|(name, _)| name).into_iter().filter(|name| *name != CUMULATIVE_LOGPROB));
        }
        wanted.extend(returns);
        Ok(Self(wanted))
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains(&name)
    }
}

/// How a response's tensors are written: as the request's were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub wanted: Wanted,
    /// In `raw_output_contents`.
    pub raw: bool,
    /// One element for each prompt, in the shape that the prompts had.
    pub shape: Vec<i64>,
}

/// The elements of one output.
pub enum Elements {
    Texts(Vec<String>),
    UInts(Vec<u32>),
    Floats(Vec<f32>),
}

impl Layout {
    /// Adds an output to a response if it is wanted.
    pub fn add(&self, response: &mut ModelInferResponse, name: &'static str, elements: Elements) {
        if !self.wanted.has(name) {
            return;
        }
        let datatype = match elements {
            Elements::Texts(_) => "BYTES",
            Elements::UInts(_) => "UINT32",
            Elements::Floats(_) => "FP32",
        };
        let contents = match self.raw {
            true => {
                response.raw_output_contents.push(raw(elements));
                None
            }
            false => Some(typed(elements)),
        };
        response.outputs.push(InferOutputTensor {
            name: name.into(),
            datatype: datatype.into(),
            shape: self.shape.clone(),
            contents,
            ..InferOutputTensor::default()
        });
    }
}

fn raw(elements: Elements) -> Vec<u8> {
    match elements {
        Elements::Texts(texts) => {
            let mut bytes = Vec::with_capacity(texts.iter().map(|t| 4 + t.len()).sum());
            for text in texts {
                bytes.extend((text.len() as u32).to_le_bytes());
                bytes.extend(text.into_bytes());
            }
            bytes
        }
        Elements::UInts(values) => values.into_iter().flat_map(u32::to_le_bytes).collect(),
        Elements::Floats(values) => values.into_iter().flat_map(f32::to_le_bytes).collect(),
    }
}

fn typed(elements: Elements) -> InferTensorContents {
    let none = InferTensorContents::default();
    match elements {
        Elements::Texts(texts) => {
            InferTensorContents { bytes_contents: texts.into_iter().map(String::into_bytes).collect(), ..none }
        }
        Elements::UInts(uint_contents) => InferTensorContents { uint_contents, ..none },
        Elements::Floats(fp32_contents) => InferTensorContents { fp32_contents, ..none },
    }
}
