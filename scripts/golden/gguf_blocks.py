"""Blocks of every GGUF weight format and the values that the `gguf` package reads from them."""

import dataclasses
import json
import zlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

RANDOM_BLOCKS = 12


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a block keeps its f16 fields; every other byte may hold anything."""

    d: int  # offset of the scale
    m: int | None = None  # offset of the second field: an added minimum (Q4_1, Q5_1) or dmin (K formats)
    m_of_d: float = 0.0  # second field / scale that centres the values on zero


LAYOUTS = {
    Type.Q8_0: Layout(0),
    Type.Q4_0: Layout(0),
    Type.Q4_1: Layout(0, 2, -7.5),
    Type.Q5_0: Layout(0),
    Type.Q5_1: Layout(0, 2, -15.5),
    Type.Q2_K: Layout(80, 82, 1.5),
    Type.Q3_K: Layout(108),
    Type.Q4_K: Layout(0, 2, 7.5),
    Type.Q5_K: Layout(0, 2, 15.5),
    Type.Q6_K: Layout(208),
    Type.IQ4_NL: Layout(0),
    Type.IQ4_XS: Layout(0),
}
PLAIN = [Type.F32, Type.F16, Type.BF16]


def set_f16(blocks, offset, values):
    blocks[:, offset : offset + 2] = np.asarray(values, dtype="<f2").reshape(-1, 1).view(np.uint8)


def fill(kind, count, d, m, rng):
    """uint8 [count, block_bytes] with random contents and the given f16 fields."""
    layout = LAYOUTS[kind]
    blocks = rng.integers(0, 256, (count, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    set_f16(blocks, layout.d, d)
    if layout.m is not None:
        set_f16(blocks, layout.m, m)
    return blocks


def balance(kind, blocks, rng):
    """Makes each sub-block's minimum nearly its scale, as in centred weights; else sub-blocks are mostly offset."""
    if kind == Type.Q2_K:  # 16 bytes: scale in the low nibble, minimum in the high one
        scale = blocks[:, :16] & 15
        blocks[:, :16] = scale | ((scale ^ rng.integers(0, 2, scale.shape, dtype=np.uint8)) << 4)
    if kind in (Type.Q4_K, Type.Q5_K):  # 12 bytes of 6-bit fields: 0..4 scales, 4..8 minima, 8..12 nibbles of both
        fields = blocks[:, 4:16]
        jitter = rng.integers(0, 4, (2, len(blocks), 4), dtype=np.uint8)
        fields[:, 4:8] = fields[:, 0:4] ^ jitter[0]
        low = fields[:, 8:12] & 15
        fields[:, 8:12] = low | ((low ^ jitter[1]) << 4)


def random_rows(kind, shape, std, rng):
    """Valid random data of `kind` for a tensor [..., columns] whose values have about this standard deviation."""
    values, _ = gguf.GGML_QUANT_SIZES[kind]
    assert shape[-1] % values == 0, (kind, shape)
    count = int(np.prod(shape)) // values
    layout, unit = LAYOUTS[kind], np.ones(256)
    probe = fill(kind, 256, unit, unit * layout.m_of_d, np.random.default_rng(1))
    balance(kind, probe, np.random.default_rng(2))
    d = std / gguf.dequantize(probe, kind).std() * rng.uniform(0.7, 1.3, count)
    blocks = fill(kind, count, d, d * layout.m_of_d, rng)
    balance(kind, blocks, rng)
    return blocks.reshape(*shape[:-1], -1)


def extreme_fields():
    """(name, d, m): what a scale may also be."""
    return [
        ("zero", 0.0, 0.0),
        ("zero scale only", 0.0, 0.5),
        ("zero minimum only", 0.25, 0.0),
        ("negative", -0.125, 0.5),
        ("both negative", -0.03, -0.07),
        ("negative zero", -0.0, -0.0),
        ("smallest subnormal", 2.0**-24, -(2.0**-24)),
        ("subnormal", 3.1e-6, 2.2e-5),
        ("largest", 65504.0, 65504.0),
    ]


def vectors(kind, rng):
    if kind in PLAIN:
        special = [0.0, -0.0, 1.0, -1.0, 2.0**-24, -3.1e-6, 65504.0, 0.1]
        values = np.concatenate([special, rng.standard_normal(56)]).astype("<f4").reshape(2, 32)
        return gguf.quantize(values, kind).view(np.uint8).reshape(2, -1), 32
    layout, fields = LAYOUTS[kind], extreme_fields()
    d = 10.0 ** rng.uniform(-4, 0, RANDOM_BLOCKS)
    m = d * layout.m_of_d * rng.uniform(0.5, 1.5, RANDOM_BLOCKS)
    usual = fill(kind, RANDOM_BLOCKS, d, m, rng)
    extreme = fill(kind, len(fields), [f[1] for f in fields], [f[2] for f in fields], rng)
    uniform = fill(kind, 2, [0.5, 0.5], [0.25, 0.25], rng)
    for block, byte in zip(uniform, (0x00, 0xFF)):  # every quant and sub-block scale at one end of its range
        fields_at = [layout.d] + ([] if layout.m is None else [layout.m])
        keep = [i for at in fields_at for i in (at, at + 1)]
        block[np.setdiff1d(np.arange(len(block)), keep)] = byte
    return np.concatenate([usual, extreme, uniform]), gguf.GGML_QUANT_SIZES[kind][0]


def make(root, only=None):
    for kind in [*PLAIN, *LAYOUTS]:
        name = kind.name.lower()
        rng = np.random.default_rng(zlib.crc32(b"blocks " + name.encode()))
        blocks, block_values = vectors(kind, rng)
        data = blocks.view({Type.F32: "<f4", Type.F16: "<f2"}.get(kind, np.uint8))
        values = gguf.dequantize(data, kind).reshape(len(blocks), block_values)
        assert np.isfinite(values).all()
        out = {
            "format": name,
            "block_values": block_values,
            "block_bytes": blocks.shape[1],
            "blocks_hex": [block.tobytes().hex() for block in blocks],
            # the shortest decimals that read back as the same f32
            "values": [[float(str(value)) for value in row] for row in values.astype(np.float32)],
        }
        (root / f"{name}.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")
        print(name, len(blocks), "blocks, largest", np.abs(values).max())
