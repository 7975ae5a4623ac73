"""What this machine is: cores, instructions, memory, disk, and the settings that follow from it. No torch before it is asked for."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from danlu.core.cache import cache_folder, entries


PACKAGES = ("danlu", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "scikit-learn")


@dataclass(frozen=True)
class GPU:
    """A graphics card that torch can use. bfloat16: its matrix units multiply it."""

    name: str
    memory_bytes: int
    bfloat16: bool


@dataclass(frozen=True)
class Machine:
    """Memory and disks in bytes.

    cores: physical cores this process may use: its affinity mask and its container's quota, a core counted once whatever its threads.
    amx, avx512, bf16: AMX tiles for bfloat16, AVX-512, and any instruction that multiplies bfloat16 (AMX or AVX-512-BF16).
    memory_total, memory_available: the smaller of the machine's and the container's.
    gpus: looked for only when asked, since that imports torch. compiler: of C++, for torch.compile; None when there is none.
    """

    system: str
    cpu: str
    cores: int
    amx: bool
    avx512: bool
    bf16: bool
    memory_total: int
    memory_available: int
    gpus: tuple[GPU, ...]
    compiler: str | None
    python: str
    versions: dict[str, str | None]
    cache: Path
    cache_bytes: int
    cache_free: int
    here_free: int


def machine(gpus: bool = False) -> Machine:
    """This machine, now. `gpus=True` imports torch to look for them."""
    flags, model = (_cpu("flags") or "").split(), _cpu("model name")
    (total, available), cache = _memory(), cache_folder()
    amx = "amx_bf16" in flags
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=model if model is not None else platform.processor() or platform.machine(),
        cores=cores(),
        amx=amx,
        avx512="avx512f" in flags,
        bf16=amx or "avx512_bf16" in flags,
        memory_total=total,
        memory_available=available,
        gpus=_gpus() if gpus else (),
        compiler=next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None),
        python=platform.python_version(),
        versions={name: _version(name) for name in PACKAGES},
        cache=cache,
        cache_bytes=sum(size for _, size in entries(cache)),
        cache_free=_free(cache),
        here_free=_free(Path.cwd()),
    )


def peak_memory_bytes() -> int:
    """The most memory this process has held so far (resident, high water)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def trainable_parameters(memory: int, precision: str = "float32") -> dict[str, int]:
    """The largest models (parameters) that fit in `memory` bytes, keyed by method.

    full: weights, gradient and Adam's two moments in float32, 16 bytes a parameter. lora: the frozen weights, 4 bytes (2 more for
    their bfloat16 copy). A quarter of the memory is left for activations and everything else.
    """
    usable = memory * 3 // 4
    copy = 2 if precision == "bfloat16" else 0
    return {"full": usable // (16 + copy), "lora": usable // (4 + copy)}


def doctor(
    found: Machine, precision: tuple[str, str], threads: tuple[int, str], measured: dict[str, float] | None = None
) -> dict[str, Any]:
    """What `danlu doctor` says: `machine`, `derived`, `measured`, `can_train`, `can_train_parameters`, `missing`.

    Plain data; the command line prints it. precision, threads: what is derived, and why. can_train: a sentence a method, of the numbers in
    can_train_parameters.
    """
    memory = min((gpu.memory_bytes for gpu in found.gpus), default=found.memory_available)
    room = f"{memory / 1e9:.0f} GB " + ("of GPU memory" if found.gpus else "free")
    fits = trainable_parameters(memory, precision[0])
    absent = [name for name, installed in found.versions.items() if installed is None and name != "danlu"]
    missing = [f"the package {name} is not installed" for name in absent]
    if found.compiler is None:
        missing.append("no C++ compiler: torch.compile is off; everything works without it")
    if found.cache_free < 2 << 30:
        missing.append(
            f"only {found.cache_free / 1e9:.1f} GB free for the cache {found.cache}: weights may not fit; set DANLU_CACHE"
        )
    if not os.access(_nearest(found.cache), os.W_OK):
        missing.append(f"the cache {found.cache} cannot be written: set DANLU_CACHE to a folder you may write to")
    return {
        "machine": {
            "system": found.system,
            "cpu": found.cpu,
            "cores": found.cores,
            "amx": found.amx,
            "avx512": found.avx512,
            "bf16": found.bf16,
            "gpus": [{"name": gpu.name, "memory_bytes": gpu.memory_bytes} for gpu in found.gpus] or "none",
            "memory_total_bytes": found.memory_total,
            "memory_available_bytes": found.memory_available,
            "compiler": found.compiler,
            "python": found.python,
            "versions": found.versions,
            "cache": str(found.cache),
            "cache_size_bytes": found.cache_bytes,
            "cache_free_bytes": found.cache_free,
            "here_free_bytes": found.here_free,
        },
        "derived": {
            "precision": dict(zip(("value", "reason"), precision, strict=True)),
            "threads": dict(zip(("value", "reason"), threads, strict=True)),
        },
        "measured": measured or {},
        "can_train": {method: f"models up to {_billions(most)} parameters in {room}" for method, most in fits.items()},
        "can_train_parameters": fits,
        "missing": missing,
    }


def _billions(parameters: int) -> str:
    """1,100,000,000 -> `1.1 B`, rounded down: what is said to fit does."""
    if parameters < 1_000_000_000:
        return f"{parameters // 1_000_000} M"
    return f"{parameters // 100_000_000 / 10:.1f} B"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu(key: str) -> str | None:
    """What /proc/cpuinfo says first of it; None where there is no such file, or nothing in it."""
    lines = _read("/proc/cpuinfo").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def cores() -> int:
    """Physical cores in the affinity mask, and no more than the container's share of time."""
    mask = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    place = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = len({_read(place.format(cpu)).strip() or str(cpu) for cpu in mask})
    quota = cpu_quota(_control_groups())
    return max(1, min(cores, int(quota)) if quota else cores)


def cpu_quota(groups: Sequence[Path]) -> float | None:
    """CPUs that these control groups allow (version 2, or 1); None for no limit."""
    limits = []
    for folder in groups:
        allowed, _, period = _read(folder / "cpu.max").strip().partition(" ")
        if not allowed:
            allowed, period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
        if allowed.isdigit() and period.isdigit() and int(period):
            limits.append(int(allowed) / int(period))
    return min(limits, default=None)


def memory_limit(groups: Sequence[Path], total: int, available: int) -> tuple[int, int]:
    """(total, available) bytes within these control groups, on a machine that has so much."""
    for folder in groups:
        limit = (_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")).strip()
        used = (_read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")).strip()
        cached = re.search(r"^(?:total_)?inactive_file (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
        if cached and used.isdigit():  # given back when it is needed
            used = str(max(0, int(used) - int(cached[1])))
        if limit.isdigit() and int(limit) < total:
            total = int(limit)
            available = min(available, max(0, total - int(used or 0)))
    return total, min(available, total)


def _memory() -> tuple[int, int]:
    """(total, available) bytes."""
    lines = (line.partition(":") for line in _read("/proc/meminfo").splitlines())
    known = {name: int(rest.split()[0]) * 1024 for name, _, rest in lines if rest.split() and rest.split()[0].isdigit()}
    if "MemTotal" not in known:  # not Linux
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        known = {"MemTotal": pages, "MemAvailable": pages}
    return memory_limit(_control_groups(), known["MemTotal"], known.get("MemAvailable", known["MemTotal"]))


def _control_groups() -> list[Path]:
    """Folders of the control groups this process is in, and of those above them."""
    folders: list[Path] = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        names = [""] if not controllers else controllers.split(",")
        for name in names:
            if name not in ("", "cpu", "memory"):
                continue
            root = Path("/sys/fs/cgroup") / name
            place = root / path.lstrip("/")
            # inside a container the path is the host's and may not exist here: the root is then the container's own
            folders += [folder for folder in (place, *place.parents) if folder.is_relative_to(root) and folder.is_dir()]
    return folders


def _gpus() -> tuple[GPU, ...]:
    import torch

    cards = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    found = map(torch.cuda.get_device_properties, cards)
    return tuple(GPU(each.name, each.total_memory, each.major >= 8) for each in found)


def _free(path: Path) -> int:
    """Free bytes of the disk that holds `path`, or would."""
    return shutil.disk_usage(_nearest(path)).free


def _nearest(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""


def oom_kills() -> dict[str, str]:
    """How many processes the kernel has killed for want of memory since this boot, in the control group of this one or, where that is not
    counted, at all; empty where it does not say."""
    boot = _read("/proc/sys/kernel/random/boot_id").strip()
    groups = [folder / name for folder in _control_groups() for name in ("memory.events", "memory.oom_control")]
    for place in [*groups, Path("/proc/vmstat")]:
        counted = dict(line.split() for line in _read(place).splitlines() if line.count(" ") == 1)
        if boot and "oom_kill" in counted:
            return {"boot": boot, "place": str(place), "oom_kills": counted["oom_kill"]}
    return {}


def killed_for_memory(before: dict[str, str] | None) -> bool:
    """Whether the kernel has killed some process for want of memory since `before`, what `oom_kills` said; False where nobody can tell."""
    now = oom_kills()
    return bool(before) and before != now and all((before or {}).get(key) == now.get(key) for key in ("boot", "place"))


def resident_memory_bytes() -> int:
    """The memory this process holds now."""
    import resource

    fields = _read("/proc/self/statm").split()
    return int(fields[1]) * resource.getpagesize() if len(fields) > 1 else peak_memory_bytes()


def keep_freed_memory() -> None:
    """What a training step frees stays with the process for the next one, which takes the same sizes again: no page is cleared twice.

    glibc alone hands blocks above 32 MB back at once, and the end of its heap. A MALLOC_… variable or GLIBC_TUNABLES of the user's decides alone.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError, ValueError):  # another C library
        change = ctypes.CDLL(None).mallopt
        m_trim_threshold, m_mmap_threshold = -1, -3
        if change(m_mmap_threshold, 1 << 30) or change(m_mmap_threshold, 1 << 25):  # before 2.35 not more than 32 MB
            change(m_trim_threshold, -1)  # never
