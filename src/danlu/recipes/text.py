"""Recipes for text: functions that return an experiment. A recipe is another one with a change."""

from __future__ import annotations

from dataclasses import replace

from danlu.data.options import DataOptions
from danlu.experiment import Experiment
from danlu.models.options import ModelOptions
from danlu.tasks.options import TaskOptions
from danlu.training.options import TrainingOptions


def chat() -> Experiment:
    """Fine-tune a chat model on conversations: LoRA on SmolLM2-135M unless told otherwise."""
    return Experiment(task=TaskOptions(task="chat"), model=ModelOptions(model="smollm2-135m"))


def text_classification() -> Experiment:
    """Fine-tune an encoder to sort texts into classes, beside two honest baselines."""
    return Experiment(task=TaskOptions(task="text-classification"), model=ModelOptions(model="minilm"))


def gpt() -> Experiment:
    """A language model from random weights on running text: depth=8, the rest follows; hours=0.5 stops in time. init=MODEL goes on from one."""
    return Experiment(
        task=TaskOptions(task="language-model"),
        model=ModelOptions(model="gpt"),
        data=DataOptions(validation_share=0.05, test_share=0.05),
        training=TrainingOptions(optimizer="muon", weight_decay=0.1, beta2=0.95, schedule="wsd", patience=None),
    )


def bert() -> Experiment:
    """An encoder from random weights on running text, by filling in hidden words. init=MODEL goes on from one."""
    return replace(gpt(), task=TaskOptions(task="masked-language-model"), model=ModelOptions(model="bert"))


def sentiment() -> Experiment:
    """Text classification of opinions."""
    return text_classification()
