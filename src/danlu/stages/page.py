"""What the page of a run and that of a corpus share: one HTML file that needs no network, in which no text from data is more than text.

page.css is how it looks, page.html has the parts that both are made of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from danlu.stages.card import value
from danlu.stages.plots import number


# control characters, halves of surrogate pairs, and what turns the direction of text or takes no room; a tab, a line end and the
# joiners of Persian and of emoji stay
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(found: Any) -> Any:
    r"""Text from data with what cannot be seen in it as `\x200b`; anything else as it is."""
    if type(found) is not str:
        return found
    return _HIDDEN.sub(lambda character: f"\\x{ord(character[0]):02x}", found)


def render(template: str, view: Mapping[str, Any], **filters: Callable[..., Any]) -> str:
    """The page. Every text is escaped; what `view` leaves out is empty. filters: of the template, beside `number` and `value`."""
    from jinja2 import ChainableUndefined, Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, finalize=visible, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    environment.filters |= {"number": number, "value": value, **filters}
    return environment.get_template(template).render(view)
