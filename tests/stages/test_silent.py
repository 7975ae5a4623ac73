"""Ways in which a fine-tuning goes wrong silently elsewhere, by their numbers in docs/silent-failures.md: here each stops, is said, or cannot happen."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.stages.conftest import CHATML, QUICK, lines


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "silent-failures.md", ROOT / "docs" / "zh" / "silent-failures.md"]
CASES: dict[int, Callable[[Kit], None]] = {}
THINKING = """
{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'assistant' and loop.index0 < ns.last %}{{- '<|im_start|>assistant\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}
    {%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


@dataclass(frozen=True)
class Kit:
    """What a case works with: the command line, two tiny models, real rows, an empty folder."""

    danlu: Any
    chatter: Path
    sorter: Path
    chats: list[dict[str, Any]]
    texts: list[dict[str, str]]
    folder: Path

    def rows(self, rows: list[dict[str, Any]], name: str = "my.jsonl") -> Path:
        return lines(self.folder / name, rows)

    def chat(self, command: str, rows: list[dict[str, Any]], *settings: str, model: Path | None = None) -> Any:
        return self.danlu(command, "chat", f"model={model or self.chatter}", f"data={self.rows(rows)}", *quick(settings, "answers=0"))  # fmt: skip

    def classify(self, command: str, rows: list[dict[str, Any]], *settings: str, model: Path | None = None) -> Any:
        return self.danlu(command, "text-classification", f"model={model or self.sorter}", f"data={self.rows(rows)}", *quick(settings, "baselines=no"))  # fmt: skip

    def changed(self, model: Path, **settings: Any) -> Path:
        """A copy of a model with other settings of its tokenizer."""
        folder = self.folder / f"other-{model.name}"
        shutil.copytree(model, folder)
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        return folder


def case(number: int) -> Callable[[Callable[[Kit], None]], Callable[[Kit], None]]:
    def register(check: Callable[[Kit], None]) -> Callable[[Kit], None]:
        CASES[number] = check
        return check

    return register


def quick(settings: tuple[str, ...], *more: str) -> tuple[str, ...]:
    """Settings, and those of a quick run that they leave open."""
    given = {setting.split("=")[0] for setting in settings}
    return (*settings, *(each for each in (*QUICK, *more) if each.split("=")[0] not in given))


def stops(result: Any, *parts: str) -> None:
    assert result.code == 2, result.out + result.err
    assert "\n  fix: " in result.err
    for part in parts:
        assert part in result.err, result.err


def says(result: Any, *parts: str) -> None:
    assert result.code == 0, result.err
    for part in parts:
        assert part in result.out, result.out


def learned(result: Any) -> list[list[str]]:
    """What is learned of the first rows, as `preflight --json` shows it."""
    assert result.code == 0, result.err
    return [[piece for piece, is_learned in row["pieces"] if is_learned] for row in result.json["view"]]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line]  # fmt: skip


def with_turns(kit: Kit, *changes: Callable[[str], str]) -> list[dict[str, Any]]:
    """The conversations, the content of their first turns changed."""
    rows = []
    for row in kit.chats:
        turns = [dict(turn) for turn in row["messages"]]
        for turn, change in zip(turns, changes, strict=False):
            turn["content"] = change(turn["content"])
        rows.append({"messages": turns})
    return rows


# ------------------------------------------------------------------------------------------------------- what is learned


@case(1)
def every_label_masked(kit: Kit) -> None:
    stops(kit.chat("finetune", kit.chats, "max_tokens=60"), "nothing to learn is left within 60 tokens", "raise max_tokens")  # fmt: skip


@case(2)
def answer_cut(kit: Kit) -> None:
    result = kit.chat("preflight", kit.chats, "max_tokens=160")
    says(result, "of them learned ones; raise max_tokens", "too_long=drop")
    assert int(re.search(r"([\d,]+) of them learned", result.out)[1].replace(",", "")) > 0
    says(kit.chat("preflight", kit.chats, "max_tokens=160", "too_long=drop"), "longer than 160 tokens (too_long=drop) (my.jsonl:")  # fmt: skip
    says(kit.chat("preflight", kit.chats), "derived: the longest row has 188 tokens")  # no length is cut to unasked


@case(3)
def batch_without_labels(kit: Kit) -> None:
    rows = [row if n % 2 else {"messages": [{**row["messages"][0], "content": row["messages"][0]["content"] * 3}, *row["messages"][1:]]} for n, row in enumerate(kit.chats)]  # fmt: skip
    result = kit.chat("finetune", rows, "max_tokens=200", "batch_size=1", "steps=30", "test_share=0", "out=r")
    says(result, "nothing to learn is left within 200 tokens (my.jsonl:1")
    assert len(found := losses(kit.folder / "r")) > 10
    assert all(0 < loss < 10 for loss in found)


@case(4)
def prompt_learned(kit: Kit) -> None:
    found = learned(kit.chat("preflight", kit.chats, "--json"))
    answers = [[m["content"] + "<|im_end|>" for m in row["messages"] if m["role"] == "assistant"] for row in kit.chats]
    assert len(found) == 3
    assert all(row in answers for row in found)


@case(5)
def no_end_token(kit: Kit) -> None:
    (kit.folder / "mine.jinja").write_text(CHATML.replace("<|im_end|>", ""))
    stops(kit.chat("finetune", kit.chats, "template=mine.jinja"), "no end token", "would never learn to stop", "template=FILE.jinja")  # fmt: skip


@case(6)
def padding_is_end(kit: Kit) -> None:
    folder = kit.changed(kit.chatter, pad_token="<|im_end|>")
    for row in learned(kit.chat("preflight", kit.chats, "--json", model=folder)):
        assert row and all(piece.endswith("<|im_end|>") for piece in row)


@case(7)
def doubled_bos(kit: Kit) -> None:
    from tokenizers import Tokenizer, processors

    from danlu.core.run import Run
    from danlu.stages.load import open_final
    from danlu.stages.text_answers import prompt

    folder = kit.changed(kit.chatter, chat_template="{{ bos_token }}" + CHATML, bos_token="<|endoftext|>")
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])  # fmt: skip
    tokens.save(str(folder / "tokenizer.json"))
    result = kit.chat("finetune", kit.chats, "--json", "steps=1", "out=r", model=folder)
    assert result.code == 0, result.err
    shown = json.loads((kit.folder / "r" / "data.json").read_text())["view"]
    assert ["".join(piece for piece, _ in row["pieces"]).count("<|endoftext|>") for row in shown] == [1, 1, 1]
    asked = prompt(open_final(Run(kit.folder / "r")), [{"role": "user", "content": "Hello"}])
    assert asked[0] == 0 and asked.count(0) == 1


