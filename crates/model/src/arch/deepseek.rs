//! DeepSeek V2, V3 and R1: multi-head latent attention and mixtures of experts (DeepSeek-V2 paper, section 2.1 and 2.2;
//! DeepSeek-V3 paper, section 2.1), and V3's layer that predicts one token further (section 2.2), where it is wanted.
//!
//! `forward` and `draft` at the end are the whole; both pass their rows through [`Graph::attention`],
//! [`Graph::feed_forward`] and [`Graph::await_experts`]. A forward may do so in two halves ([`Exchange::halves`]), one
//! of which computes while the experts of the other are away.

mod buffers;
mod prediction;

use std::sync::Arc;

use lingqu_backend::{
    AttentionSpec, Backend, Exchange, FfnWeights, KvStore, LocalExchange, OffloadExchange, OffloadSizes, Result, Step,
    View, Weight,
};
use lingqu_types::{AdapterId, Batch};

use crate::adapter::Adapter;
use crate::adapter::loaded::{AdaptedBatch, Adapters};
use crate::adapter::site::Site;
use crate::config::ModelConfig;
use crate::draft::{DraftBatch, States};
use crate::layers::attention_gqa::load_rope;
use crate::layers::ends::{self, Ends};
use crate::layers::mla::{self, MlaWeights};
use crate::layers::moe::{self, MoeWeights};
use crate::layers::{ffn, workspace::Logits};
use crate::loader::Loader;
use crate::names::Role;
use crate::{Experts, Model, ModelError};
use buffers::{AttentionBuffers, Lane, Pending};
use prediction::Prediction;

/// Epsilon of the norms on the two latents: the release code leaves it at its default, whatever `rms_norm_eps` says.
const LATENT_NORM_EPS: f32 = 1e-6;

struct DeepSeek {
    ends: Ends,
    layers: Vec<Layer>,
    prediction: Option<Prediction>,
    adapters: Adapters,
    graph: Graph,
}

/// What the layers compute with: all but their weights.
struct Graph {
    config: ModelConfig,
    backend: Arc<dyn Backend>,
    exchange: Arc<dyn Exchange>,
    rope: Weight,
    attention: AttentionBuffers,
    /// Two where the exchange may want halves.
    lanes: Vec<Lane>,
    logits: Logits,
}

/// What a forward or a draft computes in one lane.
struct Part<'a> {
    /// Its number.
    lane: usize,
    step: Step,
    lora: AdaptedBatch<'a>,
    /// False once no row is left.
    goes_on: bool,
}

struct Layer {
    /// Its number in the cache and to the exchange.
    index: usize,
    attention_norm: Weight,
    attention: MlaWeights,
    ffn_norm: Weight,
    ffn: Ffn,
}

enum Ffn {
    Dense(FfnWeights),
    Mixture(MoeWeights),
}

/// Which rows a layer hands on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    All,
    /// Those whose logits are wanted. With none, all is done once the cache has their entries.
    Logits,
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
    for index in 0..config.layers + loader.prediction_layers() {
        layers.push(load_layer(loader, index)?);
        routed.push(match (&config.moe, &host) {
            (Some(moe), Some(host)) if config.is_moe_layer(index) => {
                Some(moe::load_experts(loader, &**host, moe, index, 0..moe.route.experts)?)
            }
            _ => None,
        });
    }
    let prediction = match layers.drain(config.layers..).next() {
        Some(layer) => Some(prediction::load(loader, layer)?),
        None => None,
    };
    let exchange: Arc<dyn Exchange> = match (experts, &config.moe) {
        (Experts::Behind(exchange), _) => exchange,
        (Experts::On(host), Some(moe)) => {
            let (rows_max, hidden) = (loader.options.batch_rows_max, config.hidden);
            let sizes = OffloadSizes { rows_max, hidden, top_k: moe.route.top_k };
            Arc::new(OffloadExchange::new(backend.clone(), host, routed, sizes)?)
        }
        (Experts::Here | Experts::On(_), _) => Arc::new(LocalExchange::new(backend.clone(), routed)),
    };
    let rows_max = loader.options.batch_rows_max;
    let mut lanes = vec![Lane::new(&*backend, &config, rows_max)?];
    if config.moe.is_some() && exchange.halves(rows_max) {
        lanes.push(Lane::new(&*backend, &config, rows_max.div_ceil(2))?);
    }
    let graph = Graph {
        rope: load_rope(loader)?,
        attention: AttentionBuffers::new(&*backend, &config, rows_max)?,
        logits: Logits::new(&*backend, &config, loader.options)?,
        lanes,
        config,
        backend,
        exchange,
    };
    Ok(Box::new(DeepSeek { ends: ends::load(loader)?, layers, prediction, adapters: Adapters::default(), graph }))
}

