//! DeepSeek V2, V3 and R1: multi-head latent attention and mixtures of experts (DeepSeek-V2 paper, section 2;
//! DeepSeek-V3 paper, section 2.1). The multi-token-prediction layers of V3 take no part.

use std::sync::Arc;

use lingqu_backend::{
    AttentionSpec, Backend, Buffer, Exchange, FfnWeights, KvStore, LocalExchange, OffloadExchange, OffloadSizes,
    Result, Routing, View, Weight,
};
use lingqu_types::Batch;

use crate::config::ModelConfig;
use crate::layers::attention_gqa::load_rope;
use crate::layers::ends::{self, Ends};
use crate::layers::mla::{self, MlaWeights};
use crate::layers::moe::{self, MoeWeights};
use crate::layers::{ffn, workspace::Stream};
use crate::loader::Loader;
use crate::names::Role;
use crate::{Experts, LoadOptions, Model, ModelError};

/// Epsilon of the norms on the two latents: the release code leaves it at its default, whatever `rms_norm_eps` says.
const LATENT_NORM_EPS: f32 = 1e-6;

struct DeepSeek {
    config: ModelConfig,
    backend: Arc<dyn Backend>,
    exchange: Arc<dyn Exchange>,
    ends: Ends,
    rope: Weight,
    layers: Vec<Layer>,
    stream: Stream,
    attention: AttentionBuffers,
    mixture: Option<MixtureBuffers>,
}

struct Layer {
    attention_norm: Weight,
    attention: MlaWeights,
    ffn_norm: Weight,
    ffn: Ffn,
}

enum Ffn {
    Dense(FfnWeights),
    Mixture(MoeWeights),
}

struct AttentionBuffers {
    /// `[rows, q_lora_rank (or heads * (nope + rope)) + kv_lora_rank + rope]`
    query_kv_a: Buffer,
    /// `None` where queries have no latent of their own.
    query: Option<QueryBuffers>,
    /// Queries against the cache. `[rows, heads * (kv_lora_rank + rope)]`
    absorbed: Buffer,
    /// What goes into the cache: normed latent, rotated key. `[rows, kv_lora_rank + rope]`
    entry: Buffer,
    /// Weighted sums of latents. `[rows, heads * kv_lora_rank]`
    latents: Buffer,
    /// `[rows, heads * v]`
    attended: Buffer,
}

struct QueryBuffers {
    /// `[rows, q_lora_rank]`
    latent: Buffer,
    /// `[rows, heads * (nope + rope)]`
    full: Buffer,
}

struct MixtureBuffers {
    /// `[rows, experts]`
    router: Buffer,
    routing: Routing,
    /// `[rows, hidden]`
    routed: Buffer,
}

impl AttentionBuffers {
    fn new(backend: &dyn Backend, config: &ModelConfig, rows_max: usize) -> Result<Self> {
        let mla = config.mla();
        let (latent, q_width) = (mla.kv_lora_rank + mla.rope_dim, mla.heads * (mla.nope_dim + mla.rope_dim));
        let query = match mla.q_lora_rank {
            Some(rank) => {
                Some(QueryBuffers { latent: backend.alloc(rows_max, rank)?, full: backend.alloc(rows_max, q_width)? })
            }
            None => None,
        };
        Ok(Self {
            query_kv_a: backend.alloc(rows_max, mla.q_lora_rank.unwrap_or(q_width) + latent)?,
            query,
            absorbed: backend.alloc(rows_max, mla.heads * latent)?,
            entry: backend.alloc(rows_max, latent)?,
            latents: backend.alloc(rows_max, mla.heads * mla.kv_lora_rank)?,
            attended: backend.alloc(rows_max, mla.heads * mla.v_dim)?,
        })
    }

    fn set_rows(&mut self, rows: usize) {
        let Self { query_kv_a, query, absorbed, entry, latents, attended } = self;
        for buffer in [query_kv_a, absorbed, entry, latents, attended] {
            buffer.set_rows(rows);
        }
        if let Some(QueryBuffers { latent, full }) = query {
            latent.set_rows(rows);
            full.set_rows(rows);
        }
    }
}

