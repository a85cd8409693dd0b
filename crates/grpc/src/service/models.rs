//! `lingqu.v1.Models`.

use std::sync::Arc;

use lingqu_proto::v1;
use lingqu_proto::v1::models_server::Models;
use tonic::{Request, Response, Status};

use crate::convert::sampling::sampling_on_wire;
use lingqu_serving::{ModelCard, Served};

pub(crate) struct ModelsService(pub Arc<Served>);

#[tonic::async_trait]
impl Models for ModelsService {
    async fn list_models(
        &self,
        _request: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsReply>, Status> {
        let served = &self.0.model;
        let ModelCard { name, architecture, vocabulary_size, fingerprint, weight_formats, eos_token_ids } =
            served.card.clone();
        let model = v1::Model {
            name,
            architecture,
            context_tokens_max: u32::try_from(served.engine.limits().context_tokens_max).unwrap_or(u32::MAX),
            vocabulary_size,
            fingerprint,
            weight_formats,
            default_sampling: Some(sampling_on_wire(&served.default_sampling)),
            eos_token_ids,
            has_chat_template: served.tokenizer.chat_template().is_some(),
            parent: String::new(),
        };
        let adapter =
            |name: &Arc<str>| v1::Model { name: name.to_string(), parent: model.name.clone(), ..model.clone() };
        let adapters: Vec<v1::Model> = served.engine.adapters().iter().map(adapter).collect();
        Ok(Response::new(v1::ListModelsReply { models: std::iter::once(model).chain(adapters).collect() }))
    }
}
