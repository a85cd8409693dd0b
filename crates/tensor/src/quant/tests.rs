//! Hand-computed blocks, and what an encoder writes read back within its steps.

use super::*;

/// Blocks in which each field is given its own bits, with values worked out by hand from the layout.
#[test]
fn fields_lie_where_the_layout_says() {
    // `set`: bytes to put into a zeroed block; `expect`: values by index.
    let check = |format: Format, set: &[(usize, u8)], expect: &[(usize, f32)]| {
        let mut block = vec![0; format.block_bytes()];
        set.iter().for_each(|&(at, byte)| block[at] = byte);
        let mut out = vec![f32::NAN; format.block_values()];
        decode_block(format, &block, &mut out);
        for &(i, value) in expect {
            assert_eq!(out[i], value, "{format} value {i} of {set:?}");
        }
    };
    const ONE: u8 = 0x3c; // the high byte of 1.0 in f16; 0x40 is 2.0
    const TWO: u8 = 0x40;
    check(Format::F32, &[(2, 0x80), (3, 0x3f)], &[(0, 1.0)]);
    check(Format::F16, &[(1, 0xc0)], &[(0, -2.0)]);
    check(Format::Bf16, &[(0, 0xc0), (1, 0x3f)], &[(0, 1.5)]);
    check(Format::Fp8E4M3, &[(0, 0xc1)], &[(0, -2.25)]);
    check(Format::Q8_0, &[(1, TWO), (2, 0xff), (33, 5)], &[(0, -2.0), (1, 0.0), (31, 10.0)]);
    check(Format::Q4_0, &[(1, TWO), (2, 0x9f)], &[(0, 14.0), (16, 2.0), (1, -16.0)]);
    check(Format::Q4_1, &[(1, TWO), (3, ONE), (4, 0x9f)], &[(0, 31.0), (16, 19.0), (1, 1.0)]);
    check(Format::Q5_0, &[(1, TWO), (2, 1), (4, 2), (6, 0x9f)], &[(0, 30.0), (16, -14.0), (17, 0.0), (1, -32.0)]);
    check(Format::Q5_1, &[(1, TWO), (3, ONE), (7, 0x80), (23, 0x30)], &[(31, 39.0), (15, 1.0)]);
    check(Format::Iq4Nl, &[(1, ONE), (2, 0xf0)], &[(0, -127.0), (16, 113.0)]);
    // Group 15 (last 16 values): scale 3, min 2; last quant 2 in the top bits of the last byte.
    let q2_k = [(81, ONE), (83, TWO), (15, 0x23), (79, 0x80), (16, 1), (0, 1)];
    check(Format::Q2K, &q2_k, &[(255, 3.0 * 2.0 - 4.0), (254, -4.0), (0, 1.0), (1, 0.0)]);
    // All scales -32; value 0: low 1, no high bit, so 1 - 4; value 33: high bit set, so 0. Scale 12: 5 - 32.
    let q3_k = [(109, ONE), (32, 1), (1, 2), (96 + 4, 0x50), (31, 0x80), (95, 0xc0)];
    check(Format::Q3K, &q3_k, &[(0, 96.0), (33, 0.0), (192, 27.0 * 4.0), (255, -32.0 * 3.0), (32, 128.0)]);
    check(Format::Q3K, &[(109, ONE), (96 + 8, 0b0100_0000)], &[(12 * 16, 16.0 * 4.0), (0, 128.0)]);
    // Group 1: scale 63, min 1. Group 5: scale 0x21 (low nibble of byte 9, top bits of byte 1), min 0x12.
    let q4_k = [(1, ONE), (3, TWO), (4 + 1, 63 | 0x80), (4 + 5, 1 | 0x40), (4 + 9, 0x21), (16, 0x70), (16 + 64, 0x70)];
    check(Format::Q4K, &q4_k, &[(32, 63.0 * 7.0 - 2.0), (160, 33.0 * 7.0 - 36.0), (161, -36.0), (0, 0.0)]);
    let q5_k = [(1, ONE), (3, TWO), (4 + 1, 63 | 0x80), (4 + 5, 1 | 0x40), (4 + 9, 0x21), (48, 0x70), (48 + 64, 0x70)];
    check(Format::Q5K, &q5_k, &[(32, 63.0 * 7.0 - 2.0), (160, 33.0 * 7.0 - 36.0)]);
    let q5_k_high = [&q5_k[..], &[(16, 0x20)]].concat();
    check(Format::Q5K, &q5_k_high, &[(32, 63.0 * 7.0 - 2.0), (160, 33.0 * 23.0 - 36.0), (161, -36.0)]);
    // Scale of group 2: -1; value 33: low 9 of byte 33, high 2 of byte 1 (second pair): 41 - 32.
    let q6_k = [(209, TWO), (192 + 2, 0xff), (33, 0x09), (128 + 1, 0x08), (192 + 15, 2), (127, 0xf0), (191, 0xc0)];
    check(Format::Q6K, &q6_k, &[(33, -18.0), (32, 64.0), (255, 4.0 * 31.0), (0, 0.0)]);
    // Group 3: scale 0x2a - 32: low nibble 0xa in the high half of byte 5, high bits 2 at bit 6. Group 0: -32.
    let iq4_xs = [(1, ONE), (2, 0x80), (4 + 1, 0xa0), (8 + 48, 0x8f)];
    check(Format::Iq4Xs, &iq4_xs, &[(96, 10.0 * 113.0), (112, 10.0), (0, -32.0 * -127.0)]);
}

