"""The report page and the model card, from a run as training leaves it, and from what an interrupted one leaves."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

from danlu.core.errors import UserError
from danlu.evaluation.baselines import baselines
from danlu.evaluation.compare import compare
from danlu.evaluation.metrics import accuracy, classification_report
from danlu.stages import report
from danlu.stages.plots import Series, line_plot, number, smooth, thin, ticks


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{ 7*7 }}"


def classification_run(folder):
    """A text classifier's run: three labels of support tickets, real baselines on the same rows."""
    rng = np.random.default_rng(3)
    labels = ["billing", "delivery", "technical"]
    said = {
        "billing": ["I was charged twice for order {}", "please refund invoice {}", "my card {} was declined, why?"],
        "delivery": ["parcel {} never came", "when will order {} arrive?", "the courier left box {} in the rain"],
        "technical": [
            "the app shows error {}",
            "screen {} stays black after the update",
            "cannot log in, code {} came too late",
        ],
    }
    kinds = rng.choice(3, size=1200, p=[0.5, 0.3, 0.2])
    shared = [
        "hello, question about {}",
        "still waiting for an answer about {}",
    ]  # which a classifier cannot tell apart
    texts = [
        str(rng.choice(shared if rng.random() < 0.25 else said[labels[kind]])).format(rng.integers(100, 99999))
        for kind in kinds
    ]
    train, test = slice(0, 800), slice(1000, 1200)
    true = kinds[test]
    wrong = rng.random(200) < 0.11
    ours = np.where(wrong, rng.integers(3, size=200), true)
    chances = 0.85 * np.eye(3)[ours] + 0.05
    evaluation = {"split": "test", **classification_report(true, ours, chances, labels)}
    before = rng.integers(3, size=200)
    names = ("the base model", "this model")
    evaluation["before"] = {
        "metrics": classification_report(true, before, None, labels)["metrics"],
        "comparison": compare(accuracy, before, ours, true, names=names, metric="accuracy"),
    }
    evaluation["baselines"] = [
        {
            "name": one.name,
            "settings": one.settings,
            "notes": one.notes,
            "metrics": classification_report(true, one.predicted, one.probabilities, labels)["metrics"],
            "comparison": compare(
                accuracy, one.predicted, ours, true, names=(one.name, "this model"), metric="accuracy"
            ),
        }
        for one in baselines(texts[train], kinds[train], texts[test], 3)
    ]
    evaluation["examples"] = [
        {"input": texts[1000 + i], "expected": labels[true[i]], "answer": labels[ours[i]], "right": bool(true[i] == ours[i]), "before": labels[before[i]]}
        for i in range(60)
    ]  # fmt: skip
    files = {
        "run.json": {
            "format": 1,
            "name": "tickets-minilm-1",
            "status": "finished",
            "created": "2026-05-04T09:30:12+00:00",
            "danlu": "0.1.0",
            "task": "text-classification",
            "recipe": "text-classification",
            "seconds": 412.7,
            "machine": {"cores": 2, "cpu": "Xeon", "features": ["avx512f", "amx_bf16"], "memory_gib": 23.5, "torch": "2.13.0"},
            "lineage": {
                "model": {"name": "minilm", "sha256": "53aa" * 16, "licence": "Apache-2.0", "kind": "bert"},
                "data": [{"role": "data", "name": "tickets.jsonl", "sha256": "9f1c" * 16, "rows": 1207, "format": "jsonl"}],
            },
        },
        "experiment.json": {
            "used": {
                "task": {"value": "text-classification", "origin": "recipe text-classification"},
                "model": {"value": "minilm", "origin": "command line"},
                "data": {"value": "tickets.jsonl", "origin": "command line"},
                "learning_rate": {"value": 3e-5, "origin": "derived: all weights of a pretrained encoder with 22.7 M parameters"},
                "batch_size": {"value": 32, "origin": "derived: 800 training rows"},
                "seed": {"value": 0, "origin": "default"},
                "optimizer": {"value": "adamw", "origin": "default"},
            }
        },
        "data.json": {
            "rows": {
                "read": 1207,
                "kept": 1200,
                "dropped": [{"reason": "the text is empty", "count": 7, "examples": ["tickets.jsonl:17", "tickets.jsonl:90"]}],
            },
            "splits": {"train": 800, "validation": 200, "test": 200},
            "tokens": {
                "train": 10423,
                "learned": 800,
                "lengths": {"min": 5, "median": 12, "p95": 18, "max": 24, "histogram": [[5, 90], [8, 310], [11, 260], [14, 104], [17, 30], [20, 6]]},
            },
            "unknown_share": 0.0012,
            "duplicates": 14,
            "leaks": 0,
            "truncated": {"rows": 0, "tokens": 0, "learned": 0},
            "labels": {label: {"train": int((kinds[train] == k).sum()), "validation": 66, "test": int((true == k).sum())} for k, label in enumerate(labels)},
            "notes": ["the text column is `text`, the label column `label`"],
            "view": [{"row": 3, "pieces": [["[CLS] parcel 4711 never came [SEP]", False], [" → delivery", True]]}],
        },
        "evaluation.json": evaluation,
    }  # fmt: skip
    steps = 150
    lines = []
    for step in range(1, steps + 1):
        loss = 0.25 + 0.9 * math.exp(-step / 30) + 0.12 * rng.standard_normal() * math.exp(-step / 90)
        rate = 3e-5 * min(step / 9, 0.5 * (1 + math.cos(math.pi * step / steps)))
        lines.append(
            {
                "step": step,
                "epoch": step / 25,
                "loss": max(loss, 0.02),
                "learning_rate": rate,
                "gradient_norm": 1 + rng.gamma(2, 0.5),
                "tokens": 416,
                "learned": 32,
            }
        )
        if step % 25 == 0:
            lines.append({"step": step, "validation": {"loss": 0.34 + 0.7 * math.exp(-step / 35), "accuracy": 0.9 - 0.5 * math.exp(-step / 30)}})  # fmt: skip
    files["metrics.jsonl"] = lines
    files["timings.jsonl"] = [
        {"step": s, "seconds": 2.6, "tokens_per_second": 160 + 12 * rng.standard_normal()} for s in range(1, steps + 1)
    ]
    put(folder, files)
    (folder / "model").mkdir()
    return folder


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        lines = content if isinstance(content, list) else [content]
        (folder / name).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    return folder


