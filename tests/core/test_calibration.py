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
    return lambda: Calibration({int(key[1:]): rate for key, rate in threads.items()}, bfloat16)


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
    six = replace(able, cores=6)
    assert pick_precision(six, measured(130, t3=109, t6=100))[0] == "bfloat16", "beside what is taken, six threads"
    assert pick_precision(replace(able, amx=True), measured(2400, t2=270)) == (
        "bfloat16",
        "this CPU's AMX multiplies bfloat16 at 2,400 GFLOP/s, float32 at 270",
    )
    assert pick_precision(replace(found, gpus=(GPU("A card", 1 << 34, True),)), never)[0] == "bfloat16"
    older = replace(able, gpus=(GPU("An older card", 1 << 34, False),))
    assert pick_precision(older, never) == ("float32", "An older card does not multiply bfloat16")


def test_threads_are_cores_unless_others_are_clearly_faster_or_the_environment_says_so(
    found: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    six = replace(found, cores=6)
    assert pick_threads(six, measured(t3=105, t6=100)) == (
        6,
        "6 physical cores usable; GFLOP/s by threads, 3: 105, 6: 100",
    )
    assert pick_threads(six, measured(t3=130, t6=100))[0] == 3
    count, why = pick_threads(six, lambda: replace(measured(t3=130, t6=100)(), busy=True))
    assert count == 6 and why.endswith("3: 130, 6: 100, beside other work, so not compared")
    assert pick_threads(replace(found, cores=1), never) == (1, "1 physical core usable")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert pick_threads(six, never) == (3, "OMP_NUM_THREADS says so")


def given(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """The processors give us this share of their time."""
    monkeypatch.setattr(calibration.time, "process_time", lambda: share * calibration.time.perf_counter())
    monkeypatch.setattr(calibration, "allowed_threads", lambda: 1)


def test_what_was_measured_on_a_busy_machine_is_soon_forgotten(found: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, 0.5)
    first, place = calibration.calibration(found), kept_at(found, "products", 1)
    assert first.busy and json.loads(place.read_text())["busy"] is True
    assert calibration.calibration(found) == first
    long_ago = place.stat().st_mtime - calibration.FORGOTTEN
    os.utime(place, (long_ago, long_ago))
    given(monkeypatch, 1.0)
    again = calibration.calibration(found)
    assert not again.busy
    os.utime(place, (long_ago, long_ago))
    assert calibration.calibration(found) == again
    given(monkeypatch, 0.5)
    assert calibration.calibration(found, fresh=True).busy, "told as it is now"
    assert calibration.calibration(found) == again, "what was measured at rest is kept"


def test_one_free_core_of_two_is_a_busy_machine(found: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread gets all it asks for there, and looks as fast as two: half of the machine would be left idle for good."""
    monkeypatch.setattr(calibration.time, "process_time", calibration.time.perf_counter)
    measured = measure(replace(found, cores=2), 2)
    assert measured.threads.keys() == {1, 2} and measured.busy
    assert replace(measured, threads={1: 120, 2: 100}).best(2) == 2


def test_it_is_measured_once(found: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, 1.0)
    before = torch.get_num_threads()
    first = calibration.calibration(found)
    assert torch.get_num_threads() == before and min(first.threads.values()) > 0
    assert first.threads.keys() == {1} and first.bfloat16 is None
    both = measure(replace(found, bf16=True), 1).bfloat16
    assert both is not None and both > 0 and calibration.reading() > 0
    monkeypatch.setattr(calibration, "measure", lambda *_: never())
    assert calibration.calibration(found) == first
    for other in (replace(found, cpu="another"), replace(found, cores=found.cores + 1), replace(found, bf16=True)):
        with pytest.raises(AssertionError, match="not to be measured"):
            calibration.calibration(other)
    with pytest.raises(AssertionError, match="not to be measured"):
        calibration.calibration(found, fresh=True)


@pytest.mark.parametrize("broken", ["", "[]", '{"threads": {"2": "x"}}', '{"threads": {"9": 5}, "bfloat16": null, "busy": false}', '{"threads": {"1": NaN}, "bfloat16": null, "busy": false}'])  # fmt: skip
def test_what_cannot_be_read_is_measured_again(broken: str, found: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, 1.0)
    place = kept_at(found, "products", 1)
    place.parent.mkdir(parents=True)
    place.write_text(broken)
    again = calibration.calibration(found)
    assert again.threads.keys() == {1} and again.threads[1] > 0
    assert json.loads(place.read_text())["threads"] == {"1": again.threads[1]}


def test_a_cache_that_cannot_be_written_is_no_hindrance(found: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    (found.cache / "file").write_text("")
    monkeypatch.setenv("DANLU_CACHE", str(found.cache / "file" / "cache"))
    assert calibration.calibration(found).threads
