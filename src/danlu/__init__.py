"""danlu: from raw data to a model of your own.

import danlu
run = danlu.finetune("chat", data=rows)        # a file, a DataFrame, a list of mappings, arrays
run.evaluate(); run.predict(["Hello"]); run.report()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from danlu.api import Run, finetune, open, preflight  # noqa: A004

__all__ = ["Run", "finetune", "open", "preflight"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"danlu has no {name!r}; it has {', '.join(__all__)}")
    from danlu import api

    return getattr(api, name)
