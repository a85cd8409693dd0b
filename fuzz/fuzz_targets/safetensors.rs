//! A safetensors file. The first bytes of the input are the header: its length is put in front, since a fuzzer rarely
//! guesses one that fits.

#![no_main]

use lingqu_checkpoint::Checkpoint;

libfuzzer_sys::fuzz_target!(|input: (u16, &[u8])| {
    let (header, rest) = input;
    let header = u64::from(header).min(rest.len() as u64);
    let file = [&header.to_le_bytes(), rest].concat();
    let files = vec![("config.json".into(), b"{}".to_vec().into()), ("model.safetensors".into(), file.into())];
    if let Ok(checkpoint) = Checkpoint::in_memory(files) {
        lingqu_fuzz::read_all(&checkpoint);
    }
});