/// Layer `index` without its routed experts.
fn load_layer(loader: &mut Loader, index: usize) -> Result<Layer, ModelError> {
    let config = loader.config;
    let attention_norm = loader.vector(Role::AttentionNorm, index, config.hidden)?;
    let attention = mla::load(loader, index)?;
    let ffn_norm = loader.vector(Role::FfnNorm, index, config.hidden)?;
    let ffn = match config.moe.as_ref().filter(|_| config.is_moe_layer(index)) {
        Some(moe) => Ffn::Mixture(moe::load(loader, moe, index)?),
        None => Ffn::Dense(ffn::load(loader, index)?),
    };
    Ok(Layer { index, attention_norm, attention, ffn_norm, ffn })
}

impl Graph {
    fn begin<'a>(&mut self, lane: usize, batch: &Batch, lora: AdaptedBatch<'a>, kv: &KvStore) -> Result<Part<'a>> {
        let step = self.backend.begin_step(batch, kv.spec().block_tokens)?;
        let Lane { stream, pending, .. } = &mut self.lanes[lane];
        stream.set_rows(step.rows());
        *pending = None; // what a failed step left
        Ok(Part { lane, step, lora, goes_on: true })
    }

    /// Multi-head latent attention. Equations (37) to (47) of the DeepSeek-V2 paper, keys and values absorbed.
    fn attention(&mut self, part: &mut Part<'_>, layer: &Layer, kv: &mut KvStore, keep: Keep) -> Result<()> {
        let Self { config, backend, rope, attention: a, lanes, .. } = self;
        let Part { lane, step, lora, goes_on } = part;
        let (s, step) = (&mut lanes[*lane].stream, &*step);
        a.set_rows(step.rows());
        let (b, w, mla, pairing) = (&**backend, &layer.attention, config.mla(), config.rope.pairing);
        let (heads, nope, rank) = (mla.heads, mla.nope_dim, mla.kv_lora_rank);
        let (qk, latent) = (nope + mla.rope_dim, rank + mla.rope_dim);

        b.rms_norm(s.x.view(), &layer.attention_norm, config.rms_norm_eps, s.normed.view_mut())?;
        b.linear(s.normed.view(), &w.query_kv_a, a.query_kv_a.view_mut())?;
        lora.add(b, (layer.index, Site::AttentionIn), s.normed.view(), a.query_kv_a.view_mut())?;
        let split = a.query_kv_a.cols() - latent;
        let (query_a, kv_a) = (a.query_kv_a.view().cols(0..split), a.query_kv_a.view().cols(split..split + latent));

        // The cache's entry: c = norm(latent), then the key's rotated part, shared by all heads.
        b.rms_norm(kv_a.cols(0..rank), &w.kv_norm, LATENT_NORM_EPS, a.entry.view_mut().cols(0..rank))?;
        b.rope(step, kv_a.cols(rank..latent), rope, pairing, a.entry.view_mut().cols(rank..latent))?;
        b.kv_append(step, kv, layer.index, a.entry.view(), None)?; // [rows, 1, kv_lora_rank + rope]
        if keep == Keep::Logits && step.logit_rows() == 0 {
            s.set_rows(0);
            *goes_on = false;
            return Ok(());
        }

        // Queries [rows, heads, nope + rope], straight from x or through a latent of their own.
        let query = match (&w.query, &mut a.query) {
            (Some(w), Some(q)) => {
                b.rms_norm(query_a, &w.norm, LATENT_NORM_EPS, q.latent.view_mut())?; // [rows, q_lora_rank]
                b.linear(q.latent.view(), &w.expand, q.full.view_mut())?;
                lora.add(b, (layer.index, Site::QueryB), q.latent.view(), q.full.view_mut())?;
                q.full.view().split_heads(heads)
            }
            _ => query_a.split_heads(heads),
        };
        // Against the cache: (W_uk^T q_nope, rotated q_rope). [rows, heads, kv_lora_rank + rope]
        b.linear_heads(query.cols(0..nope), &w.key_absorb, a.absorbed.view_mut().split_heads(heads).cols(0..rank))?;
        let rotated = a.absorbed.view_mut().split_heads(heads).cols(rank..latent);
        b.rope(step, query.cols(nope..qk), rope, pairing, rotated)?;
        let spec = AttentionSpec { layer: layer.index, scale: mla.softmax_scale };
        let (q, sums) = (a.absorbed.view().split_heads(heads), a.latents.view_mut().split_heads(heads));
        b.attention(step, q, kv, spec, sums)?; // [rows, heads, kv_lora_rank]
        // Values of the weighted latents: W_uv of each head, then out.
        let sums = a.latents.view().split_heads(heads);
        b.linear_heads(sums, &w.value_expand, a.attended.view_mut().split_heads(heads))?; // [rows, heads, v]
        b.linear(a.attended.view(), &w.output, s.out.view_mut())?; // [rows, hidden]
        lora.add(b, (layer.index, Site::AttentionOut), a.attended.view(), s.out.view_mut())?;
        b.add(s.out.view(), s.x.view_mut())?;
        if keep == Keep::Logits {
            s.keep_logit_rows(b, step)?; // [logit_rows, hidden] from here on
            lora.keep_logit_rows();
        }
        Ok(())
    }

    /// Feed-forward: dense in the first layers, then shared experts beside those the router chooses, whose sum comes by
    /// [`Graph::await_experts`].
    fn feed_forward(&mut self, part: &Part<'_>, layer: &Layer) -> Result<()> {
        let Self { config, backend, exchange, lanes, .. } = self;
        let (b, lora) = (&**backend, &part.lora);
        let Lane { stream: s, mixture, pending } = &mut lanes[part.lane];
        b.rms_norm(s.x.view(), &layer.ffn_norm, config.rms_norm_eps, s.normed.view_mut())?;
        let x = s.normed.view();
        match (&layer.ffn, mixture) {
            (Ffn::Mixture(w), Some(m)) => {
                let moe = config.moe.as_ref().expect("a mixture has its numbers");
                m.set_rows(x.rows());
                b.linear(x, &w.router, m.router.view_mut())?; // [rows, experts]
                b.route(m.router.view(), w.correction_bias.as_ref(), &moe.route, &mut m.routing)?; // [rows, top_k]
                let experts = exchange.begin(layer.index, x, &m.routing)?;
                if let Some(shared) = &w.shared {
                    lora.ffn(b, layer.index, x, shared, s.out.view_mut())?; // [rows, hidden]
                }
                *pending = Some(Pending { experts, has_shared: w.shared.is_some() });
                Ok(())
            }
            (Ffn::Dense(w), _) => {
                lora.ffn(b, layer.index, x, w, s.out.view_mut())?; // [rows, hidden]
                b.add(s.out.view(), s.x.view_mut())
            }
            (Ffn::Mixture(_), None) => unreachable!("buffers are made where the configuration has a mixture"),
        }
    }

    /// Adds what the routed experts say, where a layer has any.
    fn await_experts(&mut self, part: &Part<'_>) -> Result<()> {
        let Self { backend, exchange, lanes, .. } = self;
        let (b, Lane { stream: s, mixture, pending }) = (&**backend, &mut lanes[part.lane]);
        let (Some(m), Some(Pending { experts, has_shared })) = (mixture, pending.take()) else { return Ok(()) };
        exchange.finish(experts, s.normed.view(), &m.routing, m.routed.view_mut())?; // [rows, hidden]
        if has_shared {
            b.add(s.out.view(), m.routed.view_mut())?;
        }
        b.add(m.routed.view(), s.x.view_mut())
    }

    /// Puts the rows of the second lane, if there are two, behind those of the first.
    fn join(&mut self, parts: &[Part<'_>]) -> Result<()> {
        let ([first, second], 2) = (&mut self.lanes[..], parts.len()) else { return Ok(()) };
        let rows = [first.stream.x.rows(), second.stream.x.rows()];
        let mut values = vec![0.0; (rows[0] + rows[1]) * self.config.hidden];
        let (to_first, to_second) = values.split_at_mut(rows[0] * self.config.hidden);
        self.backend.read(first.stream.x.view(), to_first)?;
        self.backend.read(second.stream.x.view(), to_second)?;
        first.stream.set_rows(rows[0] + rows[1]);
        self.backend.write(&values, first.stream.x.view_mut())
    }
}

