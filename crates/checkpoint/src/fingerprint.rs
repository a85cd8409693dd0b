//! A cheap identity, so that two processes can tell whether they opened the same checkpoint.

use sha2::{Digest, Sha256};

use crate::checkpoint::Checkpoint;

/// Tensors whose first bytes are covered, spread evenly over all.
const SAMPLES: usize = 64;
const SAMPLE_BYTES: usize = 256;

impl Checkpoint {
    /// SHA-256 over `config.json` (GGUF: the headers, so all metadata), the name, type and shape of every tensor in
    /// order, and the first 256 bytes of 64 tensors. Two fine-tunes of one model differ; a change deep inside one
    /// tensor, or in `tokenizer.json`, goes unseen. Reads 64 pages at most.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        // Lengths in front of what varies keep neighbours apart.
        let mut cover = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        self.described_by().into_iter().for_each(&mut cover);
        for entry in self.entries() {
            let info = &entry.info;
            cover(info.name.as_bytes());
            cover(info.type_name.as_bytes());
            let shape: Vec<u8> = info.shape.iter().flat_map(|&dim| (dim as u64).to_le_bytes()).collect();
            cover(&shape);
        }
        let step = self.entries().len().div_ceil(SAMPLES).max(1);
        for entry in self.entries().iter().step_by(step) {
            let data = entry.data.as_slice();
            cover(&data[..data.len().min(SAMPLE_BYTES)]);
        }
        hash.finalize().into()
    }
}
