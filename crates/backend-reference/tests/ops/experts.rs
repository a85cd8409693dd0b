//! Routing, the gated feed-forward layer and the experts.

use lingqu_backend::{FfnSource, GroupScore, HostRouting, RouteGroups, RouteSpec, Routing, Scoring};

use super::*;

fn routing(host: &HostRouting) -> Routing {
    let mut routing = reference().alloc_routing(host.experts.len() / host.top_k, host.top_k).unwrap();
    reference().write_routing(host, &mut routing).unwrap();
    routing
}

fn check_route(what: &str, spec: &RouteSpec, logits: &[f64], bias: Option<&[f32]>, expected: &[(u32, f64)]) {
    let logits: Vec<f32> = logits.iter().map(|x| *x as f32).collect();
    let bias = bias.map(|bias| table([1, bias.len()], bias));
    let mut out = reference().alloc_routing(4, spec.top_k).unwrap();
    out.set_rows(2);
    let x = buffer(spec.experts, &logits.repeat(2)); // two rows, alike
    reference().route(x.view(), bias.as_ref(), spec, &mut out).unwrap();
    let got = reference().read_routing(&out).unwrap();
    assert_eq!((out.rows(), got.top_k), (2, spec.top_k), "{what}");
    let (experts, weights): (Vec<u32>, Vec<f64>) = expected.repeat(2).into_iter().unzip();
    assert_eq!(got.experts, experts, "{what}: experts");
    check_close(what, &got.weights, &weights);
}

/// Logits whose softmax is in the proportions `of`.
fn proportions(of: &[f64]) -> Vec<f64> {
    of.iter().map(|p| p.ln()).collect()
}

/// Logits with these sigmoids.
fn sigmoids(of: &[f64]) -> Vec<f64> {
    of.iter().map(|s| (s / (1.0 - s)).ln()).collect()
}

#[test]
fn v2_routes_greedily_by_softmax() {
    let spec = |normalise, scale| RouteSpec {
        experts: 4,
        top_k: 2,
        scoring: Scoring::Softmax,
        groups: None,
        normalise,
        scale,
    };
    let logits = proportions(&[1.0, 4.0, 2.0, 3.0]); // 0.1 0.4 0.2 0.3
    check_route("greedy", &spec(false, 1.0), &logits, None, &[(1, 0.4), (3, 0.3)]);
    check_route("scaled", &spec(false, 16.0), &logits, None, &[(1, 6.4), (3, 4.8)]);
    check_route("normalised", &spec(true, 2.0), &logits, None, &[(1, 8.0 / 7.0), (3, 6.0 / 7.0)]);
    check_route("ties", &spec(false, 1.0), &[0.5; 4], None, &[(0, 0.25), (1, 0.25)]);
    let one = RouteSpec { top_k: 1, ..spec(true, 1.0) };
    check_route("one expert is not normalised", &one, &logits, None, &[(1, 0.4)]);
    let far = [-1000.0, 1000.0, 0.0, 999.0];
    check_route("no overflow", &spec(false, 1.0), &far, None, &[(1, 0.7310586), (3, 0.2689414)]);
}

#[test]
fn v2_limits_the_choice_to_the_groups_of_the_best_experts() {
    let groups = RouteGroups { groups: 3, top_groups: 2, score: GroupScore::Max };
    let spec = RouteSpec {
        experts: 6,
        top_k: 3,
        scoring: Scoring::Softmax,
        groups: Some(groups),
        normalise: false,
        scale: 1.0,
    };
    // Best of the groups: 5, 4, 6: the middle group falls out, though it holds the third best expert.
    let logits = proportions(&[5.0, 1.0, 4.0, 3.0, 6.0, 1.0]);
    check_route("group limited", &spec, &logits, None, &[(4, 0.3), (0, 0.25), (1, 0.05)]);
    // Alike in all: the lower groups and experts.
    check_route("ties", &spec, &[0.0; 6], None, &[(0, 1.0 / 6.0), (1, 1.0 / 6.0), (2, 1.0 / 6.0)]);
}

