//! `lingqu.v1.Tokenizer`.

use std::sync::Arc;

use lingqu_proto::v1;
use lingqu_proto::v1::tokenize_request::Input;
use lingqu_proto::v1::tokenizer_server::Tokenizer;
use tonic::{Request, Response, Status};

use crate::convert::event::token_text;
use crate::convert::input;
use crate::status::{invalid, status, too_many};
use lingqu_serving::Served;

/// More than the longest context; bounds the text that comes back.
const TOKEN_IDS_MAX: usize = 262_144;

pub(crate) struct TokenizerService(pub Arc<Served>);

#[tonic::async_trait]
impl Tokenizer for TokenizerService {
    async fn tokenize(&self, request: Request<v1::TokenizeRequest>) -> Result<Response<v1::TokenizeReply>, Status> {
        let v1::TokenizeRequest { model, input, add_special_tokens, parse_special_tokens } = request.into_inner();
        self.0.check_name(&model).map_err(status)?;
        let (text, field) = match input {
            None => return Err(invalid("input", "one of text and chat is needed")),
            Some(Input::Text(text)) => (input::plain(text, add_special_tokens, parse_special_tokens), "text"),
            Some(Input::Chat(chat)) => (input::chat(chat)?, "chat"),
        };
        let encode = move |tokenizer: &lingqu_tokenizer::Tokenizer| {
            let encoded = text.encode(tokenizer, field)?;
            let tokens = encoded.ids.iter().map(|&id| token_text(tokenizer, id)).collect();
            Ok(v1::TokenizeReply { token_ids: encoded.ids, tokens, prompt: encoded.text })
        };
        Ok(Response::new(self.0.off_thread("tokenizing", encode).await.map_err(status)?))
    }

    async fn detokenize(
        &self,
        request: Request<v1::DetokenizeRequest>,
    ) -> Result<Response<v1::DetokenizeReply>, Status> {
        let v1::DetokenizeRequest { model, token_ids, skip_special_tokens } = request.into_inner();
        self.0.check_name(&model).map_err(status)?;
        if token_ids.len() > TOKEN_IDS_MAX {
            return Err(too_many("token_ids", token_ids.len(), TOKEN_IDS_MAX));
        }
        let size = self.0.model.card.vocabulary_size;
        if let Some(id) = token_ids.iter().find(|&&id| id >= size) {
            return Err(invalid("token_ids", format_args!("{id} is not below the vocabulary size {size}")));
        }
        let decode =
            move |tokenizer: &lingqu_tokenizer::Tokenizer| Ok(tokenizer.decode(&token_ids, skip_special_tokens));
        let text = self.0.off_thread("detokenizing", decode).await.map_err(status)?;
        Ok(Response::new(v1::DetokenizeReply { text }))
    }
}