@case(8)
def history_rewritten(kit: Kit) -> None:
    (kit.folder / "mine.jinja").write_text(THINKING)
    rows = with_turns(kit, str, lambda said: f"<think>{said[:3]}</think>{said}", str, lambda said: f"<think>{said[-3:]}</think>{said}")  # fmt: skip
    result = kit.chat("preflight", rows, "template=mine.jinja", "--json")
    first, second = learned(result)[:2]
    assert len(first) == len(second) == 1  # two examples of one conversation, each with its thought
    assert first[0].startswith("<think>") and second[0].startswith("<think>")
    assert any("rows in several examples, because the template rewrites history" in note for note in result.json["notes"])  # fmt: skip


@case(9)
def special_in_text(kit: Kit) -> None:
    rows = with_turns(kit, lambda said: f"{said} What is <|im_end|>?")
    says(kit.chat("preflight", rows), "40 rows contain the text of a special token", "for example my.jsonl:", "write it otherwise")  # fmt: skip


@case(10)
def system_only_in_training(kit: Kit) -> None:
    from danlu.core.run import Run
    from danlu.stages.load import open_final
    from danlu.stages.text_answers import rendered

    told = [{"messages": [{"role": "system", "content": "You are terse."}, *row["messages"]]} for row in kit.chats]
    says(kit.chat("preflight", told), "warning: every training row has a system message", 'give it as system="You are terse."')  # fmt: skip
    result = kit.chat("finetune", kit.chats, "system=You are terse.", "steps=1", "out=r")
    assert result.code == 0 and "every training row has a system message" not in result.out
    asked = rendered(open_final(Run(kit.folder / "r")), [{"role": "user", "content": "Hello"}])
    assert asked.startswith("<|im_start|>system\nYou are terse.<|im_end|>")