impl Model for DeepSeek {
    fn config(&self) -> &ModelConfig {
        &self.graph.config
    }

    fn layers(&self) -> usize {
        self.layers.len() + usize::from(self.prediction.is_some())
    }

    fn predicts(&self) -> bool {
        self.prediction.is_some()
    }

    fn load_adapter(&mut self, adapter: &Adapter) -> Result<AdapterId, ModelError> {
        self.adapters.load(&*self.graph.backend, &self.graph.config, adapter)
    }

    fn adapters(&self) -> &[Arc<str>] {
        self.adapters.names()
    }

    fn forward(&mut self, batch: &Batch, kv: &mut KvStore) -> Result<View<'_>> {
        let Self { ends, layers, prediction, adapters, graph: g } = self;
        let (backend, eps) = (g.backend.clone(), g.config.rms_norm_eps);
        let b = &*backend;
        let mut parts = Vec::with_capacity(g.lanes.len());
        if g.lanes.len() > 1 && batch.rows() > 1 && g.exchange.halves(batch.rows()) {
            let halves = batch.split(batch.rows().div_ceil(2));
            for (lane, half) in halves.iter().enumerate() {
                parts.push(g.begin(lane, half, adapters.of_batch(half), kv)?);
            }
        } else {
            parts.push(g.begin(0, batch, adapters.of_batch(batch), kv)?);
        }

