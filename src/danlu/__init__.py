"""danlu: from raw data to a model of your own.

import danlu
run = danlu.finetune("chat", data=rows)        # a file, a DataFrame, a list of mappings, arrays
run.evaluate(); run.predict(["Hello"]); run.report()
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from danlu.core.idle import at_rest


if TYPE_CHECKING:
    from danlu.api import Run, corpus, finetune, open, preflight, pretrain  # noqa: A004


# OpenMP reads this once, when torch is first imported. Threads that wait by spinning are there at once for the next of a step's
# thousands of products, but as soon as anything else runs they take the core from the thread they wait for. So on a machine at rest
# they spin as GNU's runtime has it (300,000 turns), and beside other work they sleep after 3,000 (docs/performance.md says what each is
# worth). No number of a run depends on it. Whoever sets OMP_WAIT_POLICY decides alone.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "300000" if at_rest() else "3000")

__all__ = ["Run", "corpus", "finetune", "open", "preflight", "pretrain"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"danlu has no {name!r}; it has {', '.join(__all__)}")
    from danlu import api

    return getattr(api, name)