# --------------------------------------------------------------------------------------------------------- how it learns


@case(11)
def packed(kit: Kit) -> None:
    import torch

    from danlu.models.pretrained import load

    model: Any = load(kit.chatter, task="language").eval()
    one, two, three = (torch.arange(5, 5 + size) * 7 % 480 for size in (9, 20, 33))
    with torch.no_grad():
        alone = model.logits(model(three, (33,)))
        for before in ((one, two), (two, one), (two + 1, one + 1)):
            ids = torch.cat([*before, three])
            behind = model.logits(model(ids, (*map(len, before), 33)))[-33:]
            torch.testing.assert_close(behind, alone, rtol=0, atol=1e-5)


@case(12)
def mean_of_means(kit: Kit) -> None:
    import torch

    settings = ("optimizer=sgd", "momentum=0", "learning_rate=0.5", "method=full", "steps=2")
    for name, tokens in (("one", 2048), ("many", 8)):
        result = kit.chat("finetune", kit.chats, *settings, f"micro_batch_tokens={tokens}", f"out={name}")
        assert result.code == 0, result.err
    start, one, many = (load_file(folder / "model.safetensors") for folder in (kit.chatter, kit.folder / "one/model", kit.folder / "many/model"))  # fmt: skip
    for name, weight in one.items():
        torch.testing.assert_close(weight - start[name], many[name] - start[name], rtol=1e-3, atol=1e-6)
    assert any(not torch.equal(weight, start[name]) for name, weight in one.items())


@case(13)
def setting_ignored(kit: Kit) -> None:
    stops(kit.chat("finetune", kit.chats, "learing_rate=1e-3"), "unknown key 'learing_rate'", "did you mean 'learning_rate'")  # fmt: skip
    (kit.folder / "my.yaml").write_text("recipe: chat\ntraining:\n  learning_rate: 0.001\n")
    stops(kit.danlu("finetune", "my.yaml"), "unknown key 'training'")
    stops(kit.chat("finetune", kit.chats, "method=full", "rank=4"), "rank: found 4", "which method=full does not read", "method=lora")  # fmt: skip
    (kit.folder / "base.yaml").write_text("recipe: chat\nrank: 32\n")
    base = kit.danlu("finetune", "base.yaml", "method=full", f"model={kit.chatter}", f"data={kit.rows(kit.chats)}", *quick(("steps=1", "out=full"), "answers=0"))  # fmt: skip
    assert base.code == 0, base.err
    stops(kit.danlu("show", "base.yaml", "method=full", "rank=4"), "rank: found 4 (command line), which method=full does not read")  # fmt: skip
    (kit.folder / "both.yaml").write_text("recipe: chat\nrank: 32\nmethod: full\n")
    stops(kit.danlu("show", "both.yaml"), "rank: found 32 (file both.yaml), which method=full does not read")
    stops(kit.chat("finetune", kit.chats, "momentum=0.5"), "which optimizer=adamw does not read", "optimizer=sgd")
    stops(kit.chat("finetune", kit.chats, "optimizer=sgd", "beta2=0.5"), "which optimizer=sgd does not read")
    stops(kit.chat("finetune", kit.chats, "learning_rates=nothere=1e-3"), "matches none of the")
    says(kit.chat("preflight", kit.chats, "rank=4"), "method = lora  (derived: rank= belongs to it)")


