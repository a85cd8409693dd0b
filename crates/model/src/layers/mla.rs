//! Multi-head latent attention, absorbed (DeepSeek-V2 paper, section 2.1.2 and appendix C): weights and loading.
//! The arithmetic stands in `arch/deepseek.rs`.
//!
//! A head's key is `W_uk c` and its value `W_uv c`, both from the cached latent `c`. Since `q . (W_uk c)` equals
//! `(W_uk^T q) . c` and a weighted sum of values is `W_uv` of the weighted sum of latents, attention runs over the
//! latents themselves and keys and values are never made. For that, `kv_b_proj` is split by head at load, and its
//! key half is transposed.

use lingqu_backend::Weight;
use lingqu_tensor::{BlockScales, Format, HostTensor, TensorError};

use crate::ModelError;
use crate::config::MlaConfig;
use crate::loader::Loader;
use crate::names::Role;

pub(crate) struct MlaWeights {
    /// `[q_lora_rank (or heads * (nope + rope)) + kv_lora_rank + rope, hidden]`: all that reads the hidden state.
    pub query_kv_a: Weight,
    /// Queries through a latent of their own; `None` where `query_kv_a` gives them at once.
    pub query: Option<QueryLatent>,
    /// `[kv_lora_rank]`
    pub kv_norm: Weight,
    /// W_uk^T of each head. `[heads, kv_lora_rank, nope]`
    pub key_absorb: Weight,
    /// W_uv of each head. `[heads, v, kv_lora_rank]`
    pub value_expand: Weight,
    /// `[hidden, heads * v]`
    pub output: Weight,
}

pub(crate) struct QueryLatent {
    /// `[q_lora_rank]`
    pub norm: Weight,
    /// `[heads * (nope + rope), q_lora_rank]`
    pub expand: Weight,
}

pub(crate) fn load(loader: &mut Loader, layer: usize) -> Result<MlaWeights, ModelError> {
    let mla = loader.config.mla();
    let hidden = loader.config.hidden;
    let q_width = mla.heads * (mla.nope_dim + mla.rope_dim);
    let kv_a = loader.tensor(Role::KvA, layer, [mla.kv_lora_rank + mla.rope_dim, hidden])?;
    let (query_a, query) = match mla.q_lora_rank {
        Some(rank) => {
            let norm = loader.vector(Role::QueryANorm, layer, rank)?;
            let expand = loader.linear(Role::QueryB, layer, [q_width, rank])?;
            (loader.tensor(Role::QueryA, layer, [rank, hidden])?, Some(QueryLatent { norm, expand }))
        }
        None => (loader.tensor(Role::Query, layer, [q_width, hidden])?, None),
    };
    let [key_heads, value_heads] = load_kv_b(loader, mla, layer)?;
    Ok(MlaWeights {
        query_kv_a: loader.upload_linear(&[query_a, kv_a], &[])?,
        query,
        kv_norm: loader.vector(Role::KvANorm, layer, mla.kv_lora_rank)?,
        key_absorb: loader.upload_heads(&key_heads)?,
        value_expand: loader.upload_heads(&value_heads)?,
        output: loader.linear(Role::Output, layer, [hidden, mla.heads * mla.v_dim])?,
    })
}

/// For each head W_uk^T `[kv_lora_rank, nope]` and W_uv `[v, kv_lora_rank]`.
fn load_kv_b(loader: &mut Loader, mla: &MlaConfig, layer: usize) -> Result<[Vec<HostTensor>; 2], ModelError> {
    let MlaConfig { heads, kv_lora_rank, nope_dim, v_dim, .. } = *mla;
    if loader.has(Role::KvB, layer) || !loader.has(Role::KeyB, layer) {
        let kv_b = loader.tensor(Role::KvB, layer, [heads * (nope_dim + v_dim), kv_lora_rank])?;
        return Ok(split_kv_b(&kv_b, heads, nope_dim)?);
    }
    // Newer GGUF files: already split, the key half already transposed.
    let (mut key, mut value) = (Vec::new(), Vec::new());
    for head in 0..heads {
        key.push(loader.stacked(Role::KeyB, layer, head, [heads, kv_lora_rank, nope_dim])?);
        value.push(loader.stacked(Role::ValueB, layer, head, [heads, v_dim, kv_lora_rank])?);
    }
    Ok([key, value])
}

/// kv_b `[heads * (nope + v), kv_lora_rank]` by head: W_uk^T `[kv_lora_rank, nope]` and W_uv `[v, kv_lora_rank]`.
///
/// The value half keeps its bytes. The key half is transposed: exactly for floats and for FP8 whose heads start at
/// blocks of scales (as in the releases: 128 + 128 rows a head). Blocks of GGUF formats, and ragged FP8 ones, run
/// across what would become their rows, so that such a half is decoded and kept in f16: the latent projections are
/// under a hundredth of the experts beside them.
fn split_kv_b(kv_b: &HostTensor, heads: usize, nope_dim: usize) -> Result<[Vec<HostTensor>; 2], TensorError> {
    let per_head = kv_b.rows / heads;
    let block = kv_b.scales.as_ref().map_or(1, |s| s.rows_per_block);
    let key_rows = |head: usize| head * per_head..head * per_head + nope_dim;
    let value_rows = |head: usize| head * per_head + nope_dim..(head + 1) * per_head;
    let starts_at_blocks = |first: usize| per_head.is_multiple_of(block) && first.is_multiple_of(block);

    let mut key = Vec::with_capacity(heads);
    if kv_b.format.block_values() == 1 && starts_at_blocks(0) {
        for head in 0..heads {
            key.push(transpose(&kv_b.row_range(format!("{}[key {head}]", kv_b.name), key_rows(head))?)?);
        }
    } else {
        let format = expanded_format(kv_b);
        for head in 0..heads {
            key.push(transpose(&expand(kv_b, key_rows(head), format)?)?);
        }
    }
    let mut value = Vec::with_capacity(heads);
    for head in 0..heads {
        value.push(match starts_at_blocks(nope_dim) {
            true => kv_b.row_range(format!("{}[value {head}]", kv_b.name), value_rows(head))?,
            false => expand(kv_b, value_rows(head), expanded_format(kv_b))?,
        });
    }
    Ok([key, value])
}

