"""How many updates fit into `hours=`: a number before the first one, another by the clock on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import torch

from danlu.core.config import Setting
from danlu.stages.prepare import Prepared, number


IN_TIME = 0.95
"""Share of `hours` that is planned, so that the schedule of the learning rate comes to its end before the limit."""
MARK, ON_TIME = 0.5, 0.98
"""Share of the planned updates after which the clock decides how many there will be, and the share of `hours` that those fill.

Not later: the rate of `wsd` begins to fall there, and would make a step.
"""
WORTHLESS = 40
"""Passes over a text after which another teaches nothing (Muennighoff et al. 2023): a plan ends there, even before its hours do."""
LOOKS = 8
"""Validations in a training (`prepare.Open.length`); each goes forward only, a third of the work."""
LOOK_SECONDS = 1.2
"""What writing samples, a checkpoint and the page takes at each."""


def in_hours(prepared: Prepared, expected: Mapping[str, float]) -> Prepared:
    """The same with the updates that fit into `IN_TIME` of its hours, where `hours=` alone says how long it trains, and with `LOOKS` validations.

    expected: what a network that was tried takes (`build.trial`). The validations take half the time at most.
    """
    options = prepared.experiment.training
    if options.steps is not None or options.hours is None:
        return prepared
    seconds = options.hours * 3600 * IN_TIME
    looks = LOOKS * (expected["seconds_per_validation"] + LOOK_SECONDS)
    update = expected["seconds_per_step"] + expected["trained_parameters"] * parameter_seconds()
    steps = max(1, int(max(seconds - looks, seconds / 2) / update))
    prepared = prepared.with_setting(
        "steps", Setting(steps, f"derived: {options.hours:g} hours at {update:.2f} seconds an update")
    )
    if prepared.settings["validate_every"].origin.startswith("derived"):
        every = Setting(math.ceil(steps / LOOKS), f"derived: {LOOKS} times in {steps} updates")
        prepared = prepared.with_setting("validate_every", every)
    return prepared


def mark(prepared: Prepared) -> int | None:
    """The update after which `on_time` decides; None where the steps are not a plan for `hours=`, or the clock has decided already."""
    options, steps = prepared.experiment.training, prepared.settings["steps"]
    if options.hours is None or options.epochs is not None or not steps.origin.startswith("derived"):
        return None
    return math.floor(MARK * steps.value) or None


def on_time(prepared: Prepared, step: int, seconds: float) -> Prepared:
    """The same with the updates that fit into its hours at the pace of the first `step`, which took so many seconds, validations and all.

    So that the learning rate comes to its end with the time, however wrong the plan was. Not more than `WORTHLESS` passes, if the plan was less.
    """
    steps, hours = number(prepared.settings["steps"].value), prepared.experiment.training.hours or 0.0
    fitting = step + max(1, int((hours * 3600 * ON_TIME - seconds) * step / seconds))
    fitting = min(fitting, max(steps, math.floor(WORTHLESS * prepared.steps_per_epoch)))
    origin = f"by the clock: {step} of {steps} planned updates took {seconds:.1f} of {hours * 3600:.1f} seconds"
    return prepared.with_setting("steps", Setting(fitting, origin))


def parameter_seconds() -> float:
    """Of AdamW and clipping, a parameter and update, measured."""
    weight = torch.nn.Parameter(torch.zeros(2**22, device="cuda" if torch.cuda.is_available() else "cpu"))
    weight.grad = torch.zeros_like(weight)
    adam = torch.optim.AdamW([weight], fused=True)

    def clipped() -> None:
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        adam.step()

    return best(clipped) / weight.numel()


def best(run: Callable[[], object], seconds: float = 0.6) -> float:
    """The shortest of at least two runs within so many seconds, after one that warms up: whatever disturbs makes it longer."""
    run()
    taken: list[float] = []
    while len(taken) < 2 or sum(taken) < seconds:
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken)
