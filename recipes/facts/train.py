"""Trains the near model on dialogues of the grammar.

    python -m recipes.facts.train --seed 1 --out DIR [--dialogues N] [--minutes M] [--smoke]
    python -m recipes.facts.train --from GGUF --seed 2 --out DIR --dialogues N --rate 1.6e-3    # a second stage

Only what the model must say counts in the loss. Muon (Jordan, 2024) for the matrices, AdamW for the rest; the rate is
flat, then falls over the last three fifths, so until then ``--dialogues`` may still be changed. Ctrl-C and
``--minutes`` save ``DIR/checkpoint.pt``, as every 250 steps do; the same command goes on from there. The result is
``DIR/weights.npz`` and ``DIR/vocabulary.json`` for ``export.py``.

``--from`` starts with the weights of a GGUF file (``vocabulary.json`` lies beside it) and takes the dialogues of the
part ``weak``, in the last part of the run (``BLENDED``) in turn with those of ``train``, as the tests ask. Its result
is the mean of the weights before and after (``KEPT``): what was learnt stays, and less of what was known is lost.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other on a busy host

import numpy as np
import torch
from torch.nn import functional as F

from recipes.facts import gguf_file
from recipes.facts.dialogues import Dialogue, dialogue
from recipes.facts.model import Shape, count, network, put, save, weights_of
from recipes.facts.prompt import training_ids
from recipes.facts.vocabulary import Vocabulary, learn

DIALOGUES, CHUNK, TOKENS = 84_000, 1024, 2048
HOT, COOLER = 27_918, 0.4  # dialogues at the full rate, and the share of it from then on
FALL = 0.6  # last share of the run in which the rate falls
FRESH = 1_000_000  # from this index on no first stage took dialogues
BLENDED = 0.5  # last share of a second stage, in which every other dialogue is of the part train
KEPT = 0.3  # share of the first weights in the mean with which a second stage ends
IGNORED = -100


def learn_vocabulary(seed: int, dialogues: int = 6000) -> Vocabulary:
    """The vocabulary of the first training dialogues."""
    texts = []
    for index in range(dialogues):
        d = dialogue("train", seed, index)
        texts.append(f" {d.system}")
        for turn in d.turns:
            texts += [f"> {turn.question}", turn.answer]  # a blank before the question, none before the answer
    return learn(texts)


def example(seed: int, index: int, blend: float) -> Dialogue:
    """Dialogue ``index`` of a run. ``blend``: from which on a second stage takes every other one of the part train
    (none that a first stage of this seed saw); negative for a first stage."""
    if blend < 0:
        return dialogue("train", seed, index)
    return dialogue("train", seed, FRESH + index) if index >= blend and index % 2 else dialogue("weak", seed, index)


def batches(
    vocabulary: Vocabulary, seed: int, chunk: int, tokens: int, blend: float = -1
) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """Batches of chunk ``chunk``: ids [n, t], targets [n, t] (``IGNORED`` where nothing is to be said), dialogues."""
    made = [training_ids(vocabulary, example(seed, i, blend)) for i in range(chunk * CHUNK, (chunk + 1) * CHUNK)]
    rng = Random(f"order/{seed}/{chunk}")
    made.sort(key=lambda pair: len(pair[0]) + rng.random())
    out, at = [], 0
    while at < len(made):
        end = at + 1
        while end < len(made) and len(made[end][0]) * (end + 1 - at) <= tokens:
            end += 1
        longest = len(made[end - 1][0])
        ids = np.zeros((end - at, longest), np.int64)
        target = np.full((end - at, longest), IGNORED, np.int64)
        for row, (some, said) in enumerate(made[at:end]):
            ids[row, : len(some)] = some
            target[row, : len(some) - 1] = np.where(said[1:], some[1:], IGNORED)
        out.append((torch.from_numpy(ids), torch.from_numpy(target), end - at))
        at = end
    rng.shuffle(out)
    return out


def rate_at(done: float, step: int) -> float:
    """Share of the full rate: 100 steps up, flat, then down to 1 % along a cosine."""
    falling = max(0.0, (done - (1 - FALL)) / FALL)
    return min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, falling))))


def optimisers(net: Any) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embedding and norms."""
    matrices = [p for name, p in net.weights.items() if p.ndim == 2 and name != "embedding"]
    rest = [p for name, p in net.weights.items() if p.ndim == 1 or name == "embedding"]
    return [
        torch.optim.Muon(matrices, lr=1.0, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def train(
    out: Path, seed: int, shape: Shape, dialogues: int, minutes: float, threads: int = 2, rate: float = 4e-3,
    tokens: int = TOKENS, start: Path | None = None,
) -> bool:  # fmt: skip
    """Train, or go on with, the network in ``out``; True when all dialogues were seen. ``start``: a GGUF file whose
    weights a second stage begins with; its shape is taken, not ``shape``."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    if start is not None:
        shape, first = gguf_file.read(start)
        shutil.copyfile(start.with_name("vocabulary.json"), out / "vocabulary.json")
    if not (out / "vocabulary.json").exists():
        learn_vocabulary(seed).save(out / "vocabulary.json")
    vocabulary = Vocabulary.load(out / "vocabulary.json")
    net = network(shape)
    if start is not None:
        put(net, first)
    blend = -1.0 if start is None else (1 - BLENDED) * dialogues
    adam = optimisers(net)
    state = {"chunk": 0, "batch": 0, "step": 0, "seen": 0, "tokens": 0, "cpu": 0.0, "wall": 0.0}
    saved = out / "checkpoint.pt"
    if saved.exists():
        loaded = torch.load(saved)
        state = loaded["state"]
        net.load_state_dict(loaded["net"])
        for optimiser, values in zip(adam, loaded["adam"], strict=True):
            optimiser.load_state_dict(values)
    cpu, wall = time.process_time(), time.monotonic()
    before = dict(state)
    smooth = 0.0

    def keep() -> None:
        spent = {"cpu": before["cpu"] + time.process_time() - cpu, "wall": before["wall"] + time.monotonic() - wall}
        values = {"state": state | spent, "net": net.state_dict(), "adam": [o.state_dict() for o in adam]}
        torch.save(values, out / "checkpoint.new")
        (out / "checkpoint.new").replace(saved)  # a kill in between loses nothing

    def rest() -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        while state["seen"] < dialogues:
            made = batches(vocabulary, seed, int(state["chunk"]), tokens, blend)
            while state["batch"] < len(made):
                state["batch"] += 1  # before it is used: a saved state names the next one
                yield made[int(state["batch"]) - 1]
            state["chunk"], state["batch"] = state["chunk"] + 1, 0

    try:
        for ids, target, n in rest():
            share = rate_at(state["seen"] / dialogues, int(state["step"]))
            share *= 1 if state["seen"] < HOT or start is not None else COOLER
            for optimiser in adam:
                for group in optimiser.param_groups:
                    group["lr"] = rate * share
            chosen = target != IGNORED
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(ids, chosen)
            wanted = target[chosen]
            loss = F.cross_entropy(logits.float(), wanted)
            for optimiser in adam:
                optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for optimiser in adam:
                optimiser.step()
            state["step"] += 1
            state["seen"] += n
            state["tokens"] += ids.numel()
            here = float(loss.detach())
            smooth = here if not smooth else 0.98 * smooth + 0.02 * here
            spent = time.monotonic() - wall
            if state["step"] % 100 == 0:
                speed = (state["tokens"] - before["tokens"]) / spent
                left = (dialogues - state["seen"]) * spent / max(1, state["seen"] - before["seen"]) / 60
                print(
                    f"step {state['step']} dialogues {state['seen']}/{dialogues} loss {smooth:.4f} "
                    f"rate {rate * share:.1e} {speed:.0f} tokens/s {left:.1f} min left",
                    flush=True,
                )
            if state["step"] % 250 == 0:
                keep()
            if spent > minutes * 60:
                break
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")
    keep()
    done = bool(state["seen"] >= dialogues)
    weights = weights_of(net)
    if start is not None and done:
        weights = {name: KEPT * first[name] + (1 - KEPT) * w for name, w in weights.items()}
    save(out / "weights.npz", shape, weights)
    record: dict[str, Any] = {
        "seed": seed,
        "weights": count(shape),
        "dialogues": state["seen"],
        "steps": state["step"],
        "tokens": state["tokens"],
        "batch_tokens": tokens,
        "rate": rate,
        "wall_minutes": round((before["wall"] + time.monotonic() - wall) / 60, 1),
        "cpu_minutes": round((before["cpu"] + time.process_time() - cpu) / 60, 1),
        "threads": threads,
        "final_loss": round(smooth, 5),
        "finished": done,
    }
    if start is not None:
        record |= {"from": hashlib.sha256(start.read_bytes()).hexdigest(), "kept": KEPT}
        if (told := start.with_name("figures.json")).exists():
            record["first_stage"] = json.loads(told.read_text(encoding="utf-8"))["training"]
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the near model on dialogues about small tables.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dialogues", type=int, default=DIALOGUES)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long; run again to go on")
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a batch, padding included")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--from", dest="start", type=Path, help="GGUF file to go on from: a second stage")
    parser.add_argument("--smoke", action="store_true", help="a small network on a few dialogues")
    args = parser.parse_args()
    shape = Shape(width=32, layers=2, heads=2, kv_heads=2, hidden=64) if args.smoke else Shape()
    dialogues = 256 if args.smoke else args.dialogues
    done = train(args.out, args.seed, shape, dialogues, args.minutes, args.threads, args.rate, args.tokens, args.start)
    print("done" if done else "not finished: run the same command again")


if __name__ == "__main__":
    main()
