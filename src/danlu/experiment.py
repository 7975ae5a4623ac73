"""The experiment: what to do, frozen, typed and strict. The same object from YAML, a recipe, Python or the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from danlu.core import config
from danlu.core.cache import read_text
from danlu.core.config import Setting
from danlu.core.errors import UserError, nearest
from danlu.data.options import DataOptions
from danlu.models.options import CODE, ModelOptions
from danlu.tasks.options import TaskOptions
from danlu.training.options import TrainingOptions


T = TypeVar("T")

UNREAD = {
    ("method", "full"): ("rank", "alpha", "lora_dropout", "lora_targets"),
    ("optimizer", "adam"): ("momentum",),
    ("optimizer", "adamw"): ("momentum",),
    ("optimizer", "sgd"): ("beta1", "beta2", "epsilon"),
}
"""A setting and its value -> the settings that are then not read."""


@dataclass(frozen=True)
class Experiment:
    """Four sections; their keys are unique, so they are written flat: `learning_rate: 1e-4`, not `training.learning_rate`."""

    task: TaskOptions = field(default_factory=TaskOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)

    def __post_init__(self) -> None:
        for key, value in config.flat(self).items():
            if key in ("epochs", "hours", "learning_rate") and value == 0:
                raise UserError(f"{key}: found 0, expected more than 0", f"leave {key} out to have it derived")


@dataclass(frozen=True)
class Asked:
    """What a person asked for, before anything is derived.

    settings: every key that was set, with its origin. recipe: the recipe it started from. extra: keys that are about this
    call, not about the experiment, as the caller named them (`out`). network: the code of a person's own network, `module:object` or
    what that means; of this very call, never of a file or a run.
    """

    recipe: str
    settings: dict[str, Setting]
    extra: dict[str, Any] = field(default_factory=dict)
    network: Any = None

    @property
    def experiment(self) -> Experiment:
        return config.build(Experiment, self.settings)

    def values(self) -> dict[str, Any]:
        """The set keys in their declared types, JSON-ready: what two experiments are compared by."""
        everything = config.flat(self.experiment)
        return {key: list(v) if isinstance(v := everything[key], tuple) else v for key in sorted(self.settings)}


def ask(
    recipes: Callable[[str], Callable[[], Experiment]],
    words: Sequence[str],
    overrides: Mapping[str, Any],
    extra: Sequence[str] = (),
    origin: str = "command line",
) -> Asked:
    """A recipe name or a YAML file, then overrides -> what was asked.

    recipes: name -> recipe function. words: at most one recipe name or YAML file. extra: keys that belong to the call.

    Raises:
        UserError: no or two recipes, an unknown key, a value of the wrong type.
    """
    if len(words) > 1:
        raise UserError(
            f"found {' '.join(words)}, expected one recipe or one YAML file",
            "settings are written key=value, without spaces",
        )
    settings: dict[str, Setting] = {}
    recipe, kept = "", {}
    if words and Path(words[0]).suffix in (".yaml", ".yml"):
        content = read_yaml(Path(words[0]))
        recipe = str(content.pop("recipe", ""))
        if not recipe:
            raise UserError(
                f"{words[0]}: no `recipe:`, expected the recipe it builds on", "add `recipe: chat`, see `danlu recipes`"
            )
        settings = {key: Setting(value, f"file {words[0]}") for key, value in content.items()}
    elif words:
        recipe = words[0]
    else:
        raise UserError(
            "no recipe and no YAML file", "for example `danlu finetune chat data=my.jsonl`, see `danlu recipes`"
        )
    settings, overrides = spelled_out(settings), spelled_out(overrides)
    network = overrides.pop("network", None)
    if callable(model := overrides.get("model")):
        named = f"{model.__module__}:{getattr(model, '__qualname__', type(model).__name__)}"
        network, overrides["model"] = model, re.sub(r"[^\w.:]", "", named)
    elif isinstance(model, str) and CODE.fullmatch(model):
        if network not in (None, model):
            raise UserError(f"model={model} and network={network} name two codes", "keep one of them")
        network = model
    base = changes(recipes(recipe)())
    settings = {key: Setting(value, f"recipe {recipe}") for key, value in base.items()} | settings
    settings |= {key: Setting(value, origin) for key, value in overrides.items()}
    for key in extra:
        if key in settings:
            kept[key] = settings.pop(key).value
    asked = Asked(recipe, settings, kept, network)
    check_read(asked)
    if network is not None and (task := asked.experiment.task.task) not in OWN:
        raise UserError(
            f"a network of your own does not learn {task}",
            "it classifies images (image-classification), or learns what comes next in a text (gpt)",
        )
    return asked


OWN = ("image-classification", "language-model")
"""What a person's own network can learn."""


