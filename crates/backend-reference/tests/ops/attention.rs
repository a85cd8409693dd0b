//! The paged cache and attention over it.

use lingqu_backend::{AttentionSpec, KvEntry, KvPrecision, KvSpec, KvStore, LinearSource};

use super::*;

/// `softmax(scale * q . k) v` over all the positions given, in f64.
fn attend(q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>], scale: f64) -> Vec<f64> {
    let exps: Vec<f64> =
        keys.iter().map(|k| (scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()).exp()).collect();
    let sum: f64 = exps.iter().sum();
    (0..values[0].len()).map(|i| exps.iter().zip(values).map(|(e, v)| e / sum * v[i]).sum()).collect()
}

fn kv(blocks: usize, block_tokens: usize, entry: KvEntry) -> KvStore {
    reference().alloc_kv(&KvSpec { layers: 2, blocks, block_tokens, entry, precision: KvPrecision::Full }).unwrap()
}

const SPEC: AttentionSpec = AttentionSpec { layer: 1, scale: 0.7 };

#[test]
fn one_position_gives_its_value() {
    let mut kv = kv(1, 4, KvEntry::Separate { kv_heads: 1, k_dim: 2, v_dim: 1 });
    let step = step(&[(1, 0, &[0])], 4);
    let (k, v) = (buffer(2, &[5.0, 6.0]), buffer(1, &[42.0]));
    reference().kv_append(&step, &mut kv, 1, k.view(), Some(v.view())).unwrap();
    let mut out = empty(1, 1);
    reference().attention(&step, k.view(), &kv, SPEC, out.view_mut()).unwrap();
    assert_eq!(values(&out), [42.0]);
}

#[test]
fn rows_see_their_own_sequence_up_to_themselves() {
    // Two sequences of 4 query heads on 2 kv heads, in blocks of 3 out of order; the first in two steps.
    let (heads, kv_heads, k_dim, v_dim) = (4, 2, 3, 2);
    let mut kv = kv(5, 3, KvEntry::Separate { kv_heads, k_dim, v_dim });
    let lengths = [5, 4];
    let make = |seed, width: usize| [numbers(seed, lengths[0] * width), numbers(seed + 1, lengths[1] * width)];
    let (q, k, v) = (make(10, heads * k_dim), make(20, kv_heads * k_dim), make(30, kv_heads * v_dim));
    let expected = |s: usize, p: usize| -> Vec<f64> {
        let of_head = |x: &[f32], p: usize, width: usize, dim: usize, h: usize| wide(&x[p * width + h * dim..][..dim]);
        let each = |h: usize| {
            let g = h / 2;
            let keys: Vec<_> = (0..=p).map(|p| of_head(&k[s], p, kv_heads * k_dim, k_dim, g)).collect();
            let values: Vec<_> = (0..=p).map(|p| of_head(&v[s], p, kv_heads * v_dim, v_dim, g)).collect();
            attend(&of_head(&q[s], p, heads * k_dim, k_dim, h), &keys, &values, 0.7)
        };
        (0..heads).flat_map(each).collect()
    };
    // (sequence, positions) of each step; blocks of the sequences: 4 0 and 2 1.
    for parts in [vec![(0, 0..2), (1, 0..4)], vec![(0, 2..5)]] {
        let blocks: [&[u32]; 2] = [&[4, 0], &[2, 1]];
        let sequences: Vec<_> = parts.iter().map(|(s, p)| (p.len(), p.start, blocks[*s])).collect();
        let step = step(&sequences, 3);
        let rows = |x: &[Vec<f32>; 2], width: usize| -> Buffer {
            let rows: Vec<f32> =
                parts.iter().flat_map(|(s, p)| x[*s][p.start * width..p.end * width].to_vec()).collect();
            buffer(width, &rows)
        };
        let (q, k, v) = (rows(&q, heads * k_dim), rows(&k, kv_heads * k_dim), rows(&v, kv_heads * v_dim));
        let v = v.view().split_heads(kv_heads);
        reference().kv_append(&step, &mut kv, 1, k.view().split_heads(kv_heads), Some(v)).unwrap();
        let mut out = empty(step.rows(), heads * v_dim);
        let (q, out_view) = (q.view().split_heads(heads), out.view_mut().split_heads(heads));
        reference().attention(&step, q, &kv, SPEC, out_view).unwrap();
        let expected: Vec<f64> = parts.into_iter().flat_map(|(s, p)| p.flat_map(move |p| expected(s, p))).collect();
        check_close("attention", &values(&out), &expected);
    }
}

