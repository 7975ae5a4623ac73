"""The recipes by name; other packages add theirs under the entry-point group `danlu.recipes`."""

from __future__ import annotations

from typing import Any

from danlu.core.catalog import Catalog
from danlu.experiment import changes


RECIPES = Catalog(
    "recipe",
    {
        "chat": "danlu.recipes.text:chat",
        "text-classification": "danlu.recipes.text:text_classification",
        "sentiment": "danlu.recipes.text:sentiment",
        "gpt": "danlu.recipes.text:gpt",
        "bert": "danlu.recipes.text:bert",
        "image-classification": "danlu.recipes.images:image_classification",
        "mlp": "danlu.recipes.images:mlp",
        "resnet18": "danlu.recipes.images:resnet18",
        "vgg": "danlu.recipes.images:vgg",
        "vit": "danlu.recipes.images:vit",
        "autoencoder": "danlu.recipes.images:autoencoder",
        "gan": "danlu.recipes.images:gan",
    },
    "danlu.recipes",
)


def described() -> list[dict[str, Any]]:
    """Every recipe: its name, what it does and what it sets."""
    found = [(name, RECIPES.get(name)) for name in RECIPES.names()]
    return [
        {"recipe": name, "about": (recipe.__doc__ or "").strip(), "sets": changes(recipe())} for name, recipe in found
    ]
