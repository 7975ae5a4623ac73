"""What the routes say: to OpenAI's own client, to one that sends nonsense, and of images."""

from __future__ import annotations

import base64
import json

import openai
import pytest
from tests.serving.conftest import Parrot, picture, serving

from danlu.models.generate import Sampling


def client_of(served, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0, timeout=20)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# ------------------------------------------------------------------------------------------------- OpenAI's own client


def test_openais_client_is_answered(serve, parrot):
    with client_of(serve(parrot)) as client:
        found = client.chat.completions.create(
            model="toy", messages=said(" hello "), user="me", n=1, tools=[], logit_bias={}
        )
        assert found.choices[0].message.content == "hello"
        assert (found.choices[0].finish_reason, found.object, found.model) == ("stop", "chat.completion", "toy")
        assert found.id.startswith("chatcmpl-")
        assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (7, 8, 15)
        again = client.chat.completions.create(model="toy", messages=[*said("a"), found.choices[0].message, *said("b")])
        assert again.choices[0].message.content == "b", "an answer can be handed back as it came"
        text = client.completions.create(model="toy", prompt=" hello ", max_tokens=4)
        assert (text.choices[0].text, text.choices[0].finish_reason, text.object) == (
            " hel",
            "length",
            "text_completion",
        )
        assert [each.id for each in client.models.list()] == ["toy"]
        assert client.models.retrieve("toy").owned_by == "danlu"
    assert parrot.asked[0] == (said(" hello "), Sampling())


def test_openais_client_is_streamed_to(serve, parrot):
    with client_of(serve(parrot)) as client:
        chunks = list(
            client.chat.completions.create(
                model="toy", messages=said("日本 go"), stream=True, stream_options={"include_usage": True}
            )
        )
        *some, finish, usage = chunks
        assert "".join(chunk.choices[0].delta.content for chunk in some) == "日本 go"
        assert [chunk.choices[0].delta.role for chunk in some] == ["assistant"] + [None] * (len(some) - 1)
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"} and len(
            {chunk.id for chunk in chunks}
        ) == 1
        assert [chunk.choices[0].finish_reason for chunk in (*some, finish)] == [None] * len(some) + ["stop"]
        assert usage.choices == [] and usage.usage.completion_tokens == len("日本 go".encode()) + 1
        assert all(chunk.usage is None for chunk in chunks[:-1])
        plain = list(client.completions.create(model="toy", prompt="a b", stream=True, max_tokens=2))
        assert "".join(chunk.choices[0].text for chunk in plain) == "a "
        assert plain[-1].choices[0].finish_reason == "length"
        assert {chunk.object for chunk in plain} == {"text_completion"}


def test_what_is_streamed_is_what_is_answered_and_stop_sequences_are_not_shown(serve, parrot):
    with client_of(serve(parrot)) as client:
        asked = {
            "model": "toy",
            "messages": said("one. two.\n\nthree"),
            "stop": ["\n\n", "never"],
            "max_completion_tokens": 50,
        }
        whole = client.chat.completions.create(**asked)
        parts = list(client.chat.completions.create(**asked, stream=True))
    assert (
        whole.choices[0].message.content
        == "one. two."
        == "".join(part.choices[0].delta.content or "" for part in parts)
    )
    assert whole.choices[0].finish_reason == parts[-1].choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens == len("one. two.\n\n")


def test_settings_of_generation_arrive(serve, parrot):
    with client_of(serve(parrot)) as client:
        client.chat.completions.create(
            model="toy", messages=[{"role": "system", "content": "be brief"}, *said("a")], temperature=0.5, top_p=0.9, seed=-7,
            max_completion_tokens=9, extra_body={"top_k": 3, "repetition_penalty": 1.2},
        )  # fmt: skip
        client.chat.completions.create(model="toy", messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}])  # fmt: skip
    assert parrot.asked[0][1] == Sampling(9, 0.5, 0.9, 3, -7, 1.2)
    assert parrot.asked[0][0] == [{"role": "system", "content": "be brief"}, *said("a")]
    assert parrot.asked[1] == (said("ab"), Sampling())


