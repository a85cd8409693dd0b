"""Trains the default model on what prepare.py wrote; writes loss.csv and checkpoint.pt beside it.

On a GPU (--device cuda) minutes; on two CPU cores with AMX about two hours. The learning rate warms up, stays, and falls
linearly over the last part; the prediction layer (MTP) is trained in that last part only, to save time. Continues from
checkpoint.pt when there is one.
"""

import argparse
import csv
import math
import time
from pathlib import Path

import numpy as np
import torch

from model import Config, Model

# A step takes rows of both lengths, so that the many short documents do not pay for long attention: (length, rows).
SHORT, LONG = (128, 88), (512, 10)
TOKENS = SHORT[0] * SHORT[1] + LONG[0] * LONG[1]

MTP_WEIGHT = 0.3


class Documents:
    """Batches of whole documents of min < size <= length ids, packed into rows; a document sees itself only."""

    def __init__(self, path, above, length, seed):
        data = np.load(path)
        self.ids, self.starts, self.length = data["ids"].astype(np.int64), data["starts"], length
        sizes = np.diff(self.starts)
        self.chosen = np.flatnonzero((sizes > above) & (sizes <= length))
        self.seed, self.epoch, self.next = seed, -1, len(self.chosen)

    def place(self, epoch, next_document):
        """Goes to a place of the endless order of documents."""
        self.epoch, self.next = epoch, next_document
        self.order = np.random.default_rng((self.seed, epoch)).permutation(self.chosen)

    def take(self):
        if self.next == len(self.chosen):
            self.place(self.epoch + 1, 0)
        document = self.order[self.next]
        self.next += 1
        return self.ids[self.starts[document]:self.starts[document + 1]]

    def batch(self, rows):
        """ids, targets (-100: none), positions, document numbers, each [rows, length]."""
        length = self.length
        ids, targets = np.zeros((rows, length), np.int64), np.full((rows, length), -100)
        positions, owner = np.zeros((rows, length), np.int64), np.full((rows, length), -1)
        for row in range(rows):
            used, number = 0, 0
            while used < length:
                document = self.take()[:length - used]
                span = slice(used, used + len(document))
                ids[row, span], positions[row, span], owner[row, span] = document, np.arange(len(document)), number
                targets[row, used:used + len(document) - 1] = document[1:]
                used, number = used + len(document), number + 1
        return ids, targets, positions, owner


def to_device(batch, device, dtype):
    ids, targets, positions, owner = (torch.from_numpy(a).to(device) for a in batch)
    same = owner[:, :, None] == owner[:, None, :]
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask = torch.zeros(same.shape, dtype=dtype, device=device).masked_fill_(~(same & causal), -math.inf)
    return ids, targets, positions, mask[:, None]


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps for matrices [.., out, in] (K. Jordan et al. 2024); a stack is a batch."""

    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.05):
        super().__init__(parameters, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                buffer = state.setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                direction = orthogonal(p.grad.lerp(buffer, group["momentum"]))
                rows, columns = p.shape[-2:]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                # 0.2 sqrt(max): steps as large as Adam's (arXiv 2502.16982, section 2.2).
                p.add_(direction, alpha=-group["lr"] * 0.2 * math.sqrt(max(rows, columns)))


def orthogonal(g):
    """The nearest orthogonal matrix of each of g [.., out, in], roughly: five Newton-Schulz steps."""
    x = g.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.mT if tall else x).float()


def optimizers(model, lr):
    matrices, others = [], []
    for name, p in model.named_parameters():
        small = p.ndim < 2 or name in ("embed_tokens", "lm_head") or name.endswith(".gate")
        (others if small else matrices).append(p)
    return [Muon(matrices, lr), torch.optim.AdamW(others, lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]


@torch.no_grad()
def balance(model, speed):
    """Moves each router's bias against its load (2.1.2, auxiliary-loss-free); returns the worst load over the mean."""
    worst = 0.0
    for block in model.experts():
        if block.load.sum() == 0:
            continue
        block.e_score_correction_bias += speed * (block.load.mean() - block.load).sign()
        worst = max(worst, (block.load.max() / block.load.mean()).item())
        block.load.zero_()
    return worst


