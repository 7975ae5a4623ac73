"""What a machine multiplies fastest is measured once, and settings follow from it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from danlu.core import calibration
from danlu.core.calibration import Calibration, kept_at, measure, pick_precision, pick_threads
from danlu.core.device import GPU, Machine, machine


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """This machine without a card, its cache an empty folder."""
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return replace(machine(), gpus=(), amx=False, bf16=False)


def measured(bfloat16: float | None = None, **threads: float) -> Callable[[], Calibration]:
    return lambda: Calibration({int(key[1:]): rate for key, rate in threads.items()}, bfloat16, 10.0)


def never() -> Calibration:
    raise AssertionError("this was not to be measured")


def test_precision_is_what_was_measured_to_be_faster(found: Machine) -> None:
    able = replace(found, bf16=True)
    assert pick_precision(found, never)[0] == "float32", "no instruction for it"
    assert pick_precision(able, measured(153, t1=140, t2=270)) == (
        "float32",
        "this CPU's AVX-512 multiplies bfloat16 at 153 GFLOP/s, float32 at 270",
    )
    assert pick_precision(able, measured(300, t2=270))[0] == "float32", "too little for eight bits"
    assert pick_precision(replace(able, amx=True), measured(2400, t2=270)) == (
        "bfloat16",
        "this CPU's AMX multiplies bfloat16 at 2,400 GFLOP/s, float32 at 270",
    )
    assert pick_precision(replace(found, gpus=(GPU("A card", 1 << 34, True),)), never)[0] == "bfloat16"


def test_threads_are_cores_unless_others_are_clearly_faster_or_the_environment_says_so(
    found: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    six = replace(found, cores=6)
    assert pick_threads(six, measured(t3=90, t6=100, t12=105)) == (
        6,
        "6 physical cores usable; GFLOP/s by threads, 3: 90, 6: 100, 12: 105",
    )
    assert pick_threads(six, measured(t3=130, t6=100, t12=60))[0] == 3
    count, why = pick_threads(six, lambda: replace(measured(t3=130, t6=100)(), busy=7.3))
    assert count == 6 and why.endswith("3: 130, 6: 100, at a load of 7.3, so not compared")
    assert pick_threads(replace(found, cores=1), never) == (1, "1 physical core usable")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert pick_threads(six, never) == (3, "OMP_NUM_THREADS says so")


def test_what_was_measured_on_a_busy_machine_is_soon_forgotten(found: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (9.0, 9.0, 9.0))
    first, place = calibration.calibration(found), kept_at(found, found.cores)
    assert first.busy == 9.0 == json.loads(place.read_text())["busy"]
    assert calibration.calibration(found) == first
    long_ago = place.stat().st_mtime - calibration.FORGOTTEN
    os.utime(place, (long_ago, long_ago))
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 0.1, 0.1))
    again = calibration.calibration(found)
    assert again.busy is None
    os.utime(place, (long_ago, long_ago))
    assert calibration.calibration(found) == again


def test_it_is_measured_once(found: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 0.1, 0.1))
    torch.set_num_threads(1)
    first = calibration.calibration(found)
    assert torch.get_num_threads() == 1 and min(*first.threads.values(), first.memory) > 0
    assert found.cores in first.threads and first.bfloat16 is None
    both = measure(replace(found, bf16=True), 1).bfloat16
    assert both is not None and both > 0
    monkeypatch.setattr(calibration, "measure", lambda *_: never())
    assert calibration.calibration(found) == first
    for other in (replace(found, cpu="another"), replace(found, cores=found.cores + 1), replace(found, bf16=True)):
        with pytest.raises(AssertionError, match="not to be measured"):
            calibration.calibration(other)
    with pytest.raises(AssertionError, match="not to be measured"):
        calibration.calibration(found, fresh=True)


@pytest.mark.parametrize("broken", ["", "[]", '{"threads": {"2": "x"}}', '{"threads": {}, "bfloat16": null, "memory": 1}', '{"threads": {"2": NaN}, "memory": 1}'])  # fmt: skip
def test_what_cannot_be_read_is_measured_again(broken: str, found: Machine) -> None:
    place = kept_at(found, found.cores)
    place.parent.mkdir(parents=True)
    place.write_text(broken)
    again = calibration.calibration(found)
    assert again.threads[found.cores] > 0
    assert json.loads(place.read_text())["memory"] == again.memory


def test_a_cache_that_cannot_be_written_is_no_hindrance(found: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    (found.cache / "file").write_text("")
    monkeypatch.setenv("DANLU_CACHE", str(found.cache / "file" / "cache"))
    assert calibration.calibration(found).threads