def test_openais_client_raises_its_own_errors(serve, parrot):
    served = serve(parrot, key="right")
    with client_of(served, "wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model="toy", messages=said("a"))
    assert caught.value.code == "invalid_api_key"
    with client_of(served, "right") as client:
        with pytest.raises(openai.NotFoundError, match="found 'gpt-9', expected 'toy'"):
            client.chat.completions.create(model="gpt-9", messages=said("a"))
        for stream in (False, True):
            with pytest.raises(
                openai.BadRequestError, match="300 tokens, expected fewer than the model's context of 200"
            ) as long:
                client.chat.completions.create(model="toy", messages=said("a" * 300), stream=stream)
            assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages")
        with pytest.raises(openai.BadRequestError) as wrong:
            client.chat.completions.create(model="toy", messages="hello")
        assert wrong.value.param == "messages"
        with pytest.raises(openai.BadRequestError, match="n: not supported by this service, expected nothing or 1"):
            client.chat.completions.create(model="toy", messages=said("a"), n=2)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="toy", input="a")
        parrot.broken = True
        with pytest.raises(openai.InternalServerError) as fault:
            client.chat.completions.create(model="toy", messages=said("a"))
        assert "secret" not in str(fault.value)
        with pytest.raises(openai.APIError, match="broke off by a fault"):
            list(client.chat.completions.create(model="toy", messages=said("a"), stream=True))


# ------------------------------------------------------------------------------------------------------------- nonsense


@pytest.fixture(scope="module")
def open_service():
    """One service for all that never reaches the model."""
    parrot = Parrot()
    with serving(parrot) as served:
        yield served, parrot


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"max_tokenz": 3}, "max_tokenz", "unknown field; did you mean 'max_tokens'?"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": None}, "messages", "required"),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            "messages.0.role",
            "'system', 'developer', 'user' or 'assistant'",
        ),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content", "expected text, or a list of parts"),
        ({"messages": [{"role": "user", "content": "a", "name": "me"}]}, "messages.0.name", "not supported"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "a"}]}]},
            "messages.0.content.0.type",
            "'text'",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content.0.text", "surrogates not allowed"),
        ({"messages": said("a") * 2049}, "messages", "at most 2048"),
        ({"temperature": "0.5"}, "temperature", "valid number"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": 1e-30}, "temperature", "0.001 and more"),
        ({"temperature": float("nan")}, "temperature", "finite"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": True}, "max_tokens", "valid integer"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "give one of them"),
        ({"stop": [""]}, "stop.0", "at least 1"),
        ({"stop": list("abcde")}, "stop", "at most 4"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only with stream=true"),
        ({"stream": True, "stream_options": {"include": 1}}, "stream_options.include", "unknown field"),
        ({"n": 2}, "n", "expected nothing or 1"),
        ({"logprobs": True}, "logprobs", "expected nothing or false"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"frequency_penalty": 0.1}, "frequency_penalty", "not supported"),
    ],
)
def test_nothing_is_passed_over_in_silence(open_service, change, param, message):
    served, parrot = open_service
    body = json.dumps({"messages": said("a"), **change})
    response = served.client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert message in error["message"] and error["message"].startswith(param)
    assert not parrot.asked


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        (b"{", "application/json", "the body is not JSON"),
        (b"", "application/json", "messages: Field required|not a JSON object"),
        (b"[1]", "application/json", "not a JSON object"),
        (b'{"messages": []}', "text/plain", "Content-Type: application/json"),
        (b"\xff\xfe", "application/json", "parsing the body|not JSON"),
        (b'{"a": ' * 30_000, "application/json", "parsing the body|not JSON"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", "application/json", "parsing the body|not JSON"),
    ],
)
def test_a_body_that_is_no_request(open_service, content, form, message):
    response = open_service[0].client.post("/v1/chat/completions", content=content, headers={"Content-Type": form})
    assert response.status_code == 400
    assert any(part in response.json()["error"]["message"] for part in message.split("|")), response.text


