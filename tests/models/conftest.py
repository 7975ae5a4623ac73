"""A small GGUF file, written with llama.cpp's own writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from tokenizers import pre_tokenizers

from danlu.models.gguf import unpermute


BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["t h", "th e", "Ġ the", "Ġ Ġ", "Ġ 1", "1 2", "a b"]
TOKENS = ["<|end|>", "<|start|>", *BYTES, *(merge.replace(" ", "") for merge in MERGES), "<tool>"]


def permute(data: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k of Llama models."""
    return data.reshape(heads, 2, -1, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)


def write(
    path: Path,
    kind: str = "llama",
    pre: str = "smollm",
    tie: bool = True,
    q8: bool = False,
    drop: str = "",
    **values: Any,
) -> dict[str, np.ndarray]:
    """A random two-layer model; returns its weights by Hugging Face name, as they are stored (rounded by Q8_0)."""
    rng = np.random.default_rng(0)
    width, inner, heads, kv = 64, 96, 4, 2
    writer = gguf.GGUFWriter(path, values.get("architecture", kind))
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_license("mit")
    writer.add_tokenizer_model(values.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 3), 4])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(values.get("add_bos", False))
    writer.add_chat_template("{{ messages[0].content }}<|end|>")

    stored: dict[str, np.ndarray] = {}

    def tensor(name: str, theirs: str, *shape: int, rotated: int = 0) -> None:
        data = (rng.standard_normal(shape) * 0.2).astype(np.float32)
        quantised = q8 and len(shape) == 2
        raw = permute(data, rotated) if rotated and kind == "llama" else data
        if quantised:
            blocks = quantize(raw, gguf.GGMLQuantizationType.Q8_0)
            exact = dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
            stored[theirs] = unpermute(exact, rotated) if rotated and kind == "llama" else exact
        else:
            blocks, stored[theirs] = raw, data
        if name != drop:
            writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0 if quantised else None)

    tensor("token_embd.weight", "model.embed_tokens.weight", len(TOKENS), width)
    tensor("output_norm.weight", "model.norm.weight", width)
    if not tie:
        tensor("output.weight", "lm_head.weight", len(TOKENS), width)
    for i in range(2):
        ours, theirs = f"blk.{i}.", f"model.layers.{i}."
        tensor(f"{ours}attn_norm.weight", f"{theirs}input_layernorm.weight", width)
        tensor(f"{ours}ffn_norm.weight", f"{theirs}post_attention_layernorm.weight", width)
        for letter, rows, count in (("q", width, heads), ("k", width * kv // heads, kv), ("v", width * kv // heads, 0)):
            tensor(f"{ours}attn_{letter}.weight", f"{theirs}self_attn.{letter}_proj.weight", rows, width, rotated=count)
            if kind == "qwen2":
                tensor(f"{ours}attn_{letter}.bias", f"{theirs}self_attn.{letter}_proj.bias", rows)
        if kind == "qwen3":
            tensor(f"{ours}attn_q_norm.weight", f"{theirs}self_attn.q_norm.weight", width // heads)
            tensor(f"{ours}attn_k_norm.weight", f"{theirs}self_attn.k_norm.weight", width // heads)
        tensor(f"{ours}attn_output.weight", f"{theirs}self_attn.o_proj.weight", width, width)
        tensor(f"{ours}ffn_gate.weight", f"{theirs}mlp.gate_proj.weight", inner, width)
        tensor(f"{ours}ffn_up.weight", f"{theirs}mlp.up_proj.weight", inner, width)
        tensor(f"{ours}ffn_down.weight", f"{theirs}mlp.down_proj.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., dict[str, np.ndarray]]:
    """`write_gguf(path, kind, pre, tie, q8, drop, **values)`: a random two-layer model in a GGUF file."""
    return write
