"""Trains the yard detector on rendered scenes.

    python -m recipes.yard.train --seed 7 --out DIR [--minutes M] [--smoke]

Renders the training set once into ``DIR/frames.npy`` (scenes 1,000,000 to 1,999,999, never used elsewhere), trains in
bfloat16, then folds batch norm and trains the last eighth on the int8 grids. Ctrl-C and ``--minutes`` save
``DIR/checkpoint.pt``; the same command goes on from there. The result is ``DIR/integers.npz`` for ``export.py``
and ``DIR/float.pt`` for the comparison in ``evaluate.py``. Assignment of truth to cells follows task alignment
(Feng et al., TOOD, ICCV 2021): the cells whose score and overlap together are best for an object learn it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other on a busy host

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.yard.model import CLASSES, YardNet, cells, decode, flatten
from recipes.yard.scene import IGNORE_BELOW, Scene

WIDTH, HEIGHT, MOST = 320, 240, 32  # MOST: truth rows kept a frame
TRAIN_SEEDS = 1_000_000
FRAMES_A_SCENE = 3
STEPS, SCENES, BATCH = 1920, 5000, 32


def _render_some(job: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Frames of one scene [k, h, w, 3] RGB and truth [k, MOST, 6]: label (-1: none), box, visible."""
    seed, count = job
    cv2.setNumThreads(1)
    rng = np.random.default_rng([seed, 0xF00D])
    scene = Scene(seed, WIDTH, HEIGHT)
    frames = np.zeros((count, HEIGHT, WIDTH, 3), np.uint8)
    rows = np.full((count, MOST, 6), -1, np.float32)
    for k in range(count):
        image, truth = scene.frame(float(rng.uniform(0, 120)))
        if rng.random() < 0.3:  # cameras compress
            quality = int(rng.integers(35, 95))
            coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            image = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
        frames[k] = image[:, :, ::-1]
        for i, o in enumerate(truth[:MOST]):
            rows[k, i] = (o.label_id, *o.xyxy, o.visible)
    return frames, rows


def render_set(out: Path, seed: int, scenes: int) -> tuple[np.ndarray, np.ndarray]:
    """The training set, from ``out`` when it was rendered before: frames [n, h, w, 3] RGB, truth [n, MOST, 6]."""
    frames_at, truth_at, made_at = out / "frames.npy", out / "truth.npy", out / "frames.json"
    made = {"seed": seed, "scenes": scenes, "frames_a_scene": FRAMES_A_SCENE}
    if not made_at.exists() or json.loads(made_at.read_text()) != made:
        total = scenes * FRAMES_A_SCENE
        frames = np.lib.format.open_memmap(frames_at, "w+", np.uint8, (total, HEIGHT, WIDTH, 3))
        truth = np.full((total, MOST, 6), -1, np.float32)
        jobs = [(TRAIN_SEEDS + seed * 100_000 + i, FRAMES_A_SCENE) for i in range(scenes)]
        started = time.monotonic()
        with ExitStack() as stack:
            if scenes < 64:
                rendered: Iterable[tuple[np.ndarray, np.ndarray]] = map(_render_some, jobs)
            else:
                pool = stack.enter_context(ProcessPoolExecutor(2, get_context("spawn")))
                rendered = pool.map(_render_some, jobs, chunksize=8)
            for i, (some, rows) in enumerate(rendered):
                at = slice(i * FRAMES_A_SCENE, (i + 1) * FRAMES_A_SCENE)
                frames[at], truth[at] = some, rows
                if i % 500 == 499:
                    print(f"rendered {i + 1}/{scenes} scenes, {time.monotonic() - started:.0f} s", flush=True)
        frames.flush()
        np.save(truth_at, truth)
        made_at.write_text(json.dumps(made))
    return np.load(frames_at, mmap_mode="r"), np.load(truth_at)


