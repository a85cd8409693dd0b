//! The default model inside the binary.

use anyhow::Result;
use lingqu_model::Package;

#[cfg(feature = "embedded-model")]
pub fn package() -> Result<Package> {
    /// The checkpoint folder `models/default`, file by file.
    const FILES: &[(&str, &[u8])] = &[
        ("config.json", include_bytes!("../../../models/default/config.json")),
        ("generation_config.json", include_bytes!("../../../models/default/generation_config.json")),
        ("model.safetensors", include_bytes!("../../../models/default/model.safetensors")),
        ("tokenizer.json", include_bytes!("../../../models/default/tokenizer.json")),
        ("tokenizer_config.json", include_bytes!("../../../models/default/tokenizer_config.json")),
    ];
    use anyhow::Context;
    Package::embedded(FILES).context("cannot open the embedded model")
}

#[cfg(not(feature = "embedded-model"))]
pub fn package() -> Result<Package> {
    Err(crate::Usage("this build has no embedded model: pass --model PATH".into()).into())
}

/// Name under which the model at `path` is served: its file or folder name.
pub fn model_name(path: Option<&std::path::Path>) -> String {
    let Some(path) = path else { return "lingqu-default".into() };
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let name = if whole.is_dir() { whole.file_name() } else { whole.file_stem() };
    name.map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned())
}