        for part in &parts {
            b.embed(&part.step, &ends.embedding, g.lanes[part.lane].stream.x.view_mut())?; // [rows, hidden]
        }
        for layer in layers.iter() {
            // The prediction layer needs the state of every row; without it the last layer hands on few.
            let last = layer.index + 1 == layers.len() && prediction.is_none();
            for part in &mut parts {
                g.await_experts(part)?; // of the layer before
                g.attention(part, layer, kv, if last { Keep::Logits } else { Keep::All })?;
                if part.goes_on {
                    g.feed_forward(part, layer)?;
                }
            }
        }
        for part in &parts {
            g.await_experts(part)?;
        }
        g.join(&parts)?;
        let Graph { lanes, logits, .. } = g;
        let s = &mut lanes[0].stream;
        if batch.logit_rows.is_empty() && prediction.is_none() {
            return Ok(logits.none());
        }
        match prediction {
            None => b.rms_norm(s.x.view(), &ends.final_norm, eps, s.normed.view_mut())?, // [logit_rows, hidden]
            Some(p) => {
                p.states.set_rows(batch.rows());
                b.rms_norm(s.x.view(), &ends.final_norm, eps, p.states.view_mut())?; // [rows, hidden]
                if batch.logit_rows.is_empty() {
                    return Ok(logits.none());
                }
                s.normed.set_rows(batch.logit_rows.len());
                match &parts[..] {
                    [whole] => b.gather_logit_rows(&whole.step, p.states.view(), s.normed.view_mut())?,
                    _ => b.gather_rows(p.states.view(), &batch.logit_rows, s.normed.view_mut())?,
                } // [logit_rows, hidden]
            }
        }
        logits.of(b, s.normed.view(), &ends.head) // [logit_rows, vocab]
    }

    fn draft(&mut self, rows: &DraftBatch, kv: &mut KvStore) -> Result<View<'_>> {
        let Self { ends, prediction, graph: g, .. } = self;
        let p = prediction.as_mut().expect("only models that predict are asked for drafts");
        let (backend, eps, hidden) = (g.backend.clone(), g.config.rms_norm_eps, g.config.hidden);
        let b = &*backend;
        let mut part = g.begin(0, &rows.batch, AdaptedBatch::default(), kv)?; // no adapter is made for this layer
        let (step, s) = (&part.step, &mut g.lanes[0].stream);

        // DeepSeek-V3 paper, equation (21); the release's weights take the embedding before the state.
        p.joined.set_rows(step.rows());
        b.embed(step, &ends.embedding, s.out.view_mut())?; // [rows, hidden]
        b.rms_norm(s.out.view(), &p.embedding_norm, eps, p.joined.view_mut().cols(0..hidden))?;
        let state = hidden..2 * hidden;
        match &rows.states {
            // The norm of zeros is zeros.
            States::Unknown => b.write(&vec![0.0; step.rows() * hidden], p.joined.view_mut().cols(state))?,
            States::OfForward(from) | States::OfDraft(from) => {
                let is_forward = matches!(rows.states, States::OfForward(_));
                let states = if is_forward { &p.states } else { &p.drafted };
                b.gather_rows(states.view(), from, s.out.view_mut())?; // [rows, hidden]
                b.rms_norm(s.out.view(), &p.state_norm, eps, p.joined.view_mut().cols(state))?;
            }
        }
        b.linear(p.joined.view(), &p.projection, s.x.view_mut())?; // [rows, hidden]
        g.attention(&mut part, &p.layer, kv, Keep::Logits)?;
        if !part.goes_on {
            return Ok(g.logits.none());
        }
        g.feed_forward(&part, &p.layer)?;
        g.await_experts(&part)?;
        p.drafted.set_rows(part.step.logit_rows());
        b.rms_norm(g.lanes[0].stream.x.view(), &p.final_norm, eps, p.drafted.view_mut())?; // [logit_rows, hidden]
        g.logits.of(b, p.drafted.view(), &ends.head) // [logit_rows, vocab]
    }
}