impl MixtureBuffers {
    fn new(backend: &dyn Backend, config: &ModelConfig, options: &LoadOptions) -> Result<Option<Self>> {
        let Some(moe) = &config.moe else { return Ok(None) };
        let rows_max = options.batch_rows_max;
        Ok(Some(Self {
            router: backend.alloc(rows_max, moe.route.experts)?,
            routing: backend.alloc_routing(rows_max, moe.route.top_k)?,
            routed: backend.alloc(rows_max, config.hidden)?,
        }))
    }

    fn set_rows(&mut self, rows: usize) {
        self.router.set_rows(rows);
        self.routing.set_rows(rows);
        self.routed.set_rows(rows);
    }
}

pub(crate) fn load(loader: &mut Loader, experts: Experts) -> Result<Box<dyn Model>, ModelError> {
    let config = loader.config.clone();
    let backend = loader.backend.clone();
    let host = match &experts {
        Experts::Here => Some(backend.clone()),
        Experts::On(host) => Some(host.clone()),
        Experts::Behind(_) => None,
    };
    let (mut layers, mut routed) = (Vec::new(), Vec::new());
    for l in 0..config.layers {
        let attention_norm = loader.vector(Role::AttentionNorm, l, config.hidden)?;
        let attention = mla::load(loader, l)?;
        let ffn_norm = loader.vector(Role::FfnNorm, l, config.hidden)?;
        let mixture = config.moe.as_ref().filter(|_| config.is_moe_layer(l));
        let ffn = match mixture {
            Some(moe) => Ffn::Mixture(moe::load(loader, moe, l)?),
            None => Ffn::Dense(ffn::load(loader, l)?),
        };
        routed.push(match (mixture, &host) {
            (Some(moe), Some(host)) => Some(moe::load_experts(loader, &**host, moe, l)?),
            _ => None,
        });
        layers.push(Layer { attention_norm, attention, ffn_norm, ffn });
    }
    let exchange: Arc<dyn Exchange> = match (experts, &config.moe) {
        (Experts::Behind(exchange), _) => exchange,
        (Experts::On(host), Some(moe)) => {
            let (rows_max, hidden) = (loader.options.batch_rows_max, config.hidden);
            let sizes = OffloadSizes { rows_max, hidden, top_k: moe.route.top_k };
            Arc::new(OffloadExchange::new(backend.clone(), host, routed, sizes)?)
        }
        (Experts::Here | Experts::On(_), _) => Arc::new(LocalExchange::new(backend.clone(), routed)),
    };
    Ok(Box::new(DeepSeek {
        ends: ends::load(loader)?,
        rope: load_rope(loader)?,
        stream: Stream::new(&*backend, &config, loader.options)?,
        attention: AttentionBuffers::new(&*backend, &config, loader.options.batch_rows_max)?,
        mixture: MixtureBuffers::new(&*backend, &config, loader.options)?,
        config,
        backend,
        exchange,
        layers,
    }))
}

// tidy: straight-line, the forward below is read against the paper in one piece
impl Model for DeepSeek {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn forward(&mut self, batch: &Batch, kv: &mut KvStore) -> Result<View<'_>> {
        let Self { config, backend, exchange, ends, rope, layers, stream: s, attention: a, mixture } = self;
        let (b, mla, eps, pairing) = (&**backend, config.mla(), config.rms_norm_eps, config.rope.pairing);
        let (heads, nope, rank) = (mla.heads, mla.nope_dim, mla.kv_lora_rank);
        let (qk, latent) = (nope + mla.rope_dim, rank + mla.rope_dim);
        let step = b.begin_step(batch, kv.spec().block_tokens)?;
        s.set_rows(step.rows());
        a.set_rows(step.rows());
        if let Some(m) = mixture {
            m.set_rows(step.rows());
        }

