"""How fast this machine multiplies, measured once in a second and kept in the cache, and the settings that follow from it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from danlu.core.cache import cache_folder, write_json
from danlu.core.device import Machine
from danlu.core.errors import UserError


SHAPE = (2048, 576, 1536)
"""A product of a small language model: tokens, width, width of the MLP."""
WORTH = 1.25
"""bfloat16 has to be so many times as fast as float32 in products alone: around them it is converted, and it rounds to 8 bits."""
FORGOTTEN = 600
"""Seconds after which what was measured on a busy machine does not count."""
OURS = 0.8
"""Of the processors' time, what has to be given to a product on them for numbers of threads to be compared."""
CLEARLY = 1.1
"""Another number of threads than one a core has to be so many times as fast."""


@dataclass(frozen=True)
class Calibration:
    """GFLOP/s of `SHAPE`: in float32 by number of threads, and in bfloat16 at the one to take, None where no instruction multiplies it.

    busy: other work took so much of the processor's time that numbers of threads could not be compared; forgotten after ten minutes.
    """

    threads: Mapping[int, float]
    bfloat16: float | None
    busy: bool = False

    def best(self, usual: int) -> int:
        """The number of threads to take: the usual one, unless another is clearly faster."""
        if self.busy:
            return usual
        fastest = max(self.threads, key=lambda count: self.threads[count])
        return fastest if self.threads[fastest] > CLEARLY * self.threads[usual] else usual


def calibration(found: Machine, fresh: bool = False) -> Calibration:
    """That of this machine; measured if it is not in the cache, or `fresh`. What was measured at rest stays beside what was not."""
    usual = allowed_threads() or found.cores
    place, known = kept_at(found, "products", usual), None
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        before = kept(place)
        rates = {int(count): rate(value) for count, value in before["threads"].items()}
        bfloat16 = rate(before["bfloat16"]) if found.bf16 else None
        if usual in rates and not (before["busy"] and forgotten(place)):
            known = Calibration(rates, bfloat16, bool(before["busy"]))
    if known is not None and not fresh:
        return known
    measured = measure(found, usual)
    if known is None or known.busy or not measured.busy:
        keep(place, asdict(measured))
    return measured


def kept_at(found: Machine, what: str, *named: Any) -> Path:
    """Where a measurement is kept that depends on what is `named`, and on the machine's processor, cores and cards, and on torch."""
    named = (what, *named, found.cpu, found.cores, found.bf16, [gpu.name for gpu in found.gpus], version("torch"))
    return cache_folder() / "speed" / f"{what}-{hashlib.sha256(repr(named).encode()).hexdigest()[:16]}.json"


def kept(place: Path) -> Any:
    """What `keep` put there; None if nothing is, or nothing readable."""
    try:
        return json.loads(place.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def keep(place: Path, content: Any) -> Exception | None:
    """For `kept`. Returns why the cache could not be written: then it is measured again next time."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, content)
    except (OSError, UserError) as error:
        return error
    return None


def forgotten(place: Path) -> bool:
    """Whether it was kept too long ago for what was measured on a busy machine."""
    return time.time() - place.stat().st_mtime >= FORGOTTEN


def rate(value: Any) -> float:
    """A finite number above 0.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(value)
    return float(value)


def allowed_threads() -> int | None:
    """What OMP_NUM_THREADS says, if it says something."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return int(limit) if limit.isdecimal() and int(limit) > 0 else None


def measure(found: Machine, usual: int) -> Calibration:
    """In alternation, each the best of its repetitions: what disturbs a measurement makes it slower, and meets all alike.

    Compared with one thread a physical core are half as many; more than cores only fight for their multipliers.
    """
    import torch

    counts = [usual] if allowed_threads() else sorted({usual, max(1, usual // 2)})
    before, shares = torch.get_num_threads(), list[float]()
    try:
        # a thread alone finds a free core beside other work too: whether all do is what tells
        works = [_product(torch.float32, count, shares if count == usual else []) for count in counts]
        rates = dict(zip(counts, fastest(works), strict=True))
        plain = Calibration(rates, None, busy=max(shares) < OURS)
        if not found.bf16:
            return plain
        best = plain.best(usual)
        again, bfloat16 = fastest([_product(dtype, best, shares) for dtype in (torch.float32, torch.bfloat16)])
        return Calibration({**rates, best: max(again, rates[best])}, bfloat16, plain.busy)
    finally:
        torch.set_num_threads(before)


def fastest(works: Sequence[Callable[[], float]], seconds: float = 0.5) -> list[float]:
    """The highest rate of each; they take turns, at least five."""
    rates, end, turns = [0.0] * len(works), time.perf_counter() + seconds, 0
    while turns < 5 or time.perf_counter() < end:
        rates = [max(rate, work()) for rate, work in zip(rates, works, strict=True)]
        turns += 1
    return rates


def _product(dtype: Any, threads: int, shares: list[float]) -> Callable[[], float]:
    """A matrix product; returns its GFLOP/s. shares: of the time of so many processors, what it was given."""
    import torch

    rows, inner, columns = SHAPE
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)

    def run() -> float:
        torch.set_num_threads(threads)
        with torch.no_grad():
            torch.nn.functional.linear(left[:64], right)  # wakes the threads
            start, used = time.perf_counter(), time.process_time()
            torch.nn.functional.linear(left, right)
            took = time.perf_counter() - start
        shares.append((time.process_time() - used) / took / threads)
        return 2.0 * rows * inner * columns / took / 1e9

    return run


def reading() -> float:
    """GB/s at which memory is read: sums of 128 MiB, more than most caches hold."""
    import torch

    held, least = torch.ones(1 << 25), math.inf
    for _ in range(5):
        start = time.perf_counter()
        held.sum()
        least = min(least, time.perf_counter() - start)
    return held.nbytes / least / 1e9


def pick_precision(found: Machine, speed: Callable[[], Calibration]) -> tuple[str, str]:
    """(bfloat16 or float32, why) for the matrix products. speed: asked only where it decides. A card is believed, a processor measured."""
    if found.gpus:
        slower = [gpu.name for gpu in found.gpus if not gpu.bfloat16]
        if slower:
            return "float32", f"{slower[0]} does not multiply bfloat16"
        return "bfloat16", f"{found.gpus[0].name} multiplies bfloat16"
    if not found.bf16:
        return "float32", "the CPU has neither AMX nor AVX-512 for bfloat16, which would be slower"
    by, measured = "AMX" if found.amx else "AVX-512", speed()
    fast, plain = measured.bfloat16 or 0.0, measured.threads[measured.best(allowed_threads() or found.cores)]
    said = f"this CPU's {by} multiplies bfloat16 at {fast:,.0f} GFLOP/s, float32 at {plain:,.0f}"
    return ("bfloat16" if fast > WORTH * plain else "float32"), said


def pick_threads(found: Machine, speed: Callable[[], Calibration]) -> tuple[int, str]:
    """(threads, why): one for each physical core, since two threads on one core fight for its multipliers, unless another number was
    clearly faster."""
    if limit := allowed_threads():
        return limit, "OMP_NUM_THREADS says so"
    if found.cores == 1:
        return 1, "1 physical core usable"
    measured = speed()
    said = ", ".join(f"{count}: {rate:,.0f}" for count, rate in sorted(measured.threads.items()))
    if measured.busy:
        said += ", beside other work, so not compared"
    return measured.best(found.cores), f"{found.cores} physical cores usable; GFLOP/s by threads, {said}"
