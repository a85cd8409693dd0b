//! The committed tiny models, written by other people's code (safetensors, `gguf`): all of each opens and is finite.

use std::path::Path;

use lingqu_checkpoint::{Checkpoint, Source};

/// Opens a model, decodes and checks every tensor, and gives the number of tensors.
fn check(path: &Path) -> (Source, usize) {
    let checkpoint = Checkpoint::open(path).unwrap_or_else(|error| panic!("{error}"));
    for info in checkpoint.tensors() {
        let matrices = match info.shape[..] {
            [count, _, _] => (0..count).map(|i| checkpoint.tensor_slice(&info.name, i)).collect(),
            _ => vec![checkpoint.tensor(&info.name)],
        };
        for matrix in matrices {
            let matrix = matrix.unwrap_or_else(|error| panic!("{error}")).expect("a listed tensor is there");
            matrix.check_finite_scales().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(matrix.to_f32().iter().all(|v| v.is_finite()), "{}: {}", path.display(), matrix.name);
        }
    }
    (checkpoint.source(), checkpoint.tensors().len())
}

#[test]
fn every_golden_model_opens() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/models");
    let mut opened = [0, 0];
    for entry in std::fs::read_dir(&models).expect("golden models are committed") {
        let path = entry.expect("a readable folder").path();
        let (source, tensors) = match path.extension() {
            Some(extension) if extension == "gguf" => check(&path),
            _ if path.is_dir() => check(&path),
            _ => continue,
        };
        assert!(tensors > 10, "{}: {tensors} tensors", path.display());
        opened[usize::from(source == Source::Gguf)] += 1;
    }
    assert!(opened.iter().all(|&models| models >= 10), "both kinds: {opened:?}");
}
