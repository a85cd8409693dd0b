//! The router: the experts must be the same, the weights close.

use lingqu_tensor::HostTensor;

use super::place::{Place, select};
use super::random::Random;
use super::report::Subject;
use super::{Case, Problem, RunRows, tolerance};
use crate::{Backend, GroupScore, RouteGroups, RouteSpec, Scoring};

pub struct Route {
    spec: RouteSpec,
    bias: Option<HostTensor>,
    /// `[rows, experts]`
    logits: Vec<f32>,
    place: Place,
}

/// Two values closer than this share of the larger may change places by rounding.
const APART: f64 = 2e-5;

impl Route {
    pub fn random(random: &mut Random, number: usize) -> Self {
        let scoring = [Scoring::Softmax, Scoring::Sigmoid][number % 2];
        let group_count = random.pick(&[1, 2, 3, 4, 8]);
        let experts = group_count * random.within(1, 9);
        let with_groups = |top_groups, score| RouteGroups { groups: group_count, top_groups, score };
        let groups = match number / 2 % 3 {
            0 => None,
            1 => Some(with_groups(random.within(1, group_count), GroupScore::Max)),
            _ => Some(with_groups(random.within(1, group_count), GroupScore::Top2Sum)),
        };
        let kept = groups.map_or(experts, |g| experts / g.groups * g.top_groups);
        let top_k = random.within(1, kept.min(8));
        let (normalise, scale) = (random.chance(), random.pick(&[1.0, 2.5, 16.0]));
        let spec = RouteSpec { experts, top_k, scoring, groups, normalise, scale };
        let bias = random.chance().then(|| random.values(experts));
        let rows = random.within(1, 40);
        let mut logits = Vec::new();
        for row in 0..rows {
            let mut of_row = vec![0.25; experts]; // all equal: the lower numbers win
            while row > 0 || bias.is_some() {
                of_row = random.values(experts);
                if is_clear(&of_row, bias.as_deref(), &spec) {
                    break;
                }
            }
            logits.extend(of_row);
        }
        let bias = bias.map(|bias| HostTensor::from_f32("bias", [1, experts], &bias));
        Self { spec, bias, logits, place: Place::flat(random, experts) }
    }
}

/// Whether no two experts, and no two groups, are so close that rounding decides.
fn is_clear(logits: &[f32], bias: Option<&[f32]>, spec: &RouteSpec) -> bool {
    let logits = tolerance::wide(logits);
    let sum: f64 = logits.iter().map(|x| x.exp()).sum();
    let score = |x: &f64| match spec.scoring {
        Scoring::Softmax => x.exp() / sum,
        Scoring::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    };
    let mut choice: Vec<f64> = logits.iter().map(score).collect();
    if let Some(bias) = bias {
        choice.iter_mut().zip(bias).for_each(|(choice, bias)| *choice += f64::from(*bias));
    }
    let descending = |mut values: Vec<f64>| {
        values.sort_by(|a, b| b.total_cmp(a));
        values
    };
    let apart =
        |values: &[f64]| descending(values.to_vec()).windows(2).all(|w| w[0] - w[1] > APART * w[0].abs().max(0.01));
    let group_scores = spec.groups.map_or(Vec::new(), |groups| {
        let counted = if groups.score == GroupScore::Max { 1 } else { 2 };
        let of_group = |group: &[f64]| descending(group.to_vec()).iter().take(counted).sum();
        choice.chunks_exact(spec.experts / groups.groups).map(of_group).collect()
    });
    apart(&choice) && apart(&group_scores)
}

impl Case for Route {
    fn subject(&self) -> Subject {
        Subject { op: "route", format: None }
    }

    fn rows(&self) -> usize {
        self.logits.len() / self.spec.experts
    }

    /// Of each row: the experts, then their weights.
    fn prepare<'a>(&'a self, backend: &'a dyn Backend) -> Result<RunRows<'a>, Problem> {
        let bias = self.bias.as_ref().map(|bias| backend.upload_table(bias)).transpose()?;
        Ok(Box::new(move |rows| {
            let logits = self.place.input(backend, &select(&self.logits, self.spec.experts, rows))?;
            let mut out = backend.alloc_routing(rows.len() + 2, self.spec.top_k)?;
            out.set_rows(rows.len());
            backend.route(self.place.view(&logits), bias.as_ref(), &self.spec, &mut out)?;
            let host = backend.read_routing(&out)?;
            let slots = rows.len() * self.spec.top_k;
            if (host.top_k, host.experts.len(), host.weights.len()) != (self.spec.top_k, slots, slots) {
                return Err(Problem(format!("a routing of {} slots, not {slots}", host.experts.len())));
            }
            let experts = host.experts.chunks_exact(host.top_k);
            let rows = experts.zip(host.weights.chunks_exact(host.top_k));
            Ok(rows.flat_map(|(e, w)| e.iter().map(|e| *e as f32).chain(w.iter().copied())).collect())
        }))
    }

    /// An expert is right or wrong; weights are compared with the scale.
    fn magnitudes(&self) -> Vec<f64> {
        let top_k = self.spec.top_k;
        let row = [vec![1.0; top_k], vec![f64::from(self.spec.scale); top_k]].concat();
        row.repeat(self.rows())
    }

    fn tolerance(&self) -> f64 {
        tolerance::FLOAT
    }
}
