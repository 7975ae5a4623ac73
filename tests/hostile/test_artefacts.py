"""A hundred files made to harm whoever opens them, each by a mechanism of its own, given to the command that a user would use.

Held for each: nothing of it is run, nothing outside of its folder is written, nobody is talked to, the command ends within 5 seconds
of work and a gigabyte of memory, and what it says is one clear error (`refused`) or the result of reading it harmlessly (`harmless`).
The docstring of each names the mechanism and where it was seen; docs/reliability.md has them as a table.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import pickle
import re
import runpy
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.hostile.conftest import QUICK, Confined, Place


Words = list[Any]
GIGABYTE = 1 << 30


@dataclass(frozen=True)
class Artefact:
    """build: makes it and returns the command. code, says: how that command ends, and what stands in what it writes."""

    build: Callable[[Place], Words]
    code: int
    says: str


ARTEFACTS: dict[str, Artefact] = {}


def refused(says: str) -> Callable[[Callable[[Place], Words]], Callable[[Place], Words]]:
    """The command ends with an error in which `says` stands."""
    return lambda build: _added(build, 2, says)


def harmless(says: str) -> Callable[[Callable[[Place], Words]], Callable[[Place], Words]]:
    """The command does its work, nothing hostile happens, and `says` stands in its output."""
    return lambda build: _added(build, 0, says)


def _added(build: Callable[[Place], Words], code: int, says: str) -> Callable[[Place], Words]:
    ARTEFACTS[build.__name__] = Artefact(build, code, says)
    return build


@pytest.mark.parametrize("name", ARTEFACTS)
def test_nothing_is_run_and_what_is_said_is_clear(name: str, place: Place, confined: Confined) -> None:
    artefact = ARTEFACTS[name]
    words = [str(word) for word in artefact.build(place)]
    done = confined(words, place.folder, place.folder)
    said = done.out + done.err
    assert not done.seen, done.seen
    assert not place.canary.exists()
    assert sorted(path.name for path in place.outside.iterdir()) == ["secret.json"]
    assert "a fault in danlu" not in said and "Traceback" not in said, said
    assert done.code == artefact.code, f"exit code {done.code}: {said[:2000]}"
    assert artefact.says in said, said[:2000]
    assert "s3cr3t-t0k3n" not in said
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", said.replace("\r", "")), (
        "raw control characters"
    )
    if artefact.code == 2:
        assert len(re.findall("^danlu: ", done.err, re.MULTILINE)) == 1, done.err
        assert "\n  fix: " in done.err, done.err
        assert len(done.err) < 5_000, len(done.err)
    assert done.seconds < 5, done.seconds
    assert done.bytes < GIGABYTE, f"{done.bytes:,}"


def test_there_are_a_hundred_and_each_says_what_it_is_and_where_it_was_seen() -> None:
    told = [artefact.build.__doc__ or "" for artefact in ARTEFACTS.values()]
    assert len(told) >= 100
    assert len({each.partition("\n")[0] for each in told}) == len(told), "two of one mechanism"
    for each in told:
        assert re.search(
            r"^    Seen: .*(CVE-\d{4}-\d+|CWE-\d+|github\.com/\S+|https?://\S+|GHSA-\S+)", each, re.MULTILINE
        ), each


def test_the_page_of_the_docs_is_of_these() -> None:
    """`make docs` writes it."""
    made = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "artefacts_table.py"))
    assert made["PAGE"].read_text("utf-8") == made["page"]()


# ---------------------------------------------------------------------------------------------------------- how to give


class Payload:
    """What a pickle would run: the canary appears."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


def a_pickle(place: Place) -> bytes:
    return pickle.dumps(Payload(place.canary))


def code(place: Place) -> str:
    """Python that leaves a trace when it is run."""
    return f"open({str(place.canary)!r}, 'w').close()\n"


def classify(place: Place, model: Path, *more: Any) -> Words:
    words = ["finetune", "text-classification", f"model={model}", f"data={place.labelled}", *QUICK]
    return [*words, "baselines=no", "method=full", "out=run", *more]


def chat(place: Place, model: Path, *more: Any) -> Words:
    return ["finetune", "chat", f"model={model}", f"data={place.chats}", *QUICK, "answers=0", "out=run", *more]


def learn(data: Path, *more: Any) -> Words:
    """A command that reads texts, all of them, and is soon done."""
    return ["prepare", "tokenizer", f"data={data}", "out=tokens", "size=300", *more]


def pictures(data: Path) -> Words:
    return ["preflight", "mlp", f"data={data}"]


def change(file: Path, **keys: Any) -> Path:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    return file


def sparse(file: Path, size: int, start: bytes = b"") -> Path:
    """A file that says it has `size` bytes and takes none of the disk."""
    file.unlink(missing_ok=True)
    with file.open("wb") as opened:
        opened.write(start)
        opened.truncate(size)
    return file


def parts(file: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def tensors(file: Path, header: Any, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def with_header(place: Place, edit: Callable[[dict[str, Any]], Any]) -> Words:
    """A classifier's folder whose safetensors header is `edit`ed."""
    model = place.copy(place.sorter)
    header, data = parts(model / "model.safetensors")
    edited = edit(header)
    tensors(model / "model.safetensors", header if edited is None else edited, data)
    return classify(place, model)


def with_config(place: Place, **keys: Any) -> Words:
    model = place.copy(place.sorter)
    change(model / "config.json", **keys)
    return classify(place, model)


def only(place: Place, name: str, content: bytes) -> Words:
    """A model's folder in which the weights are this file."""
    model = place.copy(place.sorter)
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(content)
    return classify(place, model)


def zipped(files: Mapping[str, bytes | str]) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return whole.getvalue()


# -------------------------------------------------------------------------------------------------------------- weights


@refused("is damaged")
def header_longer_than_any_file(place: Place) -> Words:
    """A safetensors header that says it has 2^63 bytes.

    Seen: https://github.com/run-ai/runai-model-streamer/pull/121 (a reader that had no limit)
    """
    model = place.copy(place.sorter)
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 63) + b"{}")
    return classify(place, model)


@refused("is damaged")
def header_of_two_hundred_megabytes(place: Place) -> Words:
    """A safetensors header of 200 MB in a sparse file, above the 100 MB that the format allows.

    Seen: https://github.com/huggingface/safetensors (the limit against denial of service in its README)
    """
    model = place.copy(place.sorter)
    sparse(model / "model.safetensors", 200_000_008, struct.pack("<Q", 200_000_000) + b"{")
    return classify(place, model)


@refused("is damaged")
def header_nested_without_end(place: Place) -> Words:
    """A safetensors header of a hundred thousand brackets, to exhaust the stack of the JSON parser.

    Seen: CWE-674 uncontrolled recursion; CVE-2025-52999 (jackson-core)
    """
    return with_header(place, lambda _: b'{"a":' + b"[" * 100_000)


@refused("is damaged")
def header_with_a_tensor_twice(place: Place) -> Words:
    """The same tensor twice in a safetensors header: one tool reads the one, another the other.

    Seen: https://github.com/ggml-org/llama.cpp/issues/1603 (two parsers, two answers);
    https://github.com/safetensors/safetensors/issues/401
    """

    def twice(header: dict[str, Any]) -> bytes:
        one, two = [name for name in header if header[name].get("shape") == [32, 32]][:2]
        return json.dumps(header).encode()[:-1] + f', "{one}": {json.dumps(header[two])}}}'.encode()

    return with_header(place, twice)


@refused("is damaged")
def tensors_that_overlap(place: Place) -> Words:
    """Two tensors of a safetensors file that share their bytes.

    Seen: https://github.com/ohdearquant/lattice/issues/752
    """

    def overlap(header: dict[str, Any]) -> None:
        one, two = [name for name in header if header[name].get("shape") == [32, 32]][:2]
        header[one]["data_offsets"] = header[two]["data_offsets"]

    return with_header(place, overlap)


@refused("is damaged")
def a_hole_between_tensors(place: Place) -> Words:
    """Bytes that no tensor claims, where a polyglot hides another program's file.

    Seen: https://github.com/antirez/h3.c/pull/48 (the format's rule against polyglot files)
    """
    model = place.copy(place.sorter)
    header, data = parts(model / "model.safetensors")
    tensors(model / "model.safetensors", header, data + a_pickle(place))
    return classify(place, model)


@refused("is damaged")
def tensor_behind_the_end(place: Place) -> Words:
    """A tensor whose offsets lie behind the end of the file: a read out of bounds.

    Seen: CVE-2026-7482 (Ollama); https://github.com/leejet/stable-diffusion.cpp/pull/1754
    """
    return with_header(place, lambda header: header[max(header)].update(data_offsets=[1 << 40, (1 << 40) + 4096]))


@refused("is damaged")
def tensor_that_ends_before_it_begins(place: Place) -> Words:
    """A tensor whose end lies before its beginning, for a length below zero.

    Seen: https://github.com/Comfy-Org/ComfyUI/pull/15722
    """

    def turn(header: dict[str, Any]) -> None:
        header[max(header)]["data_offsets"].reverse()

    return with_header(place, turn)


@refused("is damaged")
def shape_that_overflows(place: Place) -> Words:
    """A shape whose product is 0 modulo 2^64, so that a size check passes.

    Seen: CVE-2026-33298 (llama.cpp, the same in GGUF)
    """
    return with_header(place, lambda header: header[max(header)].update(shape=[1 << 32, 1 << 32], data_offsets=[0, 0]))


@refused("is damaged")
def shape_larger_than_its_bytes(place: Place) -> Words:
    """A tensor of 1000 x 1000 whose offsets cover four bytes.

    Seen: https://github.com/ml-explore/mlx/pull/3364
    """
    return with_header(place, lambda header: header[max(header)].update(shape=[1000, 1000]))


