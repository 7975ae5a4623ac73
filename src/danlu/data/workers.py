"""Processes that work on one chunk after the other; results in the order of the chunks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from danlu.core.errors import UserError


class Workers:
    """Processes that work on chunks, a few ahead; results come in the order in which chunks were given. One worker is this process.

    given: what all work needs; with `start`, what that makes of it once in each process. It is the first argument of `work`.
    """

    def __init__(self, count: int, given: Any, start: Callable[[Any], Any] | None = None) -> None:
        self.count, self.waiting = count, deque[tuple[Future[Any], Callable[[Any], None]]]()
        self.here = start(given) if count == 1 and start else given
        self.pool: ProcessPoolExecutor | None = None
        if count > 1:
            context = multiprocessing.get_context("spawn")  # a fork of a process with threads can stand still
            self.pool = ProcessPoolExecutor(count, context, _begin, (start, given))

    def give(self, work: Callable[..., Any], arguments: tuple[Any, ...], done: Callable[[Any], None]) -> None:
        """Have `work(state, *arguments)` done; `done` gets its result here, before that of any chunk given later."""
        if self.pool is None:
            done(work(self.here, *arguments))
            return
        with _alive():
            self.waiting.append((self.pool.submit(_do, work, arguments), done))
        while len(self.waiting) > self.count + 1:
            self.take()

    def know(self, result: Any, done: Callable[[Any], None]) -> None:
        """In the place of a chunk: its result, known from before."""
        future: Future[Any] = Future()
        future.set_result(result)
        self.waiting.append((future, done))
        while self.waiting and self.waiting[0][0].done():
            self.take()

    def take(self) -> None:
        """Wait for the next result."""
        future, done = self.waiting.popleft()
        with _alive():
            result = future.result()
        done(result)

    def finish(self) -> None:
        """Wait for all results."""
        while self.waiting:
            self.take()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


@contextmanager
def _alive() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most likely for want of memory",
            "give the same command again with fewer workers=; what is done stays done",
        ) from None


_state: Any = None


def _begin(start: Callable[[Any], Any] | None, given: Any) -> None:
    """In a new worker: Ctrl-C is for the process above it, and it ends with that one, however that ends."""
    global _state
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    _state = start(given) if start else given


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _do(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return work(_state, *arguments)