def test_values_that_ask_for_nothing_are_taken(serve, parrot):
    nothing = {"n": 1, "tools": None, "frequency_penalty": 0.0, "response_format": {"type": "text"}, "stop": None, "metadata": {"a": "b"}}  # fmt: skip
    turns = [{"role": "assistant", "content": "a", "refusal": None, "tool_calls": []}, *said("b")]
    response = serve(parrot).post("/v1/chat/completions", {"messages": turns, **nothing})
    assert response.json()["choices"][0]["message"] == {"role": "assistant", "content": "b"}


# --------------------------------------------------------------------------------------------------------------- images


def test_uploaded_images_are_predicted(serve, light):
    served = serve(light, max_inputs=3)
    contents = [picture(250), picture(3, "JPEG")]
    files = [("file", ("a.png", contents[0], "image/png")), ("file", ("b.jpg", contents[1], "image/jpeg"))]
    found = served.client.post("/v1/predict", files=files).json()
    assert [each["input"] for each in found["data"]] == ["a.png", "b.jpg"]
    assert [each["label"] for each in found["data"]] == ["bright", "dark"]
    assert [{**each, "input": f"image {n}"} for n, each in enumerate(found["data"])] == light(contents)
    coded = [base64.b64encode(content).decode() for content in contents]
    for inputs in (coded, [f"data:image/png;base64,{each}" for each in coded]):
        other = served.post("/v1/predict", {"inputs": inputs, "model": "toy"}).json()
        assert other == {**found, "data": [{**each, "input": f"image {n}"} for n, each in enumerate(found["data"])]}


def test_the_schema_names_the_labels_and_the_upload(serve, light, parrot):
    schema = serve(light).client.get("/openapi.json").json()
    assert schema["components"]["schemas"]["Prediction"]["properties"]["label"]["enum"] == ["bright", "dark"]
    body = schema["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    assert body["multipart/form-data"]["schema"]["properties"]["file"]["items"]["format"] == "binary"
    assert "/v1/chat/completions" not in schema["paths"]
    of_language = serve(parrot).client.get("/openapi.json").json()
    assert "/v1/predict" not in of_language["paths"]
    assert "temperature" in of_language["components"]["schemas"]["Chat"]["properties"]


def test_bad_uploads_are_named(serve, light):
    served = serve(light, max_inputs=2, max_body_mb=0.1)

    def refused(status: int, **sent) -> str:
        response = served.client.post("/v1/predict", **sent)
        assert response.status_code == status, response.text
        return response.json()["error"]["message"]

    one = ("file", ("a.png", picture(9)))
    said = refused(400, files=[one, ("file", ("b.png", b"not one"))])
    assert said == "image 1 cannot be read; mend that input or leave it out, and ask again", "no fix for a command line"
    assert "['image']" in refused(400, files=[one, ("image", ("b.png", picture(9)))])
    assert refused(400, files=[one], data={"file": "text"})
    assert "Too many files" in refused(400, files=[one] * 3)
    assert "100,000 (max_body_mb)" in refused(413, files=[("file", ("a.png", bytes(200_000)))])
    assert "at most 2" in refused(400, json={"inputs": ["aaaa"] * 3})
    assert "at least 1" in refused(400, json={"inputs": []})
    assert "image 2: not base64" in refused(400, json={"inputs": [base64.b64encode(picture(1)).decode(), "?"]})
    assert "image 0 cannot be read" in refused(400, json={"inputs": [""]})
    assert "unknown field; known: inputs, model" in refused(400, json={"inputs": ["aaaa"], "top": 3})
    assert "found 'other', expected 'toy'" in refused(404, json={"inputs": ["aaaa"], "model": "other"})
    assert "expected application/json or multipart/form-data" in refused(415, content=picture(9), headers={"Content-Type": "image/png"})  # fmt: skip
    assert refused(400, content=b"--x\r\n\r\n", headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert refused(400, content=b"none", headers={"Content-Type": "multipart/form-data"})
    assert served.client.post("/v1/predict", files=[one]).status_code == 200
