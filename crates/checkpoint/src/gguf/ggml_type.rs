//! The tensor types of GGUF (`enum ggml_type`): those with a [`Format`], and the sizes of those without, so that files
//! which hold some can still be listed and checked.

use lingqu_tensor::Format;

use crate::tensors::Stored;

/// The type with this id, or `None` for ids that this reader has never heard of.
pub fn ggml_type(id: u32) -> Option<Stored> {
    let format = match id {
        0 => Format::F32,
        1 => Format::F16,
        2 => Format::Q4_0,
        3 => Format::Q4_1,
        6 => Format::Q5_0,
        7 => Format::Q5_1,
        8 => Format::Q8_0,
        10 => Format::Q2K,
        11 => Format::Q3K,
        12 => Format::Q4K,
        13 => Format::Q5K,
        14 => Format::Q6K,
        20 => Format::Iq4Nl,
        23 => Format::Iq4Xs,
        30 => Format::Bf16,
        _ => return listed_only(id),
    };
    Some(Stored::from(format))
}

/// Types that are listed but not decoded.
fn listed_only(id: u32) -> Option<Stored> {
    let (name, block_values, block_bytes) = match id {
        9 => ("Q8_1", 32, 40),
        15 => ("Q8_K", 256, 292),
        16 => ("IQ2_XXS", 256, 66),
        17 => ("IQ2_XS", 256, 74),
        18 => ("IQ3_XXS", 256, 98),
        19 => ("IQ1_S", 256, 50),
        21 => ("IQ3_S", 256, 110),
        22 => ("IQ2_S", 256, 82),
        24 => ("I8", 1, 1),
        25 => ("I16", 1, 2),
        26 => ("I32", 1, 4),
        27 => ("I64", 1, 8),
        28 => ("F64", 1, 8),
        29 => ("IQ1_M", 256, 56),
        34 => ("TQ1_0", 256, 54),
        35 => ("TQ2_0", 256, 66),
        39 => ("MXFP4", 32, 17),
        40 => ("NVFP4", 64, 36),
        41 => ("Q1_0", 128, 18),
        _ => return None,
    };
    Some(Stored { format: None, name: name.into(), block_values, block_bytes })
}
