"""Nobody comes in unasked, too much, too slowly or too many; each over a real connection."""

from __future__ import annotations

import json
import socket
import threading
import time

import httpx
import pytest
from tests.serving.conftest import picture

from danlu.core.errors import UserError
from danlu.serving.guard import Limits


CHAT = {"messages": [{"role": "user", "content": "hello"}]}
KEY = "k-0123456789"


def until(holds, seconds: float = 10) -> None:
    """Wait for something another thread does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def raw(port: int, head: str, *parts: bytes, wait: float = 0.0) -> bytes:
    """What comes back for bytes sent as they are, until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
        for part in (head.replace("\n", "\r\n").encode(), *parts):
            try:
                connection.sendall(part)
            except OSError:  # refused and closed meanwhile
                break
            time.sleep(wait)
        found = b""
        try:
            while more := connection.recv(65536):
                found += more
        except ConnectionResetError:
            pass
        return found


def answered(found: bytes) -> tuple[int, str]:
    head, _, body = found.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["message"]


# ------------------------------------------------------------------------------------------------------------------ key


def asked_everywhere(served, headers) -> dict[str, int]:
    """The status of every route there is, and of one that is not."""
    routes = [(route.path, method) for route in served.guard.app.routes for method in route.methods]
    assert {"/health", "/v1/models", "/v1/models/{model}", "/openapi.json"} <= {path for path, _ in routes}
    result = {}
    for path, method in [*routes, ("/nowhere", "GET"), ("/nowhere", "POST"), ("/health", "OPTIONS")]:
        content = json.dumps(CHAT) if method == "POST" else None
        sent = {**headers, **({"Content-Type": "application/json"} if method == "POST" else {})}
        response = served.client.request(method, path.replace("{model}", "toy"), content=content, headers=sent)
        result[f"{method} {path}"] = response.status_code
        if response.status_code == 401 and method != "HEAD":
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
            assert KEY not in response.text
    return result


@pytest.mark.parametrize("kind", ["parrot", "light"])
def test_every_route_is_closed_without_the_key_and_open_with_it(serve, request, kind):
    served = serve(request.getfixturevalue(kind), key=KEY)
    served.client.headers.clear()
    wrong = [
        "",
        "Bearer",
        "Bearer wrong",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Basic {KEY}",
        KEY,
        "Bearer k-é",
    ]
    for value in wrong:
        headers = {"Authorization": value.encode()} if value else {}
        found = asked_everywhere(served, headers)
        assert set(found.values()) == {401}, (value, found)
    found = asked_everywhere(served, {"Authorization": f"Bearer {KEY}"})
    assert not {401, 403, 500} & set(found.values()), found
    own = "POST /v1/chat/completions" if kind == "parrot" else "GET /openapi.json"
    assert (found[own], found["GET /health"], found["GET /nowhere"]) == (200, 200, 404)
    assert found["OPTIONS /health"] == 405, "nothing answers to browsers' questions about other sites"


def test_the_key_is_in_no_log(serve, parrot, capfd, caplog):
    parrot.broken = True
    served = serve(parrot, key=KEY)
    assert served.post("/v1/chat/completions", CHAT).status_code == 500
    assert (
        served.post("/v1/chat/completions", CHAT, headers={"Authorization": "Bearer other-secret"}).status_code == 401
    )
    said = caplog.text + "".join(capfd.readouterr())
    assert "the secret of the house" in said, "the fault itself is in the log"
    assert KEY not in said and "other-secret" not in said


# ------------------------------------------------------------------------------------------------------------- browsers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:9", 200),  # through a tunnel
        ("LOCALHOST", 200),
        ("[::1]:{port}", 200),
        ("evil.example:{port}", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_host_that_is_not_ours_is_refused(serve, parrot, host, status):
    served = serve(parrot)
    found = raw(served.port, f"GET /health HTTP/1.1\nHost: {host.format(port=served.port)}\nConnection: close\n\n")
    assert int(found.split()[1]) == status, found


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:{port}", 200),
        ("http://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1:1", 403),
        ("", 403),
    ],
)
def test_pages_of_other_sites_are_refused(serve, parrot, origin, status):
    served = serve(parrot)
    response = served.post("/v1/chat/completions", CHAT, headers={"Origin": origin.format(port=served.port)})
    assert response.status_code == status
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert bool(parrot.asked) is (status == 200)