def spelled_out(settings: Mapping[str, T]) -> dict[str, T]:
    """`init=` is another word for `model=`: what training starts from."""
    if {"init", "model"} <= settings.keys():
        raise UserError("init= and model= are given, and both mean what training starts from", "keep one of them")
    return {"model" if key == "init" else key: value for key, value in settings.items()}


def check_read(asked: Asked) -> None:
    """Every key and type is right, and read by the task.

    Raises:
        UserError: a key that the task, or the value of another setting, would leave without effect. What a call sets may leave
            a file's keys so: the file is of more than this call.
    """
    values, origins = config.flat(asked.experiment), {key: each.origin for key, each in asked.settings.items()}

    def left(key: str, by: str) -> bool:
        """Whether `key` stands in a file, and the call itself set `by`."""
        return origins[key].startswith("file ") and not origins.get(by, "recipe ").startswith(("file ", "recipe "))

    for by, value in UNREAD:
        idle = [key for key in unread(asked, by, value) if not left(key, by)]
        if values[by] == value and idle:
            raise UserError(
                f"{idle[0]}: found {values[idle[0]]!r} ({origins[idle[0]]}), which {by}={value} does not read",
                f"leave it out, or set {by}={'lora' if by == 'method' else 'adamw' if value == 'sgd' else 'sgd'}",
            )
    for by, share in (("validation", "validation_share"), ("test", "test_share"), ("folds", "test_share")):
        if not (values[by] and values[share]) or origins.get(share, "recipe").startswith("recipe"):
            continue
        if not left(share, by):
            raise UserError(
                f"{share}: found {values[share]:g} ({origins[share]}), but {by}={values[by]} says which rows those are",
                f"leave out {share}= or {by}=",
            )
    task = asked.experiment.task.task
    readers = {key: field.metadata["tasks"] for _, key, field, _ in config.leaves(Experiment)}
    for key, setting in asked.settings.items():
        if key in ("data", "validation", "test", "model", "hidden") and setting.value in ("", ()):
            raise UserError(f"{key}= is empty ({setting.origin})", "give a value, or leave it out")
        if readers[key] and task not in readers[key]:
            raise UserError(
                f"{key}: found {setting.value!r} ({setting.origin}), which {task} does not read",
                f"leave it out; it belongs to {', '.join(readers[key])}",
            )


def unread(asked: Asked, by: str, value: str) -> list[str]:
    """Settings that a person changed and that have no effect where the setting `by` is `value`."""
    changed = changes(asked.experiment)
    keys = (key for key in UNREAD.get((by, value), ()) if key in changed and key in asked.settings)
    return [key for key in keys if not asked.settings[key].origin.startswith("recipe")]


def changes(experiment: Experiment) -> dict[str, Any]:
    """The settings in which an experiment differs from the defaults."""
    default = config.flat(Experiment())
    return {key: value for key, value in config.flat(experiment).items() if value != default[key]}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of settings.

    Raises:
        UserError: missing, broken (with its line), a key twice, or not `key: value` lines.
    """
    import yaml

    class Strict(yaml.SafeLoader):
        """Safe; a key given twice is an error, and so is an alias, by which a few lines can mean billions."""

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.composer.ComposerError(None, None, "found an alias (*name), expected the value itself", mark)
            return super().compose_node(parent, index)

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = str(loader.construct_object(key_node))
            if key in seen:
                raise UserError(f"{path}:{key_node.start_mark.line + 1}: {key!r} is given twice", "keep one of them")
            seen.add(key)
        return loader.construct_mapping(node, deep=True)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        text = read_text(path, 1_000_000)
        content = yaml.load(text, Strict)  # noqa: S506 (Strict is a SafeLoader)
    except FileNotFoundError:
        near = [each.name for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise UserError(
            f"{path} is not there", nearest(path.name, near) if near else "give the path of a YAML file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}", "give a UTF-8 YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: {getattr(error, 'problem', None) or error}", "each line is `key: value`") from None
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:  # a date of no calendar, for one
        raise UserError(f"{path} cannot be read: {str(error)[:500]}", "each line is `key: value`") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(
            f"{path}: found {type(content).__name__}, expected `key: value` lines", "see examples/demo.yaml"
        )
    return content
