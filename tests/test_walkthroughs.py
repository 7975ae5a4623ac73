"""The pages of docs/walkthroughs are what happens: their blocks run as they stand, and show what the pages say they show.

A page's ```sh blocks are run in order, each by `bash -e`, and its ```python blocks, where they follow each other, as one
script; all in one empty folder with a link `examples`. A ```text block is what the block before it prints: each of its
lines is a line of the output, in that order. There, `…` stands for anything, and a number for any number; but a count
with a thousands comma (`55,050`) is itself, and a figure with its interval (`0.939 [0.923, 0.953]`) must agree with the
one that was measured. `<!-- fails with 2 -->` before a block says how it ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "walkthroughs").glob("[0-9]*.md"))
CHINESE = ROOT / "docs" / "zh" / "walkthroughs"
SECONDS = 600
"""After which a block hangs. Each takes seconds; a busy machine may take minutes."""

BLOCK = re.compile(r"^(?:<!-- fails with (\d+) -->\n+)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?"
FIGURE = re.compile(rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\]")


@dataclass
class Step:
    """Code that is run, how it ends, and the lines it shows, in blocks."""

    language: str
    code: str
    ends_with: int = 0
    shown: list[str] = field(default_factory=list)


def steps(page: str) -> list[Step]:
    found: list[Step] = []
    for ends_with, language, code in BLOCK.findall(page):
        if language == "text":
            found[-1].shown.append(code)
        elif language == "python" and found and found[-1].language == "python":
            found[-1].code += code
        elif language in ("sh", "python"):
            found.append(Step(language, code, int(ends_with or 0)))
    return found


def run(step: Step, folder: Path) -> str:
    """What a step prints, on both streams as a terminal shows them. It may leave no process behind."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment |= {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    command = ["bash", "-e", "-c", step.code] if step.language == "sh" else [sys.executable, "-c", step.code]
    with (folder / ".output").open("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )  # fmt: skip
        try:
            code = process.wait(SECONDS)
            left = alive(process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        printed = output.read()
    assert code == step.ends_with, f"{step.code}\nended with {code}\n{printed}"
    assert not left, f"{step.code}\nleft a process behind"
    return printed


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def differing(shown: str, printed: str) -> list[str]:
    """The lines of `shown` that are not lines of `printed`, in this order."""
    waiting = [" ".join(line.split()) for line in printed.splitlines()]
    wrong = []
    for line in shown.splitlines():
        pattern, figures = like(" ".join(line.split())), FIGURE.findall(line)
        for place, real in enumerate(waiting):
            if pattern.fullmatch(real) and agree(figures, FIGURE.findall(real)):
                waiting = waiting[place + 1 :]
                break
        else:
            wrong.append(line)
    return wrong


def like(line: str) -> re.Pattern[str]:
    """What a shown line looks like with other numbers."""
    pieces, end = [], 0
    for number in re.finditer(NUMBER, line):
        pieces += [re.escape(line[end : number.start()]), re.escape(number[0]) if "," in number[0] else NUMBER]
        end = number.end()
    whole = "".join([*pieces, re.escape(line[end:])])
    return re.compile(whole.replace(re.escape("…"), ".*"))


def agree(shown: list[tuple[str, ...]], real: list[tuple[str, ...]]) -> bool:
    """Each figure lies in the interval that was measured for it."""
    if len(shown) > len(real):
        return False
    return all(
        float(low) <= float(value) <= float(high) for (value, _, _), (_, low, high) in zip(shown, real, strict=False)
    )


# ----------------------------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_as_it_stands(page: Path, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    found = steps(page.read_text("utf-8"))
    assert found and any(step.shown for step in found)
    for step in found:
        printed = run(step, tmp_path)
        wrong = {line: printed for shown in step.shown for line in differing(shown, printed)}
        assert not wrong, "\n".join(["shown, and not printed:", *wrong, "", "printed:", printed])


def test_pages_have_only_blocks_that_are_run_or_shown() -> None:
    assert [page.stem.split("-")[0] for page in PAGES] == [
        "01",
        "02",
        "03",
        "04",
        "05",
        "06",
        "07",
        "08",
        "09",
        "10",
        "11",
    ]
    for page in [*PAGES, CHINESE / "README.md", ROOT / "docs" / "walkthroughs" / "README.md"]:
        text = page.read_text("utf-8")
        fences = Counter(re.findall(r"^ *```(\w*)", text, re.MULTILINE))
        assert set(fences) <= {"sh", "python", "text", "console", ""}, page
        assert sum(fences.values()) == 2 * len(BLOCK.findall(text)), (
            f"{page}: a block that is not closed, or is indented"
        )
        for ends_with, language, _ in BLOCK.findall(text):
            assert language in ("sh", "python") or not ends_with, page


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docs" / "walkthroughs" / "README.md"], ids=lambda page: page.stem)
def test_the_chinese_page_is_the_same(page: Path) -> None:
    ours, theirs = page.read_text("utf-8"), (CHINESE / page.name).read_text("utf-8")
    assert BLOCK.findall(theirs) == BLOCK.findall(ours)
    assert outline(theirs) == outline(ours)
    assert len(re.findall(r"[\u4e00-\u9fff]", prose(theirs))) > 0.25 * len(prose(theirs)), "translated"


def test_there_is_no_chinese_page_of_its_own() -> None:
    assert {page.name for page in CHINESE.glob("*")} == {
        page.name for page in (ROOT / "docs" / "walkthroughs").glob("*")
    }


def prose(page: str) -> str:
    return BLOCK.sub("", page)


def outline(page: str) -> list[str]:
    return re.findall(r"^#+(?= )", prose(page), re.MULTILINE)


def test_the_list_of_pages_has_every_page_once() -> None:
    listed = re.findall(r"\]\((\d\d-[\w-]+\.md)\)", (ROOT / "docs" / "walkthroughs" / "README.md").read_text("utf-8"))
    assert listed == [page.name for page in PAGES]


def test_games_are_made_from_the_sections_as_their_readme_says(tmp_path: Path) -> None:
    """The block of examples/data/README.md gives the bytes that are there."""
    data = ROOT / "examples" / "data"
    (block,) = [
        code
        for code in re.findall(
            r"^```python\n(.*?)^```", (data / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
        if "games.jsonl" in code
    ]
    shutil.copy(data / "sections.jsonl", tmp_path)
    subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "games.jsonl").read_bytes() == (data / "games.jsonl").read_bytes()
    labels = re.findall(r'"label": "(\w+)"', (data / "games.jsonl").read_text("utf-8"))
    assert Counter(labels) == {"yes": 300, "no": 300}


# ----------------------------------------------------------------------------------------------------------- the harness


def test_a_shown_line_is_a_line_of_the_output() -> None:
    printed = (
        "rows: 600 read\nstep 3: loss 0.25  accuracy 0.9 (best so far)\n  accuracy 0.93 [0.90, 0.96]\n55,050 weights\n"
    )
    assert differing("rows: 580 read\nstep 9: loss 1e-3 accuracy 1 …\n", printed) == []
    assert differing("rows: 600\n", printed) == ["rows: 600"]
    assert differing("step 9: loss 1 accuracy 1 (best so far)\nrows: 1 read\n", printed) == ["rows: 1 read"]
    assert differing("accuracy 0.95 [0.2, 0.96]\n55,050 weights\n", printed) == []
    assert differing("accuracy 0.97 [0.90, 0.99]\n", printed) == ["accuracy 0.97 [0.90, 0.99]"]
    assert differing("55,051 weights\n", printed) == ["55,051 weights"]


def test_blocks_are_read_in_order_and_python_that_follows_is_one_script() -> None:
    page = "```sh\na\n```\nsaid\n```text\nb\n```\n```python\nc\n```\n\n```text\nd\n```\n```python\ne\n```\n<!-- fails with 2 -->\n```sh\nf\n```\n"
    found = steps(page)
    assert found == [Step("sh", "a\n", 0, ["b\n"]), Step("python", "c\ne\n", 0, ["d\n"]), Step("sh", "f\n", 2)]


def test_a_step_that_fails_or_leaves_a_process_behind_is_noticed(tmp_path: Path) -> None:
    assert run(Step("sh", "echo one; echo two >&2\nfalse || exit 2\n", 2), tmp_path) == "one\ntwo\n"
    with pytest.raises(AssertionError, match="ended with 1"):
        run(Step("sh", "false\necho on\n"), tmp_path)
    with pytest.raises(AssertionError, match="left a process behind"):
        run(Step("sh", "sleep 100 &\n"), tmp_path)
    assert run(Step("sh", "sleep 100 &\nkill %1\nwait %1 || echo ended\n"), tmp_path) == "ended\n"
    assert run(Step("python", "import sys\nprint(sys.prefix)\n"), tmp_path).strip() == sys.prefix
