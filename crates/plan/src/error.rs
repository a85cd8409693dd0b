//! Why there is no plan.

use lingqu_placement::PlacementError;

/// Bytes as people read them, in the units of data sheets.
pub(crate) fn gb(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Not TOML, an unknown field, or a value of another type. The text shows the line.
    #[error("{file}: {problem}")]
    Toml { file: String, problem: String },
    #[error("{file}: {node}: {field}: {problem}")]
    Node { file: String, node: String, field: &'static str, problem: String },
    #[error("{field}: {problem}")]
    Workload { field: &'static str, problem: String },
    #[error("{model}: {field}: {problem}")]
    Model { model: String, field: &'static str, problem: String },
    #[error(
        "{node} has {} and needs {}: {} too little. It would hold {} of weights other than routed experts, {} of KV \
         cache, {} of activations, and keeps {} free",
        gb(*.memory_bytes), gb(*.needed_bytes), gb(needed_bytes - memory_bytes), gb(*.weight_bytes), gb(*.kv_bytes),
        gb(*.activation_bytes), gb(*.reserve_bytes)
    )]
    ServerTooSmall {
        node: String,
        memory_bytes: u64,
        needed_bytes: u64,
        weight_bytes: u64,
        kv_bytes: u64,
        activation_bytes: u64,
        reserve_bytes: u64,
    },
    #[error(
        "the routed experts do not fit: {} ({} of them extra copies), and {} are left for them on {workers} nodes: {} \
         too little",
        gb(*.needed_bytes), gb(*.spare_bytes), gb(*.memory_bytes), gb(*.missing_bytes)
    )]
    ExpertsTooLarge { needed_bytes: u64, spare_bytes: u64, memory_bytes: u64, workers: usize, missing_bytes: u64 },
    #[error(transparent)]
    Placement(PlacementError),
}

impl From<PlacementError> for PlanError {
    fn from(error: PlacementError) -> Self {
        match error {
            PlacementError::TooLittleMemory { needed_bytes, spare_bytes, memory_bytes, workers, missing_bytes } => {
                Self::ExpertsTooLarge { needed_bytes, spare_bytes, memory_bytes, workers, missing_bytes }
            }
            other => Self::Placement(other),
        }
    }
}
