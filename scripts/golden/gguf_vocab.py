"""A small gpt2-style vocabulary for GGUF metadata: the 256 bytes, a few merges, special tokens."""

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXT = [
    "灵渠沟通湘江与漓江，秦始皇二十八年开凿，至今仍在流淌。",
    "The canal divides one stream into two; the model divides one stream of tokens over many experts.",
    "一个词元交给几位专家，专家各自计算，再把结果相加。",
    "fn main() { println!(\"hello, world\"); } // 0 1 2 3 10 100",
    "今天天气很好，我们去河边走走。山上有树，水里有鱼。",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level_bpe(text, size, pre_tokenizer, specials, longest=None):
    """A trained byte-level BPE whose ids are: specials, the 256 byte tokens, merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=longest,
    )
    tokenizer.train_from_iterator(text, trainer)
    assert tokenizer.get_vocab_size() == size, (tokenizer.get_vocab_size(), size)
    return tokenizer


def add_vocab(writer, size, pre):
    """Writes tokenizer.ggml.* for exactly `size` tokens; the ids of bos and eos are 0 and 1."""
    import json

    specials = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer = byte_level_bpe(TEXT, size, split, specials)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in specials else 1 for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_add_bos_token(pre != "qwen2")
    writer.add_chat_template(CHAT_TEMPLATE)