def augment(frames: Tensor, truth: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """uint8 [n, h, w, 3] -> float [n, 3, h, w] in 0..1: mirrored at random, brightness and tint varied."""
    n = len(frames)
    x = frames.permute(0, 3, 1, 2).float().div_(255)
    mirrored = torch.rand(n, generator=rng) < 0.5
    x[mirrored] = x[mirrored].flip(3)
    truth = truth.clone()
    flipped = truth[mirrored]
    flipped[..., [1, 3]] = WIDTH - flipped[..., [3, 1]]
    truth[mirrored] = flipped
    gain = torch.empty(n, 1, 1, 1).uniform_(0.75, 1.3, generator=rng)
    tint = torch.empty(n, 3, 1, 1).uniform_(0.93, 1.07, generator=rng)
    lift = torch.empty(n, 1, 1, 1).uniform_(-0.04, 0.04, generator=rng)
    x = x.mul_(gain * tint).add_(lift).clamp_(0, 1)
    return x.contiguous(memory_format=torch.channels_last), truth


def overlap(a: Tensor, b: Tensor, generalised: bool = False) -> Tensor:
    """IoU (or GIoU) of boxes [..., 4], broadcast."""
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0)
    inter = size[..., 0] * size[..., 1]
    area_a, area_b = ((c[..., 2] - c[..., 0]) * (c[..., 3] - c[..., 1]) for c in (a, b))
    union = area_a + area_b - inter + 1e-6
    iou = inter / union
    if not generalised:
        return iou
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp_min(0)
    area = hull[..., 0] * hull[..., 1] + 1e-6
    return iou - (area - union) / area


@torch.no_grad()  # type: ignore[untyped-decorator,unused-ignore]
def assign(
    logits: Tensor, boxes: Tensor, truth: Tensor, centres: Tensor, strides: Tensor, best: int = 9
) -> tuple[Tensor, Tensor, Tensor]:
    """Which cell learns what: target scores [n, a, c], target boxes [n, a, 4], weight of each score [n, a, c]."""
    n, a, _ = logits.shape
    label = truth[..., 0].long().clamp_min(0)  # [n, g]
    wanted = (truth[..., 0] >= 0) & (truth[..., 5] >= IGNORE_BELOW)
    hidden = (truth[..., 0] >= 0) & ~wanted
    middle = (truth[..., 1:3] + truth[..., 3:5]) / 2
    half = (truth[..., 3:5] - truth[..., 1:3]) / 2
    away = (centres[None, None] - middle[:, :, None]).abs()  # [n, g, a, 2]
    reach = torch.maximum(half[:, :, None], strides[None, None, :, None] * 0.75)
    inside = (away < reach).all(-1)
    inside &= (away < 2.5 * strides[None, None, :, None]).all(-1)
    iou = overlap(boxes[:, None], truth[:, :, None, 1:5])  # [n, g, a]
    score = torch.sigmoid(logits).gather(2, label[:, None].expand(n, a, label.shape[1])).transpose(1, 2)
    fit = (score.sqrt() * iou.pow(4) + 1e-9 * iou) * inside
    fit = fit * wanted[..., None]
    top = fit.topk(best, -1)
    chosen = torch.zeros_like(fit).scatter_(2, top.indices, (top.values > 0).float()) * fit.gt(0)
    claims = chosen * (iou + 1e-6)
    owner = claims.argmax(1)  # [n, a]: the object that overlaps this cell's box best
    mine = F.one_hot(owner, truth.shape[1]).transpose(1, 2) * chosen
    fit = fit * mine
    peak_fit, peak_iou = fit.amax(-1, keepdim=True), (iou * mine).amax(-1, keepdim=True)
    quality = (fit / (peak_fit + 1e-12) * peak_iou).amax(1)  # [n, a]
    positive = mine.amax(1) > 0
    kind = label.gather(1, owner)
    target = F.one_hot(kind, CLASSES) * (quality * positive)[..., None]
    box = truth[..., 1:5].gather(1, owner[..., None].expand(n, a, 4))
    blur = (inside & hidden[..., None]).float()  # neither here nor there: no lesson for that class
    skip = torch.einsum("nga,ngc->nac", blur, F.one_hot(label, CLASSES).float()) > 0
    return target, box, (~skip | (target > 0)).float()