@refused("is damaged")
def number_type_that_does_not_exist(place: Place) -> Words:
    """A tensor of an unknown type of number, for which a reader skips its checks.

    Seen: https://github.com/kekzl/imp/issues/1603
    """
    return with_header(place, lambda header: header[max(header)].update(dtype="F31"))


@refused("has the unknown ../../outside/executed")
def tensor_with_a_path_for_a_name(place: Place) -> Words:
    """A tensor called ../../outside/executed, for whoever writes one file a tensor.

    Seen: https://github.com/google-ai-edge/mediapipe/pull/6277; CWE-22 path traversal
    """

    def named(header: dict[str, Any]) -> None:
        end = max(each["data_offsets"][1] for name, each in header.items() if name != "__metadata__")
        header["../../outside/executed"] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}

    return with_header(place, named)


@refused("not finite")
def weights_that_are_no_numbers(place: Place) -> Words:
    """Weights that are NaN, which every product spreads over the whole network.

    Seen: https://github.com/ICTMCG/Make-Your-Anchor/issues/9; https://github.com/huggingface/safetensors (its README:
    values are not checked)
    """
    model = place.copy(place.sorter)
    header, data = parts(model / "model.safetensors")
    tensors(model / "model.safetensors", header, np.full(len(data) // 4, np.nan, "<f4").tobytes())
    return classify(place, model)


@refused("is damaged")
def pickle_called_safetensors(place: Place) -> Words:
    """A pickle that runs a program, under the name model.safetensors.

    Seen: CVE-2025-10155 (picklescan, misled by a file's extension); CVE-2025-32434 (torch.load with weights_only)
    """
    return only(place, "model.safetensors", a_pickle(place))


@refused("is damaged")
def torch_archive_called_safetensors(place: Place) -> Words:
    """A zip archive as torch.save writes it, with a pickle inside, under the name model.safetensors.

    Seen: CVE-2024-3568 (transformers loads a pickled checkpoint)
    """
    return only(place, "model.safetensors", zipped({"archive/data.pkl": a_pickle(place), "archive/version": "3"}))


@refused("a pickle, which can run code and is never read")
def weights_only_as_a_pickle(place: Place) -> Words:
    """A model whose only weights are pytorch_model.bin.

    Seen: CVE-2025-24357 (vLLM unpickled a model's weights)
    """
    return only(place, "pytorch_model.bin", a_pickle(place))


@refused("a pickle, which can run code and is never read")
def torchscript_program(place: Place) -> Words:
    """A TorchScript archive, which is a program, as model.pt.

    Seen: https://github.com/pytorch/pytorch/security/policy (TorchScript is code from an unknown source)
    """
    return only(
        place, "model.pt", zipped({"archive/code/__torch__.py": code(place), "archive/data.pkl": a_pickle(place)})
    )


@refused("has no model.safetensors")
def keras_file_with_a_lambda(place: Place) -> Words:
    """An HDF5 file of Keras with a Lambda layer, whose code is run although safe_mode is on.

    Seen: CVE-2025-9905 (Keras)
    """
    return only(place, "tf_model.h5", b"\x89HDF\r\n\x1a\n" + a_pickle(place))


@refused("has no model.safetensors")
def keras_archive_that_names_a_module(place: Place) -> Words:
    """A .keras archive whose config.json names any module and function to call.

    Seen: CVE-2025-1550; CVE-2025-9906 (Keras)
    """
    call = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
    return only(place, "model.keras", zipped({"config.json": json.dumps(call), "metadata.json": "{}"}))


@refused("has no model.safetensors")
def onnx_with_data_elsewhere(place: Place) -> Words:
    """An ONNX model whose external data is a file outside of its folder.

    Seen: CVE-2022-25882; CVE-2024-27318 (onnx)
    """
    return only(place, "model.onnx", b"\x08\x08" + b"location\x12\x1a../../outside/secret.json")


@refused("has no model.safetensors")
def archive_that_unpacks_elsewhere(place: Place) -> Words:
    """A tar archive in place of the weights, with a member ../../outside/executed.

    Seen: CVE-2007-4559; CVE-2025-4517 (tarfile); CVE-2024-5187 (onnx)
    """
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../../outside/executed"))
    return only(place, "model.nemo", whole.getvalue())


# ---------------------------------------------------------------------------------------------------- index and folders


def index(place: Place, weight_map: Any) -> Words:
    model = place.copy(place.sorter)
    names = [name for name in parts(model / "model.safetensors")[0] if name != "__metadata__"]
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    mapped = dict.fromkeys(names, weight_map) if isinstance(weight_map, str) else weight_map
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapped}))
    return classify(place, model)


@refused("files that are not there")
def shard_above_the_folder(place: Place) -> Words:
    """An index of shards that names ../../outside/secret.json.

    Seen: CVE-2026-65920 (diffusers, weight_map with ../); CWE-22 path traversal
    """
    return index(place, "../../outside/secret.json")


@refused("files that are not there")
def shard_by_an_absolute_path(place: Place) -> Words:
    """An index of shards that names an absolute path.

    Seen: CVE-2026-65920 (diffusers, weight_map with absolute paths); CWE-36 absolute path traversal
    """
    return index(place, str(place.outside / "secret.json"))


@refused("files that are not there")
def shard_with_a_nul_in_its_name(place: Place) -> Words:
    """A shard's name with a NUL, behind which C reads no further.

    Seen: CWE-158 improper neutralization of null byte or NUL character
    """
    return index(place, "model-00001-of-00001.safetensors\0.json")


@refused("weight_map is not an object")
def index_that_is_a_list(place: Place) -> Words:
    """An index whose weight_map is a list of lists.

    Seen: CWE-1287 improper validation of specified type of input; CWE-843 type confusion
    """
    return index(place, [["a", "b"]])


@refused("files that are not there")
def shard_that_is_a_pipe(place: Place) -> Words:
    """A shard that is a named pipe, which nobody ever writes to.

    Seen: https://github.com/kpcyrd/libredefender/issues/8 (a scan that waits for ever); CWE-400
    """
    os.mkfifo(place.folder / "pipe")
    words = index(place, "shard.safetensors")
    (place.folder / "pipe").rename(place.folder / "artefact" / "shard.safetensors")
    return words


@refused("is damaged")
def index_that_names_a_pickle(place: Place) -> Words:
    """An index of safetensors that names pytorch_model.bin.

    Seen: CVE-2025-32434 (torch.load); CWE-502 deserialization of untrusted data
    """
    words = index(place, "pytorch_model.bin")
    (place.folder / "artefact" / "pytorch_model.bin").write_bytes(a_pickle(place))
    return words


@refused("is damaged")
def weights_that_are_a_link(place: Place) -> Words:
    """model.safetensors as a symbolic link to somebody's private file.

    Seen: CWE-59 link following
    """
    (place.outside.parent / "letter").write_text("s3cr3t-t0k3n")
    model = place.copy(place.sorter)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(place.outside.parent / "letter")
    return classify(place, model)


@harmless("run: ")
def python_files_in_the_folder(place: Place) -> Words:
    """Python beside the weights under names that are imported when the folder is the current one.

    Seen: CWE-427 uncontrolled search path element
    """
    model = place.copy(place.sorter)
    for name in (
        "modeling.py",
        "configuration.py",
        "safetensors.py",
        "numpy.py",
        "sitecustomize.py",
        "tokenizers.py",
        "handler.py",
    ):
        (model / name).write_text(code(place))
        (place.folder / name).write_text(code(place))
    return classify(place, model)


# --------------------------------------------------------------------------------------------------------- config.json


@harmless("run: ")
def auto_map_of_a_known_architecture(place: Place) -> Words:
    """auto_map in the config.json of a BERT, which names a class in a Python file beside it.

    Seen: CVE-2025-66448 (vLLM ran it with trust_remote_code off)
    """
    words = with_config(
        place, auto_map={"AutoModel": "modeling.Net", "AutoConfig": "modeling.Config"}, trust_remote_code=True
    )
    (place.folder / "artefact" / "modeling.py").write_text(code(place) + "class Net: ...\nclass Config: ...\n")
    return words


@refused("code that comes with weights is never run")
def architecture_that_only_its_code_knows(place: Place) -> Words:
    """A model_type nobody knows, with the Python that defines it beside it.

    Seen: CVE-2026-22807 (vLLM loaded what auto_map names, from a local folder too)
    """
    words = with_config(
        place, model_type="totally_new", auto_map={"AutoModel": "modeling.Net", "AutoConfig": "modeling.Config"}
    )
    (place.folder / "artefact" / "modeling.py").write_text(code(place))
    return words


def gpt2(place: Place, **keys: Any) -> Words:
    """A network that goes through transformers, with a configuration that is hostile."""
    model = place.copy(place.chatter)
    width, shapes = 16, dict[str, list[int]]()
    shapes |= {"wte.weight": [480, width], "wpe.weight": [256, width], "ln_f.weight": [width], "ln_f.bias": [width]}
    for name, shape in {"ln_1": [width], "ln_2": [width]}.items():
        shapes |= {f"h.0.{name}.weight": shape, f"h.0.{name}.bias": shape}
    for name, out in (("attn.c_attn", 3 * width), ("attn.c_proj", width), ("mlp.c_fc", 4 * width)):
        shapes |= {f"h.0.{name}.weight": [width, out], f"h.0.{name}.bias": [out]}
    shapes |= {"h.0.mlp.c_proj.weight": [4 * width, width], "h.0.mlp.c_proj.bias": [width]}
    header, data, drawn = dict[str, Any](), b"", np.random.default_rng(0)
    for name, shape in shapes.items():
        values = drawn.normal(0, 0.1, shape).astype("<f4").tobytes()
        header[f"transformer.{name}"] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(values)],
        }
        data += values
    tensors(model / "model.safetensors", header | {"__metadata__": {"format": "pt"}}, data)
    plain = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 480, "n_positions": 256}
    plain |= {"n_embd": width, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 2}
    (model / "config.json").write_text(json.dumps(plain | keys))
    return chat(place, model)


