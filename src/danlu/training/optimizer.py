"""Optimizers, parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from danlu.core.errors import UserError
from danlu.core.types import Learner
from danlu.surgery.freeze import matches
from danlu.training.options import TrainingOptions


def optimizer(
    parameters: Mapping[str, torch.nn.Parameter], options: TrainingOptions, learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer over named parameters, one group per (learning rate, decay).

    Matrices decay, vectors (biases, norms) do not. `learning_rates` gives a layer group its own peak; the longest matching
    pattern wins. Every group keeps its `peak`, which the schedule scales.

    Raises:
        UserError: a pattern of `learning_rates` matches no trained parameter.
    """
    patterns = sorted(options.learning_rates or {}, key=len, reverse=True)
    unused = set(patterns)
    groups: dict[tuple[float, float], dict[str, torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        found = next((pattern for pattern in patterns if matches(name, pattern)), None)
        unused.discard(found or "")
        peak = (options.learning_rates or {}).get(found or "", learning_rate)
        groups.setdefault((peak, options.weight_decay if parameter.ndim >= 2 else 0.0), {})[name] = parameter
    if unused:
        raise UserError(
            f"learning_rates: {min(unused)!r} matches none of the {len(parameters)} trained weights",
            "name a layer group (embeddings, layers.0-3, head) or a part of a weight's name; `danlu show` lists what is trained",
        )
    described = [
        {"params": list(group.values()), "peak": peak, "lr": peak, "weight_decay": decay}
        for (peak, decay), group in groups.items()
    ]
    if options.optimizer == "sgd":
        return torch.optim.SGD(described, momentum=options.momentum, fused=True)
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    return kind(described, betas=(options.beta1, options.beta2), eps=options.epsilon, fused=True)


def schedule(kind: str, steps: int, warmup: float) -> Callable[[int], float]:
    """step (from 0) -> factor on the peak learning rate.

    A linear warm-up over `warmup * steps` updates whose first update already learns, then: `constant`; `linear` to 0; `cosine`
    to a tenth (Loshchilov and Hutter 2017); `wsd`, constant until the last fifth and then linear to 0 (Hu et al. 2024).
    """
    rising = round(warmup * steps)
    falling = max(1, steps - rising)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        done = min(1.0, (step - rising) / falling)
        if kind == "linear":
            return 1 - done
        if kind == "cosine":
            return 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2
        if kind == "wsd":
            return min(1.0, (1 - done) / 0.2)
        return 1.0

    return factor


def state_tensors(learner: Learner) -> dict[str, torch.Tensor]:
    """What the learner's optimizer remembers as named tensors, `weight name|exp_avg`, for a checkpoint.

    Raises:
        UserError: it remembers something else than tensors, which would be lost.
    """
    found: dict[str, torch.Tensor] = {}
    for name, parameter in learner.parameters.items():
        for key, value in learner.optimizer.state.get(parameter, {}).items():
            if not isinstance(value, torch.Tensor):
                raise UserError(
                    f"{type(learner.optimizer).__name__} remembers {key!r} as {type(value).__name__}, which a checkpoint cannot hold",
                    "use an optimizer that keeps its memory in tensors, such as torch's own",
                )
            found[f"{name}|{key}"] = value
    return found


def load_state_tensors(learner: Learner, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what `state_tensors` gave. Devices follow the weights; types stay as they were saved."""
    learner.optimizer.state.clear()
    for key, value in tensors.items():
        name, entry = key.rsplit("|", 1)
        parameter = learner.parameters[name]
        place = value.device if entry == "step" else parameter.device
        learner.optimizer.state[parameter][entry] = value.to(place).clone()