        b.embed(&step, &ends.embedding, s.x.view_mut())?; // [rows, hidden]
        for (l, layer) in layers.iter().enumerate() {
            let (w, last) = (&layer.attention, l + 1 == config.layers);

            // Multi-head latent attention. Equations (37) to (47) of the DeepSeek-V2 paper, keys and values absorbed.
            b.rms_norm(s.x.view(), &layer.attention_norm, eps, s.normed.view_mut())?;
            b.linear(s.normed.view(), &w.query_kv_a, a.query_kv_a.view_mut())?;
            let split = a.query_kv_a.cols() - latent;
            let (query_a, kv_a) = (a.query_kv_a.view().cols(0..split), a.query_kv_a.view().cols(split..split + latent));

            // The cache's entry: c = norm(latent), then the key's rotated part, shared by all heads.
            b.rms_norm(kv_a.cols(0..rank), &w.kv_norm, LATENT_NORM_EPS, a.entry.view_mut().cols(0..rank))?;
            b.rope(&step, kv_a.cols(rank..latent), rope, pairing, a.entry.view_mut().cols(rank..latent))?;
            b.kv_append(&step, kv, l, a.entry.view(), None)?; // [rows, 1, kv_lora_rank + rope]
            if last && step.logit_rows() == 0 {
                return Ok(s.no_logits());
            }

            // Queries [rows, heads, nope + rope], straight from x or through a latent of their own.
            let query = match (&w.query, &mut a.query) {
                (Some(w), Some(q)) => {
                    b.rms_norm(query_a, &w.norm, LATENT_NORM_EPS, q.latent.view_mut())?; // [rows, q_lora_rank]
                    b.linear(q.latent.view(), &w.expand, q.full.view_mut())?;
                    q.full.view().split_heads(heads)
                }
                _ => query_a.split_heads(heads),
            };
            // Against the cache: (W_uk^T q_nope, rotated q_rope). [rows, heads, kv_lora_rank + rope]
            b.linear_heads(query.cols(0..nope), &w.key_absorb, a.absorbed.view_mut().split_heads(heads).cols(0..rank))?;
            let rotated = a.absorbed.view_mut().split_heads(heads).cols(rank..latent);
            b.rope(&step, query.cols(nope..qk), rope, pairing, rotated)?;
            let spec = AttentionSpec { layer: l, scale: mla.softmax_scale };
            let (q, sums) = (a.absorbed.view().split_heads(heads), a.latents.view_mut().split_heads(heads));
            b.attention(&step, q, kv, spec, sums)?; // [rows, heads, kv_lora_rank]
            // Values of the weighted latents: W_uv of each head, then out.
            let sums = a.latents.view().split_heads(heads);
            b.linear_heads(sums, &w.value_expand, a.attended.view_mut().split_heads(heads))?; // [rows, heads, v]
            b.linear(a.attended.view(), &w.output, s.out.view_mut())?; // [rows, hidden]
            b.add(s.out.view(), s.x.view_mut())?;
            if last {
                s.keep_logit_rows(b, &step)?; // [logit_rows, hidden] from here on
            }

            // Feed-forward: dense in the first layers, then shared experts beside those the router chooses.
            b.rms_norm(s.x.view(), &layer.ffn_norm, eps, s.normed.view_mut())?;
            let x = s.normed.view();
            match (&layer.ffn, &mut *mixture) {
                (Ffn::Mixture(w), Some(m)) => {
                    let moe = config.moe.as_ref().expect("a mixture has its numbers");
                    m.set_rows(x.rows());
                    b.linear(x, &w.router, m.router.view_mut())?; // [rows, experts]
                    b.route(m.router.view(), w.correction_bias.as_ref(), &moe.route, &mut m.routing)?; // [rows, top_k]
                    let pending = exchange.begin(l, x, &m.routing)?;
                    if let Some(shared) = &w.shared {
                        b.ffn(x, shared, s.out.view_mut())?; // [rows, hidden]
                    }
                    exchange.finish(pending, x, &m.routing, m.routed.view_mut())?; // [rows, hidden]
                    if w.shared.is_some() {
                        b.add(s.out.view(), m.routed.view_mut())?;
                    }
                    b.add(m.routed.view(), s.x.view_mut())?;
                }
                (Ffn::Dense(w), _) => {
                    b.ffn(x, w, s.out.view_mut())?; // [rows, hidden]
                    b.add(s.out.view(), s.x.view_mut())?;
                }
                (Ffn::Mixture(_), None) => unreachable!("buffers are made where the configuration has a mixture"),
            }
        }
        b.rms_norm(s.x.view(), &ends.final_norm, eps, s.normed.view_mut())?; // [logit_rows, hidden]
        b.linear(s.normed.view(), &ends.head, s.logits.view_mut())?; // [logit_rows, vocab]
        Ok(s.logits.view())
    }
}
