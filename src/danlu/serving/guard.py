"""What stands before every route: who asks, under which name, how much, how slowly, and how many at once."""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

import anyio
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from danlu.core.errors import UserError
from danlu.serving.engine import RequestError


CLOSE = {"Connection": "close"}
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 408: CLOSE, 500: CLOSE, 503: {"Retry-After": "2"}}


@dataclass(frozen=True)
class Limits:
    """What a service takes on.

    queue: requests that may wait while one is answered. max_body_mb: largest request, in 10^6 bytes. max_inputs: texts or images
    in one. request_seconds: time in which a request must have arrived, and an idle connection is kept. grace_seconds: time that
    requests under way have once the service is told to stop.
    """

    queue: int = 16
    max_body_mb: float = 16.0
    max_inputs: int = 64
    request_seconds: int = 30
    grace_seconds: int = 30

    def __post_init__(self) -> None:
        least = {"queue": 0, "max_body_mb": 0.001, "max_inputs": 1, "request_seconds": 1, "grace_seconds": 0}
        for key, default in ((each.name, each.default) for each in fields(self)):
            if not least[key] <= getattr(self, key) <= 1_000_000:
                expected = f"a number from {least[key]} to 1,000,000"
                raise UserError(
                    f"{key}: found {getattr(self, key)!r}, expected {expected}", f"for example {key}={default}"
                )


def problem(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error in the form of OpenAI's."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def failure(_: Any, error: Exception) -> Response:
    """The response to an error of ours, of a route that is not there, or to a fault."""
    status, message, code, param = 500, "a fault in the service; its log says more", None, None
    headers = dict(getattr(error, "headers", None) or {})
    if isinstance(error, RequestError):
        status, code, param, fix = error.status, error.code, error.param, error.fix
        message = f"{error.message}; {fix}" if fix else error.message
    elif isinstance(error, UserError):  # its fix is for whoever types commands
        status, message = 400, f"{error.message}; mend that input or leave it out, and ask again"
    elif isinstance(error, HTTPException):
        status, message = error.status_code, str(error.detail)
    return JSONResponse(problem(status, message, code, param), status, headers | HEADERS.get(status, {}))


class Guard:
    """In front of everything the service has.

    key: what a request must show as `Authorization: Bearer KEY`; None lets everybody in. hosts: the names by which the service may
    be addressed; None allows all. They keep out pages in a browser: those whose own name was made to lead here (DNS rebinding) by
    Host, and all other sites' by Origin.
    """

    def __init__(self, app: ASGIApp, key: str | None, hosts: frozenset[str] | None, limits: Limits) -> None:
        self.app, self.hosts, self.limits = app, hosts, limits
        self.key = None if key is None else key.encode()
        self.inside: set[object] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # neither WebSockets nor start-up events: nothing here needs them
            return
        headers = dict(scope["headers"])
        try:
            self.know(headers)
            if scope["method"] == "POST":
                await self.admit(headers, scope, receive, send)
            else:  # computes nothing, so health is told even when the queue is full; a body is not read
                await self.app(scope, receive, send)
        except RequestError as error:
            await (await failure(None, error))(scope, receive, send)

    def know(self, headers: dict[bytes, bytes]) -> None:
        """Raises RequestError for somebody who may not ask, or whose request two readers would cut differently."""
        if {b"content-length", b"transfer-encoding"} <= headers.keys():
            raise RequestError(400, "found Content-Length and Transfer-Encoding, expected one of the two")
        if self.hosts is not None:
            host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
            if _parts(f"//{host}")[0] not in self.hosts:
                raise RequestError(403, f"Host {host!r}: expected one of {', '.join(sorted(self.hosts))}")
            if b"origin" in headers and _parts(origin)[1] != host:
                raise RequestError(403, f"Origin {origin!r}: pages of other sites are not answered")
        if self.key is not None:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.key):
                found = "a wrong key" if given else "no key"
                expected = "expected the header Authorization: Bearer KEY"
                raise RequestError(401, f"found {found}, {expected}", code="invalid_api_key")

    async def admit(self, headers: dict[bytes, bytes], scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, if there is room for it and once all of it is here."""
        if len(self.inside) > self.limits.queue:
            found = f"{len(self.inside)} requests are under way, and no more may wait (queue={self.limits.queue})"
            raise RequestError(503, found, "try again later", code="overloaded")
        place = object()
        self.inside.add(place)

        async def last_word(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self.inside.discard(place)  # before the client knows, so that its next request finds room
            await send(message)

        try:
            try:
                async with asyncio.timeout(self.limits.request_seconds):
                    body = await self.body(headers, receive)
            except TimeoutError:
                allowed = f"{self.limits.request_seconds} seconds (request_seconds)"
                raise RequestError(408, f"the request did not arrive within {allowed}") from None
            if body is not None:
                await self.answer(body, scope, receive, last_word)
        finally:
            self.inside.discard(place)

    async def body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """The body, in memory, whether or not its length was announced; None when the client has left."""
        most, body = int(self.limits.max_body_mb * 1e6), bytearray()
        size = int(headers.get(b"content-length", b"0"))
        while size <= most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            size = max(size, len(body))
            if size <= most and not message.get("more_body"):
                return bytes(body)
        raise RequestError(413, f"the request has {size:,} bytes or more, expected at most {most:,} (max_body_mb)")

    async def answer(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the route on a body that is here; it is cancelled when the client leaves."""
        given: list[Message] = [{"type": "http.request", "body": body}]

        async def replay() -> Message:
            if not given:
                await asyncio.Event().wait()  # for the client to leave, which is watched below
            return given.pop()

        async with anyio.create_task_group() as group:

            async def watch() -> None:
                await receive()  # nothing more can come but that the client has left
                group.cancel_scope.cancel()

            group.start_soon(watch)
            await self.app(scope, replay, send)
            group.cancel_scope.cancel()


def _parts(url: str) -> tuple[str | None, str | None]:
    """A URL's host, without the brackets of IPv6, and its host with the port as they stand in it."""
    try:
        return urlsplit(url).hostname, urlsplit(url).netloc
    except ValueError:
        return None, None


class Connection(H11Protocol):
    """uvicorn's, but closed when no whole head of a request comes for `timeout_keep_alive` seconds (Slowloris); uvicorn itself
    waits for ever once it has seen the first byte."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(self.timeout_keep_alive, self.look, None)

    def look(self, last: Any) -> None:
        """last: the request that had been answered when the connection was last looked at."""
        cycle: Any = self.cycle
        idle = cycle is None or cycle.response_complete
        if idle and cycle is last:
            self.transport.close()
        elif not self.transport.is_closing():
            self.loop.call_later(self.timeout_keep_alive, self.look, cycle if idle else None)