class Page(HTMLParser):
    """What a browser would make of the page: its tags, and its text without style and script."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "path"})

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text("utf-8")
        self.tags, self.open, self.pieces, self.scripts = [], [], [], []
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", "".join(self.pieces))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        {"script": self.scripts, "style": []}.get(self.open[-1] if self.open else "", self.pieces).append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = classification_run(tmp_path_factory.mktemp("runs") / "tickets-minilm-1")
    return folder, Page(report.write(folder))


def test_page_tells_the_whole_run(finished):
    folder, page = finished
    found = json.loads((folder / "evaluation.json").read_text("utf-8"))
    ours = found["metrics"]["accuracy"]
    assert page.open == []
    assert f"{100 * ours['value']:.1f} %" in page.text
    assert f"[{100 * ours['low']:.1f}, {100 * ours['high']:.1f}]" in page.text
    for one in [found["before"], *found["baselines"]]:
        verdict = one["comparison"]["verdict"]
        assert verdict[1:] in page.text
    for word in (
        "TF-IDF + logistic regression",
        "majority class",
        "delivery",
        "tickets.jsonl",
        "derived",
        "800 training rows",
        "Apache-2.0",
    ):
        assert word in page.text
    figures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert [attrs["aria-label"].split(".")[0] for attrs in figures] == [
        "Loss",
        "Validation: accuracy, per cent",
        "Learning rate",
        "Gradient norm",
        "Tokens per second",
    ]
    matrix = found["confusion"]["matrix"]
    cells = [attrs["title"] for tag, attrs in page.tags if tag == "td" and "→" in attrs.get("title", "")]
    assert cells[0] == f"billing → billing: {matrix[0][0]}" and len(cells) == 9


def test_page_needs_no_network(finished):
    _, page = finished
    for _, attrs in page.tags:
        assert not {"src", "srcset", "action", "data"} & set(attrs)
        assert attrs.get("href", "#").startswith("#")
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert (
        "@import" not in style
        and "url(" not in style
        and "//" not in page.source.replace("://", "//").split("<script>")[0].split("</style>")[1]
    )


@pytest.mark.parametrize("image", [{}, {"image": HOSTILE}])
def test_rows_cannot_run_scripts(tmp_path, image):
    hostile = {
        "run.json": {"format": 1, "name": HOSTILE, "status": "finished", "task": HOSTILE, "recipe": HOSTILE, "danlu": HOSTILE, "machine": {HOSTILE: HOSTILE},
                     "lineage": {"model": {"name": HOSTILE, "sha256": HOSTILE, "licence": HOSTILE}, "data": [{"role": HOSTILE, "name": HOSTILE, "sha256": HOSTILE, "rows": 3}]}},
        "experiment.json": {"used": {HOSTILE: {"value": HOSTILE, "origin": HOSTILE}}},
        "data.json": {"rows": {"read": 1, "kept": 0, "dropped": [{"reason": HOSTILE, "count": 1, "examples": [HOSTILE]}]}, "splits": {HOSTILE: 1},
                      "labels": {HOSTILE: {HOSTILE: 1}}, "notes": [HOSTILE], "view": [{"row": 1, "pieces": [[HOSTILE, True], [HOSTILE, False]]}],
                      "images": {"size": HOSTILE, "channels": 1, "mean": [HOSTILE], "resize": HOSTILE, "stored": HOSTILE, "sizes": [[HOSTILE, 1], [HOSTILE, HOSTILE]], "modes": {HOSTILE: HOSTILE}},
                      "learning_rate": {"pretraining": HOSTILE, "now": HOSTILE}},
        "evaluation.json": {"split": HOSTILE, "rows": 500, "metrics": {HOSTILE: {"value": 0.5, "low": 0.4, "high": 0.6}}, "per_class": {HOSTILE: {"precision": {"value": 1}, "recall": {"value": 1}, "f1": {"value": 1}, "rows": 1, "predicted": 1}},
                            "confusion": {"labels": [HOSTILE, "b"], "matrix": [[1, 2], [3, 4]]},
                            "baselines": [{"name": HOSTILE, "settings": {HOSTILE: HOSTILE}, "metrics": {}, "comparison": {"verdict": HOSTILE}}],
                            "examples": [{"input": HOSTILE, "expected": HOSTILE, "answer": HOSTILE, "right": right, "before": HOSTILE, **image} for right in (True, False)],
                            "transfer": {"from": HOSTILE, "settings": HOSTILE, "metric": HOSTILE, "seeds": HOSTILE,
                                         "rows": [{"labels": 9, "verdict": HOSTILE, **{key: {"value": 1} for key in ("pretrained", "random", "difference")}}]}},
        "metrics.jsonl": [{"step": step, HOSTILE: {"loss": 1.0}, "validation": {HOSTILE: 1.0}} for step in (1, 2)],
    }  # fmt: skip
    put(tmp_path / "run", hostile)
    (tmp_path / "run" / "model").mkdir()
    page = Page(report.write(tmp_path / "run"))
    assert [tag for tag, _ in page.tags].count("script") == 1 and len(page.scripts) == 1
    assert not [tag for tag, _ in page.tags if tag == "img"] and page.open == []
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert page.text.count("{{ 7*7 }}") > 10 and "49" not in page.text
    assert HOSTILE not in page.source and html.escape(HOSTILE).split("&gt;")[0] in page.source
    card = (tmp_path / "run" / "model" / "README.md").read_text("utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["datasets"] == [HOSTILE] and "base_model" not in front
    assert "\n<" not in card and not re.search(
        r"(?<![\\`])<script", re.sub(r"`[^`\n]*`", "", card.split("---\n", 2)[2])
    )


def test_only_the_pages_own_script_may_run(finished):
    _, page = finished
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


@pytest.mark.parametrize("missing", report.FILES)
def test_each_file_may_be_missing(finished, tmp_path, missing):
    folder, _ = finished
    for name in report.FILES:
        if name != missing:
            (tmp_path / name).write_bytes((folder / name).read_bytes())
    page = Page(report.write(tmp_path))
    assert page.open == []
    if missing != "timings.jsonl":
        said = {
            "data.json": "No summary of the data",
            "evaluation.json": "not been evaluated",
            "metrics.jsonl": "No step",
            "run.json": "not known",
        }
        assert said.get(missing, "settings are not known") in page.text


def test_interrupted_run_says_so(finished, tmp_path):
    folder, _ = finished
    facts = json.loads((folder / "run.json").read_text("utf-8"))
    put(tmp_path, {"run.json": {**facts, "status": "interrupted"}})
    whole = (folder / "metrics.jsonl").read_bytes().split(b"\n")
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(whole[:40]) + b'\n{"step": 41, "lo')  # killed while writing
    page = Page(report.write(tmp_path))
    assert "interrupted at step 39" in page.text and "danlu resume" in page.text
    assert "cannot be read" not in page.text


@pytest.mark.parametrize(
    ("status", "seconds", "said", "took"),
    [("failed", 59.4, "This run failed at step 7;", "59 s"), ("running", 5400, "was interrupted at step 7.", "1 h 30 min"), ("finished", 3569, "", "59 min")],
)  # fmt: skip
def test_how_a_run_ended_and_how_long_it_took(tmp_path, status, seconds, said, took):
    facts = {"format": 1, "status": status, "seconds": seconds}  # running, but no process holds it: interrupted
    put(tmp_path, {"run.json": facts, "metrics.jsonl": [{"step": 7, "loss": 1.0}]})
    page = Page(report.write(tmp_path))
    assert said in page.text and f"time{took}7 steps" in page.text and ('class="alert"' in page.source) == bool(said)


def test_damage_is_told(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "run.json").write_bytes((folder / "run.json").read_bytes())
    (tmp_path / "data.json").write_text('{"rows": {', "utf-8")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\nnot json\n{"step": 3, "loss": NaN}\n', "utf-8")
    page = Page(report.write(tmp_path))
    assert "data.json cannot be read" in page.text
    assert "metrics.jsonl: 1 line cannot be read (first: 2)" in page.text
    assert "not a finite number at 1 step, first at step 3" in page.text


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        report.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_few_rows_and_leaks_are_warned_of(tmp_path):
    put(
        tmp_path,
        {
            "evaluation.json": {
                "split": "test",
                "rows": 12,
                "metrics": {"accuracy": {"value": 1.0, "low": 1.0, "high": 1.0}},
            },
            "data.json": {"leaks": 5},
        },
    )
    page = Page(report.write(tmp_path))
    assert (
        "Only 12 test rows: a share of so few is uncertain by up to 25 points either way" in page.text
        and "5 test or validation rows also occur" in page.text
    )


def test_chat_run_with_chinese_rows(tmp_path):
    put(
        tmp_path,
        {
            "run.json": {"format": 1, "name": "chat-1", "status": "finished", "task": "chat"},
            "evaluation.json": {
                "split": "test",
                "rows": 240,
                "metrics": {"perplexity": {"value": 7.31, "low": 6.8, "high": 7.9}, "rouge_l": {"value": 0.41, "low": 0.37, "high": 0.45}},
                "before": {"metrics": {"perplexity": {"value": 21.4, "low": 19.9, "high": 23.2}, "rouge_l": {"value": 0.18, "low": 0.15, "high": 0.2}}},
                "examples": [{"input": "法国的首都是哪里？", "expected": "巴黎", "answer": "巴黎", "right": True, "before": None}],
            },
            "data.json": {"view": [{"row": 1, "pieces": [["<|im_start|>user\n法国的首都是哪里？<|im_end|>\n<|im_start|>assistant\n", False], ["巴黎<|im_end|>", True]]}]},
        },
    )  # fmt: skip
    page = Page(report.write(tmp_path))
    assert "ROUGE-L 41.0 % [37.0, 45.0]; the base model before: 18.0 % [15.0, 20.0]" in page.text
    assert "法国的首都是哪里？" in page.text and "lower is better" in page.text
    assert "<mark>巴黎&lt;|im_end|&gt;</mark>" in page.source


def test_model_card(finished):
    folder, _ = finished
    card = (folder / "model" / "README.md").read_text("utf-8")
    _, front, body = card.split("---\n", 2)
    found = yaml.safe_load(front)
    assert {key: found[key] for key in ("license", "library_name", "pipeline_tag")} == {
        "license": "other", "library_name": "transformers", "pipeline_tag": "text-classification",
    }  # fmt: skip
    assert "base_model" not in found and "The licence of `tickets.jsonl` is not stated" in body
    evaluation = json.loads((folder / "evaluation.json").read_text("utf-8"))
    measured = {metric["type"]: metric["value"] for metric in found["model-index"][0]["results"][0]["metrics"]}
    assert measured["accuracy"] == pytest.approx(evaluation["metrics"]["accuracy"]["value"])
    for part in (
        "## Intended use and limits",
        "## Results",
        "## Lineage and licences",
        "## Training",
        "Apache-2.0",
        "`tickets.jsonl`",
        "not stated",
        "9f1c9f1c",
    ):
        assert part in body
    assert "| accuracy | " in body and "[" in body


@pytest.mark.parametrize(
    ("model", "licence", "public", "given"),
    [
        ({"name": "minilm", "hub": "owner/minilm", "kind": "catalogue"}, "CC-BY-4.0", "owner/minilm", "apache-2.0"),
        ({"name": "owner/minilm", "hub": None, "kind": "hub"}, "CC-BY-4.0", None, "apache-2.0"),
        ({"name": "owner/minilm", "hub": "owner/minilm", "kind": "hub"}, None, "owner/minilm", "other"),
        ({"name": "models/minilm", "kind": "folder"}, "not stated", None, "other"),
    ],
)
def test_the_front_of_the_card_claims_only_what_is_known(tmp_path, model, licence, public, given):
    sources = [{"role": "data", "name": "a.jsonl", "rows": 9, "licence": licence}]
    put(
        tmp_path, {"run.json": {"name": "r", "lineage": {"model": {**model, "licence": "Apache-2.0"}, "data": sources}}}
    )
    (tmp_path / "model").mkdir()
    report.write(tmp_path)
    _, front, body = (tmp_path / "model" / "README.md").read_text("utf-8").split("---\n", 2)
    found = yaml.safe_load(front)
    assert (found["license"], found.get("base_model")) == (given, public)
    assert ("base_model_relation" in found) == (public is not None)
    assert ("given as `other`" in body) == (given == "other")


@pytest.mark.parametrize("licence", ["CC-BY-4.0", None])
def test_a_run_made_from_a_run_names_what_that_was_made_from(tmp_path, licence):
    """By names, not by places on this machine; two licences of three are not enough for one of its own."""
    first = {
        "model": {"name": "minilm", "hub": "owner/minilm", "sha256": "a1" * 32, "licence": "Apache-2.0", "kind": "catalogue"},
        "data": [{"role": "data", "name": "old.jsonl", "sha256": "b2" * 32, "rows": 9, "licence": licence}],
    }  # fmt: skip
    model = {"name": "/elsewhere/runs/first", "run": "first", "sha256": "c3" * 32, "licence": "other", "kind": "run", "lineage": first}  # fmt: skip
    data = [{"role": "data", "name": "new.jsonl", "sha256": "d4" * 32, "rows": 5, "licence": "CC0-1.0"}]
    used = {"model": {"value": "/elsewhere/runs/first", "origin": "command line"}}
    facts = {"name": "second", "task": "chat", "lineage": {"model": model, "data": data}}
    put(tmp_path, {"run.json": facts, "experiment.json": {"used": used}})
    (tmp_path / "model").mkdir()
    page = Page(report.write(tmp_path))
    _, front, body = (tmp_path / "model" / "README.md").read_text("utf-8").split("---\n", 2)
    found = yaml.safe_load(front)
    assert found["license"] == ("apache-2.0" if licence else "other")
    assert (found["base_model"], found["base_model_relation"]) == ("owner/minilm", "finetune")
    assert found["datasets"] == ["old.jsonl", "new.jsonl"]
    assert "/elsewhere" not in front + body and "\nfirst, fine-tuned for chat" in body
    lines = ("- base model `first`, ", "- base model of `first` `minilm`, ", "- data of `first` `old.jsonl`, ", "- data `new.jsonl`, ")  # fmt: skip
    places = [body.index(line) for line in lines]
    assert places == sorted(places) and "licence: that of what it was made from." in body
    assert ("The licence of `old.jsonl` is not stated" in body) == (licence is None)
    assert "made from minilm, old.jsonl" in page.text and "from first" in page.text


def test_figures_of_answers_say_how_many_answers_they_rest_on(tmp_path):
    evaluation = {
        "split": "test",
        "rows": 150,
        "answered": 12,
        "primary": "exact_match",
        "metrics": {
            "perplexity": {"value": 7.31, "low": 6.8, "high": 7.9},
            "exact_match": {"value": 1.0, "low": 1.0, "high": 1.0},
            "rouge_l": {"value": 0.41, "low": 0.37, "high": 0.45},
        },
        "dropped": [{"reason": "nothing to learn is left within 64 tokens", "count": 2, "examples": ["a.jsonl:3"]}],
        "cut": {"rows": 3, "tokens": 120, "learned tokens cut off": 40},
    }
    put(tmp_path, {"run.json": {"name": "r", "task": "chat"}, "evaluation.json": evaluation})
    (tmp_path / "model").mkdir()
    page = Page(report.write(tmp_path))
    card = (tmp_path / "model" / "README.md").read_text("utf-8")
    few = (
        "Only 12 answers: a share of so few is uncertain by up to 25 points either way, and other figures are as rough."
    )
    for words in (
        few,
        "Left out of the test: 2, nothing to learn is left within 64 tokens (a.jsonl:3).",
        "Cut to fit: 3 test rows, of which 120 tokens were not read.",
        "Of the test: 40 learned tokens cut off.",
    ):
        assert words in page.text and words in card, words
    assert "ROUGE-L over 12 answers" in page.text and "perplexity over 150 rows, lower is better" in page.text
    assert "Exact match 100.0 % (too few for an interval) over 12 answers" in page.text
    assert "| exact match, over 12 answers | 100.0 % (too few for an interval) |" in card
    assert "| perplexity, over 150 rows | 7.31 [6.8, 7.9] |" in card
    assert "[100.0, 100.0]" not in page.text + card


def test_an_interval_of_no_width_over_many_rows_is_shown(tmp_path):
    certain = {"value": 1.0, "low": 1.0, "high": 1.0}
    put(tmp_path, {"evaluation.json": {"split": "test", "rows": 400, "metrics": {"accuracy": certain}}})
    assert "[100.0, 100.0]" in Page(report.write(tmp_path)).text


def test_a_classifiers_data_is_told_as_texts_and_labels(tmp_path):
    put(
        tmp_path,
        {
            "run.json": {"name": "r", "task": "text-classification"},
            "data.json": {
                "splits": {"train": 480, "validation": 60, "test": 60},
                "tokens": {"train": 61440, "learned": 480},
                "truncated": {"rows": 600, "tokens": 1034208, "learned": 0},
                "labels": {"ham": {"train": 327}, "spam": {"train": 153}},
                "view": [{"row": 1, "pieces": [["buy now", False]], "label": 1}],
            },
            "evaluation.json": {
                "split": "test",
                "rows": 200,
                "metrics": {"accuracy": {"value": 0.9, "low": 0.85, "high": 0.95}},
                "confusion": {"labels": ["ham", "spam"], "matrix": [[120, 10], [10, 60]]},
                "baselines": [{"name": "majority class", "settings": {"label": 0, "share": 0.68}, "metrics": {}}],
            },
        },
    )
    page = Page(report.write(tmp_path))
    assert "rows labelled480" in page.text.replace(" 480", "480") and "of them" not in page.text
    assert "buy nowspam" in page.text and "counts in the loss" not in page.text
    assert "label ham, share 0.68" in page.text
    assert "About 93 % of all tokens were cut away (600 rows)" in page.text
    assert "the baselines were given the whole texts" in page.text


def test_nothing_is_warned_of_when_little_was_cut_and_no_baseline_saw_more(tmp_path):
    data = {"splits": {"train": 80, "test": 20}, "tokens": {"train": 8000}, "truncated": {"rows": 3, "tokens": 100}}
    put(tmp_path, {"data.json": data})
    page = Page(report.write(tmp_path))
    assert "were cut away" not in page.text and "baselines" not in page.text and 'class="alert"' not in page.source


def test_short_texts_are_shown_whole_and_long_ones_scroll(tmp_path):
    lines = "\n\n".join(f"line {i}" for i in range(8))
    example = {"input": "short", "expected": lines, "answer": "word " * 400, "right": False, "before": None}
    put(tmp_path, {"evaluation.json": {"split": "test", "rows": 150, "metrics": {}, "examples": [example]}})
    page = Page(report.write(tmp_path))
    boxes = [attrs.get("class", "").split() for tag, attrs in page.tags if tag == "dd"]
    assert ["long" in box for box in boxes] == [False, True]


@pytest.mark.parametrize(("steps", "smoothed"), [(20, 0), (21, 3)])
def test_lines_of_many_steps_are_smoothed(tmp_path, steps, smoothed):
    lines = [{"step": s, "loss": 2 / s, "gradient_norm": 1.0 + s % 3} for s in range(1, steps + 1)]
    timings = [{"step": s, "tokens_per_second": 100.0 + s} for s in range(1, steps + 1)]
    put(tmp_path, {"run.json": {"name": "r"}, "metrics.jsonl": lines, "timings.jsonl": timings})
    assert Page(report.write(tmp_path)).text.count("smoothed") == smoothed


def test_only_the_settings_that_the_task_reads_are_listed(tmp_path):
    used = {key: {"value": 1, "origin": "default"} for key in ("hidden", "image_size", "answers", "max_tokens", "seed", "of_a_newer_danlu")}  # fmt: skip
    put(tmp_path, {"run.json": {"name": "r", "task": "text-classification"}, "experiment.json": {"used": used}})
    (tmp_path / "model").mkdir()
    page = Page(report.write(tmp_path))
    card = (tmp_path / "model" / "README.md").read_text("utf-8")
    for key in used:
        read = key in ("max_tokens", "seed", "of_a_newer_danlu")
        assert (f">{key}<" in page.source) is read and (f"`{key}`" in card) is read, key


def test_card_of_an_adapter(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "run.json").write_bytes((folder / "run.json").read_bytes())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adapter_config.json").write_text("{}", "utf-8")
    report.write(tmp_path)
    front = yaml.safe_load((tmp_path / "model" / "README.md").read_text("utf-8").split("---\n")[1])
    assert front["library_name"] == "peft" and "lora" in front["tags"] and "model-index" not in front


# --- images -----------------------------------------------------------------------------------------------------------


def png(image):
    """The bytes of a PNG of uint8 [height, width]."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def tiled(images, columns):
    """Images [n, height, width] of 0..1 as one uint8 image, a grey pixel between them."""
    n, height, width = images.shape
    framed = np.full((n, height + 1, width + 1), 128, np.uint8)
    framed[:, :-1, :-1] = np.clip(255 * images, 0, 255)
    rows = framed.reshape(n // columns, columns, height + 1, width + 1).swapaxes(1, 2)
    return rows.reshape(n // columns * (height + 1), columns * (width + 1))[:-1, :-1]


def digits():
    """Scikit-learn's handwritten digits: float [1797, 8, 8] of 0..1, and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images / 16, found.target


def image_data(images, **more):
    return {
        "rows": {"read": len(images), "kept": len(images), "dropped": []},
        "splits": {"train": 1437, "validation": 180, "test": 180},
        "images": {
            "size": 8, "channels": 1, "mean": [0.3053], "std": [0.3763], "resize": "bilinear, whole image", "stored": "uint8",
            "sizes": [["8x8", 1797]], "modes": {"L": 1797},
        },
        "duplicates": 0, "leaks": 0, "truncated": {"rows": 0}, "notes": ["resnet18 starts from random weights"],
        **more,
    }  # fmt: skip


def facts_of(name, task, model, **base):
    return {
        "format": 1, "name": name, "status": "finished", "created": "2026-06-02T08:12:45+00:00", "danlu": "0.2.0", "recipe": model, "task": task,
        "seconds": 95.2, "machine": {"cpu": "Xeon", "cores": 2, "memory_bytes": 25276510208, "versions": {"torch": "2.13.0"}},
        "lineage": {"model": {"name": model, "sha256": "", "licence": "none: random weights", "kind": "random", **base},
                    "data": [{"role": "data", "name": "digits.npz", "sha256": "77aa" * 16, "rows": 1797, "format": "npz", "licence": "CC-BY-4.0"}]},
    }  # fmt: skip


def gan_run(folder, every=25, steps=400):
    """A generator against a discriminator: nested losses, samples that become digits, a distance with an interval over draws."""
    images, _ = digits()
    rng = np.random.default_rng(0)
    lines = []
    for step in range(1, steps + 1):
        half = math.exp(-step / 60)
        lines.append({
            "step": step,
            "epoch": step / 45,
            "discriminator": {"loss": 1.386 - 0.9 * half + 0.1 * rng.standard_normal(), "learning_rate": 2e-4, "gradient_norm": rng.gamma(4, 0.2), "images": 32},
            "generator": {"loss": 0.8 + 1.6 * half + 0.15 * rng.standard_normal(), "learning_rate": 1e-4, "gradient_norm": rng.gamma(4, 0.3), "images": 32},
        })  # fmt: skip
    put(folder, {
        "run.json": facts_of("gan-digits", "gan", "gan"),
        "data.json": image_data(images),
        "evaluation.json": {"split": "test", "rows": 180, "level": 0.95, "primary": "frechet_pixels",
                            "metrics": {"frechet_pixels": {"value": 1.742, "low": 1.61, "high": 1.874}}},
        "metrics.jsonl": lines,
        "timings.jsonl": [{"step": s, "seconds": 0.2, "images_per_second": 160 + 9 * rng.standard_normal()} for s in range(1, steps + 1)],
    })  # fmt: skip
    (folder / "samples").mkdir()
    noise = rng.random((64, 8, 8))
    for step in range(every, steps + 1, every):
        share = 0.9 * math.exp(-step / 100)
        (folder / "samples" / f"step-{step:08d}.png").write_bytes(
            png(tiled((1 - share) * images[:64] + share * noise, 8))
        )
    return folder


def autoencoder_run(folder):
    """A denoising autoencoder by principal components, more of them with every sample; figures as they come out."""
    from sklearn.decomposition import PCA

    from danlu.evaluation.metrics import interval, mean

    images, _ = digits()
    flat = images.reshape(len(images), -1)
    seen = np.clip(flat + 0.3 * np.random.default_rng(0).standard_normal(flat.shape), 0, 1)
    (folder / "samples").mkdir(parents=True)
    errors, lines = {}, []
    for components, step in zip((1, 2, 4, 8, 12, 16), range(50, 301, 50), strict=True):
        model = PCA(components, random_state=0).fit(flat[:1437])
        back = np.clip(model.inverse_transform(model.transform(seen)), 0, 1)
        errors[step] = ((back - flat) ** 2).mean(1)[1617:]
        rows = [part[1617:1625].reshape(8, 8, 8) for part in (flat, seen, back)]
        (folder / "samples" / f"step-{step:08d}.png").write_bytes(png(tiled(np.concatenate(rows), 8)))
        lines += [{"step": s, "loss": float(errors[step].mean()) * 7 * (1 + 0.05 * math.sin(s)), "learning_rate": 1e-3, "gradient_norm": 0.4} for s in range(step - 49, step + 1)]  # fmt: skip
        lines.append({"step": step, "validation": {"loss": float(errors[step].mean()) * 7.2}})
    before = ((seen - flat) ** 2).mean(1)[1617:]

    def figures(each):
        return {
            "mse": interval(mean, each).json(),
            "psnr": interval(lambda found: -10 * np.log10(mean(found)), each).json(),
        }

    comparison = compare(mean, before, errors[300], names=("the noisy image itself", "the autoencoder"), metric="mean squared error", higher_is_better=False, points=False)  # fmt: skip
    evaluation = {"split": "test", "rows": 180, "level": 0.95, "primary": "mse", "metrics": figures(errors[300]),
                  "baselines": [{"name": "the noisy image itself", "metrics": figures(before), "comparison": comparison}]}  # fmt: skip
    put(folder, {"run.json": facts_of("ae", "autoencoder", "autoencoder"), "data.json": image_data(images), "evaluation.json": evaluation, "metrics.jsonl": lines})  # fmt: skip
    return folder


def image_run(folder):
    """A classifier of digits, as a logistic regression answers, with the gain of pretrained weights, once below zero."""
    from sklearn.linear_model import LogisticRegression

    images, labels = digits()
    flat, names = images.reshape(len(images), -1), [str(digit) for digit in range(10)]
    chances = LogisticRegression(max_iter=200).fit(flat[:600], labels[:600]).predict_proba(flat[1297:])
    true, ours = labels[1297:], chances.argmax(1)
    evaluation = {"split": "test", **classification_report(true, ours, chances, names)}
    sure = np.argsort(-chances.max(1))
    rows = [i for flag in (False, True) for i in [i for i in sure if (true[i] == ours[i]) == flag][:12]]
    evaluation["examples"] = [
        {"image": base64.b64encode(png(np.uint8(255 * images[1297 + i]))).decode(), "expected": names[true[i]], "answer": names[ours[i]],
         "right": bool(true[i] == ours[i]), "confidence": float(chances[i].max())}
        for i in rows
    ]  # fmt: skip
    gains = ((100, 0.847, 0.712, 0.05), (500, 0.921, 0.913, 0.03), (1437, 0.951, 0.968, 0.012))
    evaluation["transfer"] = {
        "seeds": 5, "metric": "accuracy", "from": "runs/ae", "settings": "each side at the better of two learning rates by validation",
        "rows": [
            {"labels": n, "pretrained": {"value": a, "low": a - w / 2, "high": a + w / 2}, "random": {"value": b, "low": b - w, "high": b + w},
             "difference": {"value": a - b, "low": a - b - w, "high": a - b + w}, "learning_rates": {"pretrained": 1e-4, "random": 1e-3},
             "verdict": f"with {n:,} labels pretrained weights {'gain' if a > b else 'lose'} {100 * abs(a - b):.1f} points of accuracy, 5 seeds"}
            for n, a, b, w in gains
        ],
    }  # fmt: skip
    data = image_data(
        images,
        labels={
            name: {"train": int((labels[:1437] == k).sum()), "validation": 18, "test": 18}
            for k, name in enumerate(names)
        },
        learning_rate={"pretraining": 1e-3, "now": 1e-4},
    )
    lines = [{"step": s, "loss": 2.3 * math.exp(-s / 20), "learning_rate": 1e-4, "gradient_norm": 1.0} for s in range(1, 61)]  # fmt: skip
    run = facts_of("digits-from-ae", "image-classification", "runs/ae", sha256="ab12" * 16, kind="run", licence="CC-BY-4.0")  # fmt: skip
    put(folder, {"run.json": run, "data.json": data, "evaluation.json": evaluation, "metrics.jsonl": lines})
    (folder / "model").mkdir()
    return folder


def pictures(page):
    return [attrs for tag, attrs in page.tags if tag == "img"]


def test_samples_are_shown_in_the_order_of_steps(tmp_path):
    page = Page(report.write(gan_run(tmp_path / "gan")))
    steps = [int(found.replace(",", "")) for found in re.findall(r"step ([\d,]+)(?=step|\s)", page.text)]
    files = sorted((tmp_path / "gan" / "samples").iterdir())
    assert len(files) == 16 and len(pictures(page)) == len(steps) == 12
    assert steps[0] == 25 and steps[-1] == 400 and steps == sorted(set(steps))
    assert max(np.diff(steps)) <= 50
    shown = [base64.b64decode(attrs["src"].removeprefix("data:image/png;base64,")) for attrs in pictures(page)]
    assert shown == [(tmp_path / "gan" / "samples" / f"step-{step:08d}.png").read_bytes() for step in steps]
    assert {(attrs["width"], attrs["height"], attrs["class"]) for attrs in pictures(page)} == {
        ("213", "213", "sharp")
    }  # 71 * 3
    assert "img-src data:" in page.source and "image-rendering: pixelated" in page.source


def test_both_learners_of_a_gan_share_a_plot(tmp_path):
    folder = gan_run(tmp_path / "gan")
    page = Page(report.write(folder))
    plots = {attrs["aria-label"].split(".")[0]: attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"}
    assert list(plots) == ["Loss", "Learning rate", "Gradient norm", "Images per second"]
    assert "generator" in plots["Loss"] and "discriminator" in plots["Loss"]
    assert (
        "generator: 0.0001 at step 400" in plots["Learning rate"] and "discriminator: 0.0002" in plots["Learning rate"]
    )
    assert "Fréchet distance of pixels 1.742 [1.61, 1.874]" in page.text and "lower is better" in page.text
    assert "intervals over several draws" in page.text and "bootstrap" not in page.text
    assert "gan from random weights" in page.text and "No examples" not in page.text
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 401, "generator": {"loss": NaN}, "discriminator": {"loss": 1.0}}\n')
    assert "not a finite number at 1 step, first at step 401" in Page(report.write(folder)).text


def test_an_autoencoders_figures_and_reconstructions(tmp_path):
    folder = autoencoder_run(tmp_path / "ae")
    (folder / "model").mkdir()
    page = Page(report.write(folder))
    card = (folder / "model" / "README.md").read_text("utf-8")
    found = json.loads((folder / "evaluation.json").read_text("utf-8"))
    assert "Reconstructions while it learned" in page.text and len(pictures(page)) == 6
    for key, name in (("mse", "mean squared error of pixels"), ("psnr", "PSNR in dB")):
        said = f"{found['metrics'][key]['value']:.4g}"
        assert f"| {name} | {said} [" in card and name in page.text and said in page.text
    assert page.text.count("lower is better") == 2  # the loss and the error, not the PSNR
    assert found["baselines"][0]["comparison"]["verdict"][1:] in page.text
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "cc-by-4.0" and "base_model" not in front and front["pipeline_tag"] == "image-to-image"
    assert "trained from random weights for autoencoder" in card and "base model" not in card


def test_images_are_shown_as_examples_with_mistakes_first(tmp_path):
    folder = image_run(tmp_path / "digits")
    page = Page(report.write(folder))
    examples = json.loads((folder / "evaluation.json").read_text("utf-8"))["examples"]
    assert [attrs["src"] for attrs in pictures(page)] == [f"data:image/png;base64,{one['image']}" for one in examples]
    assert {attrs["width"] for attrs in pictures(page)} == {"96"}
    figures = [attrs["class"].split() for tag, attrs in page.tags if tag == "figure" and "picture" in attrs["class"]]
    assert ["wrong" in found for found in figures] == [not one["right"] for one in examples] and not examples[0][
        "right"
    ]
    first = examples[0]
    assert f"{first['answer']} {100 * first['confidence']:.0f} %expected {first['expected']}" in page.text
    for words in (
        "Learning rate: 0.0001 now, 0.001 in pretraining.",
        "8 × 8 pixels, 1 channel",
        "bilinear, whole image",
        "L 1797",
        "0.3053",
    ):
        assert words in page.text, words
    assert "tokens" not in page.text


def test_the_gain_of_pretraining_is_told_also_when_it_is_none(tmp_path):
    folder = image_run(tmp_path / "digits")
    page = Page(report.write(folder))
    header = page.text.split("Metrics on the test images")[0]
    assert header != page.text and "training images1,437" in page.text and "intervals over 500 images" in page.text
    card = (folder / "model" / "README.md").read_text("utf-8")
    for verdict in (
        "With 100 labels pretrained weights gain 13.5 points of accuracy",
        "With 1,437 labels pretrained weights lose 1.7 points of accuracy",
    ):
        assert verdict in header and verdict in card
    assert "84.7 %[82.2, 87.2]learning rate 0.0001" in page.text
    assert "+13.5[+8.5, +18.5]" in page.text and "−1.7[−2.9, −0.5]" in page.text
    cells = [
        attrs["class"].split() for tag, attrs in page.tags if tag == "td" and attrs.get("class", "").startswith("r ")
    ]
    assert [found[1:] for found in cells if found[1:] in (["good"], ["bad"])] == [
        ["good"],
        ["bad"],
    ]  # at 500 it is unclear
    label = next(attrs["aria-label"] for tag, attrs in page.tags if attrs.get("aria-label", "").startswith("Accuracy"))
    assert label == "Accuracy, per cent. pretrained weights: 95.1 at labels 1,437; random weights: 96.8 at labels 1,437"


def test_damaged_pictures_are_told(tmp_path):
    folder = gan_run(tmp_path / "gan", every=200)
    (folder / "samples" / "step-00000200.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    examples = [{"image": found, "expected": "1", "answer": "2"} for found in ("<svg/onload=alert(1)>", "AAAA", 5)]
    put(folder, {"evaluation.json": {"rows": 500, "metrics": {}, "examples": examples}})
    page = Page(report.write(folder))
    assert (
        page.text.count("The image cannot be read.") == 4 and len(pictures(page)) == 1 and "onload" not in page.source
    )


def test_ticks_are_round_and_inside():
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(0.013, 0.094, 4) == [0.02, 0.04, 0.06, 0.08]
    assert ticks(3, 3) == [3]


def test_smoothing_has_no_bias_at_the_start_and_passes_over_nan():
    assert smooth([2.0, 2.0, 2.0], 0.9) == pytest.approx([2.0, 2.0, 2.0])
    assert smooth([1.0, math.nan, 1.0], 0.5) == pytest.approx([1.0, 1.0, 1.0])


def test_thinning_keeps_ends_and_extremes():
    ys = [math.sin(i / 50) for i in range(20_000)]
    ys[7777] = 40.0
    xs, kept = thin(list(range(20_000)), ys, 400)
    assert len(xs) <= 402 and xs[0] == 0 and xs[-1] == 19_999 and max(kept) == 40.0 and xs[kept.index(40.0)] == 7777


def test_a_plot_of_nothing_and_of_one_point():
    assert line_plot("Loss", [Series("a", [], [])]) is line_plot("Loss", [Series("a", [1.0], [math.nan])]) is None
    assert [path for kind, path in line_plot("Loss", [Series("a", [1.0], [2.0])])["shapes"] if "dot" in kind] == [
        "M500.0 500.0h0"
    ]


def test_a_line_is_broken_where_a_value_is_missing_and_spans_stand_at_their_points():
    ys = [1.0, 2.0, math.nan, 4.0, 5.0]
    shapes = dict(line_plot("Loss", [Series("a", [1, 2, 3, 4, 5], ys)])["shapes"])
    assert re.sub(r"[\d. ]+", "", shapes["c0 stroke line"]) == "MLML"
    plot = line_plot("Gain", [Series("a", [10, 100, 1000], [1, 2, 3], "dots", 1, [(0, 2), (1, 3), (2, 4)])], log=True)
    spans = re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)", dict(plot["shapes"])["c1 span"])
    assert [float(x) for x, _, _ in spans] == [0, 500, 1000]  # each ten times the labels is as far
    assert [at for at, _ in plot["xs"]] == pytest.approx([0, 50, 100])
    heights = [[float(a), float(b)] for _, a, b in spans]
    assert np.diff(heights, axis=1) == pytest.approx(np.full((3, 1), heights[0][1] - heights[0][0]))
    assert max(map(max, heights)) <= 1000 and min(map(min, heights)) >= 0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "–"),
        (math.nan, "–"),
        (12345, "12,345"),
        (0.83149, "0.8315"),
        (2e-5, "2e-05"),
        (math.inf, "∞"),
        (123456.7, "123,457"),
    ],
)
def test_numbers_for_people(value, said):
    assert number(value) == said
