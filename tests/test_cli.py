"""The command line itself: words, switches, help, exit codes, and what it prints where."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from danlu.cli import COMMANDS, Call, main, parse
from danlu.core.errors import UserError
from danlu.stages.terminal import cell, indented, table


def test_words_settings_and_switches_are_told_apart():
    call = parse(["chat", "data=a=b.jsonl", "two words", "x + y = z", "--json", "learning_rates=head=1e-3,norms=0"])
    assert call.words == ["chat", "two words", "x + y = z"]
    assert call.settings == {"data": "a=b.jsonl", "learning_rates": "head=1e-3,norms=0"}
    assert call.json and not call.debug
    assert parse([]) == Call([], {}, stdout=parse([]).stdout)


def test_a_commands_own_keys_are_converted_or_refused():
    assert Call([], {"top_k": "5", "data": "x"}).take(top_k=int, data=str) == {"top_k": 5, "data": "x"}
    with pytest.raises(UserError, match="top_k: found 'five', expected a whole number"):
        Call([], {"top_k": "five"}).take(top_k=int)
    with pytest.raises(UserError, match="unknown key 'topk'") as caught:
        Call([], {"topk": "5"}).take(top_k=int)
    assert "top_k" in caught.value.fix


@pytest.mark.parametrize("words", [[], ["--help"], ["help"], ["-h"]])
def test_help_lists_every_command(words, capsys):
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and command.about in shown for name, command in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"danlu {name} {COMMANDS[name].usage}" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("danlu 0.")


def test_debug_shows_where_an_error_was_raised(capsys):
    assert main(["finetune", "chatt"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(UserError):
        main(["finetune", "chatt", "--debug"])


def test_a_reader_that_goes_away_is_no_fault(tmp_path):
    command = [sys.executable, "-m", "danlu.cli", "show", "chat"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path, text=True, check=False)
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_a_table_is_as_wide_as_its_cells():
    rows = [
        {"run": "one", "loss": 0.123456789, "test": {"f1": 1}},
        {"run": "a longer one", "loss": None, "test": [1, 2]},
    ]
    assert table(rows, ("run", "loss", "test")).splitlines() == [
        "run           loss      test",
        "one           0.123457  f1=1",
        "a longer one  -         1,2",
    ]
    assert table([], ("run",)) == "nothing yet"
    assert cell(1e-5) == "1e-05"


def test_nested_facts_read_as_lines():
    facts = {"machine": {"cores": 2, "memory_bytes": 8e9, "gpus": []}, "missing": []}
    assert indented(facts).splitlines() == [
        "machine:",
        "  cores: 2",
        "  memory: 8.00 GB",
        "  gpus: nothing",
        "missing: nothing",
    ]