#[test]
fn absorbed_latent_attention_equals_expanded_attention() {
    // DeepSeek-V2, section 2.1.2: k = [W_uk c, k_rope], v = W_uv c. Absorbed, the query becomes [W_uk^T q, q_rope]
    // and attends over [c, k_rope] with the latent as value; W_uv is applied to the result.
    let (heads, latent, rope_dim, nope_dim, v_dim, positions) = (3, 5, 2, 4, 3, 6);
    let width = latent + rope_dim;
    let entries = numbers(1, positions * width);
    let q = numbers(2, positions * heads * (nope_dim + rope_dim));
    let w_uk: Vec<Vec<f32>> = (0..heads).map(|h| numbers(10 + h as u32, nope_dim * latent)).collect();
    let w_uv: Vec<Vec<f32>> = (0..heads).map(|h| numbers(20 + h as u32, v_dim * latent)).collect();
    let mut expected = Vec::new(); // [positions, heads, v_dim]
    for p in 0..positions {
        for h in 0..heads {
            let q = wide(&q[(p * heads + h) * (nope_dim + rope_dim)..][..nope_dim + rope_dim]);
            let entry = |p: usize| wide(&entries[p * width..][..width]);
            let key = |p: usize| [product(&w_uk[h], &entry(p)[..latent]), entry(p)[latent..].to_vec()].concat();
            let keys: Vec<_> = (0..=p).map(key).collect();
            let values: Vec<_> = (0..=p).map(|p| product(&w_uv[h], &entry(p)[..latent])).collect();
            expected.extend(attend(&q, &keys, &values, 0.7));
        }
    }

    let transposed = |w: &[f32]| -> Vec<f32> {
        (0..latent).flat_map(|c| (0..nope_dim).map(move |n| w[n * latent + c]).collect::<Vec<_>>()).collect()
    };
    let upload =
        |of: &dyn Fn(usize) -> HostTensor| reference().upload_heads(&(0..heads).map(of).collect::<Vec<_>>()).unwrap();
    let absorb = upload(&|h| HostTensor::from_f32("k_b", [latent, nope_dim], &transposed(&w_uk[h])));
    let expand = upload(&|h| HostTensor::from_f32("v_b", [v_dim, latent], &w_uv[h]));
    let step = step(&[(positions, 0, &[1, 2, 0])], 2);
    let mut kv = kv(3, 2, KvEntry::Latent { width, v_dim: latent });
    reference().kv_append(&step, &mut kv, 1, buffer(width, &entries).view(), None).unwrap();
    let q = buffer(heads * (nope_dim + rope_dim), &q);
    let q = q.view().split_heads(heads);
    let mut absorbed = empty(positions, heads * width);
    let (nope, rope) = (q.cols(0..nope_dim), q.cols(nope_dim..nope_dim + rope_dim));
    let to = |buffer: &mut Buffer, x, identity: bool| {
        let out = buffer.view_mut().split_heads(heads);
        if identity {
            let same = HostTensor::from_f32("same", [2, 2], &[1.0, 0.0, 0.0, 1.0]);
            let same = reference().upload_heads(&vec![same; heads]).unwrap();
            reference().linear_heads(x, &same, out.cols(latent..width)).unwrap();
        } else {
            reference().linear_heads(x, &absorb, out.cols(0..latent)).unwrap();
        }
    };
    to(&mut absorbed, nope, false);
    to(&mut absorbed, rope, true);
    let (mut attended, mut out) = (empty(positions, heads * latent), empty(positions, heads * v_dim));
    let view = attended.view_mut().split_heads(heads);
    reference().attention(&step, absorbed.view().split_heads(heads), &kv, SPEC, view).unwrap();
    let view = out.view_mut().split_heads(heads);
    reference().linear_heads(attended.view().split_heads(heads), &expand, view).unwrap();
    check_close("latent attention", &values(&out), &expected);
}

#[test]
fn kv_copy_reads_all_before_it_writes() {
    let mut kv = kv(3, 1, KvEntry::Separate { kv_heads: 1, k_dim: 1, v_dim: 1 });
    let fill = step(&[(3, 0, &[0, 1, 2])], 1);
    let zeros = buffer(1, &[0.0; 3]);
    for layer in 0..2 {
        let v = buffer(1, &[10.0, 20.0, 30.0].map(|v| v + layer as f32));
        reference().kv_append(&fill, &mut kv, layer, zeros.view(), Some(v.view())).unwrap();
    }
    // Blocks 0 and 1 change places; block 2 becomes a copy of 0 as it was.
    let pairs = [(0, 1), (1, 0), (0, 2)].map(|(from, to)| (BlockId(from), BlockId(to)));
    reference().kv_copy(&mut kv, &pairs).unwrap();
    for layer in 0..2 {
        let seen = |block: u32| {
            let mut out = empty(1, 1);
            let step = step(&[(1, 0, &[block])], 1);
            let spec = AttentionSpec { layer, scale: 1.0 };
            reference().attention(&step, buffer(1, &[0.0]).view(), &kv, spec, out.view_mut()).unwrap();
            values(&out)[0] - layer as f32
        };
        assert_eq!([seen(0), seen(1), seen(2)], [20.0, 10.0, 10.0], "layer {layer}");
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    let inputs = 77;
    let (x, w) = (numbers(1, 70 * inputs), numbers(2, 33 * inputs));
    let weight = reference().upload_linear(LinearSource::one(&HostTensor::from_f32("w", [33, inputs], &w))).unwrap();
    let run = |x: &[f32]| {
        let mut out = empty(x.len() / inputs, 33);
        reference().linear(buffer(inputs, x).view(), &weight, out.view_mut()).unwrap();
        values(&out)
    };
    let all = run(&x);
    for (rows, from) in [(1, 0), (1, 69), (2, 5), (3, 11), (4, 7), (16, 20), (17, 50), (64, 6)] {
        let some = run(&x[from * inputs..(from + rows) * inputs]);
        assert_eq!(some, all[from * 33..(from + rows) * 33], "{rows} rows from {from}");
    }
}
