//! What a model's weights come to: parameters and bytes of each part of each layer.

use std::collections::BTreeMap;

use lingqu_model::{AttentionConfig, ModelConfig, Naming, Package, Role};
use lingqu_tensor::Format;

use crate::PlanError;
use crate::weights::{Matrix, Use, Weights};

/// Weights of one format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub format: Format,
    pub parameters: u64,
}

impl Piece {
    pub fn bytes(&self) -> u64 {
        let block = self.format.block_values() as u64;
        let plain = self.parameters.div_ceil(block) * self.format.block_bytes() as u64;
        // An f32 to each tile of 128 x 128.
        plain + if self.format == Format::Fp8E4M3 { self.parameters.div_ceil(128 * 128) * 4 } else { 0 }
    }
}

/// Weights that are used together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part(pub Vec<Piece>);

impl Part {
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(Piece::bytes).sum()
    }

    pub fn parameters(&self) -> u64 {
        self.0.iter().map(|piece| piece.parameters).sum()
    }

    fn add(&mut self, format: Format, parameters: u64) {
        match self.0.iter_mut().find(|piece| piece.format == format) {
            Some(piece) => piece.parameters += parameters,
            None => self.0.push(Piece { format, parameters }),
        }
    }
}

/// One layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    /// Projections, with their norms.
    pub attention: Part,
    /// The dense feed-forward part, or the router.
    pub ffn: Part,
    /// Experts that every row passes.
    pub shared: Part,
    /// One routed expert. Empty where the layer is dense.
    pub expert: Part,
}

/// A model by its weights. Prediction layers are not counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Inventory {
    pub config: ModelConfig,
    /// For people: the format asked for, or where it was read.
    pub source: String,
    pub embedding: Part,
    /// Final norm and head. Where the embedding is the head, the embedding's weights again: they are held once.
    pub head: Part,
    pub layers: Vec<Layer>,
}

impl Inventory {
    /// From a configuration alone: weights as `weights` says.
    ///
    /// # Errors
    /// A model beyond all that can be planned.
    pub fn from_config(config: &ModelConfig, weights: Weights) -> Result<Self, PlanError> {
        refuse_giants(config)?;
        let mut counter = Counter { config, weights, layer: 0 };
        let layers = (0..config.layers).map(|layer| counter.layer(layer)).collect();
        let (vocab, hidden) = (config.vocab_size, config.hidden);
        let mut embedding = Part::default();
        counter.add(&mut embedding, Use::Embedding, vocab, hidden);
        let mut head = Part::default();
        let purpose = if config.tied_embeddings { Use::Embedding } else { Use::Head };
        counter.add(&mut head, purpose, vocab, hidden);
        counter.add(&mut head, Use::Vector, 1, hidden);
        Ok(Self { config: config.clone(), source: weights.to_string(), embedding, head, layers })
    }

    /// From a checkpoint's headers.
    ///
    /// # Errors
    /// Names a tensor whose type is not supported, or says that the model is beyond all that can be planned.
    pub fn from_package(package: &Package) -> Result<Self, PlanError> {
        let config = &package.config;
        refuse_giants(config)?;
        let experts = config.moe.as_ref().map_or(1, |moe| moe.route.experts as u64);
        let naming = if package.checkpoint.gguf().is_some() { Naming::Gguf } else { Naming::HuggingFace };
        let mut found = Self {
            config: config.clone(),
            source: "as its files have them".into(),
            embedding: Part::default(),
            head: Part::default(),
            layers: vec![Layer::default(); config.layers],
        };
        let mut expert_totals: BTreeMap<(usize, Format), u64> = BTreeMap::new();
        for info in package.checkpoint.tensors() {
            let Some(place) = naming.place(&info.name) else { continue };
            let Some(format) = info.format else {
                let problem = format!("tensor {} has type {}, which is not supported", info.name, info.type_name);
                return Err(PlanError::Model { model: config.name.clone(), field: "weights", problem });
            };
            let parameters = info.values() as u64;
            let Some(layer) = place.layer else {
                let part = if place.role == Role::Embedding { &mut found.embedding } else { &mut found.head };
                part.add(format, parameters);
                continue;
            };
            let Some(parts) = found.layers.get_mut(layer) else { continue };
            match place.role.group() {
                "routed experts" => *expert_totals.entry((layer, format)).or_default() += parameters,
                "shared experts" => parts.shared.add(format, parameters),
                "dense ffn" | "router" => parts.ffn.add(format, parameters),
                _ => parts.attention.add(format, parameters),
            }
        }
        for ((layer, format), parameters) in expert_totals {
            found.layers[layer].expert.add(format, parameters / experts);
        }
        if config.tied_embeddings {
            found.embedding.0.iter().for_each(|piece| found.head.add(piece.format, piece.parameters));
        }
        Ok(found)
    }

