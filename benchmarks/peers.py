"""What the benchmarks share: environments for the peers, and commands measured with all their processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


ROOT = Path(__file__).parents[1]
TRAINERS = ["torch==2.13.0", "transformers==5.23.0", "peft==0.21.2", "trl==1.16.0", "datasets==5.2.0", "accelerate==1.15.0"]  # fmt: skip
"""Those who fine-tune. torch is the one danlu is locked to."""


if "danlu" in sys.modules:
    raise ImportError("peers.py has to be imported before danlu, which sets the environment of its own threads")
OUTSIDE = dict(os.environ)
"""What commands inherit: not what danlu sets for its own threads."""


class TooSlowError(Exception):
    """A command was ended because its time was up."""


def interpreter(name: str, packages: list[str]) -> str:
    """The interpreter of an environment of its own, made when it is first needed and again when the packages change."""
    folder = ROOT / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    wanted = "\n".join(packages)
    if not ready.is_file() or ready.read_text() != wanted:
        print(f"installing {', '.join(packages)} into {name}: a few minutes, once", file=sys.stderr, flush=True)
        if not python.is_file():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        ready.write_text(wanted)
    return str(python)


def tree(pid):
    """A process and all below it."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:  # it ended meanwhile
                continue
    return found


def proportional(pid):
    """Bytes of a process, what it shares with others counted in part (Pss)."""
    try:
        return int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1]) * 1024
    except (OSError, TypeError):
        return 0


def resident(pid):
    """Bytes of a process, what it shares with others counted whole: quick to ask, where `proportional` halts the process for its page tables."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def run(words, quiet=True, limit=None, **environment):
    """(seconds, peak bytes of the whole tree) of a command. quiet: its output is shown only when it fails.

    Raises:
        TooSlowError: it took longer than `limit` seconds, and was ended.
    """
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        process = subprocess.Popen(
            words,
            stdout=said if quiet else None,
            stderr=subprocess.STDOUT if quiet else None,
            env={**OUTSIDE, **environment},
        )
        peak = [0]

        def watch():
            highest = looked = 0.0
            while process.poll() is None:
                pids, now = tree(process.pid), time.monotonic()
                held = sum(map(resident, pids))
                if held > 1.01 * highest or now > looked + 3:  # seldom
                    highest, looked = max(highest, held), now
                    peak[0] = max(peak[0], sum(map(proportional, pids)))
                time.sleep(0.2)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            failed = process.wait(limit)
        except subprocess.TimeoutExpired:
            for each in tree(process.pid):
                os.kill(each, signal.SIGKILL)
            raise TooSlowError(f"not done after {limit:.0f} s") from None
        finally:
            seconds = time.monotonic() - began
            if process.poll() is None:  # interrupted here
                process.terminate()
                process.wait()
            watching.join()
        if failed:
            said.seek(0)
            raise SystemExit(
                f"{said.read()[-3000:].decode('utf-8', 'replace')}\n{' '.join(map(str, words))} ended with {failed}"
            )
    return seconds, peak[0]
