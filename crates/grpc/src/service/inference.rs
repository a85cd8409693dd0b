//! `lingqu.v1.Inference`.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use lingqu_proto::v1;
use lingqu_proto::v1::inference_server::Inference;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status};

use crate::generation::Events;
use lingqu_serving::Served;

/// Header of a reply: the request's id in the server's log.
const REQUEST_ID_HEADER: &str = "x-request-id";

pub(crate) struct InferenceService {
    pub served: Arc<Served>,
    /// Bytes of a unary reply at most.
    pub reply_bytes_max: usize,
}

#[tonic::async_trait]
impl Inference for InferenceService {
    type GenerateStream = Pin<Box<dyn Stream<Item = Result<v1::GenerateEvent, Status>> + Send>>;

    async fn generate(&self, request: Request<v1::GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        let events = Events::start(Arc::clone(&self.served), request).await?;
        let id = events.id().to_string();
        // A client that goes away drops this stream, and with it the generation.
        let stream = futures_util::stream::unfold(events, |mut events| async move {
            let event = events.next().await?;
            Some((event.map(|event| v1::GenerateEvent { event: Some(event) }), events))
        });
        let mut response = Response::new(Box::pin(stream) as Self::GenerateStream);
        set_request_id(response.metadata_mut(), &id);
        Ok(response)
    }

    async fn generate_once(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<v1::GenerateReply>, Status> {
        let events = Events::start(Arc::clone(&self.served), request).await?;
        let id = events.id().to_string();
        let mut response = Response::new(events.reply(self.reply_bytes_max).await?);
        set_request_id(response.metadata_mut(), &id);
        Ok(response)
    }
}

pub(crate) fn set_request_id(metadata: &mut MetadataMap, id: &str) {
    if let Ok(value) = MetadataValue::try_from(id) {
        metadata.insert(REQUEST_ID_HEADER, value);
    }
}
