"""One training loop for every model of the miniature: warm-up, cosine, weight average, checkpoints, a log."""

import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


def train(
    name: str,
    model: nn.Module,
    loss: Callable[[int, np.random.Generator, torch.Generator], dict[str, Tensor]],
    *,
    steps: int,
    learning_rate: float,
    build: Path,
    average: float = 0.998,
    weight_decay: float = 0.01,
    seed: int = 0,
    save_every: int = 500,
) -> nn.Module:
    """Minimise the sum of the terms that `loss(step, rng, generator)` returns; return the averaged model.

    AdamW with 3 % linear warm-up and a cosine to zero; exponential moving average of the weights. Every `save_every`
    steps the state goes to `build/NAME.pt`, from which an interrupted run continues; losses go to `build/NAME.jsonl`.
    """
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    averaged = copy.deepcopy(model).requires_grad_(False)
    start, spent = 0, 0.0
    state_file, log_file = build / f"{name}.pt", build / f"{name}.jsonl"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        start, spent = state["step"], state["seconds"]
    clock = time.monotonic()
    recent: dict[str, float] = {}
    for step in range(start, steps):
        # Randomness belongs to the step, so that an interrupted run continues as if it had not been.
        rng = np.random.default_rng((seed, step))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rate = learning_rate * min((step + 1) / (0.03 * steps), 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        terms = loss(step, rng, generator)
        optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(average, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, value in zip(averaged.state_dict().values(), model.state_dict().values()):
                if mean.dtype.is_floating_point:
                    mean.lerp_(value, 1 - decay)
                else:
                    mean.copy_(value)
        for key, term in terms.items():
            recent[key] = 0.98 * recent.get(key, float(term.detach())) + 0.02 * float(term.detach())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            seconds = spent + time.monotonic() - clock
            row = {"step": step + 1, "seconds": round(seconds, 1), **{k: round(v, 5) for k, v in recent.items()}}
            with log_file.open("a") as log:
                log.write(json.dumps(row) + "\n")
        if (step + 1) % save_every == 0 or step + 1 == steps:
            state = {
                "model": model.state_dict(),
                "averaged": averaged.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "seconds": spent + time.monotonic() - clock,
            }
            torch.save(state, state_file.with_suffix(".tmp"))
            os.replace(state_file.with_suffix(".tmp"), state_file)
    return averaged.eval()
