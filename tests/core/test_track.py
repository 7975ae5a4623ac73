"""Metrics: equal after a resume, timings apart, a cut-off line left out."""

from __future__ import annotations

import math
import os
from contextlib import closing
from pathlib import Path

import pytest

from danlu.core.errors import UserError
from danlu.core.track import Tracker, flatten, read_lines


def write(folder: Path, steps: range, offsets: dict[str, int] | None = None) -> dict[str, int]:
    tracker = Tracker(folder, offsets, steps.start - 1)
    for step in steps:
        tracker.metrics(step, {"loss": 1 / step, "validation": {"accuracy": 0.5}})
        tracker.timings(step, {"seconds": 0.1 * step})
    found = tracker.offsets()
    tracker.close()
    return found


def test_what_was_written_behind_the_checkpoint_is_cut_off(tmp_path: Path) -> None:
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    write(tmp_path / "whole", range(1, 7))
    offsets = write(tmp_path / "resumed", range(1, 4))
    write(tmp_path / "resumed", range(4, 6), offsets)
    with (tmp_path / "resumed" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "lo')  # killed here
    write(tmp_path / "resumed", range(4, 7), offsets)
    for name in ("metrics.jsonl", "timings.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def test_without_a_checkpoint_it_begins_anew(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    write(tmp_path, range(1, 3))
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_file_shorter_than_its_offset_is_not_padded(tmp_path: Path) -> None:
    offsets = write(tmp_path, range(1, 4))
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n')
    write(tmp_path, range(4, 5), offsets)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 4]


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2')
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1}]
    assert read_lines(tmp_path / "missing.jsonl") == []


def test_tensorboard_sees_every_number(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, range(1, 4))
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "validation/accuracy", "timing/seconds"}
    assert [(event.step, round(event.value, 4)) for event in events.Scalars("loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 0.3333),
    ]


def test_nested_numbers_become_paths() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2.5}}, "e": True, "text": "no"}) == {"a/b": 1.0, "a/c/d": 2.5, "e": 1.0}


def test_what_is_not_finite_is_null_in_the_file_and_nan_to_readers(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.metrics(1, {"validation": {"loss": float("nan")}, "loss": float("inf")})
    tracker.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "validation": {"loss": null}, "loss": null}\n'
    (line,) = read_lines(tmp_path / "metrics.jsonl")
    assert math.isnan(line["validation"]["loss"]) and math.isnan(line["loss"])


@pytest.mark.parametrize("change", ["cut", "deleted", "moved", "written"])
def test_files_that_another_process_changes_are_told_before_a_checkpoint_is_taken(tmp_path: Path, change: str) -> None:
    tracker = Tracker(tmp_path)
    tracker.metrics(1, {"loss": 1.0})
    assert tracker.offsets()["metrics.jsonl"] == (tmp_path / "metrics.jsonl").stat().st_size
    path = tmp_path / "metrics.jsonl"
    match change:
        case "cut":
            os.truncate(path, 3)
        case "deleted":
            path.unlink()
        case "moved":
            path.rename(tmp_path / "other.jsonl")
            path.touch()
        case "written":
            with path.open("a") as file:
                file.write("x")
    for told in (tracker.offsets, lambda: tracker.metrics(2, {"loss": 1.0})):
        with pytest.raises(UserError, match=r"the run's folder was changed while it trains: .*metrics\.jsonl"):
            told()
    tracker.close()


def test_a_folder_that_is_moved_while_it_trains_is_one_error(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with closing(Tracker(run)) as tracker:
        tracker.metrics(1, {"loss": 1.0})
        run.rename(tmp_path / "elsewhere")
        with pytest.raises(UserError, match="changed while it trains"):
            tracker.metrics(2, {"loss": 1.0})