@case(14)
def nan_hidden(kit: Kit) -> None:
    stops(kit.classify("finetune", kit.texts, "steps=30", "learning_rate=1e30", "clip=0", "epochs=9", "out=r"), "not finite (rows", "lower learning_rate")  # fmt: skip


@case(15)
def resume_order(kit: Kit) -> None:
    result = kit.classify("finetune", kit.texts, "epochs=3", "validate_every=5", "out=whole")
    assert result.code == 0, result.err
    run = kit.folder / "again"
    shutil.copytree(kit.folder / "whole", run)
    steps = sorted((run / "checkpoints").glob("step-*"))
    shutil.rmtree(steps[-1])
    (run / "final.json").unlink()
    shutil.rmtree(run / "model")
    (run / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_text()) | {"status": "running"}))
    says(kit.danlu("resume", "again"), "going on from step")
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (run / name).read_bytes() == (kit.folder / "whole" / name).read_bytes()


# ---------------------------------------------------------------------------------------------------------- what is kept


@case(16)
def held_out_learned(kit: Kit) -> None:
    near = [{**row, "text": row["text"] + " Indeed."} for row in kit.texts[24:28]]
    test = kit.rows([*kit.texts[:4], *near], "test.jsonl")
    says(kit.classify("preflight", kit.texts, f"test={test}"), "dropped 4: also in the test file, so not learned", "dropped 4: nearly the same as a row of the test file")  # fmt: skip


@case(17)
def label_order(kit: Kit) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    result = kit.classify("finetune", kit.texts[::-1], "epochs=2", "learning_rate=3e-3", "out=r")
    assert result.code == 0, result.err
    theirs = AutoModelForSequenceClassification.from_pretrained(kit.folder / "r/model").eval()
    tokens = AutoTokenizer.from_pretrained(kit.folder / "r/model")
    asked = [row["text"] for row in kit.texts[::12]]
    with torch.no_grad():
        found = [theirs.config.id2label[int(theirs(**tokens(text, return_tensors="pt")).logits.argmax())] for text in asked]  # fmt: skip
    assert found == [answer["label"] for answer in kit.danlu("predict", "r", *asked, "--json").json]
    assert list(theirs.config.id2label.values()) == sorted({row["label"] for row in kit.texts})
    file = kit.rows([{"text": row["text"], "label": row["label"].upper()} for row in kit.texts[:9]], "new.jsonl")
    stops(
        kit.danlu("evaluate", "r", f"data={file}"),
        "label 'ADMIN' is not known to the model",
        "it knows admin, games, net",
    )


@case(18)
def adapter_of_other_names(kit: Kit) -> None:
    result = kit.chat("finetune", kit.chats, "method=lora", "steps=1", "out=r")
    assert result.code == 0, result.err
    shutil.copytree(kit.folder / "r" / "model", kit.folder / "copy")
    for folder in (kit.folder / "r" / "model", kit.folder / "copy"):
        file = folder / "adapter_model.safetensors"
        save_file({key.replace("model.layers", "layers"): weight for key, weight in load_file(file).items()}, file)
    stops(kit.danlu("predict", "r", "Hello"), "the weights have SHA-256")
    stops(kit.chat("preflight", kit.chats, model=kit.folder / "copy"), "does not fit this model")


@case(19)
def head_not_saved(kit: Kit) -> None:
    result = kit.classify("finetune", kit.texts, "method=lora", "learning_rate=1e-2", "out=r")
    assert result.code == 0, result.err
    saved = load_file(kit.folder / "r/model/adapter_model.safetensors")
    assert any("classifier.weight" in name for name in saved)
    config = json.loads((kit.folder / "r/model/adapter_config.json").read_text())
    assert "classifier" in config["modules_to_save"] and config["task_type"] == "SEQ_CLS"
    told = json.loads((kit.folder / "r/evaluation.json").read_text())["metrics"]["log_loss"]["value"]
    again = kit.danlu("evaluate", "r", f"data={kit.folder / 'r/data/test.jsonl'}", "--json").json
    assert again["metrics"]["log_loss"]["value"] == told


