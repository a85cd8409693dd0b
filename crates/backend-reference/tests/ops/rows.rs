//! Ops that work along one row.

use lingqu_backend::{LinearSource, RopePairing};

use super::*;

#[test]
fn rms_norm_divides_each_head_by_its_own_root_mean_square() {
    // Heads (3, 4) and (1, 1) of a row of 5, the middle column left alone. Root mean squares: sqrt(12.5) and 1.
    let x = buffer(5, &[3.0, 4.0, 9.0, 1.0, 1.0]);
    let mut view = x.view().cols(0..2);
    (view.heads, view.head_stride) = (2, 3);
    let mut out = empty(1, 4);
    let weight = table([1, 2], &[1.0, 2.0]);
    reference().rms_norm(view, &weight, 0.0, out.view_mut().split_heads(2)).unwrap();
    check_close("rms_norm", &values(&out), &[3.0 / 12.5f64.sqrt(), 8.0 / 12.5f64.sqrt(), 1.0, 2.0]);
    // eps counts: mean square 1 + eps 3 has the root 2.
    reference().rms_norm(view, &weight, 3.0, out.view_mut().split_heads(2)).unwrap();
    check_close("rms_norm with eps", &values(&out)[2..], &[0.5, 1.0]);
}

#[test]
fn rope_turns_the_pairs_of_its_pairing() {
    // Position 1 turns the first pair by 90 degrees and the second by none; position 0 turns nothing.
    let angles = table([2, 4], &[1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
    let x = buffer(4, &[1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
    let check = |pairing, turned: [f64; 4]| {
        let mut out = empty(2, 4);
        reference().rope(&step(&[(2, 0, &[0])], 4), x.view(), &angles, pairing, out.view_mut()).unwrap();
        check_close("position 0", &values(&out)[..4], &[1.0, 2.0, 3.0, 4.0]);
        check_close("position 1", &values(&out)[4..], &turned);
    };
    check(RopePairing::Interleaved, [-2.0, 1.0, 3.0, 4.0]); // (1, 2) becomes (-2, 1)
    check(RopePairing::Half, [-3.0, 2.0, 1.0, 4.0]); // (1, 3) becomes (-3, 1)
}

#[test]
fn rope_follows_the_position_in_each_sequence() {
    // cos = 10 + p, sin = 20 + p: (1, 0) becomes (cos, sin).
    let angles: Vec<f32> = (0..8).flat_map(|p| [10.0 + p as f32, 20.0 + p as f32]).collect();
    let x = buffer(4, &[1.0, 0.0, 2.0, 0.0].repeat(3)); // two heads
    let mut out = empty(3, 4);
    let step = step(&[(2, 3, &[0, 1]), (1, 7, &[2, 3])], 4);
    let table = table([8, 2], &angles);
    let (x, out_view) = (x.view().split_heads(2), out.view_mut().split_heads(2));
    reference().rope(&step, x, &table, RopePairing::Half, out_view).unwrap();
    let row = |p: f64| [10.0 + p, 20.0 + p, 20.0 + 2.0 * p, 40.0 + 2.0 * p];
    check_close("rope", &values(&out), &[row(3.0), row(4.0), row(7.0)].concat());
}

#[test]
fn linear_stacks_its_parts() {
    let parts = [
        HostTensor::from_f32("a", [1, 3], &[1.0, 2.0, 3.0]),
        HostTensor::from_f32("b", [2, 3], &[0.0, -1.0, 0.0, 1.0, 0.0, 1.0]),
    ];
    let biases =
        [HostTensor::from_f32("a.bias", [1, 1], &[100.0]), HostTensor::from_f32("b.bias", [1, 2], &[10.0, 20.0])];
    let x = buffer(3, &[1.0, 2.0, 4.0, 0.0, 1.0, 0.0]);
    let check = |biases: &[HostTensor], expected: [f64; 6]| {
        let weight = reference().upload_linear(LinearSource { parts: &parts, biases }).unwrap();
        assert_eq!((weight.heads, weight.rows, weight.cols), (1, 3, 3));
        let mut out = empty(2, 3);
        reference().linear(x.view(), &weight, out.view_mut()).unwrap();
        check_close("linear", &values(&out), &expected);
    };
    check(&[], [17.0, -2.0, 5.0, 2.0, -1.0, 0.0]);
    check(&biases, [117.0, 8.0, 25.0, 102.0, 9.0, 20.0]);
}

#[test]
fn linear_is_the_sum_of_products() {
    for (rows, inputs, outputs) in [(1, 1, 1), (3, 7, 5), (2, 8, 9), (5, 100, 3)] {
        let (x, w) = (numbers(1, rows * inputs), numbers(2, outputs * inputs));
        let weight = reference().upload_linear(LinearSource::one(&HostTensor::from_f32("w", [outputs, inputs], &w)));
        let mut out = empty(rows, outputs);
        reference().linear(buffer(inputs, &x).view(), &weight.unwrap(), out.view_mut()).unwrap();
        let expected: Vec<f64> = x.chunks_exact(inputs).flat_map(|x| product(&w, &wide(x))).collect();
        check_close("linear", &values(&out), &expected);
    }
}

#[test]
fn linear_heads_gives_each_head_its_matrix() {
    let heads = [HostTensor::from_f32("h0", [1, 2], &[1.0, 1.0]), HostTensor::from_f32("h1", [1, 2], &[1.0, -1.0])];
    let weight = reference().upload_heads(&heads).unwrap();
    assert_eq!((weight.heads, weight.rows, weight.cols, weight.bytes), (2, 1, 2, 16));
    let mut out = empty(2, 2);
    let x = buffer(4, &[1.0, 2.0, 3.0, 5.0, 0.0, 1.0, 0.0, 1.0]);
    reference().linear_heads(x.view().split_heads(2), &weight, out.view_mut().split_heads(2)).unwrap();
    check_close("linear_heads", &values(&out), &[3.0, -2.0, 1.0, -1.0]);
}

#[test]
fn embed_gather_and_add() {
    let embedding = HostTensor::from_f32("embedding", [3, 2], &[0.0, 1.0, 10.0, 11.0, 20.0, 21.0]);
    let embedding = reference().upload_embedding(&embedding).unwrap();
    let step = step(&[(2, 0, &[0]), (3, 0, &[1])], 4); // tokens 0 1 0 1 2, logits of rows 1 and 4
    let mut x = empty(5, 2);
    reference().embed(&step, &embedding, x.view_mut()).unwrap();
    assert_eq!(values(&x), [0.0, 1.0, 10.0, 11.0, 0.0, 1.0, 10.0, 11.0, 20.0, 21.0]);
    let mut last = empty(2, 2);
    reference().gather_logit_rows(&step, x.view(), last.view_mut()).unwrap();
    assert_eq!(values(&last), [10.0, 11.0, 20.0, 21.0]);
    reference().add(buffer(2, &[0.5, -1.0, 2.0, 0.0]).view(), last.view_mut()).unwrap();
    assert_eq!(values(&last), [10.5, 10.0, 22.0, 21.0]);
}
