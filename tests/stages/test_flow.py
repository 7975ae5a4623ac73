"""The way a person goes: from a file to a model that answers, all of it through the command line."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys

import numpy as np
import pytest

from danlu.core.track import read_lines


RUN = ("epochs=1", "batch_size=8", "precision=float32", "threads=1")
FILES = {"run.json", "experiment.json", "data.json", "metrics.jsonl", "timings.jsonl", "evaluation.json", "final.json", "report.html"}  # fmt: skip


def pairs(conversations):
    """Prompt and completion of the first turn."""
    return [{"prompt": row["messages"][0]["content"], "completion": row["messages"][1]["content"]} for row in conversations]  # fmt: skip


def sharegpt(conversations):
    names = {"user": "human", "assistant": "gpt"}
    return [{"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in row["messages"]]} for row in conversations]  # fmt: skip


def write(path, rows):
    """Rows in the format that the file's name says."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "form", "said"),
    [
        ("a.jsonl", None, "messages"),
        ("a.parquet", None, "messages"),
        ("b.jsonl", pairs, "prompt/completion"),
        ("b.csv", pairs, "prompt/completion"),
        ("b.parquet", pairs, "prompt/completion"),
        ("c.jsonl", sharegpt, "ShareGPT"),
    ],
)
def test_chat_learns_from_every_form(danlu, chatter, conversations, tmp_path, name, form, said):
    rows = [{"messages": row["messages"]} for row in conversations] if form is None else form(conversations)
    data = write(tmp_path / name, rows)
    result = danlu("finetune", "chat", f"model={chatter}", f"data={data}", "steps=2", "answers=0", *RUN, "out=r")
    assert result.code == 0, result.err
    assert f"chat in {said} form" in result.out
    assert "40 kept (train 32, validation 4, test 4)" in result.out
    view = json.loads((tmp_path / "r" / "data.json").read_text())["view"][0]["pieces"]
    learned = [text for text, learned in view if learned]
    assert len(learned) == (1 if form is pairs else 2)
    assert all(text.endswith("<|im_end|>") for text in learned)
    assert all(
        text in {m["content"] + "<|im_end|>" for r in conversations for m in r["messages"] if m["role"] == "assistant"}
        for text in learned
    )


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.parquet"])
def test_classification_reads_every_format(danlu, sorter, texts, tmp_path, name):
    data = write(tmp_path / name, [{"review": row["text"], "sentiment": row["label"]} for row in texts])
    result = danlu("finetune", "text-classification", f"model={sorter}", f"data={data}", "steps=2", "baselines=no", *RUN, "out=r")  # fmt: skip
    assert result.code == 0, result.err
    assert "texts in column 'review', labels in column 'sentiment'" in result.out
    assert re.search("new head: .*classifier.weight", result.out)