@harmless("run: ")
def attention_from_somebodys_repository(place: Place) -> Words:
    """_attn_implementation_internal names a repository, from which a kernel is fetched and run.

    Seen: CVE-2026-4372 (transformers before 5.3)
    """
    return gpt2(place, _attn_implementation_internal="attacker/kernel", _attn_implementation="attacker/kernel")


@refused("cannot be read as a model: ImportError: Using `bitsandbytes` 8-bit")
def quantisation_that_brings_code(place: Place) -> Words:
    """quantization_config of a method that fetches kernels and imports packages.

    Seen: https://github.com/huggingface/optimum-intel/issues/1510 (code by quantization_config); CWE-829
    """
    return gpt2(
        place, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True, "trust_remote_code": True}
    )


@refused("cannot be read as a model: KeyError")
def activation_that_is_a_function_of_python(place: Place) -> Words:
    """hidden_act names os.system, for whoever looks functions up by name.

    Seen: CWE-470 use of externally-controlled input to select classes or code; CVE-2025-1550 (Keras)
    """
    return with_config(place, hidden_act="os.system")


@harmless("run: ")
def number_type_that_is_a_module(place: Place) -> Words:
    """torch_dtype names an attribute of torch that is no type: hub, load, os.

    Seen: https://github.com/huggingface/transformers/issues/32185 (torch asked for an attribute it lacks); CWE-470
    """
    return with_config(place, torch_dtype="hub", dtype="load")


@refused("num_hidden_layers is 1000000000")
def a_billion_layers(place: Place) -> Words:
    """config.json asks for a billion layers.

    Seen: https://github.com/ggml-org/llama.cpp/pull/25821 (block_count without a limit); CWE-770
    """
    return with_config(place, num_hidden_layers=10**9)


@refused("hidden_size is 1000000000000000")
def a_width_beyond_any_memory(place: Place) -> Words:
    """config.json asks for a width of 10^15.

    Seen: https://github.com/keras-team/keras/issues/22819 (a layer of 10^12 units); CWE-789
    """
    return with_config(place, hidden_size=10**15)


@refused("cannot be read as a model: RuntimeError: Storage size calculation")
def a_vocabulary_beyond_any_memory(place: Place) -> Words:
    """config.json asks for a vocabulary of 2^62.

    Seen: https://github.com/1bit-MONSTER/1bit-MONSTER/issues/94 (vocab_size of a header wraps around); CWE-190
    """
    return with_config(place, vocab_size=1 << 62)


@refused("num_attention_heads is 0")
def no_head_at_all(place: Place) -> Words:
    """config.json asks for 0 attention heads, by which a width is divided.

    Seen: https://github.com/sgl-project/sglang/pull/32028 (num_attention_heads of 0); CWE-369 divide by zero
    """
    return with_config(place, num_attention_heads=0)


@refused("cannot be read: maximum recursion depth exceeded while decoding a")
def config_nested_without_end(place: Place) -> Words:
    """config.json of a hundred thousand brackets.

    Seen: CVE-2025-52999 (jackson-core); CWE-674
    """
    model = place.copy(place.sorter)
    (model / "config.json").write_text('{"a":' * 100_000)
    return classify(place, model)


@refused("cannot be read: Exceeds the limit (4300 digits) for integer string")
def a_number_of_a_million_digits(place: Place) -> Words:
    """config.json with a number of a million digits, whose reading takes time by the square.

    Seen: CVE-2020-10735 (Python)
    """
    model = place.copy(place.sorter)
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text[:-2] + ', "hidden_size": ' + "9" * 10**6 + "}")
    return classify(place, model)


@refused("layer_norm_eps is nan")
def not_a_number_in_json(place: Place) -> Words:
    """NaN in config.json, which is no JSON and which Python reads.

    Seen: https://github.com/huggingface/transformers/pull/42959; CWE-1286 improper validation of syntactic correctness
    """
    return with_config(place, layer_norm_eps=float("nan"))


@refused("cannot be read: config.json is a pipe, a device or a folder, expected")
def config_that_is_a_pipe(place: Place) -> Words:
    """config.json as a named pipe, which nobody ever writes to.

    Seen: https://github.com/tox-dev/filelock/pull/549; CWE-400 uncontrolled resource consumption
    """
    model = place.copy(place.sorter)
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    return classify(place, model)


@refused("cannot be read: config.json is a pipe, a device or a folder, expected")
def config_that_is_a_device(place: Place) -> Words:
    """config.json as a link to /dev/zero, which never ends.

    Seen: https://github.com/OpenSCAP/openscap/pull/2407 (a link to /dev/zero); CWE-59 link following
    """
    model = place.copy(place.sorter)
    (model / "config.json").unlink()
    (model / "config.json").symlink_to("/dev/zero")
    return classify(place, model)


@refused("cannot be read: config.json has 3,221,225,472 bytes, expected at most")
def config_of_three_gigabytes(place: Place) -> Words:
    """config.json of 3 GB in a sparse file that takes no room in an archive.

    Seen: CWE-770 allocation of resources without limits
    """
    model = place.copy(place.sorter)
    sparse(model / "config.json", 3 * GIGABYTE, b"{")
    return classify(place, model)


@refused("cannot be read")
def config_in_another_encoding(place: Place) -> Words:
    """config.json in UTF-7-like bytes that are no UTF-8, against filters that look at text.

    Seen: CWE-176 improper handling of Unicode encoding
    """
    model = place.copy(place.sorter)
    (model / "config.json").write_bytes((model / "config.json").read_text().encode("utf-16"))
    return classify(place, model)


@refused("cannot be read as a model: ValueError: Exceeds the limit (4300")
def labels_under_no_numbers(place: Place) -> Words:
    """id2label with a key of 5,000 digits and one that is no number.

    Seen: CVE-2020-10735 (Python); CWE-20 improper input validation
    """
    return with_config(place, id2label={"9" * 5000: "a", "b": "c"})


@refused("1 weights do not fit config.json")
def context_beyond_any_text(place: Place) -> Words:
    """max_position_embeddings of 10^15, which tables are made for.

    Seen: CWE-789 memory allocation with excessive size value
    """
    return with_config(place, max_position_embeddings=10**15)


# ----------------------------------------------------------------------------------------------------------- tokenizers


def with_tokenizer(place: Place, edit: Callable[[dict[str, Any]], Any]) -> Words:
    model = place.copy(place.sorter)
    found = json.loads((model / "tokenizer.json").read_text())
    edited = edit(found)
    (model / "tokenizer.json").write_text(json.dumps(found if edited is None else edited))
    return classify(place, model)


def pattern(kind: str, where: str) -> Callable[[Place], Words]:
    """A tokenizer with a regular expression that backtracks without end on ordinary text, and text for it."""

    def build(place: Place) -> Words:
        step: dict[str, Any] = {"type": kind, "pattern": {"Regex": r"^(([a-z])+.)+[A-Z]([a-z])+$|((\w+\s?)+)+%"}}
        step |= {"content": ""} if kind == "Replace" else {"behavior": "Isolated", "invert": False}
        return with_tokenizer(place, lambda found: found.update({where: step}))

    return build


@refused("its tokenizer fails on a text: Onig: Regex search error")
def pattern_without_end_in_the_splitting(place: Place) -> Words:
    """A regular expression in tokenizer.json that backtracks exponentially, where text is split.

    Seen: https://github.com/huggingface/tokenizers/pull/2060 (Split);
    https://github.com/crusoecloud/fastokens/issues/39
    """
    return pattern("Split", "pre_tokenizer")(place)


@refused("its tokenizer fails on a text: Onig: Regex search error")
def pattern_without_end_in_the_normalising(place: Place) -> Words:
    """The same where text is normalised, whose failure is another path of the library.

    Seen: https://github.com/huggingface/tokenizers/pull/2060 (Replace); CWE-1333
    """
    return pattern("Replace", "normalizer")(place)


@refused("not a tokenizer: Oniguruma error: parse depth limit over at line 1")
def pattern_that_is_broken(place: Place) -> Words:
    """A regular expression in tokenizer.json that does not compile.

    Seen: https://github.com/sugarme/tokenizer/issues/75 (panic); CWE-248 uncaught exception
    """
    step = {"type": "Split", "pattern": {"Regex": "(" * 5000}, "behavior": "Isolated", "invert": False}
    return with_tokenizer(place, lambda found: found.update(pre_tokenizer=step))


@refused("found the id 4,294,967,295, expected ids below")
def tokens_with_huge_numbers(place: Place) -> Words:
    """Added tokens with the ids 2^32 - 2 and 2^32 - 1, which tables are made for.

    Seen: https://github.com/qxoticai/qxotic/issues/3
    """

    def add(found: dict[str, Any]) -> None:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        found["model"]["vocab"] |= {"the": 2**32 - 2, "of": 2**32 - 1}
        found["added_tokens"].append({"id": 2**32 - 1, "content": "of", "special": False, **flags})

    return with_tokenizer(place, add)


@refused("not a tokenizer: Token `where` out of vocabulary at line 1 column 7561")
def merges_of_tokens_that_are_not_there(place: Place) -> Words:
    """Merges in tokenizer.json of tokens that the vocabulary lacks.

    Seen: https://github.com/1kkiRen/Tokenizer-Changer/issues/1; CWE-129 improper validation of array index
    """
    model = place.copy(place.chatter)
    found = json.loads((model / "tokenizer.json").read_text())
    found["model"]["merges"] = [["no", "where"]] * 10
    (model / "tokenizer.json").write_text(json.dumps(found))
    return chat(place, model)


