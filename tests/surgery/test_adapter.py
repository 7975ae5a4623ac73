"""An adapter is PEFT's: what is trained here gives the same logits there, and what is loaded here is what was saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from danlu.core.errors import UserError
from danlu.models.options import ModelOptions
from danlu.models.pretrained import load as load_model
from danlu.models.pretrained import save as save_model
from danlu.surgery.adapter import add_lora, layers, load, merge, plain_name, save, switched_off
from danlu.surgery.freeze import freeze


BASE = {"name": "tiny", "sha256": "5a" * 32, "folder": "elsewhere"}
LENGTHS = (6, 9)
IDS = torch.randint(5, 97, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))
KINDS = ("llama", "llama, classifier", "roberta, classifier")


def base(kind: str, folder: Path) -> Path:
    """A random tiny model as transformers writes it."""
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": 1,
    }
    if "classifier" in kind:
        sizes["num_labels"] = 3
    if kind.startswith("roberta"):
        model: Any = transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**sizes))
    elif "classifier" in kind:
        model = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**sizes))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    model.save_pretrained(folder)
    return folder


def opened(kind: str, folder: Path) -> Any:
    task = "classification" if "classifier" in kind else "language"
    return load_model(folder, task=task, log=lambda _: None).eval()


def trained(kind: str, folder: Path, **options: Any) -> Any:
    """With an adapter, and a head, that have moved."""
    model = add_lora(opened(kind, folder), ModelOptions(rank=4, alpha=12.0, **options), seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            nn.init.normal_(parameter, std=0.2)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(IDS, LENGTHS))


def far(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks transformers
@pytest.mark.parametrize("kind", KINDS)
def test_plain_peft_gives_the_same_logits(kind: str, tmp_path: Path) -> None:
    import peft
    import transformers

    folder = base(kind, tmp_path / "base")
    model = trained(kind, folder)
    save(model, tmp_path / "adapter", BASE)
    auto = (
        transformers.AutoModelForSequenceClassification if "classifier" in kind else transformers.AutoModelForCausalLM
    )
    theirs = auto.from_pretrained(folder)
    plain = [theirs(input_ids=ids[None]).logits[0] for ids in IDS.split(LENGTHS)]
    peered = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        found = [peered(input_ids=ids[None]).logits[0] for ids in IDS.split(LENGTHS)]
    join = torch.stack if "classifier" in kind else torch.cat
    assert far(logits(model), join(found)) < 1e-4
    assert far(logits(model), join(plain).detach()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_what_is_loaded_and_merged(kind: str, tmp_path: Path) -> None:
    folder = base(kind, tmp_path / "base")
    model = trained(kind, folder, lora_targets=("all-linear",))
    expected = logits(model)
    save(model, tmp_path / "adapter", BASE)
    again = load(opened(kind, folder), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), expected)
    merged = merge(again)
    assert not layers(merged) and far(logits(merged), expected) < 1e-4
    save_model(merged, tmp_path / "merged")
    assert torch.equal(logits(opened(kind, tmp_path / "merged")), logits(merged))
    assert {plain_name(name) for name, _ in model.named_parameters() if "lora_" not in name} == {
        name for name, _ in merged.named_parameters()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing_and_trains_little(kind: str, tmp_path: Path) -> None:
    folder = base(kind, tmp_path / "base")
    plain = logits(opened(kind, folder))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    model = add_lora(opened(kind, folder), ModelOptions(rank=2), seed=5)
    assert far(logits(model), plain) < 1e-6
    assert torch.equal(torch.get_rng_state(), before)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith(("score.", "classifier.")) for name in names)
    assert any("lora_" not in name for name in names) == ("classifier" in kind)
    same = add_lora(opened(kind, folder), ModelOptions(rank=2), seed=5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


def test_switched_off_is_the_base_and_leaves_what_is_trained(tmp_path: Path) -> None:
    folder = base("llama", tmp_path / "base")
    model = trained("llama", folder)
    freeze(model, ["layers.0"])
    flags = [p.requires_grad for p in model.parameters()]
    expected = logits(model)
    with switched_off(model):
        assert torch.equal(logits(model), logits(opened("llama", folder)))
    assert torch.equal(logits(model), expected)
    assert [p.requires_grad for p in model.parameters()] == flags


@pytest.mark.parametrize("frozen", ["layers.0", "head"])
def test_an_adapter_with_frozen_parts_is_saved_whole(frozen: str, tmp_path: Path) -> None:
    folder = base("llama, classifier", tmp_path / "base")
    model = trained("llama, classifier", folder)
    freeze(model, [frozen])
    save(model, tmp_path / "adapter", BASE)
    again = load(opened("llama, classifier", folder), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), logits(model))


def test_the_adapter_names_its_base(tmp_path: Path) -> None:
    model = trained("llama", base("llama", tmp_path / "base"), lora_targets=("q_proj", "v_proj"))
    save(model, tmp_path / "adapter", BASE)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert json.loads((tmp_path / "adapter" / "danlu_base.json").read_text()) == BASE
    assert config["target_modules"] == ["q_proj", "v_proj"] and (config["r"], config["lora_alpha"]) == (4, 12.0)
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in file.keys()  # noqa: SIM118
        assert len(list(file.keys())) == 8
    save(model, tmp_path / "again", BASE)
    for name in ("adapter_model.safetensors", "adapter_config.json"):  # equal weights are equal files
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()


def test_targets_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    folder = base("llama", tmp_path / "base")
    with pytest.raises(UserError, match="lora_targets: query names no linear layer") as error:
        add_lora(opened("llama", folder), ModelOptions(lora_targets=("q_proj", "query")), seed=0)
    assert "q_proj" in error.value.fix and "lm_head" not in error.value.fix


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_rslora", True), ("use_dora", True), ("alpha_pattern", {"q_proj": 3}), ("target_modules", ".*q_proj")],
)
def test_lora_of_another_formula_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    folder = base("llama", tmp_path / "base")
    save(trained("llama", folder), tmp_path / "adapter", BASE)
    place = tmp_path / "adapter" / "adapter_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {key: value}))
    with pytest.raises(UserError, match=f"{key}: this kind of LoRA"):
        load(opened("llama", folder), tmp_path / "adapter")


def test_an_adapter_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    model = trained("llama", base("llama", tmp_path / "base"))
    save(model, tmp_path / "adapter", BASE)
    place = tmp_path / "adapter" / "adapter_config.json"
    for change, says in (({"r": 8}, "does not fit this model"), ({"peft_type": "IA3"}, "type 'IA3', expected LORA")):
        written = place.read_text()
        place.write_text(json.dumps(json.loads(written) | change))
        with pytest.raises(UserError, match=says):
            load(opened("llama", tmp_path / "base"), tmp_path / "adapter")
        place.write_text(written)
