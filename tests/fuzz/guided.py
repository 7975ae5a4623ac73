"""Fuzzing that is guided by coverage (atheris, libFuzzer), of the same parsers as in test_parsers.py: `make fuzz`.

    python tests/fuzz/guided.py [PARSER] -max_total_time=60 …

Without a name all of them, one after the other. What raises anything but a UserError is written to the current folder as `crash-…`, and ends it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import atheris


with atheris.instrument_imports(include=["danlu"]):
    from tests.fuzz.test_parsers import PARSERS

    from danlu.core.errors import UserError


def main(name: str, options: list[str]) -> None:
    """Starts from the samples of the parser."""
    called, parse, samples = PARSERS[name]
    with tempfile.TemporaryDirectory() as scratch:
        file, corpus = Path(scratch, "in", called), Path(scratch, "corpus")
        file.parent.mkdir()
        corpus.mkdir()
        for number, sample in enumerate(samples):
            (corpus / str(number)).write_bytes(sample)

        def once(content: bytes) -> None:
            file.write_bytes(content)
            with suppress(UserError), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                parse(file)

        atheris.Setup([sys.argv[0], *options, str(corpus)], once)
        atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in PARSERS:
        main(sys.argv[1], sys.argv[2:])
    for name in PARSERS:
        print(f"== {name}", flush=True)
        if code := subprocess.run([sys.executable, __file__, name, *sys.argv[1:]], check=False).returncode:
            sys.exit(code)
