//! What every target does with a file that opened: read all that a caller can ask for.
//!
//! `cargo +nightly fuzz run gguf` (or `safetensors`) from the root of the repository.

#![forbid(unsafe_code)]

use lingqu_checkpoint::Checkpoint;

/// Must neither panic nor take much memory, whatever the file holds.
pub fn read_all(checkpoint: &Checkpoint) {
    for info in checkpoint.tensors() {
        let _ = checkpoint.tensor_slice(&info.name, 0);
        let Ok(Some(tensor)) = checkpoint.tensor(&info.name) else { continue };
        let _ = tensor.check_finite_scales();
        if tensor.cols <= 1 << 16 {
            tensor.decode_row(tensor.rows - 1, &mut vec![0.0; tensor.cols]);
        }
    }
    if let Some(metadata) = checkpoint.gguf() {
        for (key, value) in metadata.iter() {
            let _ = (value.to_string(), metadata.u32(key), metadata.f32_array(key), metadata.str_array(key));
        }
    }
    checkpoint.fingerprint();
}
