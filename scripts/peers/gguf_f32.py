"""The same GGUF file with every tensor in f32: what a quantised file means, exactly. Needs `pip install gguf`."""

import gguf
from gguf import quants


def write(source, target):
    """Block formats are dequantised by the package that defines them; the metadata is carried over."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = 0 if name == "general.file_type" else field.contents()  # 0: all f32
        kind, *rest = field.types
        writer.add_key_value(name, value, kind, sub_type=rest[-1] if rest else None)
    for tensor in reader.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype("float32")
        writer.add_tensor(tensor.name, values.reshape([int(n) for n in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def adds_begin_token(path):
    """The id of the token that llama.cpp puts before a text of this model; None where it puts none."""
    fields = gguf.GGUFReader(path).fields
    model, adds = (fields.get(f"tokenizer.ggml.{name}") for name in ("model", "add_bos_token"))
    if not (adds.contents() if adds else model.contents() == "llama"):
        return None
    return fields["tokenizer.ggml.bos_token_id"].contents()
