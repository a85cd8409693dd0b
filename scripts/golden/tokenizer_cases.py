"""Small tokenizers with the pre-tokenizers of the real ones, and golden ids for them and for the real ones."""

import json
import pathlib

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from . import gguf_vocab
from .tokenizer_texts import ALMOST_SPECIAL, SPECIAL_TEXTS, TEXTS, TRAINING

CACHE = pathlib.Path(__file__).resolve().parents[2] / ".cache"
# As in the tokenizer.json files of Llama 3, Qwen 2.5 and DeepSeek-V3/R1 (llama.cpp's llama-bpe, qwen2, deepseek-v3).
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (
    CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK3 = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]
DEEPSEEK_BOS, DEEPSEEK_EOS, DEEPSEEK_PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
DEEPSEEK_ADDED = ["<think>", "</think>", "<｜User｜>", "<｜Assistant｜>"]


def split_by(*patterns):
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def smollm_split():
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


def special(content):
    return AddedToken(content, special=True, normalized=False)


def plain(content, normalized=True):
    return AddedToken(content, special=False, normalized=normalized)


# llama.cpp's name -> how the tokenizer is built. `first` get the lowest ids, `added` follow the trained vocabulary.
SMALL = {
    "llama-bpe": dict(
        split=split_by(LLAMA3), first=[], ignore_merges=True, bos="<|begin_of_text|>", eos="<|eot_id|>", add_bos=True,
        bos_in_tokenizer_json=True,
        added=[special(t) for t in ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                                    "<|end_header_id|>", "<|eot_id|>")]),
    "qwen2": dict(
        split=split_by(QWEN2), first=[], nfc=True, bos=None, eos="<|im_end|>", add_bos=False,
        added=[special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>"),
               plain("<think>", False), plain("</think>", False)]),
    "deepseek-v3": dict(
        split=split_by(*DEEPSEEK3), first=[DEEPSEEK_BOS, DEEPSEEK_EOS, DEEPSEEK_PAD], bos=DEEPSEEK_BOS,
        eos=DEEPSEEK_EOS, add_bos=True, added=[plain(t) for t in DEEPSEEK_ADDED] + [special("<|EOT|>")]),
    "deepseek-r1-qwen": dict(
        split=split_by(QWEN2), first=[], bos=DEEPSEEK_BOS, eos=DEEPSEEK_EOS, add_bos=True,
        added=[special(DEEPSEEK_EOS), plain("<｜User｜>", False), plain("<｜Assistant｜>", False),
               special(DEEPSEEK_BOS), special("<|EOT|>"), plain("<think>", False), plain("</think>", False)]),
    "smollm": dict(
        split=smollm_split(), first=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], bos="<|im_start|>",
        eos="<|im_end|>", add_bos=False, added=[]),
}  # fmt: skip
SMALL_VOCAB = 800


def small_tokenizer(how):
    # Trained on short lines too, so that common words become tokens within so few merges.
    lines = TRAINING.splitlines(keepends=True)
    tokenizer = gguf_vocab.byte_level_bpe(lines, SMALL_VOCAB, how["split"], how["first"])
    state = json.loads(tokenizer.to_str())
    if how.get("ignore_merges"):
        # Tokens without the merge that makes them: only looking whole words up finds them, as in Llama 3.
        state["model"]["merges"] = [m for m in state["model"]["merges"] if "".join(m) not in ("Ġthe", "ĠFrance", "ing")]
        state["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([special(content) for content in how["first"]])
    for token in how["added"]:
        tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
    tokenizer.decoder = decoders.ByteLevel()
    if how.get("nfc"):
        tokenizer.normalizer = normalizers.NFC()
    if how.get("bos_in_tokenizer_json"):
        bos = (how["bos"], tokenizer.token_to_id(how["bos"]))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos[0]} $A", pair=f"{bos[0]} $A {bos[0]}:1 $B:1", special_tokens=[bos]
        )
    return tokenizer


def gguf_form(tokenizer, pre, how):
    """The same vocabulary as GGUF metadata holds it."""
    state = json.loads(tokenizer.to_str())
    by_id = {index: token for token, index in state["model"]["vocab"].items()}
    kinds = dict.fromkeys(by_id, int(gguf.TokenType.NORMAL))
    for added in state["added_tokens"]:
        by_id[added["id"]] = added["content"]
        kinds[added["id"]] = int(gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED)
    ids = range(len(by_id))
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": [by_id[i] for i in ids],
        "token_type": [kinds[i] for i in ids],
        "merges": [m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]],
        "bos": None if how["bos"] is None else tokenizer.token_to_id(how["bos"]),
        "eos": tokenizer.token_to_id(how["eos"]),
        "add_bos": how["add_bos"],
    }


