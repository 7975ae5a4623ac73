"""Named initial weights: equal for equal seeds on real networks, and nothing touched that should stay."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from danlu.core.errors import UserError
from danlu.models import decoder, pretrained
from danlu.models.decoder import Decoder
from danlu.models.encoder import Encoder
from danlu.models.initialise import INITIALISATIONS, RESIDUAL, initialise
from danlu.models.options import ModelOptions
from danlu.models.vision import describe, from_config


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 100,
}


def image(name: str, **more: object) -> nn.Module:
    return from_config(describe(name, channels=1, size=28, **more))  # type: ignore[arg-type]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "decoder": lambda: Decoder(SIZES | {"model_type": "llama", "tie_word_embeddings": True}),
    "encoder": lambda: Encoder(SIZES | {"model_type": "bert"}, task="classification", labels=["a", "b"]),
    "resnet18": lambda: image("resnet18", labels=["a", "b"]),
    "vit": lambda: image("vit", labels=["a", "b"]),
    "gan": lambda: image("gan"),
}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", INITIALISATIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_seed_alone_decides_and_only_matrices_and_biases_are_drawn(network: str, name: str) -> None:
    model, other = NETWORKS[network](), NETWORKS[network]().double()
    if name in ("gpt2", "zero_residual") and network in ("resnet18", "gan"):
        with pytest.raises(UserError, match=rf"initialise={name}: .* has no layers named o_proj, down_proj or alike"):
            initialise(model, name, 3)
        return
    before, random = state(model), torch.get_rng_state()
    initialise(model, name, 3)
    assert torch.equal(torch.get_rng_state(), random)
    initialise(other, name, 3)
    once = state(model)
    assert all(
        torch.equal(value.double(), other.state_dict()[key])
        for key, value in once.items()
        if "weight" in key and value.ndim > 1
    )
    drawn = {key for key, value in once.items() if not torch.equal(value, before[key])}
    for key, value in once.items():
        norm = "norm" in key.lower() or (value.ndim == 1 and key.endswith("weight"))
        if key.endswith(("._u", "._v")):  # follow the weight
            assert key in drawn or value.numel() == 1
        elif norm or "running" in key or key.endswith(("cls_token", "position_embeddings")):
            assert key not in drawn
        elif value.ndim > 1:
            assert key in drawn
        else:
            assert (value == 0).all()
    initialise(model, name, 4)
    zero = {key for key in drawn if name == "zero_residual" and RESIDUAL.search(key.removesuffix(".weight"))}
    assert bool(zero) == (name == "zero_residual") and not any(once[key].any() for key in zero)
    again = {key: value for key, value in state(model).items() if key in drawn - zero and value.ndim > 1}
    assert again and not any(torch.equal(value, once[key]) for key, value in again.items())


def test_an_output_matrix_that_is_the_embedding_stays_the_embedding() -> None:
    table, head = nn.Embedding(100, 32), nn.Linear(32, 100)
    head.weight = table.weight
    initialise(nn.ModuleList([head, table]), "orthogonal", 0)
    assert head.weight is table.weight and (head.bias == 0).all()
    assert float(table.weight.detach().std()) == pytest.approx(0.02, rel=0.1)  # orthonormal columns would have 0.1


def test_spectral_normalisation_follows_what_is_drawn() -> None:
    model = NETWORKS["gan"]()
    initialise(model, "normal", 0)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
            assert float(largest) == pytest.approx(1.0, rel=0.1)


def test_the_row_of_the_padding_token_is_0() -> None:
    table = nn.Embedding(5, 4, padding_idx=2)
    initialise(table, "normal", 0)
    assert (table.weight[2] == 0).all() and (table.weight[[0, 1, 3, 4]] != 0).all()


def test_an_initialisation_that_there_is_not_is_an_error_that_lists_them() -> None:
    (field,) = (each for each in dataclasses.fields(ModelOptions) if each.name == "initialise")
    assert field.metadata["choices"] == tuple(INITIALISATIONS)
    listed = ", ".join(INITIALISATIONS)
    with pytest.raises(UserError, match=f"initialise: found 'kaiming', expected one of {listed}") as error:
        initialise(nn.Linear(2, 2), "kaiming", 0)
    assert "kaiming_normal" in error.value.fix


def test_a_model_is_opened_without_importing_torchs_compiler(tmp_path):
    """It takes a second or two, at every command that opens a model."""
    config = decoder.describe(2, 96, 32)
    pretrained.save(decoder.Decoder(config), tmp_path)
    code = (
        "import sys; from pathlib import Path; from danlu.models import pretrained; "
        f"pretrained.load(Path({str(tmp_path)!r}), task='language'); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
