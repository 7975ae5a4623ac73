"""What is said of a machine is true of it, and what is derived from it follows."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from danlu.core import device
from danlu.core.device import GPU, Machine, doctor, machine, trainable_parameters


@pytest.fixture(scope="module")
def found() -> Machine:
    return machine()


def test_the_machine_is_within_what_the_system_says(found: Machine) -> None:
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert 0 < found.memory_available <= found.memory_total <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found.here_free > 0
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.versions["torch"]
    assert found.gpus == ()


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from danlu.core import catalog, cache, device; from danlu.models import catalogue\n"
        "device.doctor(device.machine(), ('float32', ''), (1, '')); catalogue.MODELS.names()\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_cores_follow_the_affinity_mask() -> None:
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from danlu.core.device import machine; print(machine().cores)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "1"


def test_peak_memory_grows_with_what_is_held() -> None:
    held = bytearray(os.urandom(1 << 20) * 64)
    first = device.peak_memory_bytes()
    assert first > len(held)
    del held
    assert device.peak_memory_bytes() >= first  # the high-water mark


def test_what_fits_follows_from_memory() -> None:
    assert trainable_parameters(16 << 30) == {"full": (12 << 30) // 16, "lora": (12 << 30) // 4}
    small, large = trainable_parameters(8 << 30, "bfloat16"), trainable_parameters(16 << 30, "bfloat16")
    assert large["full"] == 2 * small["full"] < large["lora"]


def test_the_doctor_names_what_is_missing(found: Machine) -> None:
    poor = replace(found, compiler=None, cache_free=1 << 20, versions=found.versions | {"pyarrow": None})
    missing = doctor(poor, ("float32", "slower"), (1, "one"))["missing"]
    for words in ("no C++ compiler", "set DANLU_CACHE", "the package pyarrow"):
        assert any(words in line for line in missing), words
    derived = doctor(found, ("float32", "slower"), (3, "three"))["derived"]
    assert derived == {
        "precision": {"value": "float32", "reason": "slower"},
        "threads": {"value": 3, "reason": "three"},
    }


def test_the_doctor_says_in_words_what_can_be_trained(found: Machine) -> None:
    plain = replace(found, gpus=(), amx=False, bf16=False, memory_available=24_600_000_000)
    said = doctor(plain, ("float32", "slower"), (1, "one"))
    assert said["can_train"] == {
        "full": "models up to 1.1 B parameters in 25 GB free",
        "lora": "models up to 4.6 B parameters in 25 GB free",
    }
    assert said["can_train_parameters"] == trainable_parameters(24_600_000_000)
    assert said["machine"]["gpus"] == "none"
    carded = doctor(replace(plain, gpus=(GPU("A card", 8_000_000_000, False),)), ("float32", "slower"), (1, "one"))
    assert carded["can_train"]["full"] == "models up to 375 M parameters in 8 GB of GPU memory"
    assert carded["machine"]["gpus"] == [{"name": "A card", "memory_bytes": 8_000_000_000}]


@pytest.mark.parametrize("place", ["DANLU_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_the_cache_is_where_the_environment_says(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DANLU_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(place, str(tmp_path))
    inside = {"DANLU_CACHE": ".", "XDG_CACHE_HOME": "danlu", "HOME": ".cache/danlu"}[place]
    (tmp_path / inside).mkdir(parents=True, exist_ok=True)
    (tmp_path / inside / "weights").write_bytes(b"12345")
    assert machine().cache == tmp_path / inside
    assert machine().cache_bytes == 5


def test_the_smallest_limit_of_the_control_groups_counts(tmp_path: Path) -> None:
    (inner := tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (inner / "cpu.max").write_text("max 100000\n")
    assert device.cpu_quota([inner, tmp_path / "a", tmp_path]) == 1.5
    assert device.cpu_quota([inner, tmp_path]) is None
    (tmp_path / "a" / "memory.max").write_text("1000\n")
    (tmp_path / "a" / "memory.current").write_text("400\n")
    (inner / "memory.max").write_text("max\n")
    assert device.memory_limit([inner, tmp_path / "a"], 5000, 3000) == (1000, 600)
    assert device.memory_limit([inner], 5000, 3000) == (5000, 3000)


FAULTS = """
import resource, sys, torch
from danlu.core import device
if sys.argv[1] == "keep":
    device.keep_freed_memory()
faults = []
for _ in range(12):
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(3 * 10**7)  # 120 MB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)
print(min(faults))
"""


@pytest.mark.skipif(
    platform.libc_ver() < ("glibc", "2.35"), reason="only glibc gives it back, and before 2.35 takes no other bound"
)
def test_memory_that_a_step_freed_is_there_for_the_next_one():
    def faults(how, **more):
        asked = {**{k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}, **more}
        return int(subprocess.check_output([sys.executable, "-c", FAULTS, how], env=asked))

    anew = faults("leave")  # some 29,000; large pages make them 57
    assert anew > 50 and faults("keep") < anew / 4
    assert faults("keep", MALLOC_MMAP_THRESHOLD_="1000000") > anew / 4, "whoever sets it decides"
