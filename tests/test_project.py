"""What holds for the project as a whole: its architecture, its start-up time, its documents, its lock and its sample."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from danlu.core import idle
from danlu.core.config import leaves
from danlu.experiment import Experiment


ROOT = Path(__file__).parents[1]
SOURCE = sorted((ROOT / "src").rglob("*.py"))
SAMPLE = ROOT / "examples" / "data"
HELP = "import sys; sys.argv = ['danlu', '--help']; from danlu.cli import main; sys.exit(main())"


def project_files() -> list[Path]:
    """What git would put into the next commit; in an unpacked archive without git, the folders that matter."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    names = listed.stdout.decode().split("\0")[:-1] if listed.returncode == 0 else []
    folders = ("src", "tests", "docs", "examples", "scripts", "benchmarks")
    found = [ROOT / name for name in names] or [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return [path for path in found if path.is_file()]


def documents() -> list[Path]:
    return [path for path in project_files() if path.suffix == ".md"]


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ------------------------------------------------------------------------------------------------------- architecture


def test_imports_go_downward_only(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("lint-imports"), "--cache-dir", tmp_path]
    contracts = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert contracts.returncode == 0, contracts.stdout + contracts.stderr


def test_there_is_one_backward() -> None:
    calls = [
        place(path)
        for path in SOURCE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward"
    ]
    assert calls == ["src/danlu/training/fit.py"]


@pytest.mark.parametrize("path", SOURCE, ids=place)
def test_bad_input_is_never_an_assert_and_weights_are_never_a_pickle(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{place(path)}:{getattr(node, 'lineno', '?')}"
        if isinstance(node, ast.Assert):  # one that tells the type checker what is known may stay
            assert re.fullmatch(r".* is not None|isinstance\(.*\)", ast.unparse(node.test)), (
                f"{where}: raise a UserError"
            )
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {name.name.split(".")[0] for name in node.names} | {getattr(node, "module", "") or ""}
            assert not names & {"pickle", "dill", "joblib", "shelve", "marshal"}, where
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("torch", "load"), where
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant) and node.value.value is False, where


def test_a_setting_has_one_place_and_says_what_it_is() -> None:
    settings = list(leaves(Experiment))
    twice = [key for key, count in Counter(key for _, key, _, _ in settings).items() if count > 1]
    assert not twice
    assert [key for _, key, field, _ in settings if not field.metadata.get("about")] == []


# ------------------------------------------------------------------------------------------------------------ start-up


def test_help_imports_nothing_heavy() -> None:
    told = subprocess.run([sys.executable, "-X", "importtime", "-c", HELP], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr[-2000:]
    assert "finetune" in told.stdout
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in told.stderr.splitlines() if "|" in line}
    assert "danlu" in imported
    assert not imported & {
        "torch",
        "transformers",
        "peft",
        "sklearn",
        "scipy",
        "numpy",
        "pyarrow",
        "pandas",
        "tensorboard",
    }


@pytest.mark.parametrize(("running", "expected"), [("1/80", True), ("0/80", True), ("2/80", False), ("nothing", False)])
def test_threads_wait_as_the_machines_load_says(running: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "load").write_text(f"0.20 0.18 0.12 {running} 11206\n")
    assert idle.at_rest(str(tmp_path / "load")) is expected
    assert not idle.at_rest(str(tmp_path / "no such file"))


def test_whoever_says_how_threads_wait_decides() -> None:
    code = "import os, danlu; print(os.environ['OMP_WAIT_POLICY'], os.environ.get('GOMP_SPINCOUNT'))"
    several = {"WORLD_SIZE": "2"}  # whose threads are in each other's way
    for given, told in (
        ({}, ("PASSIVE 3000", "PASSIVE 300000")),
        (several, ("PASSIVE 3000",)),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ("ACTIVE None",)),
    ):
        environment = {
            key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
        }
        said = subprocess.run(
            [sys.executable, "-c", code], env=environment | given, capture_output=True, text=True, check=True
        )
        assert said.stdout.strip() in told