    /// Of a layer that has any.
    pub fn experts(&self) -> usize {
        self.config.moe.as_ref().map_or(0, |moe| moe.route.experts)
    }

    /// Routed experts that a row meets in a layer.
    pub fn top_k(&self) -> usize {
        self.config.moe.as_ref().map_or(0, |moe| moe.route.top_k)
    }

    /// Bytes of one routed expert by layer, 0 where the layer is dense.
    pub fn expert_bytes(&self) -> Vec<u64> {
        self.layers.iter().map(|layer| layer.expert.bytes()).collect()
    }

    /// Bytes of all that is not a routed expert: what every server holds.
    pub fn resident_bytes(&self) -> u64 {
        let layers: u64 = self.layers.iter().map(|l| l.attention.bytes() + l.ffn.bytes() + l.shared.bytes()).sum();
        layers + self.head.bytes() + if self.config.tied_embeddings { 0 } else { self.embedding.bytes() }
    }

    /// Bytes of everything, each expert once.
    pub fn total_bytes(&self) -> u64 {
        self.resident_bytes() + self.expert_bytes().iter().sum::<u64>() * self.experts() as u64
    }

    pub fn parameters(&self) -> u64 {
        let dense = |l: &Layer| l.attention.parameters() + l.ffn.parameters() + l.shared.parameters();
        let experts = |l: &Layer| l.expert.parameters() * self.experts() as u64;
        let embedding = if self.config.tied_embeddings { 0 } else { self.embedding.parameters() };
        self.layers.iter().map(|l| dense(l) + experts(l)).sum::<u64>() + self.head.parameters() + embedding
    }

    /// Values of one token in the KV cache of one layer.
    pub fn kv_values(&self) -> u64 {
        self.config.kv_entry().values() as u64
    }

    /// Operations of attention itself for one row and one position it looks at, in one layer, two to a multiply-add.
    /// MLA attends over the latent: as many values for each head.
    pub fn attention_flops(&self) -> f64 {
        match &self.config.attention {
            AttentionConfig::Gqa(a) => (4 * a.heads * a.head_dim) as f64,
            AttentionConfig::Mla(a) => (2 * a.heads * (2 * a.kv_lora_rank + a.rope_dim)) as f64,
        }
    }
}

