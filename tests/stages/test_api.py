"""danlu from Python: data in memory, the run as an object, inside a thread."""

from __future__ import annotations

import threading

import numpy as np
import pandas as pd
import pytest

import danlu as library
from danlu.core.errors import UserError


QUICK = {"steps": 3, "batch_size": 8, "precision": "float32", "threads": 1}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("form", [pd.DataFrame, list, lambda rows: {key: np.array([row[key] for row in rows]) for key in rows[0]}])  # fmt: skip
def test_rows_in_memory_are_kept_with_the_run(form, sorter, texts, tmp_path):
    run = library.finetune("text-classification", form(texts), model=str(sorter), baselines=False, out=tmp_path / "r", **QUICK)  # fmt: skip
    assert run.status == "finished"
    assert run.path == tmp_path / "r"
    assert set(run.metrics) >= {"accuracy", "f1_macro"}
    assert run.evaluate()["metrics"] == run.metrics
    again = run.predict([texts[0]["text"], texts[1]["text"]])
    assert [each["input"] for each in again] == [texts[0]["text"], texts[1]["text"]]
    assert run.evaluate(form(texts))["rows"] == len(texts)
    assert run.report() == tmp_path / "r" / "report.html"
    assert repr(run).startswith(f"<danlu run {tmp_path / 'r'}: finished, accuracy ")
    assert "report.html" in run._repr_html_()
    assert library.open(tmp_path / "r").metrics == run.metrics
    longer = library.finetune("text-classification", form(texts), model=str(sorter), baselines=False, out=tmp_path / "r", **QUICK | {"steps": 4})  # fmt: skip
    assert longer.status == "finished"
    with pytest.raises(UserError, match="began with other rows"):
        library.finetune("text-classification", form(texts[:-1]), model=str(sorter), baselines=False, out=tmp_path / "r", **QUICK | {"steps": 5})  # fmt: skip


def test_the_same_rows_give_the_same_model_however_they_come(sorter, texts, text_file, tmp_path):
    settings = {"model": str(sorter), "baselines": False, **QUICK}
    one = library.finetune("text-classification", pd.DataFrame(texts), out="one", **settings)
    two = library.finetune("text-classification", text_file, out="two", **settings)
    assert one.metrics == two.metrics
    weights = [(run.path / "model" / "model.safetensors").read_bytes() for run in (one, two)]
    assert weights[0] == weights[1]


def test_a_chat_run_answers_and_merges(chatter, chat_file):
    run = library.finetune("chat", chat_file, model=str(chatter), method="lora", answers=0, out="r", **QUICK)
    conversation = [{"role": "user", "content": "Hello"}]
    one, two = run.predict(["Hello", conversation], max_new_tokens=6)
    assert one["answer"] == two["answer"] and one["finish"] in ("stop", "length")
    assert run.merge().predict(["Hello"], max_new_tokens=6)[0]["answer"] == one["answer"]
    assert run.resume() is run
    with pytest.raises(UserError, match="temperature"):
        run.predict(["Hello"], temperature=-1.0)


def test_preflight_returns_what_it_found(sorter, texts):
    found = library.preflight("text-classification", texts, model=str(sorter), **QUICK)
    assert found["splits"]["train"] == 58
    assert found["used"]["steps"] == {"value": 3, "origin": "Python"}


def test_errors_are_one_type_and_name_the_fix(sorter, texts):
    with pytest.raises(UserError, match="did you mean 'learning_rate'") as caught:
        library.finetune("text-classification", texts, learing_rate=1)
    assert "unknown key" in caught.value.message
    with pytest.raises(UserError, match="steps: found 'x'"):
        library.finetune("text-classification", texts, steps="x")


def test_training_in_a_thread_needs_no_signals(sorter, texts):
    done = []
    settings = {"model": str(sorter), "baselines": False, "out": "r", **QUICK}
    thread = threading.Thread(target=lambda: done.append(library.finetune("text-classification", texts, **settings)))
    thread.start()
    thread.join()
    assert done[0].status == "finished"
