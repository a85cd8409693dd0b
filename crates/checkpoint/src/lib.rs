//! Checkpoint files: GGUF and safetensors to named tensors.
