//! What the world may bring is an error; what only a bug of ours can bring is a panic that says which.

use lingqu_backend::{BackendError, KvEntry, KvPrecision, KvSpec, LinearSource};
use lingqu_tensor::Format;

use super::*;

#[test]
fn views_leave_the_columns_beside_them_alone() {
    let mut out = buffer(5, &[1.0; 10]);
    reference().write(&[2.0, 3.0, 4.0, 5.0], out.view_mut().cols(1..5).split_heads(2).cols(1..2)).unwrap();
    assert_eq!(values(&out), [1.0, 1.0, 2.0, 1.0, 3.0, 1.0, 1.0, 4.0, 1.0, 5.0]);
    let mut read = [0.0; 4];
    reference().read(out.view().cols(1..5).split_heads(2).cols(1..2), &mut read).unwrap();
    assert_eq!(read, [2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name() {
    let mut w = HostTensor::encode("layer.7", [2, 32], Format::Q8_0, &[1.0; 64]).unwrap();
    let mut data = w.data.as_slice().to_vec();
    data[34..36].copy_from_slice(&[0x00, 0x7e]); // the scale of the second row becomes NaN
    w.data = data.into();
    let error = reference().upload_linear(LinearSource::one(&w)).err().expect("a NaN scale");
    assert!(matches!(&error, BackendError::Tensor(t) if t.name == "layer.7"), "{error}");
}

#[test]
fn what_cannot_be_held_is_an_error() {
    let entry = KvEntry::Latent { width: 576, v_dim: 512 };
    for blocks in [1 << 45, usize::MAX / 2] {
        let error =
            reference().alloc_kv(&KvSpec { layers: 61, blocks, block_tokens: 64, entry, precision: KvPrecision::Full });
        assert!(matches!(error, Err(BackendError::OutOfMemory { .. })), "{blocks} blocks");
    }
    assert!(matches!(reference().alloc(1 << 50, 1 << 10), Err(BackendError::OutOfMemory { .. })));
}

#[test]
#[should_panic(expected = "linear: heads and inputs")]
fn a_wrong_width_panics() {
    let w = HostTensor::from_f32("w", [1, 3], &[0.0; 3]);
    let w = reference().upload_linear(LinearSource::one(&w)).unwrap();
    let _ = reference().linear(buffer(2, &[0.0; 2]).view(), &w, empty(1, 1).view_mut());
}

#[test]
#[should_panic(expected = "linear: rows in use")]
fn wrong_rows_panic() {
    let w = HostTensor::from_f32("w", [1, 2], &[0.0; 2]);
    let w = reference().upload_linear(LinearSource::one(&w)).unwrap();
    let _ = reference().linear(buffer(2, &[0.0; 4]).view(), &w, empty(1, 1).view_mut());
}

#[test]
#[should_panic(expected = "row 3 of a table of 3")]
fn a_token_beyond_the_embedding_panics() {
    let embedding = HostTensor::from_f32("embedding", [3, 1], &[0.0; 3]);
    let embedding = reference().upload_embedding(&embedding).unwrap();
    let _ = reference().embed(&step(&[(4, 0, &[0])], 4), &embedding, empty(4, 1).view_mut());
}