/// Keeps all counts countable and all lists short, whatever a file says.
fn refuse_giants(config: &ModelConfig) -> Result<(), PlanError> {
    const LAYERS_MAX: usize = 4096;
    const EXPERTS_MAX: usize = 1 << 20;
    const PARAMETERS_MAX: f64 = 1e14;
    let refuse = |field, problem| Err(PlanError::Model { model: config.name.clone(), field, problem });
    let moe = config.moe.as_ref();
    let experts = moe.map_or(0, |moe| moe.route.experts);
    if config.layers > LAYERS_MAX || config.layers * experts > EXPERTS_MAX {
        return refuse("layers", format!("{} of {experts} experts are too many", config.layers));
    }
    let n = |count: usize| count as f64;
    let hidden = n(config.hidden);
    let attention = match &config.attention {
        AttentionConfig::Gqa(a) => 4.0 * hidden * n(a.heads.max(a.kv_heads)) * n(a.head_dim),
        AttentionConfig::Mla(a) => {
            let (rank, kv_rank) = (n(a.q_lora_rank.unwrap_or(0)), n(a.kv_lora_rank));
            let (query, value) = (n(a.nope_dim) + n(a.rope_dim), n(a.v_dim));
            n(a.heads) * ((rank + hidden + kv_rank) * query + (kv_rank + hidden) * value)
                + hidden * (rank + kv_rank + query)
        }
    };
    let widths = moe.map_or(0.0, |moe| (n(experts) + n(moe.shared_experts)) * n(moe.intermediate) + n(experts));
    let layer = attention + 3.0 * hidden * (n(config.ffn_intermediate) + widths);
    let parameters = n(config.layers) * layer + 2.0 * hidden * n(config.vocab_size);
    if parameters > PARAMETERS_MAX {
        return refuse("parameters", format!("about {parameters:.1e} are too many"));
    }
    Ok(())
}

/// Counts matrices by the configuration.
struct Counter<'a> {
    config: &'a ModelConfig,
    weights: Weights,
    layer: usize,
}

impl Counter<'_> {
    fn add(&self, part: &mut Part, purpose: Use, rows: usize, cols: usize) {
        let ModelConfig { layers, tied_embeddings, .. } = *self.config;
        let format = self.weights.format(Matrix { purpose, cols, layer: self.layer, layers, tied_embeddings });
        part.add(format, rows as u64 * cols as u64);
    }

    fn layer(&mut self, layer: usize) -> Layer {
        self.layer = layer;
        let hidden = self.config.hidden;
        let mut found = Layer::default();
        self.attention(&mut found.attention);
        self.add(&mut found.attention, Use::Vector, 2, hidden); // the two norms
        match self.config.moe.as_ref().filter(|_| self.config.is_moe_layer(layer)) {
            Some(moe) => {
                self.add(&mut found.ffn, Use::Router, moe.route.experts, hidden);
                if moe.shared_experts > 0 {
                    self.feed_forward(&mut found.shared, moe.intermediate * moe.shared_experts);
                }
                self.feed_forward(&mut found.expert, moe.intermediate);
            }
            None => self.feed_forward(&mut found.ffn, self.config.ffn_intermediate),
        }
        found
    }

    fn feed_forward(&self, part: &mut Part, width: usize) {
        let hidden = self.config.hidden;
        self.add(part, Use::Other, 2 * width, hidden); // gate and up
        self.add(part, Use::Down, hidden, width);
    }

    fn attention(&self, part: &mut Part) {
        let hidden = self.config.hidden;
        match &self.config.attention {
            AttentionConfig::Gqa(a) => {
                let (queries, keys) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
                self.add(part, Use::Other, queries + keys, hidden);
                self.add(part, Use::Value, keys, hidden);
                self.add(part, Use::Other, hidden, queries);
                let biases = if a.qkv_bias { queries + 2 * keys } else { 0 };
                self.add(part, Use::Vector, 1, biases + if a.output_bias { hidden } else { 0 });
            }
            AttentionConfig::Mla(a) => {
                let queries = a.heads * (a.nope_dim + a.rope_dim);
                match a.q_lora_rank {
                    Some(rank) => {
                        self.add(part, Use::Other, rank, hidden);
                        self.add(part, Use::Other, queries, rank);
                        self.add(part, Use::Vector, 1, rank);
                    }
                    None => self.add(part, Use::Other, queries, hidden),
                }
                self.add(part, Use::Other, a.kv_lora_rank + a.rope_dim, hidden);
                self.add(part, Use::Vector, 1, a.kv_lora_rank);
                // The two halves of kv_b; newer GGUF files have the keys' transposed.
                self.add(part, Use::Other, a.heads * a.kv_lora_rank, a.nope_dim);
                self.add(part, Use::Other, a.heads * a.v_dim, a.kv_lora_rank);
                self.add(part, Use::Other, hidden, a.heads * a.v_dim);
            }
        }
    }
}
