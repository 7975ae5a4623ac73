"""Whatever bytes a file holds, what reads it ends with a result or with a UserError."""

from __future__ import annotations

import gzip
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
from danlu.data import chat, chat_template, images, source, tokenizer, vectors
from danlu.data.processor import Processor
from danlu.experiment import read_yaml
from danlu.models import gguf
from danlu.models.base import Base
from danlu.models.folder import read_json, shapes
from danlu.stages import load


def template(file: Path) -> Any:
    return chat_template.compiled(file.read_bytes().decode("utf-8", "replace"))


def manifest(file: Path) -> Any:
    return checkpoint.verify(file.parent)


def run(file: Path) -> Any:
    return is_run(file.parent) and Run(file.parent).read("run.json")


def chats(file: Path) -> Any:
    found = source.read(str(file), bad_rows="skip")
    form = chat.recognise(found)
    for row in found.rows:
        with suppress(UserError):
            chat.conversation(row, form)


def rows(file: Path) -> Any:
    return source.read(str(file), bad_rows="skip")


def adapter(file: Path) -> Any:
    return load.weights_of(Base("x", file.parent, "", "", "folder"), lambda _: None)


GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 5) + b"llama"  # fmt: skip
PARSERS: dict[str, tuple[str, Callable[[Path], Any], list[bytes]]] = {
    "settings": ("a.yaml", read_yaml, [b"recipe: chat\nsteps: 1\n", b"a: &b [1, *b]\n", b"x: 2020-01-01 1:2:3\n", b"!!int x: !!float y\n"]),
    "vectors": ("a.vec", vectors.load, [b"2 3\na 1 2 3\nb 4 5 6\n", b"a 1 2\nb 3 4\n", b"1 1\nw \0\0\0\0\n"]),
    "GGUF": ("a.gguf", lambda file: gguf.convert(file, file.parent), [GGUF]),
    "image": ("a.png", lambda file: images.decode(str(file), "a.png"), [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"GIF89a\1\0\1\0\0\0\0", b"II*\0\x08\0\0\0", b"BM"]),
    "configuration": ("config.json", read_json, [b'{"model_type": "bert", "id2label": {"0": "a"}}']),
    "weights": ("model.safetensors", shapes, [struct.pack("<Q", 60) + b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}' + b"\0" * 4]),
    "manifest": ("manifest.json", manifest, [b'{"format": 1, "step": 1, "files": {"state.json": {"sha256": "", "bytes": 1}}}']),
    "run": ("run.json", run, [b'{"format": 1, "name": "a", "created": "b", "labels": [], "lineage": {"model": {}, "data": []}}']),
    "chats": ("a.jsonl", chats, [b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]}', b'{"prompt": "a", "completion": "b", "history": []}\n{"prompt": 1}', b'{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 1}]}']),
    "table": ("a.csv", rows, [b'text,label\n"a ""b""",c\nd,e\n', b'messages\n"[{""role"": ""user""}]"\n']),
    "lines": ("a.jsonl", rows, [b'{"text": "a", "n": [1, {"b": null}]}\n{"text": 1e5}\n']),
    "segmented": ("a.conllu", rows, [b"# text = a b\n1\ta\t_\t_\t_\t_\t0\t_\t_\t_\n2-3\tb\n\n"]),
    "web archive": ("a.warc", rows, [b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a\r\nContent-Length: 60\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html><p>a</p></html>\r\n\r\n"]),
    "dump": ("a.xml", rows, [b"<mediawiki><page><title>a</title><ns>0</ns><revision><text>b [[c|d]] {{e}}</text></revision></page></mediawiki>"]),
    "packed": ("a.jsonl.gz", rows, [gzip.compress(b'{"text": "a"}\n' * 9, mtime=0)]),
    "tokenizer": ("tokenizer.json", lambda file: tokenizer.Tokenizer.load(file.parent), [b'{"version": "1.0", "added_tokens": [{"id": 2, "content": "<s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null, "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}']),
    "processor": ("preprocessor_config.json", lambda file: Processor.load(file.parent), [b'{"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "rescale_factor": 0.1, "do_resize": true, "resample": 2}']),
    "adapter": ("adapter_config.json", adapter, [b'{"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "nowhere"}']),
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