@refused("the tokenizer has 70003 tokens, the model")
def tokenizer_of_another_size(place: Place) -> Words:
    """A vocabulary larger than the embedding, so that its ids read behind it.

    Seen: https://github.com/EuroEval/EuroEval/issues/52; CWE-125 out-of-bounds read
    """
    return with_tokenizer(
        place, lambda found: found["model"]["vocab"].update({"lib": 70_000, "##s": 70_001, "the": 70_002})
    )


@refused("not a tokenizer: recursion limit exceeded at line 1 column 2302")
def tokenizer_nested_without_end(place: Place) -> Words:
    """tokenizer.json with steps within steps, a hundred thousand deep.

    Seen: CWE-674; https://github.com/serde-rs/json/issues/162 (its limit of recursion)
    """
    model = place.copy(place.sorter)
    deep = '{"type":"Sequence","pretokenizers":[' * 100_000
    (model / "tokenizer.json").write_text('{"version":"1.0","pre_tokenizer":' + deep)
    return classify(place, model)


@refused("not a tokenizer: tokenizer.json has 3,221,225,472 bytes, expected at")
def tokenizer_of_three_gigabytes(place: Place) -> Words:
    """tokenizer.json of 3 GB in a sparse file.

    Seen: CWE-770 allocation of resources without limits
    """
    model = place.copy(place.sorter)
    sparse(model / "tokenizer.json", 3 * GIGABYTE, b"{")
    return classify(place, model)


@refused("not a tokenizer: Precompiled: Error")
def character_map_of_damaged_bytes(place: Place) -> Words:
    """A Precompiled normalizer whose trie leads out of its bytes.

    Seen: https://github.com/google/sentencepiece/pull/1265; https://github.com/google/sentencepiece/pull/1272; CWE-125
    """
    map_ = "/wAAAP////8BAAAA" + "////" * 20
    return with_tokenizer(
        place, lambda found: found.update(normalizer={"type": "Precompiled", "precompiled_charsmap": map_})
    )


@refused("not a tokenizer: Unable to load vocab UnkIdNotInVocabulary at line 1")
def unigram_without_its_unknown(place: Place) -> Words:
    """A Unigram model whose unknown token lies behind its vocabulary.

    Seen: https://github.com/huggingface/tokenizers/blob/main/tokenizers/src/models/unigram/model.rs
    (UnkIdNotInVocabulary); CWE-129
    """
    return with_tokenizer(
        place, lambda found: found.update(model={"type": "Unigram", "unk_id": 9999, "vocab": [["a", -1.0]]})
    )


@refused("no tokenizer.json, and no other tokenizer in it can be converted")
def tokenizer_class_from_a_file(place: Place) -> Words:
    """A folder without tokenizer.json, whose tokenizer_config.json names a class in a Python file beside it.

    Seen: CWE-829 inclusion of functionality from untrusted control sphere; CVE-2025-66448 (vLLM, the same in
    config.json)
    """
    model = place.copy(place.sorter)
    (model / "tokenizer.json").unlink()
    (model / "vocab.txt").write_text("[UNK]\n[PAD]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (model / "tokenization.py").write_text(code(place) + "class Cut: ...\n")
    change(
        model / "tokenizer_config.json", tokenizer_class="Cut", auto_map={"AutoTokenizer": ["tokenization.Cut", None]}
    )
    return classify(place, model)


@refused("no tokenizer.json, and no other tokenizer in it can be converted")
def sentencepiece_that_lies(place: Place) -> Words:
    """A SentencePiece model whose protobuf says that a piece has 2^62 bytes.

    Seen: CVE-2026-1260 (sentencepiece, crafted model); CWE-130 improper handling of length parameter inconsistency
    """
    model = place.copy(place.sorter)
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.model").write_bytes(b"\n" + b"\xff\xff\xff\xff\xff\xff\xff\xff\x3f" + b"a" * 50)
    return classify(place, model)


@refused("cannot be read as a model: ValueError: Exceeds the limit (4300")
def added_token_under_a_huge_number(place: Place) -> Words:
    """added_tokens_decoder in tokenizer_config.json with a key of 5,000 digits.

    Seen: CVE-2020-10735 (Python)
    """
    model = place.copy(place.sorter)
    change(model / "tokenizer_config.json", added_tokens_decoder={"9" * 5000: {"content": "<x>"}})
    return classify(place, model)


@refused("no tokenizer.json, and no other tokenizer in it can be converted")
def tokenizer_settings_that_are_a_pipe(place: Place) -> Words:
    """tokenizer.json as a named pipe.

    Seen: https://github.com/OpenSCAP/openscap/pull/2407 (a pipe in a scanned folder); CWE-400
    """
    model = place.copy(place.sorter)
    (model / "tokenizer.json").unlink()
    os.mkfifo(model / "tokenizer.json")
    return classify(place, model)


@refused("cannot be read as a model: TypeError: eos_token_id is [")
def ends_that_are_no_tokens(place: Place) -> Words:
    """generation_config.json with ends and lengths beyond all measure.

    Seen: CWE-1284 improper validation of specified quantity in input
    """
    model = place.copy(place.chatter)
    told = {"eos_token_id": ["</s>", 10**30], "max_length": 10**18, "num_beams": 10**9, "repetition_penalty": -1}
    (model / "generation_config.json").write_text(json.dumps(told))
    return chat(place, model)


# ------------------------------------------------------------------------------------------------------- chat templates


def templated(place: Place, template: str) -> Words:
    model = place.copy(place.chatter)
    (model / "chat_template.jinja").write_text(template)
    return chat(place, model)


TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


@refused("the chat template refuses this conversation: access to attribute")
def template_that_climbs_to_python(place: Place) -> Words:
    """A chat template that goes from a string over its class to all classes of Python.

    Seen: CVE-2024-34359 (llama-cpp-python); CVE-2026-5760 (SGLang)
    """
    return templated(place, "{{ ''.__class__.__mro__[1].__subclasses__() }}" + TURNS)


@refused("the chat template refuses this conversation: access to attribute")
def template_that_climbs_over_a_filter(place: Place) -> Words:
    """A chat template that reaches attributes by the filter attr and str.format.

    Seen: CVE-2025-27516 (Jinja)
    """
    return templated(place, "{{ ('{0.__class__.__init__.__globals__}'|attr('format'))(messages) }}" + TURNS)


@refused("the chat template refuses this conversation: access to attribute")
def template_that_formats_a_map(place: Place) -> Words:
    """A chat template that reaches attributes by str.format_map.

    Seen: CVE-2019-10906 (Jinja)
    """
    return templated(place, "{{ '{a.__class__.__mro__}'.format_map({'a': 42}) }}" + TURNS)


@refused("the chat template fails on this conversation: not all arguments")
def template_that_keeps_a_method(place: Place) -> Words:
    """A chat template that keeps a reference to str.format and has a filter call it.

    Seen: CVE-2024-56326 (Jinja)
    """
    return templated(
        place, "{{ ['{0.__class__.__base__}']|map('format', messages)|list }}{{ ''.format.__self__.__class__ }}" + TURNS
    )


@refused("the chat template refuses this conversation: access to attribute")
def template_that_uses_a_global(place: Place) -> Words:
    """A chat template that goes over the globals of Jinja's own functions to os.

    Seen: https://github.com/swisskyrepo/PayloadsAllTheThings/blob/master/Server%20Side%20Template%20Injection/Python.md
    (lipsum); CWE-1336
    """
    return templated(place, "{{ cycler.__init__.__globals__.os.popen('id').read() }}" + TURNS)


@refused("the chat template fails on this conversation: no loader for this")
def template_that_includes_a_file(place: Place) -> Words:
    """A chat template that includes a file of the machine.

    Seen: CWE-73 external control of file name or path; CWE-1336
    """
    return templated(place, f"{{% include '{place.outside}/secret.json' %}}" + TURNS)


@refused("the chat template refuses this conversation: more than 1,000,000")
def template_that_loops_for_ever(place: Place) -> Words:
    """A chat template with loops within loops, 10^15 passes.

    Seen: CVE-2025-61620 (vLLM)
    """
    loops = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc")
    return templated(place, loops + "{% endfor %}" * 3 + TURNS)


@refused("the chat template refuses this conversation: a result of")
def template_that_multiplies_a_text(place: Place) -> Words:
    """A chat template that repeats a text 2 · 10^9 times.

    Seen: https://github.com/pallets/jinja/pull/2149; CWE-770
    """
    return templated(place, "{{ 'a' * 2 * 10**9 }}" + TURNS)


@refused("the chat template refuses this conversation: a value of 16,777,216")
def template_that_doubles_a_text(place: Place) -> Words:
    """A chat template that joins a text to itself forty times.

    Seen: CVE-2025-61620 (vLLM's templates, memory); CWE-400
    """
    doubling = "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
    return templated(place, doubling + TURNS)


@refused("the chat template refuses this conversation: a value of 1,048,576")
def template_that_adds_lists(place: Place) -> Words:
    """A chat template that adds a list to itself forty times.

    Seen: CWE-400 uncontrolled resource consumption
    """
    doubling = "{% set ns = namespace(s=[1, 2]) %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"
    return templated(place, doubling + TURNS)


@refused("the chat template refuses this conversation: a result of")
def template_that_pads_a_text(place: Place) -> Words:
    """A chat template that centres a text in 2 · 10^9 columns.

    Seen: https://github.com/mitsuhiko/minijinja/issues/924 (repetition and indent by a width); CWE-789
    """
    return templated(place, "{{ 'a'|center(2 * 10**9) }}" + TURNS)


@refused("the chat template refuses this conversation: a result of")
def template_that_formats_widely(place: Place) -> Words:
    """A chat template that formats a number 2 · 10^9 columns wide.

    Seen: https://github.com/everruns/bashkit/issues/983 (%999999999d); CWE-789
    """
    return templated(place, "{{ '%02000000000d' % 7 }}" + TURNS)


@refused("the chat template refuses this conversation: a result of")
def template_that_formats_widely_by_a_method(place: Place) -> Words:
    """A chat template that formats a number 2 · 10^9 columns wide with str.format and str.ljust.

    Seen: https://github.com/readthedocs/readthedocs.org/pull/11044 (str.format, :>999999999999); CWE-789
    """
    return templated(place, "{{ '{:02000000000d}'.format(7) }}{{ 'a'.ljust(2 * 10**9) }}" + TURNS)


@refused("the chat template fails on this conversation: maximum recursion depth")
def template_that_calls_itself(place: Place) -> Words:
    """A chat template with a macro that calls itself without end.

    Seen: CWE-674 uncontrolled recursion
    """
    return templated(place, "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}" + TURNS)


@refused("the chat template cannot be compiled: RecursionError: maximum")
def template_nested_without_end(place: Place) -> Words:
    """A chat template of thousands of blocks within each other, for the compiler's stack.

    Seen: CWE-674; https://github.com/python/cpython/issues/95185 (the compiler's stack)
    """
    return templated(place, "{% if 1 %}" * 3000 + "{% endif %}" * 3000 + TURNS)


@refused("the chat template refuses this conversation: a result of")
def template_of_batches(place: Place) -> Words:
    """A chat template that cuts a list into 2 · 10^9 slices and fills a batch up to 2 · 10^9.

    Seen: CWE-770 allocation of resources without limits; the filters slice and batch
    """
    return templated(place, "{{ [1]|slice(2 * 10**9)|list|length }}{{ [1]|batch(2 * 10**9, 0)|list|length }}" + TURNS)


@refused("the chat template refuses this conversation: a result of")
def template_that_replaces(place: Place) -> Words:
    """A chat template that replaces every letter of a long text by a long text, twice.

    Seen: CWE-400 uncontrolled resource consumption; the filter replace
    """
    return templated(place, "{% set a = 'a' * 9999 %}{{ a|replace('a', a)|replace('a', a)|length }}" + TURNS)


# ----------------------------------------------------------------------------------------------------------------- GGUF


def text(content: str | bytes) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(raw)) + raw


