"""Two tiny models with real tokenizers and small real data, so that a whole run takes a second; and the command line itself."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUICK = ("epochs=1", "batch_size=8", "precision=float32", "threads=1")
"""Settings of a run that takes a second; float32, so that equal means equal."""


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def run(self) -> Path:
        """The directory that `finetune` and `merge` name at the end."""
        return Path(next(line for line in self.out.splitlines() if line.startswith("run: ")).split()[1])


@pytest.fixture
def danlu(capsys, monkeypatch, tmp_path):
    """`danlu("finetune", "chat", …)` in an empty folder, in this process: exit code, stdout, stderr."""
    from danlu.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(each) for each in arguments])
        return Result(code, *capsys.readouterr())

    return call


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLES / name).read_text("utf-8").splitlines()]


def random_weights(folder: Path, config: dict[str, Any], task: str) -> None:
    """config.json and model.safetensors of a small random network, saved as the project saves."""
    import torch

    from danlu.models import decoder, encoder, pretrained

    kind: Any = decoder.Decoder if task == "language" and config["model_type"] == "llama" else encoder.Encoder
    model = kind(config, task, None, None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            else:
                parameter.fill_(float("norm" in name.lower() and name.endswith("weight")))
    pretrained.save(model, folder)


@pytest.fixture(scope="session")
def chatter(tmp_path_factory) -> Path:
    """A Llama of two layers and width 32: byte-level tokens learned from real descriptions, the ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("models") / "chatter"
    folder.mkdir()
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [m["content"] for row in rows_of("descriptions_chat.test.jsonl") for m in row["messages"]]
    tokens.train_from_iterator(texts, trainer)
    tokens.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **named}))
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 480,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.1,
    }
    random_weights(folder, config, "language")
    return folder


@pytest.fixture(scope="session")
def sorter(tmp_path_factory) -> Path:
    """A BERT of two layers and width 32 with word pieces learned from real descriptions."""
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.processors import BertProcessing

    folder = tmp_path_factory.mktemp("models") / "sorter"
    folder.mkdir()
    tokens = BertWordPieceTokenizer(lowercase=True)
    texts = [row["text"] for row in rows_of("sections.jsonl")[:300]]
    tokens.train_from_iterator(texts, vocab_size=700, min_frequency=1, limit_alphabet=80, show_progress=False)
    ends = [(text, tokens.token_to_id(text)) for text in ("[SEP]", "[CLS]")]
    tokens.post_processor = BertProcessing(*ends)
    tokens.save(str(folder / "tokenizer.json"))
    named = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **named}))
    config = {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "vocab_size": 700,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "pad_token_id": 0,
        "initializer_range": 0.1,
    }
    random_weights(folder, config, "language")
    return folder


@pytest.fixture(scope="session")
def conversations() -> list[dict[str, Any]]:
    """Forty real conversations, short enough for the small context."""
    rows = rows_of("descriptions_chat.jsonl")
    return sorted(rows, key=lambda row: sum(len(m["content"]) for m in row["messages"]))[:40]


@pytest.fixture(scope="session")
def texts() -> list[dict[str, str]]:
    """Seventy-two real descriptions of three sections."""
    rows = rows_of("sections.jsonl")
    wanted = sorted({row["label"] for row in rows})[:3]
    chosen = [[row for row in rows if row["label"] == label][:24] for label in wanted]
    return [{"text": row["text"][:200], "label": row["label"]} for same in chosen for row in same]


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """Three hundred real digits, 28 x 28."""
    import numpy as np

    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    with np.load(EXAMPLES / "digits.npz") as found:
        np.savez(path, images=found["images"][:300], labels=found["labels"][:300])
    return path


@pytest.fixture
def chat_file(tmp_path, conversations) -> Path:
    return lines(tmp_path / "chat.jsonl", conversations)


@pytest.fixture
def text_file(tmp_path, texts) -> Path:
    return lines(tmp_path / "texts.jsonl", texts)


@pytest.fixture
def chat_run(danlu, chatter, chat_file):
    """Settings of a quick chat run, made by `chat_run("method=full")`; returns its directory."""

    def make(*settings: str, out: str = "chat") -> Path:
        result = danlu("finetune", "chat", f"model={chatter}", f"data={chat_file}", *QUICK, "answers=2", "answer_tokens=8", f"out={out}", *settings)  # fmt: skip
        assert result.code == 0, result.err
        return Path(out).absolute()

    return make


@pytest.fixture
def text_run(danlu, sorter, text_file):
    """The same for a classifier."""

    def make(*settings: str, out: str = "texts") -> Path:
        result = danlu("finetune", "text-classification", f"model={sorter}", f"data={text_file}", *QUICK, "baselines=no", f"out={out}", *settings)  # fmt: skip
        assert result.code == 0, result.err
        return Path(out).absolute()

    return make


# ------------------------------------------------------------------------------------------------- processes of their own


def in_a_process(arguments: list[str], folder: str, output: str) -> None:
    """The body of a process that runs one command and writes what it says into a file."""
    from danlu.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would this
    os.chdir(folder)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(main(arguments))


@pytest.fixture(scope="session")
def spawn():
    """`spawn(arguments, folder)`: a started process of its own, out of one that has imported everything already."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["danlu.stages.train", "danlu.recipes.text", "tensorboard.summary.writer.record_writer"]
    )

    def start(arguments: list[str], folder: Path, output: str = "said.txt") -> Any:
        process = context.Process(target=in_a_process, args=(arguments, str(folder), str(folder / output)))
        process.start()
        return process

    return start
