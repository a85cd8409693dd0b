//! A GGUF file.

#![no_main]

use lingqu_checkpoint::Checkpoint;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    if let Ok(checkpoint) = Checkpoint::in_memory(vec![("m.gguf".into(), file.to_vec().into())]) {
        lingqu_fuzz::read_all(&checkpoint);
    }
});
