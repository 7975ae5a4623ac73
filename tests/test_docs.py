"""What the documents say is so: their commands exist, their links lead somewhere, their tables and examples are the code's."""

from __future__ import annotations

import ast
import re
import shlex
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from danlu.cli import COMMANDS, SAMPLING, parse
from danlu.core.config import leaves
from danlu.core.types import Documents, Learner, Task
from danlu.experiment import Experiment, ask
from danlu.recipes.catalogue import RECIPES
from danlu.stages.curate import Curation
from danlu.training.fit import State, fit


ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md")) + [ROOT / "examples" / "data" / "README.md"]
BUILDS = {"pretrain", "finetune", "preflight", "show"}  # these take the keys of an experiment
PLACES = {"RECIPE", "RUN", "FILE", "ONE", "TWO", "TEXT"}  # what a reader puts in
OWN_KEYS = {
    "plan": {"hours", "depth", "tokens", "data", "memory", "fresh", "max_rows"},
    "evaluate": {"data", "answers", "text", "label", "network"},
    "predict": {"data", "text", "out", "count", "network", *SAMPLING},
    "resume": {"network"},
    "chat": set(SAMPLING),
    "serve": {
        "host",
        "port",
        "key",
        "queue",
        "max_body_mb",
        "max_inputs",
        "request_seconds",
        "grace_seconds",
        "network",
    },
    "merge": {"out"},
    "export": {"out", "format", "dtype"},
    "prepare": {
        "data",
        "out",
        "kind",
        "specials",
        "size",
        "text",
        "segment",
        "lowercase",
        "validation_share",
        "bad_rows",
        "seed",
        "width",
        "window",
        "min_count",
        "epochs",
        *(key for _, key, _, _ in leaves(Curation)),
    },
}


def commands(text: str) -> list[str]:
    """Every `danlu …` of a document: lines of fenced blocks, with or without a prompt, and inline code."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"^(\$ )?(\.venv/bin/)?", "", line) for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [re.sub(r"^\.venv/bin/", "", code) for code in re.findall(r"`([^`\n]+)`", prose)]
    return [re.split(r"\s+#|\s*;", line)[0] for line in lines if re.match(r"danlu( |$)", line)]


FOUND = sorted({(path.name, line) for path in DOCUMENTS for line in commands(path.read_text("utf-8"))})


def headings(path: Path) -> set[str]:
    """The anchors of a document, as they are made from its headings."""
    found = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def script(name: str) -> ModuleType:
    spec = spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_commands_to_check() -> None:
    assert {line.split()[1] for _, line in FOUND if " " in line} >= COMMANDS.keys()


@pytest.mark.parametrize(("document", "line"), FOUND, ids=[f"{name}: {line}" for name, line in FOUND])
def test_every_command_of_the_documents_exists(document: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, *rest = shlex.split(line)
    if not rest or rest[0].startswith("--") or rest[0] == "COMMAND":
        return
    name, *arguments = rest
    assert name in COMMANDS
    call = parse([argument for argument in arguments if argument not in ("--help", "…")])
    if document == "status.md" and line.endswith("language=…"):  # row M8: what is to come
        return
    if name not in BUILDS:
        assert set(call.settings) <= OWN_KEYS.get(name, set())
        return
    words = [word for word in call.words if not word.startswith("runs/") and word not in PLACES]
    if words in ([], ["my.yaml"]):
        words = ["text-classification"]
    settings = {key: value for key, value in call.settings.items() if value not in ("…", "…,")}
    ask(RECIPES.get, words, settings, extra=("out",))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = link.partition("#")
        target = path.parent / place if place else path
        if ":" in place:
            continue
        if not target.exists() or (anchor and anchor not in headings(target)):
            wrong.append(link)
    assert wrong == []


def test_the_tables_of_settings_are_those_of_the_code() -> None:
    table = script("settings_table")
    page = table.PAGE.read_text("utf-8")
    assert table.renewed(page) == page, "run `make docs`"
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == [
        key for settings in (Experiment, Curation) for _, key, _, _ in leaves(settings)
    ]


def test_the_pages_of_python_name_what_there_is() -> None:
    """Calls on `danlu` and on a run, and settings given by name."""
    import danlu
    from danlu.api import Run

    keys = {key for _, key, _, _ in leaves(Experiment)} | {"data", "out", "init"}
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    calls = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    assert calls
    for call in calls:
        assert isinstance(call.func, ast.Attribute)
        of_danlu = isinstance(call.func.value, ast.Name) and call.func.value.id == "danlu"
        assert hasattr(danlu if of_danlu else Run, call.func.attr)
        if call.func.attr in ("pretrain", "finetune"):
            assert {keyword.arg for keyword in call.keywords} <= keys


def test_the_task_and_the_picture_of_the_architecture_page_are_one_in_both_languages() -> None:
    english, chinese = (
        re.findall(r"^```\w+\n.*?^```", (ROOT / "docs" / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
        for page in ("architecture.md", "zh/architecture.md")
    )
    assert len(english) == 2 and english == chinese


def test_the_task_of_the_architecture_page_learns() -> None:
    (block,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "architecture.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(compile(block, "architecture.md", "exec"), names)

    class Mean(torch.nn.Module):
        """A document's number: the mean of its tokens' embeddings."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(8, 1)

        def forward(self, ids: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
            return torch.stack([part.mean(0) for part in self.embedding(ids).split(lengths)])

        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden

    torch.manual_seed(0)
    model = Mean()
    learner = Learner(
        dict(model.named_parameters()), torch.optim.SGD([{"params": model.parameters(), "peak": 0.5}], 0.5)
    )
    task: Task = names["Regression"](model, learner)
    batch = Documents(torch.tensor([1, 2, 3, 4]), (1, 3), torch.tensor([2.0, -1.0]), (1, 2))

    def loss() -> float:
        with torch.no_grad():
            return float(task.losses(batch, "model")["squares"].mean())

    before = loss()
    fit(State(task, lambda start: iter(lambda: ([batch], {}), None)), until=50)
    assert loss() < 0.01 * before


@pytest.mark.parametrize("page", ["architecture.md", "zh/architecture.md"])
def test_the_architecture_page_names_what_there_is(page: str) -> None:
    """`folder/module.Name.method` and `folder/module.py`, below src/danlu."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    found = re.findall(
        r"`(core|data|models|tasks|surgery|training|evaluation|stages|recipes)/(\w+)\.(?!jsonl)([\w.]+)`", text
    )
    assert len(found) > 40
    wrong = []
    for folder, module, names in found:
        path = ROOT / "src" / "danlu" / folder / f"{module}.py"
        defined = set(re.findall(r"(?:def|class) (\w+)", path.read_text("utf-8"))) if path.exists() else set()
        if not defined or (names != "py" and not defined.issuperset(names.split("."))):
            wrong.append(f"{folder}/{module}.{names}")
    assert wrong == []


def test_status_has_every_row_once_and_a_command_for_what_works() -> None:
    lines = re.findall(
        r"^\| ([A-Z]\d+) \| .+ \| (.+) \| ?(.*?) ?\|$", (ROOT / "docs" / "status.md").read_text("utf-8"), re.MULTILINE
    )
    rows = [row for row, _, _ in lines]
    assert len(rows) == len(set(rows)) == 79
    for row, state, command in lines:
        assert re.match(r"works|partly: |not yet$", state), row
        assert bool(command) is (state != "not yet"), row
