//! Llama 3 (Grattafiori et al. 2024): R1-Distill-Llama, SmolLM2 and everything else of this shape, `qwen2` included.

use std::sync::Arc;

use lingqu_backend::{AttentionSpec, KvStore, Result, View};
use lingqu_types::{AdapterId, Batch};

use crate::adapter::Adapter;
use crate::adapter::site::Site;
use crate::config::ModelConfig;
use crate::layers::dense_gqa::{self, DenseGqa};
use crate::loader::Loader;
use crate::{Experts, Model, ModelError};

struct Llama(DenseGqa);

pub(crate) fn load(loader: &mut Loader, _: Experts) -> Result<Box<dyn Model>, ModelError> {
    Ok(Box::new(Llama(dense_gqa::load(loader)?)))
}

impl Model for Llama {
    fn config(&self) -> &ModelConfig {
        &self.0.config
    }

    fn load_adapter(&mut self, adapter: &Adapter) -> Result<AdapterId, ModelError> {
        let DenseGqa { config, backend, adapters, .. } = &mut self.0;
        adapters.load(&**backend, config, adapter)
    }

    fn adapters(&self) -> &[Arc<str>] {
        self.0.adapters.names()
    }

    fn forward(&mut self, batch: &Batch, kv: &mut KvStore) -> Result<View<'_>> {
        let DenseGqa { config, backend, ends, rope, layers, stream: s, logits, buffers: a, adapters } = &mut self.0;
        let (b, gqa, eps, pairing) = (&**backend, config.gqa(), config.rms_norm_eps, config.rope.pairing);
        let scale = (gqa.head_dim as f32).powf(-0.5);
        let step = b.begin_step(batch, kv.spec().block_tokens)?;
        let mut lora = adapters.of_batch(batch);
        s.set_rows(step.rows());
        a.set_rows(step.rows());

        b.embed(&step, &ends.embedding, s.x.view_mut())?; // [rows, hidden]
        for (l, layer) in layers.iter().enumerate() {
            let last = l + 1 == config.layers;

            // Attention. q, k: rotated; k, v: into the cache.
            b.rms_norm(s.x.view(), &layer.attention_norm, eps, s.normed.view_mut())?;
            b.linear(s.normed.view(), &layer.attention.qkv, a.qkv.view_mut())?; // [rows, (heads + 2 kv_heads) * dim]
            lora.add(b, (l, Site::AttentionIn), s.normed.view(), a.qkv.view_mut())?;
            let [q, k, v] = gqa.split(&a.qkv); // [rows, heads, head_dim], [rows, kv_heads, head_dim] twice
            b.rope(&step, q, rope, pairing, a.q.view_mut().split_heads(gqa.heads))?;
            b.rope(&step, k, rope, pairing, a.k.view_mut().split_heads(gqa.kv_heads))?;
            b.kv_append(&step, kv, l, a.k.view().split_heads(gqa.kv_heads), Some(v))?;
            if last && step.logit_rows() == 0 {
                return Ok(logits.none());
            }
            let (q, attended) = (a.q.view().split_heads(gqa.heads), a.attended.view_mut().split_heads(gqa.heads));
            b.attention(&step, q, kv, AttentionSpec { layer: l, scale }, attended)?; // [rows, heads, head_dim]
            b.linear(a.attended.view(), &layer.attention.output, s.out.view_mut())?; // [rows, hidden]
            lora.add(b, (l, Site::AttentionOut), a.attended.view(), s.out.view_mut())?;
            b.add(s.out.view(), s.x.view_mut())?;
            if last {
                s.keep_logit_rows(b, &step)?; // [logit_rows, hidden] from here on
                lora.keep_logit_rows();
            }

            // Feed-forward.
            b.rms_norm(s.x.view(), &layer.ffn_norm, eps, s.normed.view_mut())?;
            lora.ffn(b, l, s.normed.view(), &layer.ffn, s.out.view_mut())?; // [rows, hidden]
            b.add(s.out.view(), s.x.view_mut())?;
        }
        b.rms_norm(s.x.view(), &ends.final_norm, eps, s.normed.view_mut())?; // [logit_rows, hidden]
        logits.of(b, s.normed.view(), &ends.head)
    }
}
