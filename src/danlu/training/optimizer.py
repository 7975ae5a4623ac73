"""Optimizers, parameter groups and learning-rate schedules."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping

import torch

from danlu.core.errors import UserError, nearest
from danlu.core.types import Learner
from danlu.surgery.freeze import matches
from danlu.training.options import TrainingOptions


def optimizer(
    parameters: Mapping[str, torch.nn.Parameter], options: TrainingOptions, learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer over named parameters, one group per (learning rate, decay, whether Muon takes it).

    `learning_rates` gives a layer group its own peak; the longest matching pattern wins. Every group keeps its `peak`, which
    the schedule scales. Muon takes the matrices that are neither of the embeddings nor of the head (`surgery.freeze.GROUPS`);
    AdamW all else, the kernels of convolutions too. Matrices decay, vectors (biases, norms) do not. AdamW and Muon decay by
    rate times `weight_decay`: a group with a higher rate than `learning_rate` decays no faster than the others, or the
    embeddings of tokens that are seldom seen would shrink away.

    Raises:
        UserError: a pattern of `learning_rates` matches no trained parameter, or `nesterov` stands with another optimizer than sgd with momentum.
    """
    kind, momentum = options.optimizer, options.momentum
    if momentum is None:
        momentum = 0.95 if kind == "muon" else 0.9
    if options.nesterov and (kind != "sgd" or momentum == 0):
        raise UserError(
            f"nesterov=true: optimizer={kind} with momentum={momentum:g} does not read it",
            "leave it out, or set optimizer=sgd with a momentum above 0",
        )
    patterns = sorted(options.learning_rates or {}, key=len, reverse=True)
    unused = set(patterns)
    groups: dict[tuple[float, float, bool], dict[str, torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        found = next((pattern for pattern in patterns if matches(name, pattern)), None)
        unused.discard(found or "")
        peak = (options.learning_rates or {}).get(found or "", learning_rate)
        decay = options.weight_decay if parameter.ndim >= 2 else 0.0
        if kind in ("adamw", "muon") and peak > learning_rate:
            decay *= learning_rate / peak
        hidden = parameter.ndim == 2 and not (matches(name, "embeddings") or matches(name, "head"))
        groups.setdefault((peak, decay, kind == "muon" and hidden), {})[name] = parameter
    if unused:
        raise UserError(
            f"learning_rates: {min(unused)!r} matches none of the {len(parameters)} trained weights",
            "name a layer group (embeddings, layers.0-3, head) or a part of a weight's name; `danlu show` lists what is trained",
        )
    described = [
        {"params": list(group.values()), "peak": peak, "lr": peak, "weight_decay": decay}
        | ({"muon_momentum": momentum} if muon else {})
        for (peak, decay, muon), group in groups.items()
    ]
    if kind == "sgd":
        return SGD(described, momentum=momentum, nesterov=options.nesterov, fused=True)
    forms: dict[str, type[torch.optim.Adam]] = {"adam": Adam, "adamw": AdamW, "muon": Muon}
    return forms[kind](described, betas=(options.beta1, options.beta2), eps=options.epsilon, fused=True)


class _Eager(torch.optim.Optimizer):
    """torch's optimizers import its compiler, some 1.5 seconds, only to be left alone by it; their methods without what it asks for."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class SGD(_Eager, torch.optim.SGD):
    """torch's own."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class Adam(_Eager, torch.optim.Adam):
    """torch's own."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class AdamW(_Eager, torch.optim.AdamW):
    """torch's own."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Muon(AdamW):
    """Muon (Jordan 2024) for the matrices of groups with a `muon_momentum`, AdamW for every other group.

    What `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` computes: scaled to the usual length of AdamW's update, so that one
    learning rate and one decay serve both (Liu et al. 2025). torch's own multiplies in bfloat16 wherever it runs, which on a
    processor without instructions for it takes some fifty times as long; this one multiplies in the weights' own type.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update. The gradients that Muon has used are None afterwards, so that AdamW passes their weights by."""
        for group in self.param_groups:
            for weight in group["params"] if "muon_momentum" in group else ():
                if weight.grad is None:
                    continue
                memory = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                memory.lerp_(weight.grad, 1 - group["muon_momentum"])
                ahead = weight.grad.lerp(memory, group["muon_momentum"])  # Nesterov's
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonalised(ahead), alpha=-0.2 * group["lr"] * math.sqrt(max(weight.shape)))
                weight.grad = None
        super().step()


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """About `U V^T` of a matrix `U S V^T` [rows, columns]: five steps of Newton and Schulz's iteration, coefficients of Jordan 2024.

    They bring every singular value above 0.002 of the norm to between 0.68 and 1.2.
    """
    upright = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if upright else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if upright else x


SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "wsd": lambda done: min(1.0, (1 - done) / 0.5),
}
"""schedule -> (share done of what follows the warm-up -> height above the end, of the peak's)"""


def schedule(kind: str, steps: int, warmup: float, final_rate: float | None = None) -> Callable[[int], float]:
    """step (from 0) -> factor on the peak learning rate.

    A linear warm-up over `warmup * steps` updates whose first update already learns, then: `constant`; `linear`; `cosine`
    (Loshchilov and Hutter 2017); `wsd`, constant and then linear (Hu et al. 2024), half each: better here than a falling fifth (docs/pretraining.md).

    final_rate: the factor at the end; None is 0, with `cosine` 0.1.

    Raises:
        UserError: there is no such schedule, or `constant` is to end elsewhere.
    """
    if kind not in SHAPES:
        raise UserError(f"schedule: found {kind!r}, expected one of {', '.join(SHAPES)}", nearest(kind, SHAPES))
    if kind == "constant" and final_rate is not None:
        raise UserError(f"final_rate={final_rate:g}: schedule=constant stays at its peak", "choose another schedule")
    rising = round(warmup * steps)
    falling = max(1, steps - rising)
    end = final_rate if final_rate is not None else 0.1 if kind == "cosine" else 0.0

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return end + (1 - end) * SHAPES[kind](min(1.0, (step - rising) / falling))

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
