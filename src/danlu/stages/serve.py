"""A finished run as a service: its address, its key, its start and its end. What it answers is in `serving/`."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from danlu.core.errors import UserError
from danlu.core.run import Run


if TYPE_CHECKING:
    import uvicorn

    from danlu.serving.engine import Predictor, Writer
    from danlu.serving.guard import Guard

KEY = "DANLU_KEY"


def serve(
    run: Run,
    ready: Callable[[dict[str, Any]], None] = print,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str | None = None,
    network: Any = None,
    **limits: Any,
) -> None:
    """Answer over HTTP until SIGINT (Ctrl-C) or SIGTERM; requests under way are then finished, within `grace_seconds`.

    ready: given what a person needs to ask it, once it answers. key: better in the environment, as DANLU_KEY, than on a command line,
    which every user of the machine can read. network: the code of a person's own network.
    limits: of `serving.guard.Limits`.

    Raises:
        UserError: no final model, an address that cannot be had, one that others reach without a key, or a package is missing.
    """
    try:
        import python_multipart  # noqa: F401 (fastapi reads uploads with it)

        from danlu.serving.api import create
        from danlu.serving.guard import Limits
    except ModuleNotFoundError as error:
        raise UserError(f"the service needs {error.name}, which is not here", "pip install 'danlu[serve]'") from None
    from danlu.serving.engine import Engine

    allowed = Limits(**limits)
    family, place = find(host, port)
    alone = place[0] in ("127.0.0.1", "::1")
    key = checked(os.environ.get(KEY) if key is None else key, alone, host)
    names = frozenset({"localhost", "127.0.0.1", "::1", host.lower(), place[0]}) if alone else None
    with listen(family, place, host) as listener:
        model, engine = answering(run, network), Engine()
        try:
            server = server_of(create(model, run.name, engine, allowed, key, names))
            ready(described(model, run.name, host, listener.getsockname()[1], key is not None))
            until_stopped(server, listener)
        finally:
            engine.close()


def answering(run: Run, network: Any = None) -> Writer | Predictor:
    """The run's final model as the service asks it."""
    from danlu.stages.modality import of

    task = run.read("run.json")["task"]
    if task == "gan":
        raise UserError(
            f"{run.path} makes images of nothing, it answers nobody", f"danlu predict {run.path} out=new.png"
        )
    given = {} if network is None else {"network": network}
    return of(run, "serve", given).answering(run, **given)


def find(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Where a host and a port lead; of several addresses an IPv4 one, as most names of this machine have it."""
    if not 0 <= port <= 65535:
        raise UserError(f"port: found {port}, expected 0 (any that is free) to 65535", "port=8000")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        fix = "host=127.0.0.1 is this machine alone, host=0.0.0.0 all of its addresses"
        raise UserError(f"host={host} is not an address: {error}", fix) from None
    family, _, _, _, place = min(found, key=lambda each: each[0] != socket.AF_INET)
    return family, place


def checked(key: str | None, alone: bool, host: str) -> str | None:
    """The key. alone: nobody but this machine reaches the address."""
    if key is None and not alone:
        fix = f"export {KEY}=\"$(python -c 'import secrets; print(secrets.token_urlsafe(32))')\", or host=127.0.0.1"
        raise UserError(f"others can reach host={host}, and there is no key", fix)
    if key is not None and not (key.isascii() and key.isprintable() and key and " " not in key):
        raise UserError("the key is empty, or holds what a header cannot", "take letters, digits, - and _")
    return key


def listen(family: socket.AddressFamily, place: tuple[Any, ...], host: str) -> socket.socket:
    """The address, taken before the model is read, which is slow; who asks meanwhile waits."""
    # The protocol is named for asyncio, which else would let small packets wait for each other (Nagle): 40 ms an answer
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(128)
    except OSError as error:
        listener.close()
        used = error.errno == errno.EADDRINUSE
        what = "is in use" if used else f"cannot be had: {error.strerror}"
        fix = (
            "stop the program that uses it, or take another, or port=0"
            if used
            else "host= of this machine, port= from 1024"
        )
        raise UserError(f"port {place[1]} of {host} {what}", fix) from None
    return listener


def server_of(app: Guard) -> uvicorn.Server:
    """uvicorn, told to do nothing of its own accord: no log of requests, no trust in proxies' headers, no WebSockets."""
    import uvicorn

    from danlu.serving.guard import Connection

    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=app.limits.request_seconds,
        timeout_graceful_shutdown=app.limits.grace_seconds,
    )
    return uvicorn.Server(config)


def until_stopped(server: uvicorn.Server, listener: socket.socket) -> None:
    """Answer until a signal comes, and end as a command that is done."""
    # uvicorn handles signals while it runs, and at its end raises them again, for those who were there before: these here
    mine = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, lambda *_: setattr(server, "should_exit", True)) for number in mine}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def described(model: Writer | Predictor, name: str, host: str, port: int, keyed: bool) -> dict[str, Any]:
    """What a person or a program needs to ask it."""
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    kind = getattr(model, "kind", "chat")
    path, said = "/v1/predict", json.dumps({"inputs": ["a text"]})
    if kind == "chat":
        path, said = "/v1/chat/completions", json.dumps({"messages": [{"role": "user", "content": "Hello"}]})
    if getattr(getattr(model, "opened", None), "task", None) == "language-model":
        path, said = "/v1/completions", json.dumps({"prompt": "A beginning"})
    sent = "-F file=@image.png" if kind == "image" else f"-H 'Content-Type: application/json' -d {shlex.quote(said)}"
    curl = f"curl {url}{path}" + (f' -H "Authorization: Bearer ${KEY}"' if keyed else "") + f" {sent}"
    return {"url": url, "model": name, "kind": kind, "key": keyed, "try": curl}
