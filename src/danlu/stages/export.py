"""A run -> one GGUF file, the format of llama.cpp and what is built on it: weights, tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from danlu.core.cache import whole
from danlu.core.errors import UserError, nearest
from danlu.core.run import Run
from danlu.models import gguf as reader
from danlu.models.blocks import Rotary
from danlu.models.decoder import FAMILY, Decoder, windows
from danlu.models.folder import read_json
from danlu.models.options import THEIRS
from danlu.stages.load import Opened, open_final


if TYPE_CHECKING:
    from gguf import GGUFWriter

DTYPES = {"float32": ("F32", 0), "float16": ("F16", 1), "q8_0": ("Q8_0", 7)}
"""dtype -> the type of a matrix, and `general.file_type`, by which llama.cpp names the whole file."""

LARGEST = 65_504.0  # of float16, in which a block of Q8_0 has its scale
NORMAL, UNUSED = 1, 5  # tokenizer.ggml.token_type
INSTEAD = "transformers loads the run's model folder as it is (an adapter: after `danlu merge`)"


def export(run: Run, out: Path | None = None, kind: str = "gguf", dtype: str = "float32") -> dict[str, Any]:
    """Write the run's final model, an adapter added into its base, whole or not at all; returns what was written, and
    `system`: the run's system message, for which the format has no place.

    dtype: of matrices; biases and norms stay float32. q8_0: 8 bits a weight and a scale for each 32; rows that 32 does not
        divide are float16, as in llama.cpp's own.

    Raises:
        UserError: a run, an architecture or a tokenizer that the format cannot hold exactly, or a place that cannot be written.
    """
    for key, found, known in (("format", kind, ("gguf",)), ("dtype", dtype, tuple(DTYPES))):
        if found not in known:
            raise UserError(f"{key}={found}: expected {', '.join(known)}", nearest(found, known))
    out = out or run.path.with_name(f"{run.name}.gguf")
    if out.exists():
        raise UserError(f"{out} exists already", "give another out=, or remove it")
    task = run.read("run.json")["task"]
    if task not in ("chat", "language-model"):
        raise UserError(f"{run.path} is a {task} run; exported to GGUF are chat and language-model runs", INSTEAD)
    able = f"{', '.join(reader.CLASSES)} without sliding windows"
    described = run.model / "config.json"
    if described.is_file() and read_json(described).get("model_type") == THEIRS:
        fix = f"danlu serve {run.path} network=module:object"
        raise UserError(f"{run.path} is a network of your own; exported to GGUF are {able}", fix)
    opened = open_final(run, precision="float32", merged=True)
    architecture = str(opened.model.config.get("model_type"))
    full = FAMILY.get(architecture, {}) | dict(opened.model.config)
    if not isinstance(opened.model, Decoder) or architecture not in reader.CLASSES or any(windows(full)):
        raise UserError(f"{run.path} has the architecture {architecture!r}; exported to GGUF are {able}", INSTEAD)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole(out) as building:
            _write(building, opened, full, dtype)
    except OSError as error:
        said = error.strerror or error
        raise UserError(f"{out} could not be written: {said}", "make room, or give another out=") from error
    size = out.stat().st_size
    return {"file": str(out), "bytes": size, "dtype": dtype, "task": task, "system": opened.system}


def _write(path: Path, opened: Opened, full: dict[str, Any], dtype: str) -> None:
    """full: config.json, with what it leaves out filled in."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(path, full["model_type"])
    writer.add_name(opened.run.name)
    writer.add_file_type(DTYPES[dtype][1])
    writer.add_quantization_version(2)  # of ggml's blocks
    if licence := (opened.run.read("run.json")["lineage"].get("model") or {}).get("licence"):
        writer.add_license(str(licence))
    _describe(writer, full)
    _tokenizer(writer, opened, full["vocab_size"])
    for name, values in _tensors(opened.model, full):
        if values.ndim == 1:
            writer.add_tensor(name, values)
            continue
        if dtype != "float32" and not np.abs(values).max(initial=0.0) <= LARGEST:
            raise UserError(f"{name} has weights beyond {LARGEST:,.0f}, the largest of {dtype}", "dtype=float32")
        stored = "F16" if dtype == "q8_0" and values.shape[1] % 32 else DTYPES[dtype][0]
        data = quantize(values, GGMLQuantizationType[stored])  # F32 and F16: a plain cast
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[stored])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: GGUFWriter, full: dict[str, Any]) -> None:
    from gguf import RopeScalingType

    heads = full["num_attention_heads"]
    size, rope = full["head_dim"] or full["hidden_size"] // heads, Rotary.parameters_of(full)
    writer.add_vocab_size(full["vocab_size"])
    writer.add_context_length(full["max_position_embeddings"])
    writer.add_embedding_length(full["hidden_size"])
    writer.add_block_count(full["num_hidden_layers"])
    writer.add_feed_forward_length(full["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(full["num_key_value_heads"] or heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(full["rms_norm_eps"])
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "llama3":  # the format has no rule for it, but a place for the factors that come of it
        kinds = rope | {"rope_type": "default"}, rope
        plain, stretched = (Rotary(size, {"rope_parameters": each}).frequencies(torch.device("cpu")) for each in kinds)
        writer.add_tensor("rope_freqs.weight", (plain / stretched).numpy())


def _tensors(model: Decoder, full: dict[str, Any]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """llama.cpp's name and float32 values of each weight; a tied output matrix is left out, as there."""
    top, inner = ({theirs: ours for ours, theirs in names.items()} for names in (reader.TOP, reader.NAMES))
    heads = {"attn_q": full["num_attention_heads"], "attn_k": full["num_key_value_heads"]}
    for name, parameter in model.named_parameters():
        values = parameter.detach().float().cpu().numpy()
        if name in top:
            yield top[name], values
            continue
        _, _, layer, rest = name.split(".", 3)
        part, _, what = rest.rpartition(".")
        part = inner[part]
        if full["model_type"] == "llama" and part in heads:
            values = permute(values, heads[part] or heads["attn_q"])
        yield f"blk.{layer}.{part}.{what}", values


def permute(data: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """[heads * size, ...]: rows of a head from halves (transformers rotates halves) to pairs (llama.cpp, in Llama, neighbours)."""
    return np.ascontiguousarray(data.reshape(heads, 2, -1, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape))


def _tokenizer(writer: GGUFWriter, opened: Opened, rows: int) -> None:
    """Tokens, merges, template, and what begins and ends a text. rows: of the embedding, which may have more than tokens."""
    tokenizer = opened.tokenizer
    parts = json.loads(tokenizer.rust.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(parts, tokenizer.name))
    tokens, kinds = [f"[PAD{row}]" for row in range(rows)], [UNUSED] * rows
    for token, number in tokenizer.rust.get_vocab(with_added_tokens=True).items():
        tokens[number], kinds[number] = token, NORMAL
    for added in parts["added_tokens"]:
        kinds[added["id"]] = reader.CONTROL if added["special"] else reader.USER_DEFINED
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in parts["model"]["merges"]])
    bos, eos, pad = (tokenizer.specials.get(tokenizer.named.get(f"{role}_token", "")) for role in ("bos", "eos", "pad"))
    first = tokenizer.encode("a", special=True)[0]
    begins = first != tokenizer.encode("a")[0]
    bos = first if begins else bos
    if begins and opened.task == "chat":  # its texts are the template's, and danlu puts nothing before those
        begins = (
            tokenizer.encode(tokenizer.render([{"role": "user", "content": "a"}], generation_prompt=True))[0] == bos
        )
    ends = sorted(tokenizer.ends, key=lambda number: (number != eos, number))
    for role, one in [("bos", bos), ("padding", pad), *zip(("eos", "eot", "eom"), ends, strict=False)]:
        if one is not None:
            writer.add_uint32(f"tokenizer.ggml.{role}_token_id", one)
    writer.add_add_bos_token(begins)
    if tokenizer.template is not None:
        writer.add_chat_template(tokenizer.template)


def pre_tokenizer(parts: dict[str, Any], name: str) -> str:
    """llama.cpp's name for how a tokenizer.json cuts text: that from which our reader makes the same. UserError: there is none."""
    odd = [each["content"] for each in parts["added_tokens"] if each["lstrip"] or each["rstrip"] or each["single_word"]]
    tiny = {"model": "gpt2", "tokens": ["a"], "token_type": [NORMAL], "merges": []}
    for pre in reader.PRE if parts["model"]["type"] == "BPE" and not odd else ():
        values = {f"tokenizer.ggml.{key}": value for key, value in {**tiny, "pre": pre}.items()}
        if _rule(json.loads(reader.build_tokenizer(values, Path(pre)).to_str())) == _rule(parts):
            return pre
    why = f"gives blanks to its token {odd[0]!r}" if odd else "cuts text in a way that llama.cpp has no name for"
    fix = f"a byte-level BPE tokenizer, as `danlu prepare tokenizer kind=bpe` makes; {INSTEAD}"
    raise UserError(f"{name}: its tokenizer ({parts['model']['type']}) {why}", fix)


def _rule(parts: dict[str, Any]) -> str:
    model = parts["model"]
    flags = [model.get(key) or None for key in ("ignore_merges", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")]  # fmt: skip
    rule = json.dumps([parts["normalizer"], parts["pre_tokenizer"], flags])
    return rule.replace('"trim_offsets": false', '"trim_offsets": true')  # of positions, not of tokens