def entry(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def gguf(place: Place, entries: Sequence[bytes] = (), infos: Sequence[bytes] = (), *, n_kv: int | None = None, n_tensors: int | None = None, version: int = 3, data: bytes = b"") -> Words:  # fmt: skip
    """A GGUF file of these entries and tensors, whose counts may lie."""
    every = [entry("general.architecture", 8, text("llama")), *entries]
    counts = (len(infos) if n_tensors is None else n_tensors, len(every) if n_kv is None else n_kv)
    whole = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join([*every, *infos])
    (place.folder / "model.gguf").write_bytes(whole + data)
    return chat(place, place.folder / "model.gguf")


def info(name: str, shape: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@refused("is damaged, most likely cut short: it ends before what it says it")
def gguf_of_four_bytes(place: Place) -> Words:
    """A GGUF file that ends behind its mark.

    Seen: CVE-2024-39720 (Ollama)
    """
    (place.folder / "model.gguf").write_bytes(b"GGUF")
    return chat(place, place.folder / "model.gguf")


@refused("is damaged, most likely cut short: it ends before what it says it")
def gguf_with_more_keys_than_bytes(place: Place) -> Words:
    """A GGUF header that counts 2^62 keys.

    Seen: CVE-2024-23605 (llama.cpp, header.n_kv)
    """
    return gguf(place, n_kv=1 << 62)


@refused("is damaged, most likely cut short: it ends before what it says it")
def gguf_with_more_tensors_than_bytes(place: Place) -> Words:
    """A GGUF header that counts 2^62 tensors.

    Seen: CVE-2024-21836 (llama.cpp, header.n_tensors)
    """
    return gguf(place, n_tensors=1 << 62)


@refused("is damaged, most likely cut short: it ends before what it says it")
def gguf_with_a_text_longer_than_the_file(place: Place) -> Words:
    """A GGUF text that says it has 2^63 bytes.

    Seen: CVE-2024-23496 (llama.cpp, gguf_fread_str)
    """
    return gguf(place, [entry("general.name", 8, struct.pack("<Q", 1 << 63) + b"a")])


@refused("is damaged, most likely cut short: it ends before what it says it")
def gguf_with_an_array_longer_than_the_file(place: Place) -> Words:
    """A GGUF array that says it has 2^40 numbers.

    Seen: CVE-2024-21825 (llama.cpp, GGUF_TYPE_ARRAY); https://github.com/antonellof/ferrox/issues/25
    """
    return gguf(place, [entry("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 1 << 40))])


@refused("is damaged, most likely cut short: it ends before what it says it")
def gguf_with_an_array_of_texts_longer_than_the_file(place: Place) -> Words:
    """A GGUF array of 2^40 texts.

    Seen: CVE-2024-21825 (llama.cpp, GGUF_TYPE_STRING)
    """
    return gguf(place, [entry("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 1 << 40))])


@refused("is damaged, most likely cut short: maximum recursion depth exceeded")
def gguf_with_arrays_within_arrays(place: Place) -> Words:
    """GGUF arrays within arrays, fifty thousand deep.

    Seen: https://github.com/ggml-org/llama.cpp/pull/28880; CWE-674
    """
    return gguf(place, [entry("a", 9, struct.pack("<IQ", 9, 1) * 50_000 + struct.pack("<IQ", 0, 0))])


@refused("is damaged, most likely cut short: np.uint32(9999) is not a valid")
def gguf_with_a_type_that_does_not_exist(place: Place) -> Words:
    """A GGUF value of a type outside of the table.

    Seen: https://github.com/cdxgen/cdxgen/issues/4119 (metadata type 256); CWE-129
    """
    return gguf(place, [entry("a", 9999, b"\0" * 8)])


@refused("is damaged, most likely cut short: cannot reshape array of size 0")
def gguf_with_a_shape_that_overflows(place: Place) -> Words:
    """A GGUF tensor whose shape has the product 0 modulo 2^64.

    Seen: CVE-2026-33298 (llama.cpp, ggml_nbytes); CVE-2024-21802 (llama.cpp, info->ne)
    """
    return gguf(place, infos=[info("token_embd.weight", [1 << 32, 1 << 32])], data=b"\0" * 64)


@refused("is damaged, most likely cut short: it ends before what it says it")
def gguf_with_a_tensor_behind_the_end(place: Place) -> Words:
    """A GGUF tensor whose offset lies behind the end of the file.

    Seen: CVE-2026-7482 (Ollama)
    """
    return gguf(place, infos=[info("token_embd.weight", [32, 32], offset=1 << 50)], data=b"\0" * 64)


@refused("is damaged, most likely cut short: np.uint32(2147483647) is not a")
def gguf_with_a_tensor_of_no_type(place: Place) -> Words:
    """A GGUF tensor of a type of number outside of the table.

    Seen: https://github.com/ggml-org/llama.cpp/issues/11975 (invalid ggml type 42); CWE-129
    """
    return gguf(place, infos=[info("token_embd.weight", [32, 32], kind=0x7FFFFFFF)], data=b"\0" * 64)


@refused("is damaged, most likely cut short: Invalid alignment: must be a")
def gguf_aligned_to_nothing(place: Place) -> Words:
    """A GGUF file with the alignment 0, by which an offset is divided.

    Seen: CVE-2025-0317 (Ollama, ggufPadding); https://github.com/antirez/gguf-tools/issues/27
    """
    return gguf(place, [entry("general.alignment", 4, struct.pack("<I", 0))], [info("a", [1])], data=b"\0" * 64)


@refused("is damaged, most likely cut short")
def gguf_with_a_key_twice(place: Place) -> Words:
    """A GGUF file with a key twice, of which each reader takes another.

    Seen: https://github.com/promptfoo/modelaudit/pull/1315 (a template hidden behind its own key); CWE-436
    """
    return gguf(place, [entry("general.architecture", 8, text("qwen2"))])


@refused("is damaged, most likely cut short: it ends before what it says it")
def gguf_of_another_byte_order(place: Place) -> Words:
    """A GGUF file whose version reads as 3 only in the other byte order, so that all its counts turn.

    Seen: CWE-198 use of incorrect byte ordering
    """
    return gguf(place, version=3 << 24)


@refused("holds the architecture")
def gguf_named_as_a_path(place: Place) -> Words:
    """A GGUF file whose architecture is a path, from which keys and files are named.

    Seen: CWE-73 external control of file name or path; https://github.com/AlexsJones/llmfit/issues/127 (a GGUF's file
    name)
    """
    (place.folder / "model.gguf").write_bytes(
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry("general.architecture", 8, text("../../outside/executed"))
    )
    return chat(place, place.folder / "model.gguf")


# ----------------------------------------------------------------------------------------------------------------- data


def write(place: Place, name: str, content: bytes | str) -> Path:
    file = place.folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def npz(place: Place, header: bytes, content: bytes = b"", name: str = "images.npy") -> Words:
    """An npz whose first array has this header."""
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content
    labels = io.BytesIO()
    np.save(labels, np.zeros(1, np.int64))
    return pictures(write(place, "data.npz", zipped({name: array, "labels.npy": labels.getvalue()})))


@refused("array 'images'")
def array_of_pickled_objects(place: Place) -> Words:
    """An array of Python objects in an npz, which numpy would unpickle.

    Seen: CVE-2019-6446 (numpy)
    """
    return npz(place, b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", a_pickle(place))


@refused("cannot be read: malformed node or string on line 1: <ast.Call object")
def array_header_that_is_a_program(place: Place) -> Words:
    """An array whose header is an expression of Python and not a dictionary.

    Seen: https://github.com/numpy/numpy/blob/main/numpy/lib/_format_impl.py (headers are Python literals); CWE-94
    """
    return npz(place, f"__import__('os').system('touch {place.canary}')\n".encode())


@refused("array 'images'")
def array_larger_than_its_file(place: Place) -> Words:
    """An array that says it has 10^15 bytes in a member of a hundred.

    Seen: https://github.com/keras-team/keras/pull/23016; CWE-789
    """
    return npz(place, b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 31622, 31622)}\n", b"\0" * 100)


@refused("cannot be read: Bad CRC-32 for file")
def array_that_unpacks_to_gigabytes(place: Place) -> Words:
    """A zip member that unpacks to 256 MB and says it has 1,000 bytes.

    Seen: CVE-2019-16892 (rubyzip, a size that is spoofed); CWE-409
    """
    pressed = zlib.compressobj(9, zlib.DEFLATED, -15)
    whole = b"".join(pressed.compress(bytes(1 << 24)) for _ in range(16)) + pressed.flush()
    name = b"images.npy"
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(whole), 1000, len(name), 0) + name + whole
    central = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 8, 0, 0, 0, len(whole), 1000, len(name), 0, 0, 0, 0, 0, 0) + name  # fmt: skip
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)
    return [*pictures(write(place, "data.npz", local + central + end)), "image=images", "label=images"]


@refused("found a zip archive or an Excel workbook, expected text, JSONL, CSV")
def archive_in_place_of_text(place: Place) -> Words:
    """A zip with members above its folder, in place of a text.

    Seen: CVE-2018-1002200 (plexus-archiver, zip slip)
    """
    return learn(write(place, "data.jsonl", zipped({"../../outside/executed": "x"})))


@refused("not recognised as JSONL, CSV, TSV or Parquet; it starts with b")
def table_as_a_pickle(place: Place) -> Words:
    """A pickled DataFrame in place of a table.

    Seen: CVE-2020-13091 (pandas.read_pickle); CVE-2024-34997 (joblib)
    """
    return learn(write(place, "data.pkl", a_pickle(place)))


def parquet(place: Place, metadata: Mapping[bytes, bytes], field: Mapping[bytes, bytes]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet as pq

    kind = pa.field("text", pa.string(), metadata=dict(field))
    rows = [f"A text about thing number {number}." for number in range(50)]
    table = pa.table([pa.array(rows)], schema=pa.schema([kind], metadata=dict(metadata)))
    pq.write_table(table, place.folder / "data.parquet")
    return place.folder / "data.parquet"


@harmless("tokenizer: tokens")
def parquet_with_a_pickled_type(place: Place) -> Words:
    """A column of Parquet whose extension type is a pickle, which was loaded when the file was opened.

    Seen: CVE-2023-47248 (pyarrow)
    """
    named = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": a_pickle(place)}
    return learn(parquet(place, {}, named))


@refused("broken Parquet: Parquet file size is 868 bytes, smaller than the size")
def parquet_with_a_lying_footer(place: Place) -> Words:
    """A Parquet file whose footer says that it is longer than the file.

    Seen: https://github.com/apache/parquet-java/pull/408 (corrupted footer lengths); CWE-130
    """
    file = parquet(place, {}, {})
    content = file.read_bytes()
    file.write_bytes(content[:-8] + struct.pack("<I", 0x7FFFFFFF) + b"PAR1")
    return learn(file)


@refused("broken Parquet: metadata nested too deeply")
def parquet_with_nested_metadata(place: Place) -> Words:
    """The metadata that Hugging Face datasets reads, nested a hundred thousand deep.

    Seen: CWE-674; CVE-2025-52999 (jackson-core)
    """
    return learn(parquet(place, {b"huggingface": b'{"a":' * 100_000}, {}))


@refused("broken Arrow: In column 0: Invalid: Offset invariant failure: offset")
def arrow_with_lying_offsets(place: Place) -> Words:
    """A column of text in Arrow whose offsets lead out of its memory.

    Seen: https://arrow.apache.org/docs/dev/format/Security.html (invalid data); CWE-125
    """
    import pyarrow as pa
    from pyarrow import ipc

    file = place.folder / "data.arrow"
    with ipc.new_stream(str(file), pa.schema([("text", pa.string())])) as sink:
        sink.write_batch(pa.record_batch([pa.array(["one", "two", "three"])], ["text"]))
    content, honest = file.read_bytes(), struct.pack("<II", 3, 6)
    file.write_bytes(content.replace(honest, struct.pack("<II", 1 << 30, 6)))
    return learn(file)


@refused("no such file")
def dataset_that_names_files_elsewhere(place: Place) -> Words:
    """state.json of a saved dataset that names ../../outside/secret.json as its data.

    Seen: CWE-22 path traversal; CVE-2024-37032 (Ollama, the same in a manifest)
    """
    (place.folder / "data").mkdir()
    state = {"_data_files": [{"filename": "../../outside/secret.json"}]}
    (place.folder / "data" / "state.json").write_text(json.dumps(state))
    return learn(place.folder / "data")


@harmless("tokenizer: tokens")
def dataset_with_a_loading_script(place: Place) -> Words:
    """A folder of data with a Python script of its own name, which older versions of Hugging Face datasets ran.

    Seen: https://github.com/huggingface/datasets/issues/6400; CWE-829
    """
    (place.folder / "data").mkdir()
    (place.folder / "data" / "data.py").write_text(code(place))
    (place.folder / "data" / "rows.jsonl").write_bytes(place.labelled.read_bytes())
    return learn(place.folder / "data")


def bomb(place: Place, name: str, press: Callable[[bytes], bytes]) -> Words:
    """2 GB of lines in few bytes."""
    part = press(b'{"text": "' + b"a" * (1 << 24) + b'"}\n')
    return learn(write(place, name, part * 128))


@refused("made to fill the memory")
def gzip_bomb(place: Place) -> Words:
    """A gzip file of 2 MB that unpacks to 2 GB.

    Seen: CVE-2025-66471 (urllib3)
    """
    return bomb(place, "data.jsonl.gz", gzip.compress)


@refused("made to fill the memory")
def xz_bomb(place: Place) -> Words:
    """An xz file that unpacks to seven thousand times its size.

    Seen: CWE-409 improper handling of highly compressed data
    """
    return bomb(place, "data.jsonl.xz", lambda content: lzma.compress(content, preset=0))


@refused("made to fill the memory")
def bzip2_bomb(place: Place) -> Words:
    """A bzip2 file that unpacks to a million times its size.

    Seen: CVE-2025-69223 (aiohttp); CWE-409
    """
    return bomb(place, "data.jsonl.bz2", bz2.compress)


@refused("made to fill the memory")
def zstd_bomb(place: Place) -> Words:
    """A zstd file that unpacks to ten thousand times its size.

    Seen: CVE-2025-66471 (urllib3); CWE-409
    """
    import pyarrow as pa

    return bomb(place, "data.jsonl.zst", lambda content: pa.compress(content, "zstd", asbytes=True))


@refused("JSON that cannot be read: maximum recursion depth exceeded while")
def row_nested_without_end(place: Place) -> Words:
    """A row of JSONL of a hundred thousand brackets.

    Seen: CWE-674; CVE-2025-52999 (jackson-core)
    """
    return learn(write(place, "data.jsonl", '{"text": "a"}\n' + '{"text":' + "[" * 100_000 + "\n"))


@refused("JSON that cannot be read: Exceeds the limit (4300 digits) for integer")
def row_with_a_number_of_many_digits(place: Place) -> Words:
    """A row of JSONL with a number of a million digits.

    Seen: CVE-2020-10735 (Python)
    """
    return learn(write(place, "data.jsonl", '{"text": ' + "9" * 10**6 + "}\n"))


@refused("stands twice")
def row_with_a_key_twice(place: Place) -> Words:
    """A row with a key twice: what is looked at is not what is learned.

    Seen: https://bishopfox.com/blog/json-interoperability-vulnerabilities; CWE-436
    """
    return learn(write(place, "data.jsonl", '{"text": "good", "text": "bad"}\n' * 20))


@refused("were taken for one record")
def table_with_a_quote_that_swallows(place: Place) -> Words:
    """A table of a quote that is opened and never closed, so that all that follows becomes one field.

    Seen: https://github.com/wireservice/csvkit/issues/382 (unbalanced quotes); CWE-400
    """
    return learn(write(place, "data.csv", 'text,label\n"' + "a,b\n" * 500_000))


@refused("messages: found")
def chat_turns_nested_in_a_cell(place: Place) -> Words:
    """A cell of a table with a conversation in JSON, a hundred thousand brackets deep.

    Seen: CWE-674 uncontrolled recursion
    """
    data = write(place, "data.csv", "messages\n" + "[" * 100_000 + "\n")
    return ["preflight", "chat", f"model={place.chatter}", f"data={data}"]


@refused("broken WARC: its content ends after 9 of 4611686018427387904 bytes")
def web_archive_that_lies_about_its_length(place: Place) -> Words:
    """A WARC record that says it has 2^62 bytes.

    Seen: https://github.com/libarchive/libarchive/pull/3308; CWE-130
    """
    record = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 4611686018427387904\r\n\r\nhello\r\n\r\n"
    return learn(write(place, "data.warc", record))


@refused("made to fill the memory")
def dump_with_a_billion_laughs(place: Place) -> Words:
    """An XML dump whose entities stand for each other, ten times each, ten deep.

    Seen: CVE-2003-1564 (libxml2); CVE-2013-1664 (Python)
    """
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(10))
    return learn(write(place, "data.xml", f'<mediawiki><!DOCTYPE m [<!ENTITY e0 "ha">{entities}]>&e10;</mediawiki>'.replace("<mediawiki><!DOCTYPE", "<!DOCTYPE", 1).replace("]>", "]><mediawiki>", 1)))  # fmt: skip


@refused("found a declaration of the entity")
def dump_that_reads_another_file(place: Place) -> Words:
    """An XML dump with an external entity, the private file beside it.

    Seen: CVE-2013-1665 (Python); CWE-611
    """
    outer = f'<!ENTITY e SYSTEM "file://{place.outside}/secret.json">'
    page = "<page><title>t</title><ns>0</ns><revision><text>&e;</text></revision></page>"
    return learn(
        write(place, "data.xml", f"<?xml version='1.0'?><!DOCTYPE mediawiki [{outer}]><mediawiki>{page}</mediawiki>")
    )


@refused("expected a file")
def data_that_is_a_pipe(place: Place) -> Words:
    """A named pipe in place of the data.

    Seen: https://github.com/logrotate/logrotate/pull/607; CWE-400
    """
    os.mkfifo(place.folder / "data.jsonl")
    return learn(place.folder / "data.jsonl")


@refused("expected a file")
def data_that_is_a_device(place: Place) -> Words:
    """A link to /dev/zero in place of the data.

    Seen: https://github.com/OpenSCAP/openscap/pull/2407 (a link to /dev/zero); CWE-59 link following
    """
    (place.folder / "data.jsonl").symlink_to("/dev/zero")
    return learn(place.folder / "data.jsonl")


@refused("a line of more than 200,000,000 bytes, expected text")
def one_line_of_a_gigabyte(place: Place) -> Words:
    """A text of 3 GB of NUL in one line, in a sparse file.

    Seen: CWE-770 allocation of resources without limits
    """
    return learn(sparse(place.folder / "data.jsonl", 3 * GIGABYTE))


@harmless("x1b[2J")
def label_that_writes_on_the_terminal(place: Place) -> Words:
    """Labels with control sequences that rewrite the terminal, and with marks that turn the direction of writing.

    Seen: CVE-2021-25743 (kubectl); CVE-2021-42574 (trojan source)
    """
    rows = [{"text": f"text {n} of a thing", "label": f"\x1b[2J\x1b]0;owned\x07\u202e{n % 2}"} for n in range(40)]
    data = write(place, "data.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return ["preflight", "text-classification", f"model={place.sorter}", f"data={data}"]


# ------------------------------------------------------------------------------------------------------------- settings


def settings(place: Place, content: str) -> Words:
    return ["show", write(place, "mine.yaml", content)]


@refused("could not determine a constructor for the tag")
def yaml_that_calls_python(place: Place) -> Words:
    """A file of settings with a tag that calls a function of Python.

    Seen: CVE-2017-18342; CVE-2020-14343 (PyYAML)
    """
    return settings(place, f"recipe: chat\nout: !!python/object/apply:os.system ['touch {place.canary}']\n")


@refused("found an alias (*name), expected the value itself")
def yaml_of_a_billion_laughs(place: Place) -> Words:
    """A file of settings whose aliases stand for each other, ten times each, ten deep.

    Seen: CVE-2019-11253 (Kubernetes); https://github.com/yaml/pyyaml/issues/235
    """
    lists = ["&a0 [ha, ha]", *(f"&a{n + 1} [{', '.join([f'*a{n}'] * 10)}]" for n in range(10))]
    return settings(place, f"recipe: chat\nsteps: [{', '.join(lists)}]\n")


@refused("found an alias (*name), expected the value itself")
def yaml_that_merges_itself(place: Place) -> Words:
    """A file of settings whose mappings are merged, ten times each, nine deep, by `<<`.

    Seen: https://github.com/yaml/pyyaml/issues/897
    """
    maps = ["&m0 {a: 1}", *(f"&m{n + 1} {{<<: [{', '.join([f'*m{n}'] * 10)}]}}" for n in range(9))]
    return settings(place, f"recipe: chat\nlearning_rates: [{', '.join(maps)}]\n")


@refused("cannot be read: maximum recursion depth exceeded")
def yaml_nested_without_end(place: Place) -> Words:
    """A file of settings of fifty thousand brackets.

    Seen: CVE-2022-25857 (SnakeYAML)
    """
    return settings(place, "recipe: chat\nsteps: " + "[" * 50_000)


@refused("cannot be read: month must be in 1..12")
def yaml_with_a_day_that_is_none(place: Place) -> Words:
    """A file of settings with a value that its own reader takes for a date, of a thirteenth month.

    Seen: https://github.com/yaml/pyyaml/issues/382; CWE-248 uncaught exception
    """
    return settings(place, "recipe: chat\nout: 2020-13-45\n")


@refused("cannot be read: mine.yaml has 3,221,225,472 bytes, expected at most")
def yaml_of_three_gigabytes(place: Place) -> Words:
    """A file of settings of 3 GB in a sparse file.

    Seen: CWE-770 allocation of resources without limits
    """
    return ["show", sparse(place.folder / "mine.yaml", 3 * GIGABYTE, b"recipe: chat\n")]


@refused("unknown key 'network'")
def settings_that_name_a_program(place: Place) -> Words:
    """A file of settings that names the Python of a network: only the one who gives the command may.

    Seen: CWE-470; CVE-2025-66448 (vLLM, settings of a model)
    """
    (place.folder / "evil.py").write_text(code(place) + "class Net: ...\n")
    return ["preflight", write(place, "mine.yaml", f"recipe: mlp\nnetwork: evil:Net\ndata: {place.labelled}\n")]


# --------------------------------------------------------------------------------------------------------------- images


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes, pixels: bytes = b"\0" * 10) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(more)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def classes(place: Place, name: str, content: bytes) -> Words:
    """Two classes of sound images, and one image that is not."""
    for label in ("one", "two"):
        (place.folder / "images" / label).mkdir(parents=True)
        for number in range(10):
            good = png(8, 8, pixels=(b"\0" + bytes([number, 9, 9 if label == "one" else 7] * 8)) * 8)
            (place.folder / "images" / label / f"{number}.png").write_bytes(good)
    (place.folder / "images" / "one" / name).write_bytes(content)
    return pictures(place.folder / "images")


@refused("pixels, expected at most")
def image_of_ten_billion_pixels(place: Place) -> Words:
    """A PNG of 100,000 x 100,000 pixels in 100 bytes.

    Seen: https://pillow.readthedocs.io/en/stable/releasenotes/5.0.0.html (DecompressionBombError); CWE-409
    """
    return classes(place, "bomb.png", png(100_000, 100_000))


@refused("cannot be read: Decompressed data too large for")
def image_with_a_text_that_unpacks(place: Place) -> Words:
    """A PNG with a text that unpacks to 200 MB.

    Seen: CVE-2014-9601 (Pillow)
    """
    return classes(place, "bomb.png", png(4, 4, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26), 9))] * 3))


@refused("not an image: it starts with b")
def image_that_is_a_program(place: Place) -> Words:
    """PostScript under the name of a PNG, which Ghostscript would run.

    Seen: CVE-2018-16509 (Ghostscript); https://github.com/farisv/PIL-RCE-Ghostscript-CVE-2018-16509 (by way of Pillow)
    """
    script = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch {place.canary}) (w) file\n"
    return classes(place, "program.png", script.encode())