#[test]
fn what_is_encoded_decodes_within_its_steps() {
    // Largest error allowed, as a share of the row's largest magnitude.
    let check = |format: Format, allowed: f32| {
        // Uneven, signed, with a few large values, a block of zeros and one of positive values.
        let value = |i: usize| match i / 256 {
            2 => 0.0,
            3 => 1.0 + (i % 17) as f32 / 16.0,
            _ => ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * if i.is_multiple_of(97) { 3.0 } else { 1.0 },
        };
        let values: Vec<f32> = (0..1024).map(value).collect();
        let row = encode_row(format, &values).expect("1024 values are whole blocks");
        let mut decoded = vec![f32::NAN; 1024];
        decode_blocks(format, &row, &mut decoded);
        let error = values.iter().zip(&decoded).fold(0.0, |worst: f32, (a, b)| worst.max((a - b).abs()));
        assert!(error <= allowed * 3.0, "{format}: {error}");
        assert!(decoded[512..768].iter().all(|&v| v == 0.0), "{format}: zeros stay zeros");
        assert!(encode_row(format, &values[..1001]).is_none() || format.block_values() == 1);
    };
    check(Format::F32, 0.0);
    check(Format::F16, 0.0005);
    check(Format::Bf16, 0.004);
    check(Format::Q8_0, 0.005);
    check(Format::Q4_0, 0.13);
    check(Format::Q4_1, 0.07);
    check(Format::Q5_0, 0.07);
    check(Format::Q5_1, 0.035);
    check(Format::Q2K, 0.4);
    check(Format::Q3K, 0.27);
    check(Format::Q4K, 0.08);
    check(Format::Q5K, 0.04);
    check(Format::Q6K, 0.04);
    check(Format::Iq4Nl, 0.12);
    check(Format::Iq4Xs, 0.14);
    assert!(encode_row(Format::Fp8E4M3, &[1.0]).is_none());
}

#[test]
fn fp8_bytes_and_values_agree() {
    let check = |byte: u8, value: f32| assert_eq!(fp8_e4m3_to_f32(byte), value, "{byte:#x}");
    check(0x00, 0.0);
    check(0x01, 0.001953125);
    check(0x07, 0.013671875);
    check(0x08, 0.015625);
    check(0x38, 1.0);
    check(0x39, 1.125);
    check(0x7e, 448.0);
    check(0xfe, -448.0);
    assert!(fp8_e4m3_to_f32(0x7f).is_nan() && fp8_e4m3_to_f32(0xff).is_nan());
    for byte in 0..=255 {
        assert_eq!(fp8_e4m3_from_f32(fp8_e4m3_to_f32(byte)), byte, "{byte:#x} there and back");
    }
    // Halfway between two neighbours goes to the even one; just beyond goes up.
    for byte in 0..0x7e {
        let half = (fp8_e4m3_to_f32(byte) + fp8_e4m3_to_f32(byte + 1)) / 2.0;
        assert_eq!(fp8_e4m3_from_f32(half), byte + (byte & 1), "{half}");
        assert_eq!(fp8_e4m3_from_f32(half * 1.000001), byte + 1, "{half}");
        assert_eq!(fp8_e4m3_from_f32(-half), 0x80 | (byte + (byte & 1)), "{half}");
    }
    assert_eq!(fp8_e4m3_from_f32(1e9), 0x7e);
    assert_eq!(fp8_e4m3_from_f32(1e-30), 0);
}

#[test]
fn fp8_tiles_scale_by_their_own_largest() {
    // 3 x 5 in tiles of 2: the tile with 44.8 gets scale 0.1, zeros get 1.
    let mut values = [0.0; 15];
    values[2] = 44.8; // row 0, column 2: tile 1 of the upper row
    values[14] = -896.0; // row 2, column 4: tile 2 of the lower row
    let fp8 = encode_fp8_blocks(&values, [3, 5], 2);
    assert_eq!(fp8.scales, [1.0, 44.8 / 448.0, 1.0, 1.0, 1.0, 2.0]);
    assert_eq!((fp8.data[2], fp8.data[14], fp8.data[0]), (0x7e, 0xfe, 0));
}
