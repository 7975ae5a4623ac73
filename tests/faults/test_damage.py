"""Bits that flip, files that are cut off or gone: noticed before use, and the checkpoint before is taken; a good one always verifies."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from danlu.core.checkpoint import newest


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of a real run: a perceptron on real digits, two of them."""
    from danlu.cli import main

    folder = tmp_path_factory.mktemp("damage")
    data = Path(__file__).parents[2] / "examples" / "data" / "digits.npz"
    small = ("hidden=16", "max_rows=300", "batch_size=32", "steps=4", "validate_every=2", "threads=1")
    assert main(["pretrain", "mlp", f"data={data}", f"out={folder / 'run'}", *small]) == 0
    return folder / "run" / "checkpoints"


def test_a_thousand_flips_two_hundred_cuts_each_file_gone(checkpoints: Path, tmp_path: Path) -> None:
    found, complaints = newest(checkpoints)
    assert found is not None and not complaints
    names = sorted(path.name for path in found.path.iterdir())
    assert len(names) == 7 and "manifest.json" in names
    before = sorted(checkpoints.glob("step-*"))[-2]
    place = tmp_path / "checkpoints"
    shutil.copytree(checkpoints, place)
    victim = place / found.path.name
    dice, tried = random.Random(0), {"flip": 0, "cut": 0, "gone": 0}
    for number in range(1000 + 200 + len(names)):
        kind = "flip" if number < 1000 else "cut" if number < 1200 else "gone"
        name = names[number % len(names)]
        good = (found.path / name).read_bytes()
        if kind == "flip":
            bad, at = bytearray(good), dice.randrange(8 * len(good))
            bad[at // 8] ^= 1 << at % 8
            (victim / name).write_bytes(bad)
        elif kind == "cut":
            (victim / name).write_bytes(good[: dice.randrange(len(good))])
        else:
            (victim / name).unlink()
        taken, said = newest(place)
        assert taken is not None and taken.path.name == before.name, (kind, name, number)
        assert len(said) == 1 and victim.name in said[0], said
        (victim / name).write_bytes(good)
        tried[kind] += 1
    assert tried == {"flip": 1000, "cut": 200, "gone": 7}


def test_each_bit_of_the_manifest(checkpoints: Path, tmp_path: Path) -> None:
    """It has no sum of its own: every single bit of it matters."""
    found, _ = newest(checkpoints)
    assert found is not None
    place = tmp_path / "checkpoints"
    shutil.copytree(found.path, place / found.path.name)
    manifest = place / found.path.name / "manifest.json"
    good = manifest.read_bytes()
    for at in range(8 * len(good)):
        bad = bytearray(good)
        bad[at // 8] ^= 1 << at % 8
        manifest.write_bytes(bad)
        taken, _ = newest(place)
        assert taken is None, (
            at,
            good[max(0, at // 8 - 9) : at // 8 + 9],
            bytes(bad)[max(0, at // 8 - 9) : at // 8 + 9],
        )


def test_a_thousand_loads_without_a_false_alarm(checkpoints: Path) -> None:
    first, _ = newest(checkpoints)
    assert first is not None
    held = first.state(), {path.stem: first.tensors(path.stem) for path in first.path.glob("*.safetensors")}
    for _ in range(1000):
        again, complaints = newest(checkpoints)
        assert again == first and not complaints
    assert again is not None and again.state() == held[0]
    assert {name: again.tensors(name).keys() for name in held[1]} == {
        name: part.keys() for name, part in held[1].items()
    }