@refused("not an image: it starts with b")
def drawing_that_reads_a_file(place: Place) -> Words:
    """An SVG with an external entity.

    Seen: CVE-2020-10799 (svglib); CWE-611
    """
    drawing = f'<!DOCTYPE s [<!ENTITY e SYSTEM "file://{place.outside}/secret.json">]><svg><text>&e;</text></svg>'
    return classes(place, "drawing.svg", drawing.encode())


@harmless("21 read, 21 kept")
def tiff_that_leads_in_a_circle(place: Place) -> Words:
    """A TIFF whose directory of frames names itself as the next one.

    Seen: https://github.com/python-pillow/Pillow/issues/5472; CWE-835
    """
    tags = [
        (256, 4, 1, 8),
        (257, 4, 1, 8),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (279, 4, 1, 64),
    ]
    directory = (
        struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + struct.pack("<I", 8)
    )
    return classes(place, "circle.tiff", b"II*\0" + struct.pack("<I", 8) + directory)


@refused("not an image: it starts with b")
def tiff_with_more_values_than_bytes(place: Place) -> Words:
    """A TIFF tag that counts 2^32 - 1 values.

    Seen: https://github.com/cgohlke/tifffile/issues/102; CWE-789
    """
    tags = [(256, 4, 0xFFFFFFFF, 8), (257, 4, 1, 4), (273, 4, 0xFFFFFFFF, 8)]
    directory = (
        struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + struct.pack("<I", 0)
    )
    return classes(place, "long.tiff", b"II*\0" + struct.pack("<I", 8) + directory)


