"""The report page and the model card, from a run as training leaves it, and from what an interrupted one leaves."""

from __future__ import annotations

import html
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
        "Validation: accuracy",
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


def test_rows_cannot_run_scripts(tmp_path):
    hostile = {
        "run.json": {"format": 1, "name": HOSTILE, "status": "finished", "task": HOSTILE, "recipe": HOSTILE, "danlu": HOSTILE, "machine": {HOSTILE: HOSTILE},
                     "lineage": {"model": {"name": HOSTILE, "sha256": HOSTILE, "licence": HOSTILE}, "data": [{"role": HOSTILE, "name": HOSTILE, "sha256": HOSTILE, "rows": 3}]}},
        "experiment.json": {"used": {HOSTILE: {"value": HOSTILE, "origin": HOSTILE}}},
        "data.json": {"rows": {"read": 1, "kept": 0, "dropped": [{"reason": HOSTILE, "count": 1, "examples": [HOSTILE]}]}, "splits": {HOSTILE: 1},
                      "labels": {HOSTILE: {HOSTILE: 1}}, "notes": [HOSTILE], "view": [{"row": 1, "pieces": [[HOSTILE, True], [HOSTILE, False]]}]},
        "evaluation.json": {"split": HOSTILE, "rows": 500, "metrics": {HOSTILE: {"value": 0.5, "low": 0.4, "high": 0.6}}, "per_class": {HOSTILE: {"precision": 1, "recall": 1, "f1": 1, "rows": 1}},
                            "confusion": {"labels": [HOSTILE, "b"], "matrix": [[1, 2], [3, 4]]},
                            "baselines": [{"name": HOSTILE, "settings": {HOSTILE: HOSTILE}, "metrics": {}, "comparison": {"verdict": HOSTILE}}],
                            "examples": [{"input": HOSTILE, "expected": HOSTILE, "answer": HOSTILE, "right": right, "before": HOSTILE} for right in (True, False)]},
        "metrics.jsonl": [{"step": 1, "loss": 1.0, "validation": {HOSTILE: 1.0}}, {"step": 2, "loss": 0.5, "validation": {HOSTILE: 1.0}}],
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
    import base64
    import hashlib

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


def test_damage_is_told(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "run.json").write_bytes((folder / "run.json").read_bytes())
    (tmp_path / "data.json").write_text('{"rows": {', "utf-8")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\nnot json\n{"step": 3, "loss": NaN}\n', "utf-8")
    page = Page(report.write(tmp_path))
    assert "data.json cannot be read" in page.text
    assert "metrics.jsonl: 1 line cannot be read (first: 2)" in page.text
    assert "not a finite number at 1 steps, first at step 3" in page.text


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
    assert "Only 12 rows were tested" in page.text and "5 test or validation rows also occur" in page.text


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
        "## Licences",
        "## Training",
        "## Lineage",
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
        ({"name": "owner/minilm", "kind": "hub"}, None, "owner/minilm", "other"),
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
    few = "Only 12 answers were compared: intervals from so few are wide, and still narrower than they should be."
    for words in (
        few,
        "Left out of the test: 2, nothing to learn is left within 64 tokens (a.jsonl:3).",
        "Cut to fit: 3 test rows, of which 120 tokens were not read.",
        "Of the test: 40 learned tokens cut off.",
    ):
        assert words in page.text and words in card, words
    assert "ROUGE-L over 12 answers" in page.text and "perplexity over 150 rows, lower is better" in page.text
    assert "Exact match 100.0 % (n too small for an interval) over 12 answers" in page.text
    assert "| exact match, over 12 answers | 100.0 % (n too small for an interval) |" in card
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


def test_card_of_an_adapter(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "run.json").write_bytes((folder / "run.json").read_bytes())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adapter_config.json").write_text("{}", "utf-8")
    report.write(tmp_path)
    front = yaml.safe_load((tmp_path / "model" / "README.md").read_text("utf-8").split("---\n")[1])
    assert front["library_name"] == "peft" and "lora" in front["tags"] and "model-index" not in front


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
    assert line_plot("Loss", [Series("a", [], [])]) == "" == line_plot("Loss", [Series("a", [1.0], [math.nan])])
    assert "h0" in line_plot("Loss", [Series("a", [1.0], [2.0])])


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
