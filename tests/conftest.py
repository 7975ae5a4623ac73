"""Real weights for the tests: the catalogue's, from the cache or fetched into it once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests run at once


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small products on few rows: more threads only wait for each other, and several tests may run at once."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the real SmolLM2-135M-Instruct."""
    from danlu.models.base import resolve

    return resolve("smollm2-135m").folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real all-MiniLM-L6-v2."""
    from danlu.models.base import resolve

    return resolve("minilm").folder