@refused("not an image: it starts with b")
def image_that_unpacks_by_gzip(place: Place) -> Words:
    """A FITS image of gzip, under the name of a PNG.

    Seen: CVE-2026-40192 (Pillow)
    """
    head = b"SIMPLE  =                    T".ljust(80) + b"END".ljust(80)
    return classes(place, "stars.png", head.ljust(2880) + gzip.compress(bytes(1 << 26)))


@refused("not followed")
def image_that_is_a_link(place: Place) -> Words:
    """A link out of the folder of images, to somebody's private file.

    Seen: CWE-59 link following
    """
    words = classes(place, "good.png", png(8, 8, pixels=b"\0" * 200))
    (place.folder / "images" / "two" / "secret.png").symlink_to(place.outside / "secret.json")
    return words


@refused("not an image")
def image_whose_name_writes_on_the_terminal(place: Place) -> Words:
    """A broken image whose name has a line break and control sequences.

    Seen: CVE-2003-0063 (xterm); CWE-150
    """
    return classes(place, "a\ndanlu: \x1b[31mok\x1b[0m.png", b"no image")


# ----------------------------------------------------------------------------------------------------------------- runs


def run_of(place: Place, kind: str = "texts") -> Path:
    return place.copy(place.base(kind), "run")


@refused("is damaged, or not of a danlu run: expected an object with format")
def run_that_is_a_pipe(place: Place) -> Words:
    """A run whose run.json is a named pipe.

    Seen: https://github.com/kirodotdev/KiroCrew/pull/8732 (a manifest that is a pipe); CWE-400
    """
    run = run_of(place)
    (run / "run.json").unlink()
    os.mkfifo(run / "run.json")
    return ["predict", run, "a text"]


