"""Distributions over the next token, as llama-perplexity and `lingqu score` write them, and how far two are apart.

Both give them for the second half of windows of a text, so that each has some context: positions W/2 to W-2.
"""

import dataclasses
import json

import numpy as np


@dataclasses.dataclass
class Window:
    """`tokens` [W]; one listed distribution for each scored position."""

    tokens: list
    listed: list


@dataclasses.dataclass
class Listed:
    """The likeliest tokens, likeliest first, their log-probabilities, and the probability of all others."""

    ids: np.ndarray  # [listed]
    log_probs: np.ndarray  # [listed]
    rest: float


class LlamaFile:
    """What `llama-perplexity --kl-divergence-base FILE` writes: "_logits_", the window's length, the vocabulary, the
    number of windows, all tokens; then for each scored position the step and the offset (f32) of codes (u16), one for
    each token. Code 0 stands for everything 16 nats or more below the likeliest."""

    def __init__(self, path):
        head = np.fromfile(path, "<u4", 5)
        if head[:2].tobytes() != b"_logits_":
            raise ValueError(f"{path}: not written by llama-perplexity")
        self.width, self.vocab, self.windows = (int(n) for n in head[2:])
        count = self.width * self.windows
        self.tokens = np.fromfile(path, "<i4", count, offset=20).reshape(self.windows, self.width)
        self.row = 2 * ((self.vocab + 1) // 2) + 4
        self.scored = self.width - 1 - self.width // 2
        self.codes = np.memmap(path, "<u2", "r", 20 + 4 * count, (self.windows, self.scored, self.row))

    def log_probs(self, window):
        """[scored, vocab] and which of them are only known to be small [scored, vocab]"""
        rows = np.asarray(self.codes[window])
        step, offset = rows[:, :4].copy().view("<f4").astype("f8").T[..., None]
        codes = rows[:, 4 : 4 + self.vocab]
        return step * codes + offset, codes == 0

    def listed(self, window, count):
        for log_probs, small in zip(*self.log_probs(window)):
            top = np.argpartition(-log_probs, count)[:count]
            ids = top[np.argsort(-log_probs[top], kind="stable")]
            probs = np.where(small, 0, np.exp(log_probs))
            yield Listed(ids, log_probs[ids], float(probs.sum() - probs[ids].sum()))


def of_lingqu(line):
    """One line of `lingqu score --top N`: distributions after each token, the second half of them."""
    answer = json.loads(line)
    width = len(answer["token_ids"])
    listed = []
    for entries in answer["top"][width // 2 : width - 1]:
        ids, log_probs = np.array([e[0] for e in entries]), np.array([e[1] for e in entries], "f8")
        listed.append(Listed(ids, log_probs, float(1 - np.exp(log_probs).sum())))
    nll = [-value for value in answer["logprobs"][width // 2 + 1 :]]
    return listed, nll


def divergence(log_probs, small, other):
    """KL(base || other) over what `other` lists and the rest as one: no more than the KL over the whole vocabulary.

    `log_probs` and `small`, both [vocab], are the base's. Its codes are rounded, so it is made to sum to 1 again."""
    probs = np.where(small, 0, np.exp(log_probs))
    listed, total = np.exp(log_probs[other.ids]), probs.sum()
    rest = max(total - probs[other.ids].sum(), 0)
    scale = 1 / (listed.sum() + rest)
    listed, rest = listed * scale, rest * scale
    others = np.exp(other.log_probs)
    floor = 1e-12
    scale = 1 / (others.sum() + max(other.rest, floor))
    found = (listed * (np.log(listed) - other.log_probs - np.log(scale))).sum()
    return found + (rest * np.log(rest / (max(other.rest, floor) * scale)) if rest > 0 else 0)