@case(20)
def tied(kit: Kit) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from danlu.models.pretrained import load

    result = kit.chat("finetune", kit.chats, "method=full", "learning_rate=1e-2", "out=r")
    assert result.code == 0, result.err
    folder, ids = kit.folder / "r/model", torch.arange(5, 30)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    ours: Any = load(folder, task="language").eval()
    assert theirs.lm_head.weight.data_ptr() == theirs.model.embed_tokens.weight.data_ptr()
    assert not torch.equal(theirs.lm_head.weight, load_file(kit.chatter / "model.safetensors")["model.embed_tokens.weight"])  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(ids, (25,))), theirs(ids[None]).logits[0], rtol=0, atol=1e-4)


@case(21)
def target_nothing(kit: Kit) -> None:
    stops(kit.chat("finetune", kit.chats, "method=lora", "lora_targets=q_proj,gate_porj"), "gate_porj names no linear layer", "this model has")  # fmt: skip
    stops(kit.chat("finetune", kit.chats, "method=full", "freeze=embeddings,layers.0-1,norms"), "leaves nothing to train")  # fmt: skip


# -------------------------------------------------------------------------------------------------------- what it is fed


@case(22)
def characters_dropped(kit: Kit) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    chinese = [{"text": f"这首歌真好听，第{n}次", "label": "ab"[n % 2]} for n in range(30)]
    stops(kit.classify("finetune", chinese), "unknown to the tokenizer", "the text is Chinese", "give a model for that language")  # fmt: skip
    some = [{**row, "text": row["text"] + " 好" * 3} for row in kit.texts]
    says(kit.classify("preflight", some), "of the tokens are unknown to the tokenizer, and all one to the model")
    folder = kit.changed(kit.sorter)
    tokens = Tokenizer(models.BPE())  # without a token for the unknown
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["[PAD]"], show_progress=False)
    tokens.train_from_iterator([row["text"] for row in kit.texts], trainer)
    tokens.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}')  # fmt: skip
    mixed = [{**row, "text": row["text"][:40] + " 这首歌真好听" * 4} for row in kit.texts]
    stops(kit.classify("finetune", mixed, model=folder), "unknown to the tokenizer")
    says(kit.classify("preflight", mixed, "unknown_share=1", model=folder), "of the letters and digits have no token, and the model never sees them")  # fmt: skip


@case(23)
def accents(kit: Kit) -> None:
    rows = [{**row, "text": "Él dice hacía " + row["text"]} for row in kit.texts]
    says(kit.classify("preflight", rows), "the tokenizer drops the capitals of 58 and the accents of 58 training rows", "take a cased model")  # fmt: skip


@case(24)
def broken_line(kit: Kit) -> None:
    rows = kit.rows(kit.texts)
    written = rows.read_text().splitlines()
    rows.write_text("\n".join([*written[:16], '{"text": "cut', *written[17:]]))
    words = ("text-classification", f"model={kit.sorter}", f"data={rows}", *QUICK, "baselines=no")
    stops(kit.danlu("finetune", *words), "my.jsonl:17: ", "bad_rows=skip")
    says(kit.danlu("preflight", *words, "bad_rows=skip"), "dropped 1: ", "my.jsonl:17")


@case(25)
def column_ignored(kit: Kit) -> None:
    pairs = [{"instruction": row["messages"][0]["content"], "output": row["messages"][1]["content"]} for row in kit.chats]  # fmt: skip
    stops(kit.chat("finetune", [{**row, "history": [["a", "b"]]} for row in pairs]), "my.jsonl:1: found earlier turns in column 'history'", "write the conversation as `messages`")  # fmt: skip
    says(kit.chat("preflight", [{**row, "score": 3, "id": n} for n, row in enumerate(pairs)]), "not read: 'score', 'id'")  # fmt: skip
    says(kit.chat("preflight", [{**row, "output": "yes"} for row in pairs]), "32 training rows teach one answer, 'yes': is it the right column?")  # fmt: skip
    trailing = [{"messages": row["messages"][:3]} for row in kit.chats]
    says(kit.chat("preflight", trailing), "40 rows in which what stands behind the last answer is left out")
    empty = with_turns(kit, str, lambda _: "")
    says(kit.chat("preflight", empty), "40 rows in which an empty answer is shown and not learned")