@refused("run.json: labels is")
def run_whose_labels_are_a_program(place: Place) -> Words:
    """A run whose run.json has an object of objects where labels belong.

    Seen: CWE-843 access of resource using incompatible type
    """
    run = run_of(place)
    change(run / "run.json", labels={"__class__": {"__init__": "os.system"}})
    return ["predict", run, "a text"]


@harmless("report.html")
def run_whose_name_is_a_script(place: Place) -> Words:
    """A run with markup and scripts wherever its page shows a text.

    Seen: CVE-2024-27132 (MLflow); CWE-79
    """
    run = run_of(place)
    script = f"</script><script src='file://{place.outside}/x.js'></script><img src=x onerror=alert(1)>"
    change(run / "run.json", name=script, recipe=script, danlu=script)
    change(run / "data.json", notes=[script], overfitting=script)
    return ["report", run]


@refused("letter.json: no column for text: looked for text, sentence, content")
def run_whose_data_is_elsewhere(place: Place) -> Words:
    """A run that is to be resumed and names a private file as its data.

    Seen: CWE-73 external control of file name or path; CVE-2023-1177 (MLflow, path traversal)
    """
    run = run_of(place)
    change(run / "run.json", status="interrupted")
    told = json.loads((run / "experiment.json").read_text())
    (place.outside / "secret.json").rename(place.outside.parent / "letter.json")
    (place.outside / "secret.json").touch()
    told["used"]["data"]["value"] = str(place.outside.parent / "letter.json")
    (run / "experiment.json").write_text(json.dumps(told))
    return ["resume", run]


@refused("model=evil:Net: no such model, run, folder or file")
def run_that_names_a_network(place: Place) -> Words:
    """A run whose experiment.json names the Python of its network as its model.

    Seen: CWE-470; CVE-2025-1550 (Keras)
    """
    run = run_of(place)
    (place.folder / "evil.py").write_text(code(place) + "class Net: ...\n")
    change(run / "run.json", status="interrupted")
    told = json.loads((run / "experiment.json").read_text())
    told["used"]["model"]["value"] = "evil:Net"
    (run / "experiment.json").write_text(json.dumps(told))
    return ["resume", run]


@refused("the weights have SHA-256")
def run_with_other_weights(place: Place) -> Words:
    """A run whose weights somebody exchanged.

    Seen: CWE-353 missing support for integrity check
    """
    run = run_of(place)
    file = run / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return ["predict", run, "a text"]


@refused("cannot be read as a model: TypeError: int() argument must be a")
def run_whose_model_has_other_labels(place: Place) -> Words:
    """A run whose model's labels are a list of lists, in another order.

    Seen: https://github.com/huggingface/transformers/issues/28589 (an id2label that is wrong); CWE-843
    """
    run = run_of(place)
    change(run / "model" / "config.json", id2label=[["a"], ["b"], {}])
    return ["predict", run, "a text"]


@refused("used.threads.value is")
def run_with_numbers_beyond_measure(place: Place) -> Words:
    """A run that says it is answered with 10^400 threads, in no precision.

    Seen: CWE-1284 improper validation of specified quantity in input
    """
    run = run_of(place)
    told = (run / "experiment.json").read_text()
    told = re.sub(r'("threads": \{\s*"value": )\d+', r"\g<1>1" + "0" * 400, told)
    (run / "experiment.json").write_text(told)
    return ["predict", run, "a text"]


@refused("its adapter belongs to http://127.0.0.1:9/model, which is not here")
def adapter_on_a_file_elsewhere(place: Place) -> Words:
    """An adapter that names an address as the model it belongs to.

    Seen: CWE-918 server-side request forgery
    """
    run = run_of(place, "adapter")
    for name in ("adapter_config.json", "danlu_base.json"):
        change(
            run / "model" / name,
            base_model_name_or_path="http://127.0.0.1:9/model",
            name="http://127.0.0.1:9/model",
            folder="/proc/self",
        )
    return ["predict", run, "a text"]


@refused("an adapter on an adapter")
def adapter_on_itself(place: Place) -> Words:
    """An adapter that names its own run as the model it belongs to.

    Seen: CWE-835 loop with unreachable exit condition
    """
    run = run_of(place, "adapter")
    change(run / "model" / "danlu_base.json", name=str(run), folder=str(run / "model"), sha256=None)
    return ["predict", run, "a text"]


@refused("rank=1000000000000: wider than every layer it would adapt (the widest")
def adapter_of_a_huge_rank(place: Place) -> Words:
    """An adapter of rank 10^12.

    Seen: CWE-789 memory allocation with excessive size value
    """
    run = run_of(place, "adapter")
    change(run / "model" / "adapter_config.json", r=10**12)
    return ["predict", run, "a text"]


@refused("target_modules: this kind of LoRA would be computed otherwise here")
def adapter_with_a_pattern(place: Place) -> Words:
    """An adapter whose target_modules is a regular expression that backtracks without end.

    Seen: CWE-1333; https://github.com/huggingface/peft/blob/main/src/peft/tuners/lora/config.py (target_modules as a
    pattern)
    """
    run = run_of(place, "adapter")
    change(run / "model" / "adapter_config.json", target_modules=r"^((\w+\.?)+)+%$")
    return ["predict", run, "a text"]


@refused("cannot be read as a model: TypeError")
def adapter_with_numbers_that_are_none(place: Place) -> Words:
    """An adapter whose alpha is NaN and whose dropout is a text.

    Seen: https://github.com/huggingface/transformers/pull/42959 (NaN in settings); CWE-1287
    """
    run = run_of(place, "adapter")
    change(run / "model" / "adapter_config.json", lora_alpha=float("nan"), lora_dropout="half")
    return ["predict", run, "a text"]


def interrupted(place: Place) -> tuple[Path, Path]:
    """A run to be resumed, and its newest checkpoint."""
    run = run_of(place)
    change(run / "run.json", status="interrupted")
    return run, max((run / "checkpoints").glob("step-*"))


@harmless("passed by")
def checkpoint_above_its_folder(place: Place) -> Words:
    """A checkpoint whose manifest names files above its folder.

    Seen: CVE-2024-37032 (Ollama, a manifest's digest); CWE-22
    """
    run, checkpoint = interrupted(place)
    told = json.loads((checkpoint / "manifest.json").read_text())
    told["files"]["../../../../outside/secret.json"] = {"sha256": "0" * 64, "bytes": 1}
    (checkpoint / "manifest.json").write_text(json.dumps(told))
    return ["resume", run]


@harmless("passed by")
def checkpoint_under_no_number(place: Place) -> Words:
    """A checkpoint in a folder called step-newest, with a manifest that is right.

    Seen: CWE-248 uncaught exception
    """
    run, checkpoint = interrupted(place)
    checkpoint.rename(checkpoint.with_name("step-newest"))
    return ["resume", run]


@refused("cannot be read as a model: SafetensorError")
def checkpoint_with_a_pickle(place: Place) -> Words:
    """A checkpoint whose weights are a pickle, with the right SHA-256 in its manifest.

    Seen: CVE-2026-1839 (transformers' Trainer unpickles a checkpoint's random state)
    """
    run, checkpoint = interrupted(place)
    (checkpoint / "weights.safetensors").write_bytes(a_pickle(place))
    told = json.loads((checkpoint / "manifest.json").read_text())
    digest = hashlib.sha256(a_pickle(place)).hexdigest()
    told["files"]["weights.safetensors"] = {"sha256": digest, "bytes": len(a_pickle(place))}
    (checkpoint / "manifest.json").write_text(json.dumps(told))
    return ["resume", run]


@refused("cannot be read as a model: RecursionError: maximum recursion depth")
def state_that_is_something_else(place: Place) -> Words:
    """A checkpoint whose state.json is nested without end, with the right SHA-256 in its manifest.

    Seen: CWE-674 uncontrolled recursion; CVE-2025-52999 (jackson-core)
    """
    run, checkpoint = interrupted(place)
    content = b"[" * 100_000
    (checkpoint / "state.json").write_bytes(content)
    told = json.loads((checkpoint / "manifest.json").read_text())
    told["files"]["state.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (checkpoint / "manifest.json").write_text(json.dumps(told))
    return ["resume", run]


# -------------------------------------------------------------------------------------------------------------- vectors


def vectors(place: Place, name: str, content: bytes) -> Words:
    file = write(place, name, content)
    return [
        "preflight",
        "gpt",
        f"data={place.labelled}",
        f"vectors={file}",
        "tokenizer=" + str(place.chatter),
        "depth=1",
    ]


@refused("a pickle")
def vectors_as_a_pickle(place: Place) -> Words:
    """gensim's own file of word vectors, a pickle.

    Seen: https://github.com/piskvorky/gensim/issues/3663; CWE-502 deserialization of untrusted data
    """
    return vectors(place, "words.model", a_pickle(place))


@refused("its first line says 999,999,999 words, found 0")
def vectors_of_a_huge_width(place: Place) -> Words:
    """Word vectors that say they are 10^9 words of 10^9 numbers.

    Seen: https://github.com/Embedding/Chinese-Word-Vectors/issues/160 (1.5 TB by a header); CWE-789
    """
    return vectors(place, "words.bin", b"999999999 999999999\nword " + b"\0" * 100)


@refused("found 0 numbers, expected a word and 4 numbers")
def vectors_that_unpack_to_gigabytes(place: Place) -> Words:
    """Word vectors in gzip, 2 MB that unpack to one line of 2 GB.

    Seen: CVE-2025-69223 (aiohttp); CWE-409
    """
    return vectors(place, "words.vec.gz", gzip.compress(b"2 4\na 1 1 1 1\n") + gzip.compress(b"b" * (1 << 24)) * 128)
