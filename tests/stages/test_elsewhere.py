"""A run is where it is: copied to another machine, asked from another folder, with a cache that cannot be written, a clock that is wrong."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from tests.stages.test_resume import outcome, steps

from danlu.core.track import read_lines


RUN = ("batch_size=2", "precision=float32", "threads=1", "validate_every=1", "patience=none", "steps=20")


def texts(sorter, data):
    return ["finetune", "text-classification", f"model={sorter}", f"data={data}", *RUN, "baselines=no"]


def chat(chatter, data):
    return ["finetune", "chat", f"model={chatter}", f"data={data}", *RUN, "method=lora", "answers=2", "answer_tokens=8"]


@pytest.fixture
def killed(spawn, tmp_path):
    """`killed(words, "r")`: a run that was killed after some steps."""

    def make(words, name):
        process = spawn([*words, f"out={name}"], tmp_path)
        deadline = time.monotonic() + 120
        while len(list((tmp_path / name / "checkpoints").glob("step-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.join()
        assert 2 <= steps(tmp_path / name) < 20, (tmp_path / "said.txt").read_text()
        return tmp_path / name

    return make


@pytest.mark.parametrize("kind", ["texts", "chat"])
def test_a_finished_run_answers_wherever_it_is_copied(
    kind, chatter, sorter, chat_file, text_file, danlu, tmp_path, monkeypatch
):
    """The folder alone is copied, the place it came from and its data are gone; an adapter needs the model it names as well."""
    words = texts(sorter, text_file) if kind == "texts" else chat(chatter, chat_file)
    assert danlu(*words, "out=r").code == 0
    said, metrics = danlu("predict", "r", "Hello").out, danlu("evaluate", "r", "--json").json["metrics"]
    there = tmp_path / "another" / "machine"
    there.mkdir(parents=True)
    shutil.copytree(tmp_path / "r", there / "copied")
    shutil.rmtree(tmp_path / "r")
    (text_file if kind == "texts" else chat_file).unlink()
    monkeypatch.chdir(there)
    assert danlu("predict", "copied", "Hello").out == said
    assert danlu("evaluate", "copied", "--json").json["metrics"] == metrics
    assert danlu("report", "copied").code == 0
    assert danlu("show", "copied").code == 0


def test_a_run_goes_on_from_another_folder_and_another_place(sorter, text_file, danlu, killed, tmp_path, monkeypatch):
    """Its data is found by the folder it was begun in, or told where it is; bit for bit as if it had stayed."""
    words = texts(sorter, text_file.name)
    assert danlu(*words, "out=whole").code == 0
    run = killed(words, "r")
    shutil.copytree(run, tmp_path / "b" / "moved")
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    resumed = danlu("resume", "../r")
    assert resumed.code == 0, resumed.err
    assert outcome(run) == outcome(tmp_path / "whole")
    resumed = danlu("resume", tmp_path / "b" / "moved")
    assert resumed.code == 0, resumed.err
    assert outcome(tmp_path / "b" / "moved") == outcome(tmp_path / "whole")


def test_a_cache_that_cannot_be_written_is_no_hindrance(sorter, text_file, danlu, tmp_path, monkeypatch):
    """The cache lies where nothing can be made, for root neither: below a file."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "file" / "cache"))
    result = danlu(*texts(sorter, text_file), "out=r")
    assert result.code == 0, result.err
    assert danlu("predict", "r", "Hello").code == 0
    assert danlu("doctor").code == 0
    needs = danlu("finetune", "text-classification", "model=minilm", f"data={text_file}", "out=m")
    assert needs.code == 2 and "DANLU_CACHE" in needs.err and "Traceback" not in needs.err


def test_a_clock_that_goes_backwards_changes_nothing(sorter, text_file, danlu, killed, tmp_path):
    """The files of the run are of tomorrow when it goes on, and its data is of 1980."""
    words = texts(sorter, text_file)
    os.utime(text_file, (315532800, 315532800))
    assert danlu(*words, "out=whole").code == 0
    run = killed(words, "r")
    tomorrow = time.time() + 86400
    for path in [run, *run.rglob("*")]:
        os.utime(path, (tomorrow, tomorrow))
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "created": "2099-01-01T00:00:00+00:00"}))
    resumed = danlu("resume", "r")
    assert resumed.code == 0, resumed.err
    assert outcome(run) == outcome(tmp_path / "whole")
    assert all(line["seconds"] > 0 for line in read_lines(run / "timings.jsonl") if "seconds" in line)
    assert json.loads((run / "run.json").read_text())["seconds"] > 0


def test_no_stage_makes_links():
    """A file system may have none: what is linked is copied where that fails (data/assemble.py), and nothing else links."""
    source = Path(__file__).parents[2] / "src"
    linking = {str(path.relative_to(source)) for path in source.rglob("*.py") if any(word in path.read_text("utf-8") for word in ("os.link(", "os.symlink(", "symlink_to(", "hardlink_to("))}  # fmt: skip
    assert linking == {"danlu/data/assemble.py"}