def test_a_service_for_others_goes_by_any_name(serve, parrot):
    served = serve(parrot, key=KEY, alone=False)
    assert served.client.get("/health", headers={"Host": "models.example"}).status_code == 200


def test_websockets_are_not_spoken(serve, parrot):
    served = serve(parrot)
    upgrade = f"GET /v1/models HTTP/1.1\nHost: localhost:{served.port}\nConnection: Upgrade, close\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\n\n"
    assert not raw(served.port, upgrade).startswith(b"HTTP/1.1 101")


# ------------------------------------------------------------------------------------------------------------- too much


def test_a_body_over_the_limit_is_refused_announced_or_not(serve, parrot):
    served = serve(parrot, max_body_mb=0.01, request_seconds=2)
    head = f"POST /v1/chat/completions HTTP/1.1\nHost: localhost:{served.port}\nContent-Type: application/json\n"
    status, message = answered(raw(served.port, f"{head}Content-Length: 10001\nConnection: close\n\n"))
    assert status == 413, "refused by what was announced, before any of it came"
    assert "10,001 bytes or more, expected at most 10,000 (max_body_mb)" in message
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    status, message = answered(
        raw(served.port, f"{head}Transfer-Encoding: chunked\nConnection: close\n\n", chunk, chunk, chunk)
    )
    assert (status, "12,288 bytes or more" in message) == (413, True), "and by what came, though the sender goes on"
    exact = json.dumps(CHAT).ljust(10_000).encode()
    sent = f"{head}Content-Length: 10000\nConnection: close\n\n"
    assert raw(served.port, sent, exact[:5000], exact[5000:]).startswith(b"HTTP/1.1 200")
    sent = f"{head}Transfer-Encoding: chunked\nConnection: close\n\n"
    assert raw(served.port, sent, b"2710\r\n" + exact + b"\r\n0\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert len(served.guard.inside) == 0


def test_a_body_that_comes_too_slowly_is_refused_and_its_place_is_free_again(serve, parrot):
    served = serve(parrot, request_seconds=1, queue=0)
    head = f"POST /v1/chat/completions HTTP/1.1\nHost: localhost:{served.port}\nContent-Type: application/json\nContent-Length: 500\n\n"
    start = time.monotonic()
    status, message = answered(raw(served.port, head, *[b" "] * 3, wait=0.3))
    assert (status, message) == (408, "the request did not arrive within 1 seconds (request_seconds)")
    assert time.monotonic() - start < 5
    assert served.post("/v1/chat/completions", CHAT).status_code == 200


@pytest.mark.parametrize("before", [False, True], ids=["the first request", "a later one"])
def test_a_head_that_never_ends_is_hung_up_on(serve, parrot, before):
    served = serve(parrot, request_seconds=1)
    with socket.create_connection(("127.0.0.1", served.port), timeout=15) as connection:
        if before:
            connection.sendall(f"GET /health HTTP/1.1\r\nHost: localhost:{served.port}\r\n\r\n".encode())
            assert b"200" in connection.recv(4096)
        start = time.monotonic()
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n")
        connection.settimeout(0.2)
        closed = False
        while not closed and time.monotonic() - start < 10:
            try:
                connection.sendall(b"X-More: and more\r\n")
                closed = connection.recv(4096) == b""
            except TimeoutError:
                continue
            except OSError:
                closed = True
        assert closed and 0.5 < time.monotonic() - start < 6


def test_a_long_answer_is_not_hung_up_on(serve, parrot):
    parrot.gate = threading.Semaphore(0)
    served = serve(parrot, request_seconds=1)
    threading.Timer(3.5, parrot.gate.release, [100]).start()
    assert served.post("/v1/chat/completions", CHAT).json()["choices"][0]["message"]["content"] == "hello"


# ------------------------------------------------------------------------------------------------------------- too many


def test_a_full_queue_says_when_to_come_again_and_health_is_told(serve, parrot):
    parrot.gate = threading.Semaphore(0)
    served = serve(parrot, queue=2)
    found: list[int] = []

    def ask() -> None:
        found.append(httpx.post(f"{served.url}/v1/chat/completions", json=CHAT, timeout=20).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(served.guard.inside) == 3)
    refused = served.post("/v1/chat/completions", CHAT)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "2"
    assert refused.json()["error"]["code"] == "overloaded"
    assert "3 requests are under way, and no more may wait (queue=2)" in refused.json()["error"]["message"]
    assert served.client.get("/health").json() == {"status": "ok"}
    parrot.gate.release(1000)
    for thread in threads:
        thread.join(20)
    assert found == [200, 200, 200]
    assert served.post("/v1/chat/completions", CHAT).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_frees_the_model(serve, parrot, stream):
    parrot.gate = threading.Semaphore(0)
    served = serve(parrot, queue=0)
    body = {"messages": [{"role": "user", "content": "a" * 150}], "stream": stream}
    with (
        httpx.Client(timeout=20) as client,
        client.stream("POST", f"{served.url}/v1/chat/completions", json=body)
        if stream
        else pytest.raises(httpx.ReadTimeout),
    ):
        if stream:
            until(lambda: parrot.asked)
        else:
            client.post(f"{served.url}/v1/chat/completions", json=body, timeout=0.5)
    until(lambda: len(served.guard.inside) == 0)
    parrot.gate.release(1000)
    assert served.post("/v1/chat/completions", CHAT).json()["choices"][0]["message"]["content"] == "hello"
    assert parrot.tokens < 1 + 1 + len("hello") + 1, "no more than the token that was under way"


def test_who_leaves_while_images_are_looked_at_frees_the_model(serve, light):
    light.gate = threading.Semaphore(0)
    served = serve(light, queue=0)
    images = [("file", ("a.png", picture(9)))] * 40
    with httpx.Client(timeout=0.5) as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{served.url}/v1/predict", files=images)
    until(lambda: len(served.guard.inside) == 0)
    light.gate.release(1000)
    assert served.client.post("/v1/predict", files=images[:3]).status_code == 200
    assert light.seen == 1 + 3, "the image that was under way, and those of the next request"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("queue", -1),
        ("max_body_mb", 0),
        ("max_body_mb", float("nan")),
        ("max_inputs", 0),
        ("request_seconds", 0),
        ("grace_seconds", -1),
    ],
)
def test_limits_say_what_they_may_be(key, value):
    with pytest.raises(UserError, match=f"{key}: found .*, expected a number from"):
        Limits(**{key: value})


