"""A writer and a predictor that keep to the contracts and do what a test tells them, and the real server around them."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import pytest

from danlu.core.errors import UserError
from danlu.models.generate import Sampling
from danlu.serving.api import create
from danlu.serving.engine import Answer, Asked, Engine
from danlu.serving.guard import Guard, Limits
from danlu.stages.serve import find, listen, server_of


@dataclass
class Parrot:
    """Says back what it is asked, a byte a token, with 0 as its end token. gate: one token for each time that it is released."""

    context: int = 200
    ends: frozenset[int] = frozenset({0})
    gate: threading.Semaphore | None = None
    asked: list[tuple[Asked, Sampling]] = field(default_factory=list)
    tokens: int = 0
    broken: bool = False

    def prompt(self, asked: Asked) -> list[int]:
        self.last = asked
        return list((asked if isinstance(asked, str) else str(asked[-1]["content"])).encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    def write(self, prompt: list[int], sampling: Sampling, on_token: Callable[[int, int], None], strip: bool) -> Answer:
        self.asked.append((self.last, sampling))
        if self.broken:
            raise RuntimeError("the secret of the house")
        new: list[int] = []
        for token in [*prompt, 0][: sampling.max_new_tokens]:
            if self.gate is not None:
                assert self.gate.acquire(timeout=20)
            new.append(token)
            self.tokens += 1
            on_token(0, token)
        text = self.decode([token for token in new if token])
        return Answer(text.strip() if strip else text, "stop" if new[-1] == 0 else "length", len(prompt), len(new))


@dataclass
class Light:
    """Really looks at images: `bright` when the mean of the grey values is above a half. gate: one for each time that it is
    released."""

    kind: Literal["image"] = "image"
    labels: tuple[str, ...] = ("bright", "dark")
    gate: threading.Semaphore | None = None
    seen: int = 0

    def __call__(self, inputs: Sequence[bytes], still: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        from PIL import Image, ImageStat

        found = []
        for number, content in enumerate(inputs):
            still()
            if self.gate is not None:
                assert self.gate.acquire(timeout=20)
            self.seen += 1
            try:
                with Image.open(io.BytesIO(content)) as image:
                    mean = ImageStat.Stat(image.convert("L")).mean[0] / 255
            except OSError:
                raise UserError(f"image {number} cannot be read", "send a PNG or JPEG") from None
            label = "bright" if mean > 0.5 else "dark"
            found.append(
                {"input": f"image {number}", "label": label, "probabilities": {"bright": mean, "dark": 1 - mean}}
            )
        return found


def picture(grey: int, form: str = "PNG") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (4, 4), grey).save(buffer, form)
    return buffer.getvalue()


@dataclass
class Served:
    """A running service."""

    port: int
    guard: Guard
    server: Any
    thread: threading.Thread
    client: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)


@contextlib.contextmanager
def serving(model: Any, key: str | None = None, alone: bool = True, **limits: Any) -> Iterator[Served]:
    engine, (family, place) = Engine(), find("127.0.0.1", 0)
    names = frozenset({"localhost", "127.0.0.1", "::1"}) if alone else None
    guard = create(model, "toy", engine, Limits(**limits), key, names)
    server = server_of(guard)
    listener = listen(family, place, "127.0.0.1")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    port = listener.getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=20) as client:
            yield Served(port, guard, server, thread, client)
    finally:
        server.should_exit = True
        thread.join(20)
        engine.close()
        listener.close()
        assert not thread.is_alive()


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


@pytest.fixture
def light() -> Light:
    return Light()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """`serve(model, key=…, queue=…)`: a service in a thread, stopped behind the test."""
    with contextlib.ExitStack() as stack:
        yield lambda model, **options: stack.enter_context(serving(model, **options))