/// F16 where no value of the tensor leaves its range, else F32.
fn expanded_format(tensor: &HostTensor) -> Format {
    const F16_MAX: f32 = 65504.0;
    let mut row = vec![0.0; tensor.cols];
    let fits = (0..tensor.rows).all(|r| {
        tensor.decode_row(r, &mut row);
        row.iter().all(|v| v.abs() <= F16_MAX)
    });
    if fits { Format::F16 } else { Format::F32 }
}

/// Rows `rows`, decoded and stored as `format` (F16 or F32).
fn expand(tensor: &HostTensor, rows: std::ops::Range<usize>, format: Format) -> Result<HostTensor, TensorError> {
    let shape = [rows.len(), tensor.cols];
    let mut values = vec![0.0; shape[0] * shape[1]];
    for (row, out) in rows.clone().zip(values.chunks_exact_mut(tensor.cols)) {
        tensor.decode_row(row, out);
    }
    let name = format!("{}[rows {rows:?}]", tensor.name);
    Ok(HostTensor::encode(name, shape, format, &values).expect("floats have no blocks"))
}

/// The transpose of a tensor of single values: exact, bytes are only moved.
fn transpose(tensor: &HostTensor) -> Result<HostTensor, TensorError> {
    let [rows, cols] = [tensor.rows, tensor.cols];
    let data = transpose_items(tensor.data.as_slice(), rows, cols, tensor.format.block_bytes());
    let transposed = HostTensor::new(format!("{}^T", tensor.name), [cols, rows], tensor.format, data.into())?;
    let Some(scales) = &tensor.scales else { return Ok(transposed) };
    let (rows_per_block, cols_per_block) = (scales.rows_per_block, scales.cols_per_block);
    let blocks = [rows.div_ceil(rows_per_block), cols.div_ceil(cols_per_block)];
    let data = transpose_items(scales.data.as_slice(), blocks[0], blocks[1], 4).into();
    transposed.with_scales(BlockScales { data, rows_per_block: cols_per_block, cols_per_block: rows_per_block })
}

/// `[rows, cols]` items of `bytes` each to `[cols, rows]`.
fn transpose_items(items: &[u8], rows: usize, cols: usize, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; items.len()];
    for row in 0..rows {
        for col in 0..cols {
            let (from, to) = ((row * cols + col) * bytes, (col * rows + row) * bytes);
            out[to..to + bytes].copy_from_slice(&items[from..from + bytes]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splitting must give the values of kv_b, at `tolerance`, in `format` for the key half.
    fn check(
        stored: Format,
        block: usize,
        [heads, nope, v, lora]: [usize; 4],
        key_format: Format,
        value_format: Format,
    ) {
        let rows = heads * (nope + v);
        let values: Vec<f32> = (0..rows * lora).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
        let kv_b = match stored {
            Format::Fp8E4M3 => HostTensor::fp8_from_f32("kv_b", [rows, lora], &values, block),
            format => HostTensor::encode("kv_b", [rows, lora], format, &values).unwrap(),
        };
        let whole = kv_b.to_f32();
        let [keys, expanded] = split_kv_b(&kv_b, heads, nope).unwrap();
        assert_eq!((keys.len(), expanded.len()), (heads, heads));
        for head in 0..heads {
            let (key, value) = (&keys[head], &expanded[head]);
            assert_eq!((key.rows, key.cols, key.format), (lora, nope, key_format), "{stored}");
            assert_eq!((value.rows, value.cols, value.format), (v, lora, value_format), "{stored}");
            let (key, value) = (key.to_f32(), value.to_f32());
            let first = head * (nope + v);
            let f16_error = |x: f32| x.abs() / 2048.0;
            for i in 0..lora {
                for n in 0..nope {
                    let expected = whole[(first + n) * lora + i];
                    assert!((key[i * nope + n] - expected).abs() <= f16_error(expected), "{stored} key {head} {n} {i}");
                }
                for n in 0..v {
                    let expected = whole[(first + nope + n) * lora + i];
                    assert!((value[n * lora + i] - expected).abs() <= f16_error(expected), "{stored} value");
                }
            }
        }
    }

    #[test]
    fn kv_b_is_split_by_head() {
        use Format::*;
        for format in [F32, F16, Bf16] {
            check(format, 1, [3, 5, 2, 7], format, format);
        }
        // Heads on blocks of scales, a last block ragged in the columns; keys not whole blocks; nothing on blocks.
        check(Fp8E4M3, 4, [2, 8, 4, 10], Fp8E4M3, Fp8E4M3);
        check(Fp8E4M3, 4, [2, 6, 2, 10], Fp8E4M3, F16);
        check(Fp8E4M3, 4, [3, 5, 2, 10], F16, F16);
        check(Q8_0, 1, [2, 5, 3, 64], F16, Q8_0);
        check(Q4K, 1, [2, 4, 3, 256], F16, Q4K);
    }

    #[test]
    fn large_values_stay_in_f32() {
        let kv_b = HostTensor::encode("kv_b", [4, 32], Format::Q8_0, &[100_000.0; 128]).unwrap();
        let [keys, _] = split_kv_b(&kv_b, 2, 1).unwrap();
        assert_eq!(keys[0].format, Format::F32);
    }
}