# ------------------------------------------------------------------------------------------------------------- stopping


def ask_in_a_thread(served, found: list[object]) -> threading.Thread:
    def ask() -> None:
        try:
            found.append(httpx.post(f"{served.url}/v1/chat/completions", json=CHAT, timeout=20).status_code)
        except httpx.HTTPError as error:
            found.append(type(error).__name__)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_requests_under_way_are_finished_and_new_ones_refused(serve, parrot):
    parrot.gate = threading.Semaphore(0)
    served = serve(parrot)
    found: list[object] = []
    threads = [ask_in_a_thread(served, found) for _ in range(2)]
    until(lambda: len(served.guard.inside) == 2 and parrot.asked)
    served.server.should_exit = True  # as the signal does

    def refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", served.port), timeout=1).close()
        except ConnectionRefusedError:
            return True
        return False

    until(refused)
    assert served.thread.is_alive() and not found
    parrot.gate.release(1000)
    for thread in (*threads, served.thread):
        thread.join(20)
    assert found == [200, 200], "the one that waited as well"
    assert not served.thread.is_alive()


def test_what_takes_longer_than_its_grace_is_cut_off(serve, parrot):
    parrot.gate = threading.Semaphore(0)
    served = serve(parrot, grace_seconds=1)
    found: list[object] = []
    asking = ask_in_a_thread(served, found)
    until(lambda: parrot.asked)
    start = time.monotonic()
    served.server.should_exit = True
    served.thread.join(20)
    asking.join(20)
    assert not served.thread.is_alive() and 0.9 < time.monotonic() - start < 6
    assert found and found[0] != 200
    parrot.gate.release(1000)
    until(lambda: parrot.tokens == 1, 5)
