//! Choosing experts, and summing what they give. See [`RouteSpec`] for the arithmetic.

use candle_core::{Device, Result as CandleResult, Tensor};
use lingqu_backend::{GroupScore, HostRouting, RouteSpec, Routing, Scoring};

/// The rows in use.
pub fn used(routing: &Routing) -> HostRouting {
    let mut host = routing.storage::<HostRouting>().clone();
    let slots = routing.rows() * routing.top_k();
    host.experts.resize(slots, 0); // rows that were set but never written
    host.weights.resize(slots, 0.0);
    host
}

pub fn store(host: HostRouting, out: &mut Routing) {
    assert_eq!(host.top_k, out.top_k(), "routing: top_k");
    assert_eq!(host.experts.len(), host.weights.len(), "routing: experts and weights");
    assert!(host.experts.len().is_multiple_of(host.top_k.max(1)), "routing: whole rows");
    out.set_rows(host.experts.len() / host.top_k.max(1));
    *out.storage_mut() = host;
}

/// logits `[rows, experts]`, bias `[experts]`
pub fn choose(logits: &[f32], bias: Option<&[f32]>, spec: &RouteSpec) -> HostRouting {
    assert!(spec.top_k <= spec.experts, "route: top {} of {} experts", spec.top_k, spec.experts);
    let mut routing = HostRouting { top_k: spec.top_k, ..HostRouting::default() };
    for logits in logits.chunks_exact(spec.experts) {
        let scores = match spec.scoring {
            Scoring::Softmax => softmax(logits),
            Scoring::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        };
        let choice: Vec<f32> = match bias {
            Some(bias) => {
                assert_eq!(bias.len(), spec.experts, "route: values of the bias");
                scores.iter().zip(bias).map(|(score, bias)| score + bias).collect()
            }
            None => scores.clone(),
        };
        let chosen = best(&choice, &kept_experts(&choice, spec), spec.top_k);
        let sum: f32 = chosen.iter().map(|e| scores[*e]).sum();
        for e in chosen {
            let weight = if spec.normalise && spec.top_k > 1 { scores[e] / (sum + 1e-20) } else { scores[e] };
            routing.experts.push(e as u32);
            routing.weights.push(weight * spec.scale);
        }
    }
    routing
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |most, x| most.max(*x));
    let exps: Vec<f32> = logits.iter().map(|x| (x - largest).exp()).collect();
    let sum: f32 = exps.iter().sum();
    exps.iter().map(|e| e / sum).collect()
}

/// The experts of the best groups, ascending; all of them where there are no groups.
fn kept_experts(choice: &[f32], spec: &RouteSpec) -> Vec<usize> {
    let Some(groups) = spec.groups else { return (0..spec.experts).collect() };
    assert!(groups.groups > 0 && spec.experts.is_multiple_of(groups.groups), "route: equal groups");
    assert!(groups.top_groups <= groups.groups, "route: top {} of {} groups", groups.top_groups, groups.groups);
    let size = spec.experts / groups.groups;
    assert!(spec.top_k <= groups.top_groups * size, "route: top {} of the groups kept", spec.top_k);
    let score = |group: &[f32]| {
        let members: Vec<usize> = (0..size).collect();
        match groups.score {
            GroupScore::Max => best(group, &members, 1).into_iter().map(|e| group[e]).sum(),
            GroupScore::Top2Sum => best(group, &members, 2.min(size)).into_iter().map(|e| group[e]).sum(),
        }
    };
    let scores: Vec<f32> = choice.chunks_exact(size).map(score).collect();
    let all: Vec<usize> = (0..groups.groups).collect();
    let mut kept = best(&scores, &all, groups.top_groups);
    kept.sort_unstable();
    kept.into_iter().flat_map(|group| group * size..(group + 1) * size).collect()
}

/// The `count` candidates of largest value, best first; the earlier of equals, and never one twice (nor, so long as
/// another is left, one that is NaN, unless it is the first).
fn best(values: &[f32], candidates: &[usize], count: usize) -> Vec<usize> {
    let mut left = candidates.to_vec();
    let take = |_| {
        let first = (1..left.len()).fold(0, |best, i| if values[left[i]] > values[left[best]] { i } else { best });
        left.remove(first)
    };
    (0..count).map(take).collect()
}

/// `sum over slots, in slot order, of weight * y`. y `[rows, top_k, hidden]`, result `[rows, hidden]`
pub fn weighted_sum(y: &Tensor, routing: &HostRouting) -> CandleResult<Tensor> {
    let (rows, top_k, hidden) = y.dims3()?;
    let weights = Tensor::from_slice(&routing.weights, (rows, top_k, 1), &Device::Cpu)?;
    let mut sum = Tensor::zeros((rows, hidden), y.dtype(), y.device())?;
    for slot in 0..top_k {
        let (y, weight) = (y.narrow(1, slot, 1)?.squeeze(1)?, weights.narrow(1, slot, 1)?.squeeze(1)?);
        sum = (sum + y.broadcast_mul(&weight)?)?;
    }
    Ok(sum)
}
