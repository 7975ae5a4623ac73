"""Metrics: equal after a resume, timings apart, a cut-off line left out."""

from __future__ import annotations

from pathlib import Path

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
