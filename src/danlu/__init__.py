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
# soon as anything else runs on the machine: a training step was three times slower beside busy processes. Threads that sleep at once
# are woken slowly between a step's thousands of products. So they spin briefly, then sleep: of GNU's runtime, 3,000 turns were
# faster than none on an idle machine and on a busy one (docs/performance.md). Whoever sets OMP_WAIT_POLICY decides alone.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

__all__ = ["Run", "corpus", "finetune", "open", "preflight", "pretrain"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"danlu has no {name!r}; it has {', '.join(__all__)}")
    from danlu import api

    return getattr(api, name)
