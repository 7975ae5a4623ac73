"""`danlu serve` as a person runs it: a process of its own, the answers of `danlu predict`, and a clean end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from tests.core.test_run import FACTS
from tests.serving.conftest import Light, picture, serving
from tests.stages.conftest import EXAMPLES, lines

from danlu.core.errors import UserError
from danlu.core.run import open_run
from danlu.stages.serve import answering, checked, find, listen


KEY = "k-0123456789"
DIGITS = EXAMPLES / "digits.npz"
ASKED = [
    ("library for images\nand sounds", {"max_tokens": 16}),
    ("日本語 🌲 <|im_end|> x", {"max_tokens": 40}),
    ("a text editor", {"max_tokens": 12, "temperature": 0.9, "seed": 5, "top_p": 0.8}),
]


@dataclass
class Service:
    """A process that serves, and the file it writes to."""

    process: subprocess.Popen[bytes]
    said: Path
    url: str

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def start(tmp_path) -> Iterator[Any]:
    """`start("RUN", "queue=1")`: a service on a port that is free; ended behind the test, whatever became of it."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: object, **environment: str) -> Service:
        said = tmp_path / f"serve-{len(started)}.txt"
        command = [sys.executable, "-m", "danlu.cli", "serve", *map(str, arguments), "port=0"]
        with said.open("wb") as file:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=file, stderr=file, env=os.environ | environment)
        started.append(process)
        end = time.monotonic() + 60
        while not (found := re.search(r"(http://127[^\s\"]+)", said.read_text("utf-8"))):
            assert process.poll() is None and time.monotonic() < end, said.read_text("utf-8")
            time.sleep(0.05)
        return Service(process, said, found[1])

    yield begin
    for process in started:
        process.kill()
        process.wait(10)