def test_help_is_quick() -> None:
    def seconds(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        return time.perf_counter() - start

    pairs = [(seconds(""), seconds(HELP)) for _ in range(7)]  # in turns: the machine's other work meets both alike
    empty, help_ = (min(times) for times in zip(*pairs, strict=True))
    assert help_ < 15 * empty, f"--help takes {help_:.3f} s, an empty Python {empty:.3f} s"


# ----------------------------------------------------------------------------------------------------------- documents


def test_no_file_knows_one_machine() -> None:
    own = re.escape(f"{ROOT.parent}/") if len(ROOT.parent.parts) > 2 else r"(?!)"
    machine = re.compile(rf"{own}|(?<![\w.~])/(?:root|home|Users)/|(?:index|find)-(?:url|links)\b|trusted-host")
    found = []
    for path in project_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        if path != Path(__file__):
            found += [
                f"{place(path)}:{number}: {line.strip()[:100]}"
                for number, line in enumerate(lines, 1)
                if machine.search(line)
            ]
    assert found == []


def test_documents_name_files_and_targets_that_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wrong = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)\s#]+)[^)]*\)", text)
        wrong += [f"{place(path)}: {link}" for link in links if ":" not in link and not (path.parent / link).exists()]
        commands = re.findall(r"`make ([a-z]+)|^make ([a-z]+)", text, re.MULTILINE)
        wrong += [f"{place(path)}: make {one or other}" for one, other in commands if (one or other) not in targets]
    assert wrong == []


def outline(text: str) -> tuple[list[int], list[list[str]]]:
    """Depth of each heading, and the commands of each fenced block without their comments."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    depths = [len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)]
    return depths, [
        [line for line in (re.sub(r"(^|\s)#.*", "", line).rstrip() for line in block.splitlines()) if line]
        for block in blocks
    ]


def test_both_readmes_say_the_same() -> None:
    english, chinese = (outline((ROOT / name).read_text(encoding="utf-8")) for name in ("README.md", "README.zh.md"))
    assert english == chinese
    assert {"make demo", "make test"} <= {command for block in english[1][:2] for command in block}


# ---------------------------------------------------------------------------------------------------------------- lock


def test_the_lock_holds_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        line
        for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == [], (
        "a pin is a name and a public version"
    )
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    wanted = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["dev"])]
    assert {str(want): pins.get(canonicalize_name(want.name)) for want in wanted if not in_range(want, pins)} == {}
    assert [str(want) for want in wanted if "==" in str(want.specifier)] == [], "danlu lives beside other packages"


def in_range(want: Requirement, pins: dict[str, str]) -> bool:
    return want.specifier.contains(pins.get(canonicalize_name(want.name), ""), prereleases=False)


# -------------------------------------------------------------------------------------------------------------- sample


def test_the_sample_is_what_its_readme_says() -> None:
    told = dict(
        re.findall(
            r"^\| `([\w.]+)` .*`([0-9a-f]{64})` \|$", (SAMPLE / "README.md").read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*SAMPLE.glob("*.jsonl"), *SAMPLE.glob("*.npz")]
    }
    assert told == files


def test_no_conversation_leaks_into_what_is_held_out() -> None:
    seen: dict[tuple[str, str], str] = {}
    for path in SAMPLE.glob("descriptions_chat*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 2
            for kind, value in (
                ("source", row["source"]),
                *zip("dsqg", (m["content"] for m in row["messages"]), strict=True),
            ):
                if kind != "q":  # the second question is the same everywhere
                    assert seen.setdefault((kind, value.lower()), path.name) == path.name, value


def test_sections_are_balanced_and_ordered_by_nothing() -> None:
    rows = [json.loads(line) for line in (SAMPLE / "sections.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["text"] for row in rows}) == len(rows)
    assert set(Counter(row["label"] for row in rows).values()) == {300}
    assert min(Counter(row["label"] for row in rows[-180:]).values()) > 10


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = spec_from_file_location("build_examples", ROOT / "scripts" / "build_examples.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_builder_joins_the_indices_and_leaves_lists_out(builder: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "Packages").write_text(
        "Package: first\nSource: origin (1.0)\nSection: contrib/games\nDescription-md5: a1\n\n"
        "Package: second\nSection: net\nDescription-md5: b2\n\nPackage: third\nSection: net\n"
    )
    (tmp_path / "en").write_text(
        "Package: first\nDescription-md5: a1\nDescription-en: a game\n One line\n and another.\n .\n A paragraph.\n\n"
        "Package: second\nDescription-md5: b2\nDescription-en: a tool\n It can:\n  * read\n  * write\n"
    )
    (tmp_path / "de").write_text("Package: first\nDescription-md5: a1\nDescription-de: ein Spiel\n Eine Zeile.\n")
    (found,) = builder.packages(tmp_path / "Packages", tmp_path / "en", tmp_path / "de")
    assert (found.source, found.section, found.synopsis, found.german) == ("origin", "games", "a game", "ein Spiel")
    assert found.text == "One line and another.\n\nA paragraph."


def test_the_builder_thins_families(builder: ModuleType) -> None:
    texts = [
        "a library to read and write the one format",
        "a library to read and write the other format",
        "a wholly different game",
    ]
    rows = [builder.Package(str(at), "", "", "", text, "") for at, text in enumerate(texts)]
    assert [row.name for row in builder.thinned(rows, lambda row: row.text, 0.5)] == ["0", "2"]
