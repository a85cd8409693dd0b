//! What a model tells of itself: its tensors, its configuration, its counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lingqu_proto::inference::model_metadata_response::TensorMetadata;
use lingqu_proto::inference::{
    DataType, InferStatistics, ModelConfig, ModelInput, ModelMetadataResponse, ModelOutput, ModelStatistics,
    ModelTransactionPolicy, StatisticDuration,
};
use tonic::Status;

use super::outputs::OUTPUTS;

/// A served model has one version.
pub const VERSION: &str = "1";
const PLATFORM: &str = "lingqu";

/// Inputs by name, with datatype and dimensions. `options` takes more names than these: those of other backends for
/// the same things.
const INPUTS: [(&str, &str, i64); 33] = [
    ("text_input", "BYTES", 1),
    ("stream", "BOOL", 1),
    ("max_tokens", "INT32", 1),
    ("temperature", "FP32", 1),
    ("top_p", "FP32", 1),
    ("top_k", "INT32", 1),
    ("min_p", "FP32", 1),
    ("repetition_penalty", "FP32", 1),
    ("presence_penalty", "FP32", 1),
    ("frequency_penalty", "FP32", 1),
    ("seed", "UINT64", 1),
    ("stop", "BYTES", -1),
    ("stop_token_ids", "INT32", -1),
    ("ignore_eos", "BOOL", 1),
    ("skip_special_tokens", "BOOL", 1),
    ("add_special_tokens", "BOOL", 1),
    ("parse_special_tokens", "BOOL", 1),
    ("split_reasoning", "BOOL", 1),
    ("sampling_parameters", "BYTES", 1),
    ("exclude_input_in_output", "BOOL", 1),
    ("return_finish_reason", "BOOL", 1),
    ("return_num_input_tokens", "BOOL", 1),
    ("return_num_output_tokens", "BOOL", 1),
    ("return_cumulative_logprob", "BOOL", 1),
    ("priority", "BYTES", 1),
    ("tenant", "BYTES", 1),
    ("timeout", "UINT64", 1),
    ("logprobs", "INT32", 1),
    ("adapter", "BYTES", 1),
    ("guided_json", "BYTES", 1),
    ("guided_regex", "BYTES", 1),
    ("guided_choice", "BYTES", -1),
    ("guided_grammar", "BYTES", 1),
];

/// NOT_FOUND for a version that is not served.
pub fn check_version(field: &str, version: &str) -> Result<(), Status> {
    match version.is_empty() || version == VERSION {
        true => Ok(()),
        false => Err(Status::not_found(format!("{field}: this model has version {VERSION:?} alone"))),
    }
}

/// Names, datatypes and shapes of the tensors.
pub fn metadata(name: &str) -> ModelMetadataResponse {
    let tensor = |name: &str, datatype: &str, size: i64| TensorMetadata {
        name: name.into(),
        datatype: datatype.into(),
        shape: vec![size],
    };
    ModelMetadataResponse {
        name: name.into(),
        versions: vec![VERSION.into()],
        platform: PLATFORM.into(),
        inputs: INPUTS.iter().map(|&(name, datatype, size)| tensor(name, datatype, size)).collect(),
        outputs: OUTPUTS.iter().map(|&(name, datatype)| tensor(name, datatype, -1)).collect(),
    }
}

/// The same as a Triton configuration. The batch is ours to make, so it has no batch dimension; a request may have many
/// responses.
pub fn config(name: &str) -> ModelConfig {
    let input = |&(name, datatype, size): &(&str, &str, i64)| ModelInput {
        name: name.into(),
        data_type: data_type(datatype).into(),
        dims: vec![size],
        optional: name != INPUTS[0].0,
    };
    let output = |&(name, datatype): &(&str, &str)| ModelOutput {
        name: name.into(),
        data_type: data_type(datatype).into(),
        dims: vec![-1],
    };
    ModelConfig {
        name: name.into(),
        platform: String::new(),
        backend: PLATFORM.into(),
        max_batch_size: 0,
        input: INPUTS.iter().map(input).collect(),
        output: OUTPUTS.iter().map(output).collect(),
        model_transaction_policy: Some(ModelTransactionPolicy { decoupled: true }),
    }
}

fn data_type(datatype: &str) -> DataType {
    match datatype {
        "BYTES" => DataType::TypeString,
        "BOOL" => DataType::TypeBool,
        "INT32" => DataType::TypeInt32,
        "UINT32" => DataType::TypeUint32,
        "UINT64" => DataType::TypeUint64,
        "FP32" => DataType::TypeFp32,
        _ => DataType::TypeInvalid,
    }
}

/// Requests of this service since the server's start.
#[derive(Debug, Default)]
pub struct Statistics {
    success: Counter,
    fail: Counter,
    /// Prompts of the requests that succeeded.
    prompts: AtomicU64,
    last_ms: AtomicU64,
}

#[derive(Debug, Default)]
struct Counter {
    count: AtomicU64,
    nanos: AtomicU64,
}

impl Counter {
    fn add(&self, took: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    fn on_wire(&self) -> StatisticDuration {
        StatisticDuration { count: self.count.load(Ordering::Relaxed), ns: self.nanos.load(Ordering::Relaxed) }
    }
}

impl Statistics {
    /// A request of so many prompts was answered.
    pub fn succeeded(&self, prompts: usize, took: Duration) {
        self.success.add(took);
        self.prompts.fetch_add(prompts as u64, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_ms.store(now.as_millis() as u64, Ordering::Relaxed);
    }

    /// A request was refused or failed.
    pub fn failed(&self, took: Duration) {
        self.fail.add(took);
    }

    pub fn on_wire(&self, name: &str) -> ModelStatistics {
        let prompts = self.prompts.load(Ordering::Relaxed);
        ModelStatistics {
            name: name.into(),
            version: VERSION.into(),
            last_inference: self.last_ms.load(Ordering::Relaxed),
            inference_count: prompts,
            execution_count: prompts,
            inference_stats: Some(InferStatistics {
                success: Some(self.success.on_wire()),
                fail: Some(self.fail.on_wire()),
                ..InferStatistics::default()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use lingqu_types::SamplingParams;

    use super::super::options::Options;
    use super::super::tensor::Value;
    use super::*;

    #[test]
    fn every_stated_input_is_taken() {
        for (name, datatype, _) in &INPUTS[1..] {
            let value = match *datatype {
                "BYTES" if ["sampling_parameters", "guided_json"].contains(name) => Value::Text("{}".into()),
                "BYTES" => Value::Text("batch".into()),
                "BOOL" => Value::Bool(true),
                "FP32" => Value::Float(0.5),
                "INT32" => Value::Int(1),
                "UINT64" => Value::UInt(1),
                other => panic!("{other}"),
            };
            let mut options = Options::new(String::new(), &SamplingParams::default());
            options.set(name, &[value]).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_ne!(data_type(datatype), DataType::TypeInvalid);
        }
    }
}
