"""Recipes for images: from random weights, and from what was learned before."""

from __future__ import annotations

from dataclasses import replace

from danlu.experiment import Experiment
from danlu.models.options import ModelOptions
from danlu.tasks.options import TaskOptions
from danlu.training.options import TrainingOptions


def image_classification() -> Experiment:
    """Sort images into classes, from an earlier run or any image model; ResNet-18 with random weights unless told otherwise."""
    return Experiment(task=TaskOptions(task="image-classification"), model=ModelOptions(model="resnet18"))


def of(model: str) -> Experiment:
    """Image classification by an architecture with random weights."""
    return replace(image_classification(), model=ModelOptions(model=model))


def mlp() -> Experiment:
    """A multilayer perceptron from random weights: hidden=64,64 activation=relu dropout=0.5."""
    return of("mlp")


def resnet18() -> Experiment:
    """A residual network of 18 layers from random weights (He et al. 2016)."""
    return of("resnet18")


def vgg() -> Experiment:
    """A plain convolutional network of 11 layers from random weights (Simonyan and Zisserman 2015); model=vgg16_bn for a larger one."""
    return of("vgg11_bn")


def vit() -> Experiment:
    """A Vision Transformer from random weights (Dosovitskiy et al. 2021)."""
    return of("vit")


def autoencoder() -> Experiment:
    """Compress images to a code and back, without labels: convolutional, or hidden=256,64 convolutional=no; noise=0.3 denoises."""
    return Experiment(task=TaskOptions(task="autoencoder"), model=ModelOptions(model="autoencoder"))


def gan() -> Experiment:
    """A generator against a discriminator: new images like those of the data, without labels."""
    training = TrainingOptions(beta1=0.5, weight_decay=0.0, schedule="constant", warmup=0.0, clip=0.0, patience=None)
    return Experiment(task=TaskOptions(task="gan"), model=ModelOptions(model="gan"), training=training)