@torch.no_grad()
def heldout_loss(model, path, device, dtype):
    """Loss over some held-out documents; evaluate.py has the exact one."""
    documents = Documents(path, 0, LONG[0], seed=0)
    losses = [model.loss(to_device(documents.batch(LONG[1]), device, dtype), 0)[0].item() for _ in range(2)]
    for block in model.experts():
        block.load.zero_()
    return sum(losses) / len(losses)


def schedule(step, args):
    if step < args.warmup:
        return (step + 1) / args.warmup
    return min(1.0, max(0.0, (args.steps - step) / args.decay))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of prepare.py")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=680)
    parser.add_argument("--decay", type=int, default=180, help="steps at the end over which the rate falls to zero")
    parser.add_argument("--warmup", type=int, default=40)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    model = Model(Config()).to(args.device)
    print(f"parameters: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M")
    optims = optimizers(model, args.lr)
    pools = [Documents(args.folder / "train.npz", above, length, args.seed)
             for above, (length, _) in ((0, SHORT), (SHORT[0], LONG))]
    print("documents, short and long:", [len(p.chosen) for p in pools],
          "tokens:", [int(np.diff(p.starts)[p.chosen].sum()) for p in pools])
    checkpoint, first, seconds = args.folder / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=args.device)
        model.load_state_dict(saved["model"])
        for optim, state in zip(optims, saved["optims"]):
            optim.load_state_dict(state)
        first, seconds = saved["step"], saved["seconds"]
        for pool, place in zip(pools, saved["places"]):
            pool.place(*place)
        print(f"continues at step {first}")
    log = open(args.folder / "loss.csv", "a" if first else "w", newline="")
    writer = csv.writer(log)
    if not first:
        writer.writerow(["step", "tokens", "loss", "mtp_loss", "heldout_poems", "heldout_statutes", "seconds"])

    began, seen = time.time() - seconds, []
    for step in range(first, args.steps):
        rate, decaying = schedule(step, args), step >= args.steps - args.decay
        total, mtp = 0.0, 0.0
        for pool, (length, rows) in zip(pools, (SHORT, LONG)):
            batch = to_device(pool.batch(rows), args.device, torch.bfloat16)
            main_loss, mtp_loss = model.loss(batch, MTP_WEIGHT if decaying else 0)
            share = length * rows / TOKENS
            (share * (main_loss if mtp_loss is None else main_loss + MTP_WEIGHT * mtp_loss)).backward()
            total += share * main_loss.item()
            mtp += share * mtp_loss.item() if decaying else 0.0
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = args.lr * rate
            optim.step()
        model.zero_grad(set_to_none=True)
        worst = balance(model, 0.003 * rate)
        seen.append(total)
        done = step + 1
        if done % 10 == 0:
            held = ["", ""]
            if done % args.save_every == 0 or done == args.steps:
                held = [heldout_loss(model, args.folder / f"heldout_{kind}.npz", args.device, torch.bfloat16)
                        for kind in ("poems", "statutes")]
                torch.save({"model": model.state_dict(), "optims": [o.state_dict() for o in optims], "step": done,
                            "seconds": time.time() - began, "places": [(p.epoch, p.next) for p in pools]}, checkpoint)
            mean, seen = sum(seen) / len(seen), []
            row = [done, done * TOKENS, f"{mean:.4f}", f"{mtp:.4f}" if decaying else "", *(h and f"{h:.4f}" for h in held),
                   f"{time.time() - began:.0f}"]
            writer.writerow(row)
            log.flush()
            print(*row, f"busiest expert {worst:.2f} of the mean", flush=True)


if __name__ == "__main__":
    main()
