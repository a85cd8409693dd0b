//! The router: scores, groups, the best experts and their weights, step by step as `RouteSpec` says.

use lingqu_backend::{GroupScore, RouteGroups, RouteSpec, Routing, Scoring, View, Weight};

use crate::Core;
use crate::math::{exp, sigmoid};
use crate::memory::{Routed, Source};
use crate::weights::Table;

pub(crate) fn route(core: &Core, logits: View<'_>, bias: Option<&Weight>, spec: &RouteSpec, out: &mut Routing) {
    let logits = Source::of(logits).flattened();
    let bias = bias.map(|bias| &bias.storage::<Table>().0[..]);
    assert!(logits.heads == 1 && logits.len == spec.experts, "logits of {} experts", spec.experts);
    assert!(bias.is_none_or(|bias| bias.len() == spec.experts), "a bias for each expert");
    assert!(out.rows() == logits.rows && out.top_k() == spec.top_k && spec.top_k <= spec.experts, "shape of a routing");
    let scratch = &mut core.scratch().router;
    let routed = out.storage_mut::<Routed>();
    let slots = routed.experts.chunks_exact_mut(spec.top_k).zip(routed.weights.chunks_exact_mut(spec.top_k));
    for (row, (experts, weights)) in slots.take(logits.rows).enumerate() {
        route_row(logits.head(row, 0), bias, spec, scratch, experts, weights);
    }
}

/// Scores of one row's experts.
#[derive(Default)]
pub(crate) struct RouterScratch {
    scores: Vec<f32>,
    /// What experts are chosen by; no number at all where an expert cannot be chosen (any more).
    choices: Vec<Option<f32>>,
    groups: Vec<Option<f32>>,
}

fn route_row(
    logits: &[f32],
    bias: Option<&[f32]>,
    spec: &RouteSpec,
    scratch: &mut RouterScratch,
    experts: &mut [u32],
    weights: &mut [f32],
) {
    let RouterScratch { scores, choices, groups } = scratch;
    score(logits, spec.scoring, scores);
    choices.clear();
    choices.extend(scores.iter().enumerate().map(|(e, score)| Some(bias.map_or(*score, |bias| score + bias[e]))));
    if let Some(limit) = &spec.groups {
        keep_groups(limit, choices, groups);
    }
    for (slot, expert) in experts.iter_mut().enumerate() {
        let best = best(choices).expect("kept groups have experts enough");
        choices[best] = None;
        *expert = best as u32;
        weights[slot] = scores[best];
    }
    if spec.normalise && spec.top_k > 1 {
        let sum = weights.iter().fold(0.0, |sum: f32, weight| sum + weight) + 1e-20;
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    weights.iter_mut().for_each(|weight| *weight *= spec.scale);
}

fn score(logits: &[f32], scoring: Scoring, scores: &mut Vec<f32>) {
    scores.clear();
    match scoring {
        Scoring::Sigmoid => scores.extend(logits.iter().map(|&x| sigmoid(x))),
        Scoring::Softmax => {
            let most = logits.iter().fold(f32::NEG_INFINITY, |most, &x| if x > most { x } else { most });
            scores.extend(logits.iter().map(|&x| exp(x - most)));
            let sum = scores.iter().fold(0.0, |sum: f32, score| sum + score);
            scores.iter_mut().for_each(|score| *score /= sum);
        }
    }
}

/// The index of the largest value, the lower of equal ones; a NaN counts as the least.
fn best(values: &[Option<f32>]) -> Option<usize> {
    let rank = |value: f32| if value.is_nan() { f32::NEG_INFINITY } else { value };
    let mut best: Option<(usize, f32)> = None;
    for (i, value) in values.iter().enumerate() {
        let Some(value) = value.map(rank) else { continue };
        if best.is_none_or(|(_, most)| value > most) {
            best = Some((i, value));
        }
    }
    best.map(|(i, _)| i)
}

/// Takes the experts of all but the best groups out of the choice.
fn keep_groups(limit: &RouteGroups, choices: &mut [Option<f32>], groups: &mut Vec<Option<f32>>) {
    assert!(choices.len().is_multiple_of(limit.groups), "equal groups");
    let size = choices.len() / limit.groups;
    groups.clear();
    groups.extend(choices.chunks_exact(size).map(|group| Some(group_score(group, limit.score))));
    for _ in 0..limit.top_groups.min(limit.groups) {
        let kept = best(groups).expect("a group is left");
        groups[kept] = None;
    }
    for (group, choices) in groups.iter().zip(choices.chunks_exact_mut(size)) {
        if group.is_some() {
            choices.fill(None);
        }
    }
}

fn group_score(group: &[Option<f32>], score: GroupScore) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &value in group.iter().flatten() {
        if value > first {
            (first, second) = (value, first);
        } else if value > second {
            second = value;
        }
    }
    match score {
        GroupScore::Max => first,
        GroupScore::Top2Sum if group.len() == 1 => first,
        GroupScore::Top2Sum => first + second,
    }
}
