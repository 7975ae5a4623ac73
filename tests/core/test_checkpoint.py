"""A checkpoint is whole and verified, or not there: whatever happens while it is written, and afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from danlu.core import checkpoint
from danlu.core.checkpoint import newest, rotate, save, verify
from danlu.core.errors import UserError


def tensors(value: float = 0.0) -> dict[str, dict[str, torch.Tensor]]:
    view = torch.full((4, 6), value).T  # not contiguous
    return {
        "weights": {"model/a.weight": view, "model/half": torch.tensor([1.5, value], dtype=torch.bfloat16)},
        "optimizer": {"model/a.weight|step": torch.tensor(3.0), "model/a.weight|exp_avg": view * 2},
        "average": {},
    }


STATE = {
    "step": 7,
    "position": {"epoch": 1, "row": 2},
    "best": {"loss": 0.1, "step": None},
    "Größe": [1.0000000000000002],
}


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = save(tmp_path / "made" / "here", 7, tensors(0.3), STATE)
    found, complaints = newest(tmp_path / "made" / "here")
    assert found == saved and found is not None and found.step == 7 and complaints == []
    assert found.state() == STATE
    for name, part in tensors(0.3).items():
        loaded = found.tensors(name)
        assert loaded.keys() == part.keys()
        assert all(torch.equal(loaded[key], value) and loaded[key].dtype == value.dtype for key, value in part.items())


def test_a_folder_without_checkpoints_has_no_newest(tmp_path: Path) -> None:
    assert newest(tmp_path / "missing") == (None, [])


KILL = """
import os
import shutil
import sys
from pathlib import Path
import torch
from danlu.core.checkpoint import newest, rotate, save, verify

folder, left = Path(sys.argv[1]), None

def hook(event, arguments):
    global left
    touched = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
    if left is not None and (touched or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")):
        left -= 1
        if left < 0:
            os._exit(1)

sys.addaudithook(hook)
state, part = {"x": 1}, {"weights": {"a": torch.ones(50)}, "task": {"b": torch.ones(3)}}
save(folder, 1, part, state)
moments = 0
for again in (False, True):  # a new step, and one that is there already
    for after in range(1000):
        if not (child := os.fork()):
            left = after
            save(folder, 2, part, state)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            moments += 1
            found, complaints = newest(folder)
            assert found is not None and not complaints, (after, complaints)
            rotate(folder)
            assert {path.name for path in folder.iterdir()} <= {"step-00000001", "step-00000002"}, after
            assert all(verify(path) is None for path in folder.iterdir())
            if again and found.step == 1:
                save(folder, 2, part, state)
            if not again and found.step == 2:
                shutil.rmtree(found.path)
        else:
            break
    assert newest(folder)[0].step == 2
print(moments)
"""


def test_killed_at_any_moment_of_a_save_the_one_before_is_good(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILL, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10


FULL = """
import resource, sys
from pathlib import Path
import torch
from danlu.core.checkpoint import newest, save
from danlu.core.errors import UserError

folder = Path(sys.argv[1])
save(folder, 1, {"weights": {"a": torch.ones(10)}}, {})
for size, part, state in ((20_000, torch.ones(10_000), {}), (20_000, torch.ones(3), {"long": "x" * 50_000})):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        save(folder, 2, {"weights": {"a": part}}, state)
    except UserError as error:
        assert "step-00000002: the checkpoint could not be written" in error.message, error.message
        assert "MB free" in error.message and "danlu resume" in error.fix
    else:
        raise SystemExit("no error")
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]
    assert newest(folder)[0].step == 1
"""


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty", "grow"])
def test_a_damaged_checkpoint_is_passed_by_with_its_reason(name: str, damage: str, tmp_path: Path) -> None:
    save(tmp_path, 1, tensors(), STATE)
    path = save(tmp_path, 2, tensors(1.0), STATE).path / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0x10 if name != "manifest.json" else 0xFF
    elif damage == "truncate":
        del content[-1:]
    elif damage == "empty":
        content.clear()
    elif damage == "grow":
        content += b"{"
    path.write_bytes(content) if damage != "remove" else path.unlink()
    found, complaints = newest(tmp_path)
    assert found is not None and found.step == 1
    (complaint,) = complaints
    assert "step-00000002" in complaint and name in complaint and complaint.endswith("passed by")


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    path = save(tmp_path, 1, tensors(), STATE).path / checkpoint.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"]["../outside"] = {"sha256": "", "bytes": 0}
    path.write_text(json.dumps(manifest))
    assert verify(path.parent) == "../outside is missing"


def test_rotation_keeps_two_that_verify_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step, tensors(step), STATE)
        rotate(tmp_path, needs=lambda _, step=step: {2 if step >= 2 else 1})
    assert steps(tmp_path) == [2, 5, 6]
    rotate(tmp_path)
    assert steps(tmp_path) == [5, 6]


def test_rotation_never_counts_a_damaged_one(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, tensors(step), STATE)
    (tmp_path / "step-00000004" / "state.json").write_text("{}")
    rotate(tmp_path)
    assert steps(tmp_path) == [2, 3, 4]
    found, _ = newest(tmp_path)
    assert found is not None and found.step == 3


def test_what_somebody_else_put_there_stays_and_hinders_nothing_but_their_own_place(tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "precious").write_text("mine")
    (folder := tmp_path / "checkpoints").mkdir()
    (folder / "step-00000000").symlink_to(elsewhere)
    (folder / "step-00000001.bak").write_text("mine")
    (folder / "step-00000001-copy").mkdir()
    for step in (2, 3, 4):
        save(folder, step, tensors(step), STATE)
        rotate(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "step-00000000", "step-00000001-copy", "step-00000001.bak", "step-00000003", "step-00000004"
    ]  # fmt: skip
    assert (elsewhere / "precious").read_text() == "mine" == (folder / "step-00000001.bak").read_text()
    (folder / "step-00000005").write_text("mine")
    with pytest.raises(UserError, match="step-00000005: the checkpoint could not be written") as error:
        save(folder, 5, tensors(), STATE)
    assert error.value.fix.startswith(f"move away the file or link at {folder / 'step-00000005'}, then `danlu resume`")
    assert (folder / "step-00000005").read_text() == "mine"
    (other := tmp_path / "file").write_text("mine")
    with pytest.raises(UserError) as error:
        save(other, 5, tensors(), STATE)
    assert error.value.fix.startswith(f"move away the file or link at {other}, then")


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".building-00000003-99999").mkdir()
    (tmp_path / ".building-00000003-99999" / "weights.safetensors").write_bytes(b"half")
    save(tmp_path, 4, tensors(), STATE)
    rotate(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_numbers_are_finite_or_not_whatever_their_sum() -> None:
    large = torch.full((4,), torch.finfo(torch.float32).max)
    assert checkpoint.finite(large) and not large.sum().isfinite()
    assert checkpoint.finite(torch.zeros(0)) and checkpoint.finite(torch.full((70_000,), 1.0, dtype=torch.float16))
    for wrong in (float("nan"), float("inf")):
        for dtype in (torch.float32, torch.bfloat16):
            assert not checkpoint.finite(torch.tensor([1.0, wrong, -wrong], dtype=dtype))