def predicted(danlu, run: Path, text: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What `danlu predict` says; settings under the names of requests."""
    named = [f"{'max_new_tokens' if key == 'max_tokens' else key}={value}" for key, value in settings.items()]
    result = danlu("predict", run, *named, "--json", "--", text)
    assert result.code == 0, result.err
    return result.json[0]


def test_a_chat_run_answers_as_predict_does_and_ends_cleanly(chat_run, danlu, start):
    run = chat_run("method=full", "system=You are brief.")
    service = start(run, "queue=2", DANLU_KEY=KEY)
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        for text, settings in ASKED:
            expected = predicted(danlu, run, text, settings)
            asked: Any = {"model": run.name, "messages": [{"role": "user", "content": text}], **settings}
            whole = client.chat.completions.create(**asked).choices[0]
            assert (whole.message.content, whole.finish_reason) == (expected["answer"], expected["finish"])
            parts = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
            assert "".join(part.delta.content or "" for part in parts) == expected["answer"]
            assert parts[-1].finish_reason == expected["finish"]
        with ThreadPoolExecutor(3) as pool:  # who else asks at the same time changes nothing
            again = list(pool.map(lambda _: client.chat.completions.create(**asked), range(3)))
        assert {each.choices[0].message.content for each in again} == {expected["answer"]}
        plain = client.completions.create(model=run.name, prompt="a text", max_tokens=8)
        assert plain.usage.completion_tokens <= 8 and plain.usage.prompt_tokens > 0
        for words, found in ((400, r"[\d,]+ tokens"), (9000, r"at least [\d,]+ tokens")):
            with pytest.raises(
                openai.BadRequestError, match=f"has {found}, expected fewer than the model's context of 256"
            ):
                client.chat.completions.create(model=run.name, messages=[{"role": "user", "content": "word " * words}])
    assert httpx.get(f"{service.url}/health").status_code == 401
    said = service.said.read_text("utf-8")
    (curl,) = re.findall(r"curl .*", said)
    shown = subprocess.run(["bash", "-c", f"{curl} --silent"], env=os.environ | {"DANLU_KEY": KEY}, capture_output=True, check=True)  # fmt: skip
    assert json.loads(shown.stdout)["choices"][0]["message"]["role"] == "assistant", (
        "the line that is printed runs as it is"
    )
    assert service.stop() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{service.url}/health")
    assert KEY not in service.said.read_text("utf-8")
    assert "Traceback" not in service.said.read_text("utf-8")


def test_a_classifier_answers_as_predict_does_and_ends_with_ctrl_c(text_run, danlu, start, texts):
    run = text_run()
    service = start(run, "--json")
    about = json.loads(service.said.read_text("utf-8"))
    assert (about["kind"], about["model"], about["url"]) == ("text", run.name, service.url)
    asked = [row["text"] for row in texts[:9]] + ["", "日本語", "a long text " * 200]
    expected = danlu("predict", run, "--json", "--", *asked).json
    found = httpx.post(f"{service.url}/v1/predict", json={"inputs": asked}, timeout=60).json()
    assert found == {"object": "list", "model": run.name, "data": expected}
    schema = httpx.get(f"{service.url}/openapi.json").json()["components"]["schemas"]["Prediction"]["properties"]
    assert schema["label"]["enum"] == sorted({row["label"] for row in texts})
    looked: list[int] = []
    assert answering(open_run(run))(asked, lambda: looked.append(1)) == expected and looked, "before each batch"
    too_many = httpx.post(f"{service.url}/v1/predict", json={"inputs": ["a"] * 65})
    assert (too_many.status_code, too_many.json()["error"]["param"]) == (400, "inputs")
    assert httpx.post(f"{service.url}/v1/chat/completions", json={}).status_code == 404
    assert service.stop(signal.SIGINT) == 0
    assert "Traceback" not in service.said.read_text("utf-8")


def test_the_real_chat_model_answers_as_predict_does(smollm2, danlu, conversations, tmp_path):
    data = lines(tmp_path / "chat.jsonl", [{"messages": row["messages"][:2]} for row in conversations])
    made = danlu("finetune", "chat", "model=smollm2-135m", f"data={data}", "steps=1", "batch_size=2", "lora_targets=q_proj", "validation_rows=1", "answers=0", "threads=1", "precision=float32", "out=r")  # fmt: skip
    assert made.code == 0, made.err
    asked = [
        ("Write a synopsis: a game of chess.", {"max_tokens": 10}),
        ("用一句话介绍你自己。", {"max_tokens": 8, "temperature": 1.0, "seed": 3}),
    ]
    with serving(answering(open_run(tmp_path / "r"))) as served:
        for text, settings in asked:
            expected = predicted(danlu, tmp_path / "r", text, settings)
            body = {"messages": [{"role": "user", "content": text}], **settings}
            choice = served.post("/v1/chat/completions", body).json()["choices"][0]
            assert (choice["message"]["content"], choice["finish_reason"]) == (expected["answer"], expected["finish"])


def test_an_image_run_answers_uploads_as_predict_does(danlu, tmp_path):
    from PIL import Image

    made = danlu("pretrain", "mlp", f"data={DIGITS}", "max_rows=300", "steps=2", "baselines=no", "threads=1", "precision=float32", "out=r")  # fmt: skip
    assert made.code == 0, made.err
    names = [f"{place}.png" for place in range(3)]
    with np.load(DIGITS, allow_pickle=False) as content:
        for place, name in enumerate(names):
            Image.fromarray(content["images"][place]).save(tmp_path / name)
    expected = danlu("predict", "r", "--json", *names).json
    with serving(answering(open_run(tmp_path / "r"))) as served:
        files = [("file", (name, (tmp_path / name).read_bytes())) for name in names]
        assert served.client.post("/v1/predict", files=files).json()["data"] == expected
        refused = served.client.post("/v1/predict", files=[*files, ("file", ("x.png", b"no image"))])
    assert refused.status_code == 400
    said = refused.json()["error"]["message"]
    assert "image 4: not an image" in said and "leave it out" in said and "bad_rows" not in said
    looked: list[int] = []
    model = answering(open_run(tmp_path / "r"))
    assert model([*files[0][1][1:], *files[1][1][1:]], lambda: looked.append(1)) == [
        {**row, "input": f"image {n}"} for n, row in enumerate(expected[:2], 1)
    ]
    assert len(looked) == 3, "before each image, and before the batch of both"


def test_the_examples_of_the_page_run_as_they_stand(chat_run, text_run, tmp_path, capsys):
    page = (EXAMPLES.parents[1] / "docs" / "serving.md").read_text("utf-8")
    (python,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    by_text, by_file, by_base64 = re.findall(r"^curl .*", page, re.MULTILINE)
    with serving(answering(open_run(chat_run("method=full")))) as served:
        code = python.replace("http://127.0.0.1:8000", served.url).replace('"demo"', '"toy"')
        capsys.readouterr()
        exec(compile(code.replace("OpenAI(", "OpenAI(max_retries=0, "), "serving.md", "exec"), names := {})
        names["client"].close()
        said = capsys.readouterr().out
        whole, _, streamed = said.partition("\n")
    assert whole and streamed and said.startswith(whole)

    def run(command: str, served: Any) -> Any:
        line = command.replace("http://127.0.0.1:8000", served.url)
        done = subprocess.run(["bash", "-c", f"{line} --silent"], cwd=tmp_path, capture_output=True, check=True)
        return [row["label"] for row in json.loads(done.stdout)["data"]]

    with serving(answering(open_run(text_run()))) as served:
        assert len(run(by_text, served)) == 2
    (tmp_path / "one.png").write_bytes(picture(250))
    (tmp_path / "two.png").write_bytes(picture(3))
    with serving(Light()) as served:
        assert run(by_file, served) == ["bright", "dark"]
        assert run(by_base64, served) == ["bright"]


# -------------------------------------------------------------------------------------------------------------- refused


def unfinished(folder: Path, **facts: Any) -> None:
    """A run `r` without a final model."""
    facts = {"format": 1, "name": "r", "created": "2026-01-01T00:00:00+00:00", "status": "running", **FACTS, **facts}
    (folder / "r").mkdir()
    (folder / "r" / "run.json").write_text(json.dumps(facts), "utf-8")


@pytest.mark.parametrize(
    ("settings", "environment", "message", "fix"),
    [
        (["host=0.0.0.0"], None, "others can reach host=0.0.0.0, and there is no key", "export DANLU_KEY="),
        (["host=127.0.0.2"], None, "others can reach host=127.0.0.2, and there is no key", "export DANLU_KEY="),
        (["host=::"], None, "others can reach host=::, and there is no key", "host=127.0.0.1"),
        (["host="], None, "host= is not an address", "host=127.0.0.1"),
        (["key="], None, "the key is empty", "letters"),
        ([], "", "the key is empty", "letters"),
        (["key=two words"], None, "holds what a header cannot", "letters"),
        (["host=no.such.invalid"], None, "host=no.such.invalid is not an address", "host=127.0.0.1"),
        (["host=192.0.2.1"], "k-987", "port 8000 of 192.0.2.1 cannot be had", "of this machine"),
        (["port=70000"], None, "port: found 70000, expected 0", "port=8000"),
        (["port=http"], None, "port: found 'http', expected a whole number", "port=1"),
        (["queue=-1"], None, "queue: found -1", "queue=16"),
        (["prot=8001"], None, "unknown key 'prot'", "did you mean 'port'"),
    ],
)
def test_what_cannot_be_is_said_before_the_model_is_read(
    danlu, tmp_path, monkeypatch, settings, environment, message, fix
):
    unfinished(tmp_path)
    monkeypatch.delenv("DANLU_KEY", raising=False)
    if environment is not None:
        monkeypatch.setenv("DANLU_KEY", environment)
    result = danlu("serve", "r", *settings)
    assert result.code == 2
    assert message in result.err and fix in result.err
    assert result.out == "" and "k-987" not in result.err


def test_a_generator_is_refused(danlu, tmp_path):
    unfinished(tmp_path, task="gan")
    result = danlu("serve", "r", "port=0")
    assert result.code == 2 and "danlu predict r out=new.png" in result.err


def test_an_unfinished_run_and_none_at_all_are_refused(danlu, tmp_path):
    unfinished(tmp_path)
    result = danlu("serve", "r", "port=0")
    assert result.code == 2 and "r has no final model yet" in result.err
    assert danlu("serve", "nothing").code == 2
    assert "no run named" in danlu("serve").err


def test_a_port_in_use_is_refused(danlu, tmp_path):
    unfinished(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = danlu("serve", "r", f"port={port}")
    assert result.code == 2
    assert f"port {port} of 127.0.0.1 is in use" in result.err


def test_a_missing_package_is_named(danlu, tmp_path, monkeypatch):
    unfinished(tmp_path)
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    result = danlu("serve", "r")
    assert result.code == 2
    assert "needs python_multipart" in result.err and "pip install 'danlu[serve]'" in result.err


def test_this_machine_alone_needs_no_key():
    for host in ("127.0.0.1", "localhost", "127.0.0.2"):
        with listen(*find(host, 0), host) as listener:
            assert listener.getsockname()[0].startswith("127.")
            assert listener.proto == socket.IPPROTO_TCP, "or every answer takes 40 ms longer"
    assert checked(None, alone=True, host="localhost") is None
    assert checked(KEY, alone=False, host="0.0.0.0") == KEY
    for bad in ("a\nb", "é", " a", "a\x7f"):
        with pytest.raises(UserError):
            checked(bad, alone=True, host="localhost")
