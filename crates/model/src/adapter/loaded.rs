//! Adapters on a device, and what a forward asks of them.

use std::sync::Arc;

use lingqu_backend::{AdaptedFfn, AdaptedRows, Backend, FfnWeights, LowRank, LowRankSource, Result, View, ViewMut};
use lingqu_types::{AdapterId, Batch};

use super::site::{self, Site};
use super::{ADAPTERS_MAX, Adapter};
use crate::ModelError;
use crate::config::ModelConfig;

/// What one adapter changes in one layer, by [`Site`].
type LayerChanges = [Option<LowRank>; Site::COUNT];

/// Every adapter that a model was given.
#[derive(Default)]
pub(crate) struct Adapters {
    names: Vec<Arc<str>>,
    /// `[adapter][layer]`
    changes: Vec<Vec<LayerChanges>>,
}

impl Adapters {
    pub fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    /// Checks an adapter against the base and uploads it.
    pub fn load(
        &mut self,
        backend: &dyn Backend,
        config: &ModelConfig,
        adapter: &Adapter,
    ) -> Result<AdapterId, ModelError> {
        if self.names.len() == ADAPTERS_MAX {
            return adapter.fail(&adapter.name, &format!("is one more than the {ADAPTERS_MAX} that a model takes"));
        }
        if self.names.contains(&adapter.name) {
            return adapter.fail(&adapter.name, "is loaded already");
        }
        let mut sources: Vec<[Vec<LowRankSource>; Site::COUNT]> = Vec::new();
        sources.resize_with(config.layers, Default::default);
        for change in &adapter.changes {
            let place = match site::place(config, change.role, change.layer) {
                Ok(place) => place,
                Err(why) => return adapter.fail(&change.module, &why),
            };
            let [out, inputs] = place.shape;
            let rank = change.a.rows;
            for (tensor, expected) in [(&change.a, [rank, inputs]), (&change.b, [out, rank])] {
                if [tensor.rows, tensor.cols] != expected {
                    let (name, found) = (tensor.name.clone(), vec![tensor.rows, tensor.cols]);
                    return Err(ModelError::TensorShape { name, found, expected: expected.into() });
                }
            }
            let b = match place.interleaved_heads {
                Some(head_dim) => site::interleave_heads(&change.b, head_dim)?,
                None => change.b.clone(),
            };
            let source = LowRankSource { offset: place.offset, a: change.a.clone(), b, scale: change.scale };
            sources[change.layer][place.site as usize].push(source);
        }
        let mut changes = Vec::with_capacity(config.layers);
        for layer in &sources {
            let mut uploaded = LayerChanges::default();
            for (uploaded, sources) in uploaded.iter_mut().zip(layer).filter(|(_, sources)| !sources.is_empty()) {
                *uploaded = Some(backend.upload_low_rank(sources)?);
            }
            changes.push(uploaded);
        }
        self.names.push(adapter.name.clone());
        self.changes.push(changes);
        Ok(AdapterId(self.names.len() as u32 - 1))
    }

    /// Which rows of a batch each adapter changes.
    pub fn of_batch(&self, batch: &Batch) -> AdaptedBatch<'_> {
        let mut adapted = AdaptedBatch::default();
        for sequence in &batch.sequences {
            let Some(AdapterId(id)) = sequence.adapter else { continue };
            let changes = &*self.changes[id as usize];
            let at = adapted.groups.iter().position(|group| group.id == id).unwrap_or_else(|| {
                adapted.groups.push(Group { id, changes, rows: Vec::new(), logit_rows: Vec::new() });
                adapted.groups.len() - 1
            });
            let group = &mut adapted.groups[at];
            let rows = sequence.rows.start as u32..sequence.rows.end as u32;
            let of_sequence = |row: &u32| batch.logit_rows.partition_point(|other| other < row);
            group.logit_rows.extend(of_sequence(&rows.start) as u32..of_sequence(&rows.end) as u32);
            group.rows.extend(rows);
        }
        adapted
    }
}

/// The rows of one step that adapters change. Without any, all of this is nothing.
#[derive(Default)]
pub(crate) struct AdaptedBatch<'a> {
    groups: Vec<Group<'a>>,
}

/// The rows of one adapter.
struct Group<'a> {
    id: u32,
    /// By layer.
    changes: &'a [LayerChanges],
    /// Ascending.
    rows: Vec<u32>,
    /// The same among the rows whose logits are wanted.
    logit_rows: Vec<u32>,
}

impl AdaptedBatch<'_> {
    /// From here on rows are those whose logits are wanted.
    pub fn keep_logit_rows(&mut self) {
        for group in &mut self.groups {
            group.rows = std::mem::take(&mut group.logit_rows);
        }
        self.groups.retain(|group| !group.rows.is_empty());
    }

    /// Adds to what `linear` made of `x` at a site.
    pub fn add<'a>(
        &'a self,
        b: &dyn Backend,
        (layer, site): (usize, Site),
        x: View<'_>,
        out: ViewMut<'_>,
    ) -> Result<()> {
        let of = |group: &'a Group<'_>| {
            let change = group.changes[layer][site as usize].as_ref()?;
            Some(AdaptedRows { rows: &group.rows, change })
        };
        let adapted: Vec<AdaptedRows<'_>> = self.groups.iter().filter_map(of).collect();
        if adapted.is_empty() {
            return Ok(());
        }
        b.add_low_rank(x, &adapted, out)
    }

    /// The gated feed-forward of a layer.
    pub fn ffn(
        &self,
        b: &dyn Backend,
        layer: usize,
        x: View<'_>,
        weights: &FfnWeights,
        out: ViewMut<'_>,
    ) -> Result<()> {
        let adapted: Vec<AdaptedFfn<'_>> = self
            .groups
            .iter()
            .map(|group| ffn_of(group, layer))
            .filter(|a| a.gate_up.is_some() || a.down.is_some())
            .collect();
        match adapted.is_empty() {
            true => b.ffn(x, weights, out),
            false => b.ffn_adapted(x, weights, &adapted, out),
        }
    }
}

fn ffn_of<'a>(group: &'a Group<'_>, layer: usize) -> AdaptedFfn<'a> {
    let change = |site: Site| group.changes[layer][site as usize].as_ref();
    AdaptedFfn { rows: &group.rows, gate_up: change(Site::GateUp), down: change(Site::Down) }
}
