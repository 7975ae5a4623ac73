"""A run: one directory, one writer, and a status that is true."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.cli import main
from danlu.core.errors import UserError
from danlu.core.run import Run, create, delete, fresh_name, is_run, list_runs, open_run, write_text
from danlu.core.track import Tracker, read_lines
from danlu.evaluation.overfitting import overfitting
from danlu.stages import inspect


FACTS: dict[str, Any] = {
    "danlu": "0.1.0",
    "recipe": "chat",
    "task": "chat",
    "labels": [],
    "machine": {},
    "lineage": {"model": {"name": "m", "sha256": None}, "data": []},
}
"""What a training writes into run.json."""

HOLD = """
import sys
from pathlib import Path
from danlu.core.run import Run
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def another_process(run: Run) -> Iterator[int]:
    """Another process that writes the run, until the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, run.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process.pid
        finally:
            process.kill()


def test_two_processes_never_write_one_run(tmp_path: Path) -> None:
    run = create(tmp_path / "mine")
    with another_process(run) as number:
        assert run.locked() and run.status == "running"
        with pytest.raises(UserError, match=f"is being written by process {number}") as error, run.lock():
            pass
        assert "out=DIR" in error.value.fix
        with pytest.raises(UserError, match="is being written"):
            delete(run)
        assert is_run(run.path)
    assert not run.locked() and run.status == "interrupted"  # it was killed
    with run.lock():
        assert run.locked() and run.status == "running"
    delete(run)
    assert not run.path.exists()


def test_what_a_killed_process_was_writing_is_cleared_by_the_next_that_writes(tmp_path: Path) -> None:
    run = create(tmp_path / "r", **FACTS)
    (run.path / "model" / ".building-adapter").mkdir(parents=True)
    (run.path / "samples").mkdir()
    halves = [run.path / name for name in (".building-run.json-17", "model/.building-adapter/part", "samples/.building-3.json-17")]  # fmt: skip
    for half in halves:
        half.write_text('{"half')
    with another_process(run):
        assert not list(run.path.rglob(".building-*"))
        halves[0].write_text("the other process writes")
        with pytest.raises(UserError, match="is being written"), run.lock():
            pass
        assert halves[0].exists()
    with run.lock():
        assert not list(run.path.rglob(".building-*"))


def test_a_status_that_was_reached_stays(tmp_path: Path) -> None:
    run = create(tmp_path / "mine", **FACTS)
    for status in ("failed", "finished"):
        run.update(status=status)
        assert run.status == status
    assert run.read("run.json")["recipe"] == "chat" and run.read("run.json")["format"] == 1


def test_a_taken_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for path, says in ((tmp_path, "exists and is not a danlu run"), (tmp_path / "notes.txt", "exists and is not")):
        with pytest.raises(UserError, match=says):
            create(path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    create(tmp_path / "run", **FACTS)
    with pytest.raises(UserError, match="has become a run"):
        create(tmp_path / "run", recipe="other")
    assert Run(tmp_path / "run").read("run.json")["recipe"] == "chat"
    with pytest.raises(UserError, match="cannot be written"):
        create(tmp_path / "notes.txt" / "below")


def test_an_empty_place_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    assert is_run(create(tmp_path / "empty" / "deep").path)


def test_runs_are_found_by_path_or_name_and_a_near_name_is_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there are no runs") as error:
        open_run("chat-1")
    made = create(Path("runs/chat-1"))
    assert open_run("chat-1") == open_run("runs/chat-1") == made
    assert list_runs() == [made]
    with pytest.raises(UserError, match="chat-2 is not a run") as error:
        open_run("chat-2")
    assert "did you mean 'chat-1'" in error.value.fix
    made.update(format=99)
    with pytest.raises(UserError, match="has run format 99, this danlu reads 1"):
        open_run("chat-1")


def test_names_are_fresh(tmp_path: Path) -> None:
    first = fresh_name("chat", "hub/Some Model_1.5", tmp_path)
    assert first == tmp_path / "chat-some-model-1.5-1"
    first.mkdir()
    assert fresh_name("chat", "hub/Some Model_1.5", tmp_path).name == "chat-some-model-1.5-2"


def test_a_missing_or_broken_file_of_a_run_is_named(tmp_path: Path) -> None:
    run = create(tmp_path / "mine")
    with pytest.raises(UserError, match=r"data\.json is not there"):
        run.read("data.json")
    (run.path / "data.json").write_text('{"half": ')
    with pytest.raises(UserError, match=r"data\.json cannot be read"):
        run.read("data.json")


FULL = """
import resource, sys
from pathlib import Path
from danlu.core.errors import UserError
from danlu.core.run import write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    write_text(Path(sys.argv[1]), "x" * 5000)
except UserError as error:
    sys.exit("could not be written" not in error.message)
sys.exit("no error")
"""


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    write_text(target, "before")
    subprocess.run([sys.executable, "-c", FULL, target], check=True)
    assert target.read_text() == "before" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"format": 1, "name": "x"}', "{" * 9, '{"a":' + "[" * 100_000, "\xff"]
)
def test_a_run_json_of_somebody_else_is_no_run(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (place := Path("runs/theirs")).mkdir(parents=True)
    (place / "run.json").write_text(content, "latin-1")
    assert not is_run(place)
    with pytest.raises(UserError, match="exists and is not a danlu run"):
        create(place)
    for look in (inspect.remove, open_run):
        with pytest.raises(UserError, match=r"run\.json is damaged, or not of a danlu run"):
            look("theirs")
    assert (place / "run.json").read_text("latin-1") == content
    create(Path("runs/whole"), **FACTS)
    theirs, whole = inspect.runs()
    assert theirs["status"].startswith("broken: ") and whole["task"] == "chat"


def test_a_run_is_not_deleted_through_a_link(tmp_path: Path) -> None:
    run = create(tmp_path / "mine")
    (link := tmp_path / "link").symlink_to(run.path)
    before = sorted(run.path.iterdir())
    with pytest.raises(UserError, match=f"is a symbolic link to {run.path}; nothing was deleted"):
        delete(Run(link))
    assert sorted(run.path.iterdir()) == before and link.is_symlink()


def test_figures_that_are_not_finite_are_null_on_the_disk_and_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON has no NaN. Whoever reads the run's figures, or lists and draws it, copes."""

    def strictly(text: str) -> Any:
        return json.loads(text, parse_constant=lambda found: pytest.fail(f"{found} is no JSON"))

    run = create(tmp_path / "run", **FACTS)
    figure = {"value": math.nan, "low": -math.inf, "high": math.inf}
    run.write("evaluation.json", {"metrics": {"auc": figure, "accuracy": {"value": 1.0, "low": 0.5, "high": 1.0}}})
    with contextlib.closing(Tracker(run.path)) as tracker:
        tracker.metrics(1, {"loss": 2.0, "validation": {"loss": math.nan}})
        tracker.metrics(2, {"loss": 1.0, "validation": {"loss": 3.0}})
    assert strictly((run.path / "evaluation.json").read_text())["metrics"]["auc"] == dict.fromkeys(figure)
    assert all(math.isnan(each) for each in run.read("evaluation.json")["metrics"]["auc"].values())
    assert overfitting(read_lines(run.path / "metrics.jsonl"), {}, 1) is None
    assert main(["runs", str(run.path), "--json"]) == 0
    (listed,) = strictly(capsys.readouterr().out)
    assert listed["validation_loss"] == 3.0 and listed["test"] == {"auc": None, "accuracy": 1.0}
    assert main(["report", str(run.path)]) == 0
