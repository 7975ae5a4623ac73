"""danlu: from raw data to a model of your own.

import danlu
run = danlu.finetune("chat", data=rows)        # a file, a DataFrame, a list of mappings, arrays
run.evaluate(); run.predict(["Hello"]); run.report()
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from danlu.api import Run, corpus, finetune, open, preflight, pretrain  # noqa: A004

# OpenMP reads this once, when torch is first imported. Threads that wait by spinning take the core from the thread they wait for as
# soon as anything else runs on the machine: a training step was three times slower beside busy processes. Sleeping costs about a
# twentieth on an idle machine; OMP_WAIT_POLICY=ACTIVE takes it back.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["Run", "corpus", "finetune", "open", "preflight", "pretrain"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"danlu has no {name!r}; it has {', '.join(__all__)}")
    from danlu import api

    return getattr(api, name)
