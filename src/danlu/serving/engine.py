"""What a service asks of a run, and the one thread in which its model computes: requests wait there in the order they came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from danlu.core.errors import UserError
from danlu.models.generate import Sampling


T = TypeVar("T")
Asked = str | Sequence[Mapping[str, Any]]
"""A text to go on from as it stands, or a conversation to answer."""


class RequestError(UserError):
    """A request that is not answered, and the HTTP status that says so. code, param: OpenAI's names for what is wrong, and where."""

    def __init__(
        self, status: int, message: str, fix: str = "", code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message, fix)
        self.status, self.code, self.param = status, code, param


@dataclass(frozen=True)
class Answer:
    """finish: `stop` at an end token or a stop sequence, `length` at a limit. new_tokens: all that were generated, an end token included."""

    text: str
    finish: Literal["stop", "length"]
    prompt_tokens: int
    new_tokens: int


@runtime_checkable
class Predictor(Protocol):
    """A run that says something of fixed form about each input: behind `/v1/predict`."""

    @property
    def kind(self) -> str:
        """What an input is: `text`, a str, or `image`, the bytes of a file as they came, which may be of anything."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All that `label` may be; none for a run that answers otherwise."""

    def __call__(self, inputs: Sequence[Any], still: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        """The very answers of `danlu predict`: `input`, and `label` with `probabilities` or what the run says instead.

        still: called between inputs and between batches; raises once nobody waits for the answers any more.

        Raises:
            UserError: an input that cannot be read; names its number.
        """


@runtime_checkable
class Writer(Protocol):
    """A language run: behind `/v1/chat/completions` and `/v1/completions`, and the terminal."""

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer together."""

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer and are no part of its text."""

    def prompt(self, asked: Asked) -> list[int]:
        """The ids to go on from; may refuse by `check_length`, before it turns a text far too long into ids."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Their text, without special tokens."""

    def write(self, prompt: list[int], sampling: Sampling, on_token: Callable[[int, int], None], strip: bool) -> Answer:
        """The very answer of `danlu predict`. strip: without white space around it."""


class _StopSequence(Exception):  # noqa: N818 (it is no error)
    """A stop sequence came."""


class _Unwanted(Exception):  # noqa: N818 (nobody sees it)
    """Nobody waits for the answer any more."""


@dataclass
class _Stream:
    """The text of an answer as its tokens come. What may yet change or fall away waits: a character whose bytes are not complete,
    the beginning of a stop sequence, white space that may be the last."""

    writer: Writer
    stops: Sequence[str]
    strip: bool
    say: Callable[[str], None]
    unwanted: Callable[[], bool]
    tokens: list[int] = field(default_factory=list)
    new_tokens: int = 0
    text: str = ""
    shown: int = 0

    def __call__(self, row: int, token: int) -> None:
        """One more token: generation's `on_token`."""
        if self.unwanted():
            raise _Unwanted
        self.new_tokens += 1
        if token in self.writer.ends:
            return
        self.tokens.append(token)
        self.text = self.writer.decode(self.tokens)
        if ends := [place for stop in self.stops if (place := self.text.find(stop)) >= 0]:
            self.text = self.text[: min(ends)]
            raise _StopSequence
        if not self.text.endswith("\ufffd"):
            begun = (
                n
                for stop in self.stops
                for n in range(1, min(len(stop), len(self.text) + 1))
                if self.text.endswith(stop[:n])
            )
            self.show(self.text[: len(self.text) - max(begun, default=0)])

    def show(self, text: str) -> str:
        """Say what is new in the text, and return it as it was said."""
        text = text.strip() if self.strip else text
        if len(text) > self.shown:
            self.say(text[self.shown :])
            self.shown = len(text)
        return text


def speak(
    writer: Writer,
    asked: Asked,
    sampling: Sampling,
    stops: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
    unwanted: Callable[[], bool] = lambda: False,
) -> Answer:
    """The answer to a conversation, or what follows a text; the terminal and the service come here.

    say: given an empty text once the prompt is accepted, then pieces that make up the answer's text. stops: texts before which the answer ends.
    unwanted: looked at with each token; generation ends when it is true.

    Raises:
        UserError: the chat template refuses the conversation. RequestError: the prompt fills the context.
    """
    prompt = writer.prompt(asked)
    check_length(asked, f"{len(prompt):,}", len(prompt), writer.context)
    say("")
    stream = _Stream(writer, stops, not isinstance(asked, str), say, unwanted)
    try:
        answer = writer.write(prompt, sampling, stream, stream.strip)
    except _StopSequence:
        return Answer(stream.show(stream.text), "stop", len(prompt), stream.new_tokens)
    stream.say(answer.text[stream.shown :])
    return answer


def answer_all(predictor: Predictor, inputs: Sequence[Any], unwanted: Callable[[], bool]) -> list[dict[str, Any]]:
    """The predictor's answers, as long as somebody waits for them."""

    def still() -> None:
        if unwanted():
            raise _Unwanted

    return predictor(inputs, still)


def check_length(asked: Asked, said: str, tokens: int, context: int) -> None:
    """Raises RequestError for a prompt that leaves no room for an answer. said: its tokens in words."""
    if tokens >= context:
        raise RequestError(
            400,
            f"the prompt has {said} tokens, expected fewer than the model's context of {context:,}",
            "shorten it, or take a model with a longer context",
            code="context_length_exceeded",
            param="prompt" if isinstance(asked, str) else "messages",
        )


class Engine:
    """One thread for the model. Its work is what it is given, one at a time: so an answer does not depend on who else asks."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "model")

    async def run(self, work: Callable[[Callable[[], bool]], T]) -> T:
        """work(whether it is unwanted) in the model's thread, after all that waits there; unwanted once nobody awaits it any more."""
        unwanted = Event()
        try:
            return await asyncio.wrap_future(self.thread.submit(work, unwanted.is_set))
        finally:
            unwanted.set()

    async def stream(
        self, work: Callable[[Callable[[str], None], Callable[[], bool]], Answer]
    ) -> AsyncGenerator[str | Answer]:
        """The texts that the work says, as they come, and at last its answer."""
        loop, said = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def say(text: str) -> None:
            loop.call_soon_threadsafe(said.put_nowait, text)

        task = asyncio.create_task(self.run(lambda unwanted: work(say, unwanted)))
        task.add_done_callback(lambda _: said.put_nowait(None))
        try:
            while (text := await said.get()) is not None:
                yield text
            yield await task
        finally:
            task.cancel()

    def close(self) -> None:
        """What waits is dropped; what computes is waited for."""
        self.thread.shutdown(cancel_futures=True)