#[test]
fn v3_chooses_by_corrected_sigmoids_and_weighs_by_plain_ones() {
    let groups = RouteGroups { groups: 3, top_groups: 2, score: GroupScore::Top2Sum };
    let spec = RouteSpec {
        experts: 6,
        top_k: 2,
        scoring: Scoring::Sigmoid,
        groups: Some(groups),
        normalise: true,
        scale: 2.5,
    };
    let logits = sigmoids(&[0.9, 0.1, 0.6, 0.5, 0.3, 0.4]);
    // With the bias: 0.9 0.1 | 0.6 0.5 | 0.8 0.9. Sums of two: 1.0, 1.1, 1.7: the first group falls out.
    let bias = [0.0, 0.0, 0.0, 0.0, 0.5, 0.5];
    check_route("bias", &spec, &logits, Some(&bias), &[(5, 2.5 * 4.0 / 7.0), (4, 2.5 * 3.0 / 7.0)]);
    // Without: sums 1.0, 1.1, 0.7: the last falls out.
    check_route("no bias", &spec, &logits, None, &[(0, 1.5), (2, 1.0)]);
    let plain = RouteSpec { groups: None, normalise: false, scale: 1.0, ..spec };
    check_route("no groups", &plain, &logits, Some(&[0.0, 0.0, 0.7, 0.0, 0.0, 0.0]), &[(2, 0.6), (0, 0.9)]);
}

fn expert(seed: u32, hidden: usize, intermediate: usize) -> ([Vec<f32>; 3], FfnSource) {
    let size = hidden * intermediate;
    let m = [numbers(seed, size), numbers(seed + 1, size), numbers(seed + 2, size)];
    let source = FfnSource {
        gate: HostTensor::from_f32("gate", [intermediate, hidden], &m[0]),
        up: HostTensor::from_f32("up", [intermediate, hidden], &m[1]),
        down: HostTensor::from_f32("down", [hidden, intermediate], &m[2]),
    };
    (m, source)
}

fn ffn([gate, up, down]: &[Vec<f32>; 3], x: &[f32]) -> Vec<f64> {
    let (gate, up) = (product(gate, &wide(x)), product(up, &wide(x)));
    let gated: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
    product(down, &gated)
}

#[test]
fn ffn_gates_with_silu() {
    // One value each: gate 1 x, up 2 x, down 3: 3 * silu(2) * 4 for x = 2.
    let one = |name: &str, v: f32| HostTensor::from_f32(name, [1, 1], &[v]);
    let source = FfnSource { gate: one("gate", 1.0), up: one("up", 2.0), down: one("down", 3.0) };
    let mut out = empty(1, 1);
    let weights = reference().upload_ffn(&source).unwrap();
    reference().ffn(buffer(1, &[2.0]).view(), &weights, out.view_mut()).unwrap();
    check_close("ffn by hand", &values(&out), &[3.0 * 4.0 * 2.0 / (1.0 + (-2f64).exp())]);

    let (matrices, source) = expert(5, 6, 9);
    let weights = reference().upload_ffn(&source).unwrap();
    assert_eq!((weights.hidden, weights.intermediate, weights.bytes), (6, 9, 3 * 54 * 4));
    let x = numbers(9, 3 * 6);
    let mut out = empty(3, 6);
    reference().ffn(buffer(6, &x).view(), &weights, out.view_mut()).unwrap();
    let expected: Vec<f64> = x.chunks_exact(6).flat_map(|x| ffn(&matrices, x)).collect();
    check_close("ffn", &values(&out), &expected);
}

#[test]
fn experts_sum_what_each_row_chose() {
    let (matrices, sources): (Vec<_>, Vec<_>) = (0..4).map(|e| expert(100 + 10 * e, 5, 7)).unzip();
    let weights = reference().upload_experts(&sources).unwrap();
    let host = HostRouting { top_k: 2, experts: vec![3, 0, 0, 2, 2, 3], weights: vec![0.5, 0.25, 1.0, 2.0, 0.0, -1.0] };
    let x = numbers(1, 3 * 5);
    let mut out = empty(3, 5);
    reference().experts(buffer(5, &x).view(), &routing(&host), &weights, out.view_mut()).unwrap();
    let mut expected = vec![0.0; 15];
    for (slot, (e, weight)) in host.experts.iter().zip(&host.weights).enumerate() {
        let y = ffn(&matrices[*e as usize], &x[slot / 2 * 5..][..5]);
        (0..5).for_each(|i| expected[slot / 2 * 5 + i] += f64::from(*weight) * y[i]);
    }
    check_close("experts", &values(&out), &expected);
}

#[test]
fn combine_sums_slot_after_slot() {
    let host = HostRouting { top_k: 2, experts: vec![0; 4], weights: vec![0.5, 2.0, 1.0, -1.0] };
    let y = buffer(2, &[2.0, 4.0, 10.0, 20.0, 1.0, 2.0, 3.0, 4.0]);
    let mut out = empty(2, 2);
    reference().combine(y.view(), &routing(&host), out.view_mut()).unwrap();
    assert_eq!(values(&out), [21.0, 42.0, -2.0, -2.0]);
}
