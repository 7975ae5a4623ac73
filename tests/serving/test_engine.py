"""The text of an answer as it comes, and the thread that answers one after the other."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.core.errors import UserError
from danlu.models.generate import Sampling
from danlu.serving.engine import Engine, RequestError, speak


SAMPLING = Sampling(max_new_tokens=500)
TEXTS = st.text("ab \n日é🌲", max_size=12)


def cut(text: str, stops: list[str]) -> str:
    """What OpenAI's documents say: the text before the first stop sequence that is complete."""
    encoded = text.encode()
    for size in range(1, len(encoded) + 1):
        so_far = encoded[:size].decode(errors="replace")
        if found := [so_far.find(stop) for stop in stops if stop in so_far]:
            return so_far[: min(found)]
    return text


@given(TEXTS, st.lists(st.text("ab \n日", min_size=1, max_size=3), max_size=3), st.booleans())
def test_pieces_make_up_the_answer(text, stops, chat):
    from tests.serving.conftest import Parrot

    said: list[str] = []
    asked = [{"role": "user", "content": text}] if chat else text
    answer = speak(Parrot(), asked, SAMPLING, stops, said.append)
    expected = cut(text, stops)
    assert answer.text == (expected.strip() if chat else expected)
    assert "".join(said) == answer.text
    assert said[0] == "" and answer.finish == "stop"
    assert all("\ufffd" not in piece for piece in said)
    assert answer.prompt_tokens == len(text.encode())


def test_the_end_token_counts_and_is_not_text(parrot):
    assert speak(parrot, "abc", SAMPLING).new_tokens == 4
    assert speak(parrot, "abc", Sampling(max_new_tokens=2)).finish == "length"
    answer = speak(parrot, "abcdef", SAMPLING, stops=["d"])
    assert (answer.text, answer.finish, answer.new_tokens) == ("abc", "stop", 4)


def test_a_prompt_that_fills_the_context_names_both_numbers(parrot):
    with pytest.raises(RequestError, match="200 tokens, expected fewer than the model's context of 200") as caught:
        speak(parrot, "a" * 200, SAMPLING)
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
    assert isinstance(caught.value, UserError), "the terminal shows it as it shows the others"
    assert not parrot.asked


def test_unwanted_generation_ends_with_the_next_token(parrot):
    async def body() -> None:
        parrot.gate = threading.Semaphore(0)
        task = asyncio.create_task(engine.run(lambda unwanted: speak(parrot, "a" * 100, SAMPLING, unwanted=unwanted)))
        while not parrot.asked:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        parrot.gate.release(100)
        assert await engine.run(lambda _: "free") == "free"

    engine = Engine()
    asyncio.run(asyncio.wait_for(body(), 20))
    engine.close()
    assert parrot.tokens == 1


def test_one_after_the_other_in_the_order_they_came():
    order: list[int] = []
    inside: list[int] = []

    def work(number: int) -> int:
        inside.append(number)
        assert len(inside) == 1
        order.append(number)
        inside.remove(number)
        if number == 3:
            raise UserError("three")
        return number

    async def body() -> list[object]:
        blocker = threading.Event()
        first = asyncio.create_task(engine.run(lambda _: blocker.wait(20)))
        await asyncio.sleep(0.05)
        tasks = []
        for number in range(8):
            tasks.append(asyncio.create_task(engine.run(lambda _, number=number: work(number))))
            await asyncio.sleep(0)
        tasks[5].cancel()
        await asyncio.sleep(0)
        blocker.set()
        await first
        return await asyncio.gather(*tasks, return_exceptions=True)

    engine = Engine()
    found = asyncio.run(asyncio.wait_for(body(), 20))
    engine.close()
    assert order == [0, 1, 2, 3, 4, 6, 7], "the one that was cancelled while it waited never ran"
    assert isinstance(found[3], UserError) and isinstance(found[5], asyncio.CancelledError)


def test_a_stream_that_fails_says_what_came_and_then_the_error(parrot):
    async def body() -> list[object]:
        found: list[object] = []
        try:
            async for piece in engine.stream(work):
                found.append(piece)
        except RuntimeError as error:
            found.append(str(error))
        return found

    def work(say, unwanted):
        say("a")
        say("b")
        raise RuntimeError("broken")

    engine = Engine()
    assert asyncio.run(asyncio.wait_for(body(), 20)) == ["a", "b", "broken"]
    engine.close()
