//! Compiles `/proto` to Rust without protoc: protox parses, tonic-prost-build generates.

use std::error::Error;
use std::path::{Path, PathBuf};

use protox::prost::Message;

/// Files that hold services; what they import comes along.
const FILES: [&str; 6] = [
    "lingqu/v1/cluster.proto",
    "lingqu/v1/inference.proto",
    "lingqu/v1/models.proto",
    "lingqu/v1/tokenizer.proto",
    "kserve/grpc_service.proto",
    "openengine/v1/openengine.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed={}", root.display());

    let mut compiler = protox::Compiler::new([&root])?;
    // With comments: reflection shows them to clients (`grpcurl describe`).
    compiler.include_imports(true).include_source_info(true);
    for file in FILES {
        compiler.open_file(file)?;
    }
    let descriptors = compiler.file_descriptor_set();
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .btree_map(".") // ordered, so that equal requests are handled equally
        .compile_fds(descriptors)?;
    Ok(())
}