def loss_of(net: YardNet, x: Tensor, truth: Tensor, half_precision: bool) -> tuple[Tensor, float, float]:
    """The loss, and its score and box parts as numbers."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half_precision):
        outputs = net(x)
    raw, logits = flatten(outputs)
    corners, strides = cells(x.shape[2], x.shape[3])
    boxes = decode(raw, corners, strides)
    target, wanted, weight = assign(logits, boxes, truth, (corners + 0.5) * strides[:, None], strides)
    total = target.sum().clamp_min(1.0)
    # varifocal weighting (Zhang et al., CVPR 2021): easy background counts little, good boxes count fully
    focus = torch.where(target > 0, target, 0.75 * torch.sigmoid(logits.detach()).pow(2)) * weight
    score_loss = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * focus).sum() / total
    quality = target.amax(-1)
    positive = quality > 0
    giou = overlap(boxes[positive], wanted[positive], generalised=True)
    box_loss = ((1 - giou) * quality[positive]).sum() / total
    return score_loss + 2.5 * box_loss, float(score_loss.detach()), float(box_loss.detach())


def train(
    out: Path, seed: int, steps: int, scenes: int, batch: int, minutes: float, threads: int = 2, rate: float = 2.5e-3
) -> bool:
    """Train, or go on with, the network in ``out``; True when all steps are done."""
    if not 0 <= seed <= 9:
        raise ValueError(f"seed {seed}: its scenes could meet those of the tests; use 0 to 9")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    frames, truth = render_set(out, seed, scenes)
    torch.manual_seed(seed)
    net = YardNet().to(memory_format=torch.channels_last)
    mean = copy.deepcopy(net)
    float_steps = steps - steps // 8

    def optimiser() -> torch.optim.Optimizer:
        decayed = [p for p in net.parameters() if p.ndim > 1]
        rest = [p for p in net.parameters() if p.ndim == 1]
        return torch.optim.AdamW([{"params": decayed, "weight_decay": 0.03}, {"params": rest, "weight_decay": 0.0}])

    def start_quantised() -> None:
        nonlocal net
        torch.save(mean.state_dict(), out / "float.pt")
        mean.fold()
        net = copy.deepcopy(mean)

    step, saved = 0, out / "checkpoint.pt"
    if saved.exists():
        state = torch.load(saved)
        step = state["step"]
        if state["quantised"]:
            net.fold()
            mean.fold()
        net.load_state_dict(state["net"])
        mean.load_state_dict(state["mean"])
    adam = optimiser()
    if saved.exists():
        adam.load_state_dict(state["adam"])
    order = np.empty(0, np.int64)
    started, first, spoken = time.monotonic(), step, [0.0, 0.0]

    def save() -> None:
        torch.save(
            {
                "step": step,
                "net": net.state_dict(),
                "mean": mean.state_dict(),
                "adam": adam.state_dict(),
                "quantised": net.quantised,
            },
            saved,
        )

    try:
        while step < steps:
            if step == float_steps and not net.quantised:
                start_quantised()
                adam = optimiser()
            epoch, at = divmod(step * batch, len(frames) - len(frames) % batch)
            if at == 0 or not len(order):
                order = np.random.default_rng([seed, epoch]).permutation(len(frames))
            pick = np.sort(order[at : at + batch])
            rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
            used = int((truth[pick][..., 0] >= 0).sum(1).max())
            x, rows = augment(torch.from_numpy(frames[pick]), torch.from_numpy(truth[pick][:, : max(used, 1)]), rng)
            if net.quantised:
                done = (step - float_steps) / max(1, steps - float_steps)
                lr = rate * 0.06 * (0.5 * (1 + math.cos(math.pi * done)) + 0.01)
            else:
                # flat, then down to 1 % over the last two fifths: a run may be lengthened or cut until it turns down
                left = (float_steps - step) / (0.4 * float_steps)
                lr = rate * min(1.0, (step + 1) / 200) * min(1.0, max(left, 0.01))
            for group in adam.param_groups:
                group["lr"] = lr
            loss, score_part, box_part = loss_of(net, x, rows, half_precision=not net.quantised)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
            adam.step()
            keep = min(0.998, (step + 1) / (step + 10))
            with torch.no_grad():
                for old, new in zip(mean.state_dict().values(), net.state_dict().values(), strict=True):
                    if old.dtype.is_floating_point:
                        old.lerp_(new, 1 - keep)
                    else:
                        old.copy_(new)
            step += 1
            spoken = [0.95 * a + 0.05 * b for a, b in zip(spoken, (score_part, box_part), strict=True)]
            spent = time.monotonic() - started
            if step % 100 == 0 or step == steps:
                wait = spent / (step - first) * (steps - step)
                phase = "int8" if net.quantised else "bf16"
                print(
                    f"{phase} step {step}/{steps} score {spoken[0]:.3f} box {spoken[1]:.3f} lr {lr:.2e} "
                    f"{(step - first) * batch / spent:.0f} frames/s, {wait / 60:.1f} min left",
                    flush=True,
                )
            if step % 500 == 0:
                save()
            if spent > minutes * 60:
                break
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")
    save()
    if step >= steps:
        mean.eval()
        np.savez(out / "integers.npz", **mean.integers())
    return step >= steps


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the yard detector on rendered scenes.")
    parser.add_argument("--seed", type=int, default=7, help="0 to 9")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long; run again to go on")
    parser.add_argument("--smoke", action="store_true", help="a few steps on a few scenes")
    args = parser.parse_args()
    if args.smoke:
        args.steps, args.scenes, args.batch = 16, 8, 4
    done = train(args.out, args.seed, args.steps, args.scenes, args.batch, args.minutes)
    print("done" if done else "not finished: run the same command again")


if __name__ == "__main__":
    main()
