"""Whatever bytes a file holds, what reads it ends with a result or with a UserError."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danlu.core import checkpoint
from danlu.core.errors import UserError
from danlu.core.run import Run, is_run
from danlu.data import images, tokenizer, vectors
from danlu.experiment import read_yaml
from danlu.models import gguf, pretrained


def template(file: Path) -> Any:
    return tokenizer._compiled(file.read_bytes().decode("utf-8", "replace"))


def manifest(file: Path) -> Any:
    return checkpoint.verify(file.parent)


def run(file: Path) -> Any:
    return is_run(file.parent) and Run(file.parent).read("run.json")


GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 5) + b"llama"  # fmt: skip
PARSERS: dict[str, tuple[str, Callable[[Path], Any], list[bytes]]] = {
    "settings": ("a.yaml", read_yaml, [b"recipe: chat\nsteps: 1\n", b"a: &b [1, *b]\n", b"x: 2020-01-01 1:2:3\n", b"!!int x: !!float y\n"]),
    "vectors": ("a.vec", vectors.load, [b"2 3\na 1 2 3\nb 4 5 6\n", b"a 1 2\nb 3 4\n", b"1 1\nw \0\0\0\0\n"]),
    "GGUF": ("a.gguf", lambda file: gguf.convert(file, file.parent), [GGUF]),
    "image": ("a.png", lambda file: images.decode(str(file), "a.png"), [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"GIF89a\1\0\1\0\0\0\0", b"II*\0\x08\0\0\0", b"BM"]),
    "configuration": ("config.json", pretrained.read_json, [b'{"model_type": "bert", "id2label": {"0": "a"}}']),
    "weights": ("model.safetensors", pretrained.shapes, [struct.pack("<Q", 60) + b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}' + b"\0" * 4]),
    "manifest": ("manifest.json", manifest, [b'{"format": 1, "step": 1, "files": {"state.json": {"sha256": "", "bytes": 1}}}']),
    "run": ("run.json", run, [b'{"format": 1, "name": "a", "created": "b", "labels": [], "lineage": {"model": {}, "data": []}}']),
    "template": ("a.jinja", template, [b"{% for m in messages %}{{ m['content'] ~ 'a' }}{% endfor %}"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
@settings(
    max_examples=int(os.environ.get("EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_only_a_user_error_is_raised(name: str, tmp_path: Path, data: st.DataObject) -> None:
    called, parse, samples = PARSERS[name]
    content = bytearray(data.draw(st.sampled_from(samples)))
    for at, new in data.draw(st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=6)), max_size=4)):
        at = min(at, len(content))
        content[at : at + len(new)] = new
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    file = tmp_path / called
    file.write_bytes(content)
    with suppress(UserError):
        parse(file)