def texts_for(special_tokens):
    filled = [text.format(*special_tokens) for text in SPECIAL_TEXTS]
    return TEXTS + filled + ALMOST_SPECIAL


def cases_of(tokenizer, texts):
    without_nfc = None
    if isinstance(tokenizer.normalizer, normalizers.NFC):
        without_nfc = Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | {"normalizer": None}))
    cases = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        case = {"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False)}
        if without_nfc and (raw := without_nfc.encode(text, add_special_tokens=False).ids) != ids:
            case["ids_without_nfc"] = raw
        cases.append(case)
    return cases


def cut_cases(tokenizer):
    """Ids that end or begin inside a character: decoding gives U+FFFD for what is not whole."""
    ids = tokenizer.encode("你好😀龘é👨‍👩‍👧", add_special_tokens=False).ids
    spans = [(0, end) for end in range(1, len(ids) + 1)] + [(start, len(ids)) for start in range(1, len(ids))]
    return [
        {"ids": ids[a:b], "decoded": tokenizer.decode(ids[a:b], skip_special_tokens=False)} for a, b in spans[:40]
    ]


def golden(tokenizer, special_tokens, add_bos, bos):
    return {
        "add_bos": add_bos,
        "bos": None if bos is None else tokenizer.token_to_id(bos),
        "cases": cases_of(tokenizer, texts_for(special_tokens)),
        "decode_cases": cut_cases(tokenizer),
    }


def write(root, name, value):
    (root / f"{name}.golden.json").write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(name, len(value["cases"]), "texts,", sum(len(case["ids"]) for case in value["cases"]), "ids")


def make_small(root, name):
    how, folder = SMALL[name], root / name
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = small_tokenizer(how)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"add_bos_token": how["add_bos"], "bos_token": how["bos"], "eos_token": how["eos"]}
    settings |= {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n")
    form = gguf_form(tokenizer, name, how)
    (folder / "gguf_vocab.json").write_text(json.dumps(form, ensure_ascii=False, separators=(",", ":")) + "\n")
    tokens = [how["eos"], how["bos"] or how["added"][0].content]
    write(root, name, golden(tokenizer, tokens, how["add_bos"], how["bos"]))


# name -> (folder in .cache, bos, eos, add_bos): not committed; scripts/fetch_tokenizers.sh brings them
REAL = {
    "real-deepseek-r1": ("tokenizers/deepseek-r1", DEEPSEEK_BOS, DEEPSEEK_EOS, True),
    "real-deepseek-v3": ("tokenizers/deepseek-v3", DEEPSEEK_BOS, DEEPSEEK_EOS, True),
    "real-qwen3": ("tokenizers/qwen3", None, "<|im_end|>", False),
    "real-llama3.1": ("tokenizers/llama3.1", "<|begin_of_text|>", "<|eot_id|>", True),
}


def make_real(root, name):
    folder, bos, eos, add_bos = REAL[name]
    path = CACHE / folder / "tokenizer.json"
    if not path.exists():
        return print(f"{name}: skipped, {path} is absent (scripts/fetch_tokenizers.sh)")
    tokenizer = Tokenizer.from_file(str(path))
    value = golden(tokenizer, [eos, bos or "<|endoftext|>"], add_bos, bos)
    write(root, name, {"needs": f".cache/{folder}/tokenizer.json"} | value)


def make_smollm2(root):
    """SmolLM2's vocabulary out of its GGUF, with the pre-tokenizer of its tokenizer.json (llama.cpp's `smollm`)."""
    path = CACHE / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        return print(f"real-smollm2: skipped, {path} is absent (scripts/fetch_smollm2.sh)")
    tokenizer = gguf_tokenizer(path)
    value = golden(tokenizer, ["<|im_end|>", "<|im_start|>"], False, "<|im_start|>")
    write(root, "real-smollm2", {"needs": f".cache/smollm2/{path.name}"} | value)


def gguf_tokenizer(path):
    fields = gguf.GGUFReader(path).fields
    tokens, merges = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.merges"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    tokenizer.pre_tokenizer = smollm_split()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([special(t) for t, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL])
    return tokenizer


def make(root, only=None):
    for name in SMALL:
        if only is None or name in only:
            make_small(root, name)
    for name in REAL:
        if only is None or name in only:
            make_real(root, name)
    if only is None or "real-smollm2" in only:
        make_smollm2(root)