def test_a_run_holds_everything(chat_run, danlu):
    run = chat_run("method=lora", "learning_rate=0.01", "validate_every=1")
    assert {path.name for path in run.iterdir()} >= FILES
    steps = [line["step"] for line in read_lines(run / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, 5))
    losses = [line["validation"]["loss"] for line in read_lines(run / "metrics.jsonl") if "validation" in line]
    assert losses[-1] < losses[0]
    assert list((run / "events").glob("events.out.tfevents.*"))
    page = (run / "report.html").read_text("utf-8")
    assert not re.findall(
        r"(?:src|href)\s*=\s*[\"']?https?:|url\(\s*[\"']?https?:|@import|fetch\(|XMLHttpRequest", page
    )
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["metrics"]["loss"]["value"] < evaluation["before"]["metrics"]["loss"]["value"]
    base = json.loads((run / "model" / "danlu_base.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", base["sha256"])
    assert not list(run.glob(".*model*"))


def test_tensorboard_reads_the_events(chat_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = chat_run("method=lora")
    events = EventAccumulator(str(run / "events"))
    events.Reload()
    written = [line["loss"] for line in read_lines(run / "metrics.jsonl") if "loss" in line]
    assert [round(event.value, 5) for event in events.Scalars("loss")] == [round(loss, 5) for loss in written]
    assert "validation/loss" in events.Tags()["scalars"]


def test_a_yaml_file_is_the_same_experiment(danlu, chatter, chat_file, tmp_path):
    settings = {"recipe": "chat", "model": str(chatter), "data": str(chat_file), "steps": 3, "answers": 0, "precision": "float32", "threads": 1}  # fmt: skip
    (tmp_path / "mine.yaml").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
    assert danlu("finetune", "mine.yaml", "out=one", "learning_rate=0.001").code == 0
    words = [f"{key}={value}" for key, value in settings.items() if key != "recipe"]
    assert danlu("finetune", "chat", *words, "out=two", "learning_rate=1e-3").code == 0
    compared = danlu("runs", "compare", "one", "two", "--json").json
    assert compared["settings"] == {}
    assert compared["same_test"] is True
    assert all(one == two for one, two in compared["metrics"].values())
    shown = danlu("show", "one", "--json").json
    assert shown["steps"]["origin"] == "file mine.yaml"
    assert shown["learning_rate"] == {"value": 0.001, "origin": "command line", "about": shown["learning_rate"]["about"]}  # fmt: skip
    assert shown["batch_size"]["origin"].startswith("derived: 32 training rows")
    assert shown["seed"]["origin"] == "default"
    assert shown["task"]["origin"] in ("default", "recipe chat")


def test_show_a_recipe_and_a_file_before_anything_runs(danlu, tmp_path):
    (tmp_path / "mine.yaml").write_text("recipe: text-classification\nrank: 4\n")
    shown = danlu("show", "mine.yaml", "epochs=2", "--json").json
    assert shown["rank"]["origin"] == "file mine.yaml"
    assert shown["epochs"] == {"value": 2.0, "origin": "command line", "about": "passes over the training rows"}
    assert shown["model"]["origin"] == "recipe text-classification"
    assert shown["learning_rate"]["origin"] == "open"
    assert "seed" in danlu("show", "chat").out


def test_preflight_says_what_training_would_do_and_writes_nothing(danlu, chatter, chat_file, tmp_path):
    before = set(tmp_path.iterdir())
    found = danlu("preflight", "chat", f"model={chatter}", f"data={chat_file}", *RUN, "--json").json
    assert found["splits"] == {"train": 32, "validation": 4, "test": 4}
    assert found["expected"]["seconds"] > 0
    assert found["used"]["learning_rate"]["origin"].startswith("derived")
    said = danlu("preflight", "chat", f"model={chatter}", f"data={chat_file}", *RUN)
    assert said.code == 0
    assert "[[" in said.out and "<|im_end|>]]" in said.out
    assert "expected:" in said.out
    assert set(tmp_path.iterdir()) == before


def test_evaluate_again_gives_the_same_figures(chat_run, text_run, danlu, text_file, chat_file):
    for run, file in ((chat_run("method=lora"), chat_file), (text_run(), text_file)):
        own = danlu("evaluate", run, "--json").json
        written = json.loads((run / "evaluation.json").read_text())
        assert own["split"] == "test"
        assert own["metrics"] == written["metrics"]
        other = danlu("evaluate", run, f"data={file}", "answers=0" if file == chat_file else "text=text", "--json")
        assert other.json["split"] == "data"
        assert other.json["rows"] == len(file.read_text().splitlines())
        assert "loss" in danlu("evaluate", run).out


def test_predict_labels_texts_files_and_named_columns(text_run, danlu, texts, tmp_path):
    run = text_run()
    some = [row["text"] for row in texts[:5]]
    found = danlu("predict", run, *some, "--json").json
    assert [each["input"] for each in found] == some
    assert all(abs(sum(each["probabilities"].values()) - 1) < 1e-4 for each in found)
    assert all(each["label"] == max(each["probabilities"], key=each["probabilities"].get) for each in found)
    data = write(tmp_path / "odd.csv", [{"blurb": text} for text in some])
    assert danlu("predict", run, f"data={data}", "text=blurb", "--json").json == found
    assert danlu("predict", run, f"data={data}").code == 2


def test_predict_answers_as_the_evaluation_did(chat_run, danlu, tmp_path):
    run = chat_run("method=lora")
    examples = json.loads((run / "evaluation.json").read_text())["examples"]
    found = danlu("predict", run, f"data={run / 'data' / 'test.jsonl'}", "max_new_tokens=8", "--json").json
    assert len(found) == 4
    asked = danlu("predict", run, examples[0]["input"], "max_new_tokens=8", "--json").json
    assert asked[0]["answer"] == examples[0]["answer"]
    sampled = [danlu("predict", run, "Hello", "temperature=1", "seed=5", "max_new_tokens=8").out for _ in range(2)]
    assert sampled[0] == sampled[1]


def test_chat_goes_on_until_an_empty_line(chat_run, danlu, monkeypatch):
    run = chat_run("method=lora")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nWrite a synopsis\n\nnot read\n"))
    result = danlu("chat", run, "max_new_tokens=6")
    assert result.code == 0
    alone = danlu("predict", run, "Hello", "max_new_tokens=6").out.strip()
    assert alone in result.out
    assert sys.stdin.readline() == "not read\n"


def test_a_merged_run_answers_as_the_adapter_did(chat_run, danlu):
    run = chat_run("method=lora", "learning_rate=0.01")
    assert danlu("merge", run, "out=merged").code == 0
    one, two = (danlu("evaluate", each, "--json").json["metrics"] for each in (run, "merged"))
    for name in one:
        assert two[name]["value"] == pytest.approx(one[name]["value"], rel=1e-5), name
    assert danlu("predict", run, "Hello", "max_new_tokens=12").out == danlu("predict", "merged", "Hello", "max_new_tokens=12").out  # fmt: skip
    assert danlu("runs", "compare", run, "merged").code == 0
    again = danlu("merge", run, "out=merged")
    assert again.code == 2 and "is a run already" in again.err
    whole = danlu("merge", "merged")
    assert whole.code == 2 and "nothing to merge" in whole.err


@pytest.mark.parametrize(("first", "second"), [("full", "full"), ("full", "lora"), ("lora", "full"), ("lora", "lora")])
def test_a_run_is_a_model_to_start_from(chat_run, danlu, chat_file, first, second):
    run = chat_run(f"method={first}", "learning_rate=0.003")
    result = danlu("finetune", "chat", f"model={run}", f"data={chat_file}", f"method={second}", "answers=0", "steps=2", *RUN, "out=next")  # fmt: skip
    assert result.code == 0, result.err
    learned, start = (json.loads((each / "evaluation.json").read_text()) for each in (run, run.parent / "next"))
    before = start["before"]["metrics"]["loss"]["value"]
    assert before == pytest.approx(learned["metrics"]["loss"]["value"], rel=1e-6)
    assert start["metrics"]["loss"]["value"] != before


def test_what_is_frozen_stays_and_a_rate_moves_its_layers(chat_run, chatter):
    from safetensors.numpy import load_file

    run = chat_run("method=full", "freeze=embeddings,layers.0", "learning_rates=layers.1=0", "weight_decay=0")  # fmt: skip
    old, new = load_file(chatter / "model.safetensors"), load_file(run / "model" / "model.safetensors")
    moved = {name for name in old if not np.array_equal(old[name], new[name])}
    assert moved == {"model.norm.weight"}


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # PEFT against transformers
def test_what_was_trained_loads_in_transformers_and_peft_with_equal_logits(chat_run, text_run, chatter):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from danlu.core.run import Run
    from danlu.stages.load import open_final

    for run, auto in (
        (chat_run("method=lora", "learning_rate=0.01"), AutoModelForCausalLM),
        (chat_run("method=full", out="full"), AutoModelForCausalLM),
        (text_run(), AutoModelForSequenceClassification),
    ):
        opened = open_final(Run(run))
        ids = opened.tokenizer.encode("A small chess game for the terminal", special=bool(opened.labels))
        assert AutoTokenizer.from_pretrained(run / "model")("A small chess game for the terminal")["input_ids"] == ids
        if (run / "model" / "adapter_config.json").exists():
            theirs = PeftModel.from_pretrained(auto.from_pretrained(chatter), run / "model")
        else:
            theirs = auto.from_pretrained(run / "model")
        with torch.inference_mode():
            expected = theirs.eval()(torch.tensor([ids])).logits.squeeze(0)
            found = opened.model.logits(opened.model(torch.tensor(ids), (len(ids),)))
        assert torch.allclose(found, expected.reshape(found.shape), atol=1e-4)
        if opened.labels:
            assert tuple(theirs.config.id2label.values()) == opened.labels


def test_runs_are_listed_by_name_and_deleted(danlu, sorter, text_file, tmp_path):
    words = ("finetune", "text-classification", f"model={sorter}", f"data={text_file}", "steps=1", "baselines=no", *RUN)
    first, second = danlu(*words).run, danlu(*words).run
    assert (first.name, second.name) == ("text-classification-sorter-1", "text-classification-sorter-2")
    listed = danlu("runs", "--json").json
    assert [row["run"] for row in listed] == [str(first), str(second)]
    assert {row["status"] for row in listed} == {"finished"}
    assert first.name in danlu("runs").out
    assert [row["run"] for row in danlu("runs", "runs", "--json").json] == [str(first), str(second)]
    assert danlu("runs", first, "--json").json == listed[:1]
    moved = second.rename("elsewhere")
    assert [row["run"] for row in danlu("runs", "--json").json] == [str(first), "elsewhere"], "here too"
    assert moved.rename(second) == second
    empty = danlu("runs", tmp_path / "runs" / first.name / "data").out
    assert "no runs in " in empty and str(tmp_path) in empty and "danlu runs FOLDER" in empty
    assert danlu("runs", "nowhere").code == 2
    assert danlu("predict", first.name, "a game").code == 0  # a name under runs/ is enough
    assert danlu("runs", "delete", first.name).code == 0
    assert not first.exists() and second.exists()
    wrong = danlu("runs", "delete", first.name)
    assert wrong.code == 2 and second.name in wrong.err


def test_the_same_command_again(danlu, sorter, text_file, text_run):
    words = (
        "finetune",
        "text-classification",
        f"model={sorter}",
        f"data={text_file}",
        *RUN,
        "baselines=no",
        "patience=none",
        "out=texts",
    )
    run = text_run("patience=none")
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    again = danlu(*words)
    assert again.code == 0 and "is finished; nothing to do" in again.out
    assert all(path.read_bytes() == content for path, content in files.items())
    changed = danlu(*words, "learning_rate=0.5", "seed=3")
    assert changed.code == 2
    assert "learning_rate: was not set, now 0.5; seed: was not set, now 3" in changed.err
    other = danlu(*[word for word in words if not word.startswith("epochs=")], "epochs=2")
    assert other.code == 2 and "epochs: was 1.0, now 2.0" in other.err and "only steps may rise" in other.err
    assert danlu(*words, "steps=4").code == 2  # fewer than the 8 it has made
    before = len(read_lines(run / "metrics.jsonl"))
    longer = danlu(*words, "steps=16")
    assert longer.code == 0, longer.err
    assert "going on from step 8 of 16" in longer.out
    assert len(read_lines(run / "metrics.jsonl")) > before
    assert danlu("runs", "list").code == 0
    shutil.rmtree(run / "model")
    assert danlu("predict", run, "a").code == 2


def test_the_doctor_measures_what_it_says(danlu):
    found = danlu("doctor", "--json").json
    measured = found["measured"]
    asked = {"float32_gflops", "read_gb_per_s"} | ({"bf16_gflops"} if found["machine"]["bf16"] else set())
    assert measured.keys() == asked and all(rate > 0 for rate in measured.values())


@pytest.mark.parametrize("command", ["models", "recipes", "doctor", "runs"])
def test_every_list_is_readable_and_json(danlu, command):
    assert danlu(command, "--json").json is not None
    assert danlu(command).out.strip()


def test_json_is_all_there_is_on_stdout(danlu, chatter, sorter, chat_file, text_file, tmp_path):
    """Whatever is said on the way, a new head, weights left out, progress, goes to stderr."""
    made = danlu("finetune", "text-classification", f"model={chatter}", f"data={text_file}", "steps=1", "baselines=no", *RUN, "out=r", "--json")  # fmt: skip
    assert made.json["status"] == "finished" and made.json["steps"] == "1/1"
    assert "new head" in made.err
    for words in (
        ["evaluate", "r"],
        ["predict", "r", "a game"],
        ["show", "r"],
        ["runs"],
        ["report", "r"],
        ["resume", "r"],
        ["preflight", "text-classification", f"model={sorter}", f"data={text_file}", *RUN],
        [
            "finetune",
            "chat",
            f"model={chatter}",
            f"data={chat_file}",
            "method=lora",
            "steps=1",
            "answers=0",
            *RUN,
            "out=c",
        ],
        ["merge", "c"],
        ["runs", "compare", "c", "c-merged"],
    ):
        result = danlu(*words, "--json")
        assert result.code == 0, result.err
        assert result.json is not None
