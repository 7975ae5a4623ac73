"""GGUF (the format of llama.cpp) -> a folder in the Hugging Face layout. Exact, streaming, in seconds.

Quantised blocks are expanded to the float32 numbers they stand for (4-bit values with their float16 scale and minimum do not fit
bfloat16), one tensor in memory at a time. The tokenizer is built from the tokens and merges in the file.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core.cache import write_json
from danlu.core.errors import UserError


if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader
    from tokenizers import Tokenizer

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

# How text is cut before merging, by `tokenizer.ggml.pre`: llama.cpp names the rule, the checkpoints' own tokenizer.json spell it out.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"llama-bpe": _WORDS % "{1,3}", "qwen2": _WORDS % "", "deepseek-r1-qwen": _WORDS % ""}
# Marks belong to their letters: our own tokenizers, see data/vocabulary.py. llama.cpp's rule cuts the same, except where
# more than 64 blanks stand before the end of a line.
PATTERNS["qwen35"] = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s{0,64}[\r\n]+|\s+(?!\S)|\s+"
)
PRE = ("smollm", "gpt-2", *PATTERNS)

CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def convert(file: Path, folder: Path) -> str:
    """Write `folder`: config.json, model.safetensors (float32), tokenizer.json and its configuration, chat_template.jinja,
    generation_config.json. The licence that the file states, or "". UserError for a damaged file, an architecture or a
    tokenizer this cannot read."""
    reader = _open(file)
    try:
        values = {name: field.contents() for name, field in reader.fields.items()}
        config = configuration(values, reader, file)
        tokenizer = build_tokenizer(values, file)
        shapes = {name: shape for name, shape, _ in _tensors(reader, config, file, read=False)}
        missing = expected(config) - set(shapes)
        if missing:
            raise UserError(
                f"{file} lacks {len(missing)} of the model's tensors, such as {min(missing)}", "fetch the file again"
            )
        _write_safetensors(
            folder / "model.safetensors", shapes, ((name, data) for name, _, data in _tensors(reader, config, file))
        )
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise UserError(f"{file} is damaged or not what it says it is: {error!r}", "fetch the file again") from error
    write_json(folder / "config.json", config)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_companions(folder, values, config)
    return str(values.get("general.license", ""))


def _open(file: Path) -> GGUFReader:
    import gguf
    import numpy as np

    with file.open("rb") as start:
        if start.read(4) != b"GGUF":
            raise UserError(
                f"{file} is not a GGUF file: it does not start with GGUF",
                "give a .gguf file, or a folder with config.json",
            )

    class Within(gguf.GGUFReader):  # type: ignore[misc]
        """Reads nothing behind the end of the file: theirs gives empty arrays there, as often as a count in the file says."""

        def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
                raise ValueError("it ends before what it says it holds")
            return super()._get(offset, dtype, count, override_order)

    try:
        return Within(file)
    except (ValueError, KeyError, IndexError, struct.error, OverflowError, RecursionError) as error:
        raise UserError(f"{file} is damaged, most likely cut short: {error}", "fetch the file again") from error


def configuration(values: dict[str, Any], reader: GGUFReader, file: Path) -> dict[str, Any]:
    """config.json as transformers 4 and 5 read it."""
    kind = values["general.architecture"]
    if kind not in CLASSES:
        raise UserError(
            f"{file} holds the architecture {kind!r}; read from GGUF are: {', '.join(CLASSES)}",
            "use the model's safetensors folder or hub name instead",
        )
    if values.get(f"{kind}.expert_count"):
        raise UserError(
            f"{file} holds a mixture of experts, which is not read from GGUF",
            "use the model's safetensors folder instead",
        )

    def value(name: str, default: Any = None) -> Any:
        found = values.get(f"{kind}.{name}", default)
        if found is None:
            raise UserError(f"{file} lacks the key {kind}.{name}", "fetch the file again")
        return found

    width, heads = value("embedding_length"), value("attention.head_count")
    held = {tensor.name for tensor in reader.tensors}
    theta = value("rope.freq_base", 10_000.0)
    scaling = _rope_scaling(values, kind, reader, file)
    config: dict[str, Any] = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": len(values["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": value("attention.key_length", width // heads),
        "hidden_act": "silu",
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": _shortest(value("attention.layer_norm_rms_epsilon")),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": theta},
        "tie_word_embeddings": "output.weight" not in held,
        "attention_bias": "blk.0.attn_q.bias" in held,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "float32",
    }
    if scaling:
        config["rope_scaling"] = scaling
    if kind == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in held
    return config | {f"{role}_token_id": number for role, number in _special(values).items()}


def _shortest(number: float) -> float:
    """The decimal number that was meant: 9.999999747378752e-06 is the float32 nearest to 1e-05."""
    import numpy as np

    return float(str(np.float32(number)))


def _rope_scaling(values: dict[str, Any], kind: str, reader: GGUFReader, file: Path) -> dict[str, Any] | None:
    """Longer contexts by stretched rotations. Llama 3's rule is stored as its factors: the rule that gives them is looked for."""
    rule = values.get(f"{kind}.rope.scaling.type", "none")
    factors = next((tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight"), None)
    if factors is not None:
        return _llama3(values, kind, factors.data, file)
    if rule == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": rule, "factor": values[f"{kind}.rope.scaling.factor"]}
    if rule == "yarn":
        scaling["original_max_position_embeddings"] = values[f"{kind}.rope.scaling.original_context_length"]
    elif rule != "linear":
        raise UserError(f"{file}: RoPE scaling {rule!r} is not known", "use the model's safetensors folder instead")
    return scaling


def _llama3(values: dict[str, Any], kind: str, factors: np.ndarray, file: Path) -> dict[str, Any]:
    import numpy as np

    size = 2 * len(factors)
    waves = 2 * math.pi * values.get(f"{kind}.rope.freq_base", 10_000.0) ** (np.arange(0, size, 2) / size)
    factor, low, high, original = round(float(factors.max()), 3), 1.0, 4.0, 8192  # of every Llama 3.1, 3.2 and 3.3
    smooth = np.clip((original / waves - low) / (high - low), 0, 1)
    if not np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
        raise UserError(
            f"{file}: its RoPE factors are not those of Llama 3", "use the model's safetensors folder instead"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def expected(config: dict[str, Any]) -> set[str]:
    """The names every such model must have."""
    inside = ["input_layernorm", "post_attention_layernorm", *(f"self_attn.{x}_proj" for x in "qkvo")]
    inside += [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    inside += ["self_attn.q_norm", "self_attn.k_norm"] if config["model_type"] == "qwen3" else []
    names = {f"model.layers.{layer}.{part}.weight" for layer in range(config["num_hidden_layers"]) for part in inside}
    return names | {"model.embed_tokens.weight", "model.norm.weight"}


def _tensors(
    reader: GGUFReader, config: dict[str, Any], file: Path, read: bool = True
) -> Iterator[tuple[str, tuple[int, ...], np.ndarray | None]]:
    """(Hugging Face name, shape, float32 values or None when not `read`) in a fixed order."""
    from gguf import dequantize

    for tensor in sorted(reader.tensors, key=lambda tensor: tensor.name):
        if tensor.name == "rope_freqs.weight":
            continue
        name = hugging_face_name(tensor.name)
        if name is None:
            raise UserError(
                f"{file} holds a tensor of unknown meaning: {tensor.name}", "use the model's safetensors folder instead"
            )
        shape = tuple(int(size) for size in reversed(tensor.shape))
        data = None
        if read:
            try:
                data = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
            except NotImplementedError:
                kind = tensor.tensor_type.name
                raise UserError(
                    f"{file}: {tensor.name} is stored as {kind}, which cannot be expanded", "use a Q8_0 or F16 file"
                ) from None
            if config["model_type"] == "llama" and ".attn_q." in tensor.name:
                data = unpermute(data, config["num_attention_heads"])
            if config["model_type"] == "llama" and ".attn_k." in tensor.name:
                data = unpermute(data, config["num_key_value_heads"])
        yield name, shape, data


def hugging_face_name(name: str) -> str | None:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; None for a name it does not know."""
    match name.split("."):
        case ["blk", layer, part, "weight" | "bias" as kind] if layer.isdigit() and part in NAMES:
            return f"model.layers.{layer}.{NAMES[part]}.{kind}"
    return TOP.get(name)


def unpermute(data: np.ndarray, heads: int) -> np.ndarray:
    """[heads * size, ...]: rows of a head from pairs (llama.cpp rotates neighbours) back to halves (transformers rotates halves)."""
    return data.reshape(heads, -1, 2, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)


def _write_safetensors(
    path: Path, shapes: dict[str, tuple[int, ...]], tensors: Iterator[tuple[str, np.ndarray | None]]
) -> None:
    """float32 tensors, one in memory at a time. Bytes depend on names, shapes and values only, so the file has one SHA-256 everywhere."""
    import numpy as np

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, data in tensors:
            file.write(np.ascontiguousarray(data, dtype="<f4").data)


def build_tokenizer(values: dict[str, Any], file: Path) -> Tokenizer:
    """Byte-level BPE from `tokenizer.ggml.*`: the tokens and merges of the file, and the cutting rule that its `pre` names."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    model, pre = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre", "gpt-2")
    if model != "gpt2" or pre not in PRE:
        found = f"{model!r}" if model != "gpt2" else f"{model!r} with the rule {pre!r}"
        raise UserError(
            f"{file} has a tokenizer of the kind {found}; read from GGUF is 'gpt2' with one of {', '.join(PRE)}",
            "use the model's safetensors folder or hub name instead",
        )
    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in values["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    # Llama 3 takes a word that is a token whole, even where the merges would not lead there
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe"))
    if pre == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    elif pre == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        words = pre_tokenizers.Split(Regex(PATTERNS[pre]), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    if pre in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    added = [
        AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    bos = _special(values).get("bos")
    if values.get("tokenizer.ggml.add_bos_token") and bos is not None:
        start = tokens[bos]
        template = processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, bos)]
        )
        tokenizer.post_processor = template
    return tokenizer


def _special(values: dict[str, Any]) -> dict[str, int]:
    """Role -> id of bos, eos and pad, as far as the file names them."""
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    found = {role: values.get(f"tokenizer.ggml.{name}_token_id") for role, name in names.items()}
    return {role: int(number) for role, number in found.items() if number is not None}


def _write_companions(folder: Path, values: dict[str, Any], config: dict[str, Any]) -> None:
    tokens, roles = values["tokenizer.ggml.tokens"], _special(values)
    if "tokenizer.ggml.unknown_token_id" in values:
        roles["unk"] = int(values["tokenizer.ggml.unknown_token_id"])
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",  # the class that takes tokenizer.json as it is
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "add_bos_token": bool(values.get("tokenizer.ggml.add_bos_token", False)),
            **{f"{role}_token": tokens[number] for role, number in roles.items()},
        },
    )
    if template := values.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    ends = [values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    generation: dict[str, Any] = {f"{role}_token_id": number for role, number in _special(values).items()}
    generation["eos_token_id"] = sorted({int(end) for end in ends if end is not None})
    write_json(folder / "generation_config.json", generation)
