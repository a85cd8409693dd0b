//! What stands before the first layer and after the last.

use lingqu_backend::Weight;

use crate::ModelError;
use crate::loader::Loader;
use crate::names::Role;

pub(crate) struct Ends {
    /// `[vocab, hidden]`
    pub embedding: Weight,
    /// `[hidden]`
    pub final_norm: Weight,
    /// `[vocab, hidden]`; the embedding once more where the two are tied.
    pub head: Weight,
}

pub(crate) fn load(loader: &mut Loader) -> Result<Ends, ModelError> {
    let shape = [loader.config.vocab_size, loader.config.hidden];
    let tied = loader.config.tied_embeddings;
    let table = loader.tensor(Role::Embedding, 0, shape)?;
    let embedding = loader.backend.upload_embedding(&table)?;
    let head = if tied { table } else { loader.tensor(Role::Head, 0, shape)? };
    Ok(Ends {
        embedding,
        head: loader.upload_linear(&[head], &[])?,
        final_norm: loader.vector(Role::FinalNorm, 0, shape[1])?,
    })
}
