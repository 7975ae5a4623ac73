"""Every recipe builds an experiment, and says what it is."""

from __future__ import annotations

import pytest

from danlu.core.errors import UserError
from danlu.core.types import CORPUS_TASKS, IMAGE_TASKS
from danlu.experiment import Experiment, ask, changes
from danlu.models.catalogue import MODELS
from danlu.models.vision import ARCHITECTURES
from danlu.recipes.catalogue import RECIPES, described
from danlu.stages.corpus import SCRATCH


@pytest.mark.parametrize("name", RECIPES.names())
def test_every_recipe_builds_and_its_model_exists(name):
    experiment = RECIPES.get(name)()
    assert isinstance(experiment, Experiment)
    if experiment.task.task in IMAGE_TASKS:
        assert experiment.model.model in ARCHITECTURES
    elif experiment.task.task in CORPUS_TASKS:
        assert SCRATCH[experiment.model.model] == experiment.task.task
    else:
        assert experiment.task.task in MODELS.get(experiment.model.model).tasks
    assert experiment == RECIPES.get(name)()
    asked = ask(RECIPES.get, [name], {})
    assert asked.experiment == experiment
    assert asked.values() == changes(experiment)


def test_every_recipe_is_described():
    found = {row["recipe"]: row for row in described()}
    assert list(found) == list(RECIPES.names())
    assert all(row["about"].endswith(".") for row in found.values())
    assert found["text-classification"]["sets"] == {"task": "text-classification", "model": "minilm"}


def test_a_recipe_that_is_not_there_names_the_near_ones():
    with pytest.raises(UserError, match="unknown recipe 'chatt'") as caught:
        RECIPES.get("chatt")
    assert "chat" in caught.value.fix