@case(26)
def majority(kit: Kit) -> None:
    rows = [{"text": row["text"], "label": "rare" if n < 5 else "usual"} for n, row in enumerate(kit.texts)]
    result = kit.danlu("finetune", "text-classification", f"model={kit.sorter}", f"data={kit.rows(rows)}", *QUICK, "out=r")  # fmt: skip
    says(result, "class_weights=balanced lets each class count the same")
    found = json.loads((kit.folder / "r/evaluation.json").read_text())
    assert {"f1_macro", "recall_macro"} <= found["metrics"].keys()
    assert any("majority" in each["name"].lower() for each in found["baselines"])


@case(27)
def last_not_best(kit: Kit) -> None:
    rising = ("warmup=1", "learning_rate=10", "epochs=2", "validate_every=1", "patience=none")  # into divergence
    result = kit.classify("finetune", kit.texts, *rising, "out=r")
    assert result.code == 0, result.err
    entries = map(json.loads, (kit.folder / "r/metrics.jsonl").read_text().splitlines())
    seen = [line["validation"]["loss"] for line in entries if "validation" in line]
    kept = kit.danlu("evaluate", "r", f"data={kit.folder / 'r/data/validation.jsonl'}", "--json").json
    assert seen[-1] > min(seen) + 0.5
    assert kept["metrics"]["log_loss"]["value"] == pytest.approx(min(seen), abs=1e-4)


@case(28)
def served_is_evaluated(kit: Kit) -> None:
    rows = [{"messages": row["messages"][:2]} for row in kit.chats]
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    (kit.folder / "mine.jinja").write_text(template)
    result = kit.chat("finetune", rows, "template=mine.jinja", "learning_rate=1e-2", "answers=2", "answer_tokens=8", "out=r")  # fmt: skip
    assert result.code == 0, result.err
    (kit.folder / "mine.jinja").unlink()
    assert (kit.folder / "r/model/chat_template.jinja").read_text() == template
    for example in json.loads((kit.folder / "r/evaluation.json").read_text())["examples"][:2]:
        again = kit.danlu("predict", "r", example["input"], "max_new_tokens=8", "--json").json
        assert again[0]["answer"] == example["answer"]


@case(29)
def beyond_vocabulary(kit: Kit) -> None:
    from tokenizers import Tokenizer

    folder = kit.changed(kit.chatter)
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens.add_tokens([f"<word {n}>" for n in range(40)])
    tokens.save(str(folder / "tokenizer.json"))
    rows = [{"prompt": f"{n}?", "completion": f"<word {n}>"} for n in range(20)]
    stops(kit.chat("finetune", rows, model=folder), "the model's embedding 480 rows", "belongs to another model")


# ---------------------------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize("number", CASES, ids=[f"{number}-{check.__name__}" for number, check in CASES.items()])
def test_it_stops_or_is_said_or_cannot_happen(number, danlu, chatter, sorter, conversations, texts, tmp_path):
    CASES[number](Kit(danlu, chatter, sorter, conversations, texts, tmp_path))


@pytest.mark.parametrize("page", PAGES, ids=["en", "zh"])
def test_the_table_has_each_of_them_with_its_thread(page: Path) -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \| `(\w+)` \|$", page.read_text("utf-8"), re.MULTILINE)
    assert [(int(number), name) for number, _, name in rows] == [(n, check.__name__) for n, check in CASES.items()]
    for number, row, _ in rows:
        assert re.search(r"\]\(https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+\)", row), number
    assert len({re.search(r"https://[^)]+", row)[0] for _, row, _ in rows}) == len(rows) >= 25
