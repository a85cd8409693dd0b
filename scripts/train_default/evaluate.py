"""What the model card says, measured: held-out perplexity by Hugging Face's DeepseekV3ForCausalLM on the exported files,
a bigram baseline, lingqu's own figure for the same texts, and how evenly the experts are used.

    lingqu score --model models/default --input FOLDER/heldout_poems.jsonl > FOLDER/scores_poems.jsonl   # and statutes
    python evaluate.py FOLDER models/default

Where the scores hold only the first so many documents, all figures are of these.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, DeepseekV3ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden.default_model import exact_weights  # noqa: E402  beside this folder


def load(folder):
    """Hugging Face's model in f32. It runs FP8 on a GPU only, so the blocks are multiplied out here: value x scale."""
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = DeepseekV3ForCausalLM(config).float().eval()
    model.load_state_dict(exact_weights(folder, config.num_hidden_layers), strict=True)
    return model


def documents(path):
    return [json.loads(line)["token_ids"] for line in open(path, encoding="utf-8")]


@torch.no_grad()
def loss_of(model, rows):
    """Mean loss in nats a token over all documents; each sees itself only."""
    total = tokens = 0
    for row in rows:
        logits = model(torch.tensor([row]), use_cache=False).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum").item()
        tokens += len(row) - 1
    return total / tokens


class Bigram:
    """p(b|a) = (count(ab) + k p(b)) / (count(a) + k), p(b) with one added to each count; k is the best on what is asked."""

    def __init__(self, path, vocab):
        data = np.load(path)
        ids, starts = data["ids"].astype(np.int64), data["starts"]
        self.vocab = vocab
        single = np.bincount(ids, minlength=vocab)
        self.unigram = (single + 1) / (single.sum() + vocab)
        first = np.ones(len(ids) - 1, bool)
        first[starts[1:-1] - 1] = False  # the last id of a document is followed by nothing
        self.pairs, counts = np.unique((ids[:-1] * vocab + ids[1:])[first], return_counts=True)
        self.counts = counts
        self.contexts = np.bincount(self.pairs // vocab, weights=counts, minlength=vocab)

    def loss(self, rows):
        a = np.concatenate([row[:-1] for row in rows])
        b = np.concatenate([row[1:] for row in rows])
        at = np.searchsorted(self.pairs, a * self.vocab + b).clip(max=len(self.pairs) - 1)
        seen = np.where(self.pairs[at] == a * self.vocab + b, self.counts[at], 0)
        return min(-np.log((seen + k * self.unigram[b]) / (self.contexts[a] + k)).mean() for k in (10, 30, 100, 300, 1000))


def score_loss(scores):
    values = [p for score in scores for p in score["logprobs"][1:]]
    return -sum(values) / len(values)


def watch_routers(model, loads):
    """Counts the tokens given to each expert by layer, into loads."""
    for index, layer in enumerate(model.model.layers):
        if hasattr(layer.mlp, "gate"):
            def count(_, __, out, index=index):
                experts = out[0].flatten()
                loads[index] = loads.get(index, 0) + np.bincount(experts.numpy(), minlength=model.config.n_routed_experts)
            layer.mlp.gate.register_forward_hook(count)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    args = parser.parse_args()
    model = load(args.model)
    bigram = Bigram(args.folder / "train.npz", model.config.vocab_size)
    loads = {}
    watch_routers(model, loads)
    for kind in ("poems", "statutes"):
        scores = [json.loads(line) for line in open(args.folder / f"scores_{kind}.jsonl", encoding="utf-8")]
        rows = documents(args.folder / f"heldout_{kind}.jsonl")[: len(scores)]
        assert [score["token_ids"] for score in scores] == rows, "scores of other documents"
        loss, base, ours = loss_of(model, rows), bigram.loss(rows), score_loss(scores)
        print(f"{kind}: {len(rows)} documents, {sum(map(len, rows))} tokens; Hugging Face: loss {loss:.4f}, perplexity "
              f"{np.exp(loss):.2f}; lingqu {ours:.4f}, {np.exp(ours):.2f} ({100 * (np.exp(ours - loss) - 1):+.3f}%); "
              f"bigram {base:.4f}, {np.exp(base):.2f}")
    for layer, tokens in loads.items():
        share = 100 * tokens / tokens.sum()
        print(f"layer {layer}: busiest {share.max() / share.mean():.2f} of the mean, least {share.min() / share.mean():.2f};",
              " ".join(f"{s:.1f}" for s in share), "%")


if __name__ == "__main__":
    main()
