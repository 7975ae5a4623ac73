"""The service over HTTP: OpenAI's protocol for language runs, `/v1/predict` with a schema made from the labels for the others."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from danlu.core.errors import UserError, nearest
from danlu.models.generate import Sampling
from danlu.serving.engine import Answer, Asked, Engine, Predictor, RequestError, Writer, answer_all, speak
from danlu.serving.guard import Guard, Limits, failure, problem


Check = Callable[[str | None], None]


def create(
    model: Writer | Predictor, name: str, engine: Engine, limits: Limits, key: str | None, hosts: frozenset[str] | None
) -> Guard:
    """The application: routes for the kind of model there is, behind the guard. name: what requests call the model."""
    # No /docs: its page would run a script from another site.
    app = FastAPI(title=f"danlu: {name}", docs_url=None, redoc_url=None, responses={"4XX": {"description": "an error in OpenAI's form"}})  # fmt: skip
    handlers = {UserError: failure, HTTPException: failure, Exception: failure}
    for kind, handler in {**handlers, RequestValidationError: wrong_schema, ValidationError: wrong_schema}.items():
        app.add_exception_handler(kind, handler)
    entry: dict[str, Any] = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "danlu"}

    def check(asked: str | None) -> None:
        if asked is not None and asked != name:
            raise RequestError(404, f"model: found {asked!r}, expected {name!r}", code="model_not_found", param="model")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [entry]}

    @app.get("/v1/models/{model}")
    async def one_model(model: str) -> dict[str, Any]:
        check(model)
        return entry

    if isinstance(model, Writer):
        entry["max_model_len"] = model.context
        _language(app, engine, model, name, check)
    else:
        _prediction(app, engine, model, name, check, limits.max_inputs)
    return Guard(app, key, hosts, limits)


async def wrong_schema(_: Request, error: Exception) -> Response:
    """The first thing that is wrong with a request."""
    assert isinstance(error, RequestValidationError | ValidationError)
    first = error.errors()[0]
    context, place = first.get("ctx", {}), [str(part) for part in first["loc"] if part != "body"]
    param = ".".join([*place, *([context["name"]] if "name" in context else [])]) or None
    message = f"{param}: {first['msg']}"
    if first["type"] == "json_invalid":
        param, message = None, f"the body is not JSON: {context.get('error')}"
    elif param is None:
        message = "the body is not a JSON object sent with Content-Type: application/json"
    return await failure(_, RequestError(400, message, code=context.get("code"), param=param))


# -------------------------------------------------------------------------------------------------------------- requests


WITHOUT: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False,), "top_logprobs": (0,), "logit_bias": ({},),
    "frequency_penalty": (0,), "presence_penalty": (0,), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "function_call": ("none", "auto"), "parallel_tool_calls": (True, False), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "audio": (), "prediction": (), "reasoning_effort": ("none",), "verbosity": (), "store": (False,),
    "service_tier": ("auto", "default"), "web_search_options": (),
}  # fmt: skip
"""What OpenAI's protocol has and this service has not, with the values that ask for nothing: they and null are taken."""


class Strict(BaseModel):
    """A request, or a part of one: no value is converted, and no field is passed over in silence.

    without: as WITHOUT. no_effect: fields that are taken, and change nothing here.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    without: ClassVar[dict[str, tuple[Any, ...]]] = {}
    no_effect: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name, value in given.items():
            if name not in cls.model_fields and name not in cls.without and name not in cls.no_effect:
                name = ascii(name)[1:-1][:64]  # it may be megabytes long, and hold what no answer can
                raise _wrong("unknown_parameter", name, f"unknown field; {nearest(name, cls.model_fields)}")
            if value is not None and value not in cls.without.get(name, (value,)):
                expected = " or ".join(["nothing", *map(json.dumps, cls.without[name])])
                raise _wrong("unsupported_value", name, f"not supported by this service, expected {expected}")
        return {name: value for name, value in given.items() if name in cls.model_fields and value is not None}


def _wrong(code: str, name: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("wrong", "{message}", {"message": message, "code": code, "name": name})


def _encodable(text: str) -> str:
    text.encode()  # half of a surrogate pair, which JSON can name, raises a ValueError
    return text


def _listed(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def _parts(given: Any) -> Any:
    if not isinstance(given, str | list):
        raise PydanticCustomError("wrong", "expected text, or a list of parts")
    return [{"type": "text", "text": given}] if isinstance(given, str) else given


Text = Annotated[str, AfterValidator(_encodable)]


class Part(Strict):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: Text


class Turn(Strict):
    """A message of a conversation."""

    without = {"name": (), "refusal": (), "annotations": ([],), "audio": (), "tool_calls": ([],), "function_call": ()}

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Part], Field(max_length=256), BeforeValidator(_parts, json_schema_input_type=str | list[Part])
    ]


class StreamOptions(Strict):
    """include_usage: a last chunk with the counts of tokens."""

    without = {"include_obfuscation": (False,)}

    include_usage: bool = False


class Generation(Strict):
    """What both routes of language runs understand. The defaults are those of `danlu predict`."""

    without = WITHOUT
    no_effect = ("user", "metadata", "safety_identifier", "prompt_cache_key")

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(Sampling.temperature, ge=0, le=100)
    top_p: float = Field(Sampling.top_p, gt=0, le=1)
    top_k: int = Field(Sampling.top_k, ge=0)
    repetition_penalty: float = Field(Sampling.repetition_penalty, ge=0.01, le=100)
    seed: int = Field(Sampling.seed, ge=-(2**63), lt=2**63)
    stop: Annotated[
        list[Annotated[Text, Field(min_length=1, max_length=1000)]],
        Field(max_length=4),
        BeforeValidator(_listed, json_schema_input_type=str | list[str]),
    ] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="after")
    def _agree(self) -> Generation:
        if 0 < self.temperature < 1e-3:  # logits divided by it would leave float32
            raise _wrong("invalid_value", "temperature", "expected 0 (always the likeliest token), or 0.001 and more")
        if "stream_options" in self.model_fields_set and not self.stream:
            raise _wrong("invalid_value", "stream_options", "only with stream=true")
        return self

    def sampling(self) -> Sampling:
        names = ("temperature", "top_p", "top_k", "seed", "repetition_penalty")
        return Sampling(self.max_tokens or Sampling.max_new_tokens, **{name: getattr(self, name) for name in names})


class Chat(Generation):
    """`/v1/chat/completions`: the answer to a conversation."""

    messages: list[Turn] = Field(min_length=1, max_length=2048)
    max_completion_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_limit(self) -> Chat:
        self.max_tokens, other = self.max_tokens or self.max_completion_tokens, self.max_completion_tokens
        if other not in (None, self.max_tokens):
            raise _wrong("invalid_value", "max_tokens", "differs from max_completion_tokens; give one of them")
        return self

    def asked(self) -> Asked:
        return [{"role": turn.role, "content": "".join(part.text for part in turn.content)} for turn in self.messages]


class Completion(Generation):
    """`/v1/completions`: a text gone on with as it stands, without a chat template."""

    prompt: Text

    def asked(self) -> Asked:
        return self.prompt


# -------------------------------------------------------------------------------------------------------- language runs


def _language(app: FastAPI, engine: Engine, writer: Writer, name: str, check: Check) -> None:
    """`/v1/chat/completions` and `/v1/completions`."""

    async def complete(asked: Chat | Completion, kind: str, key: str, what: str) -> Response:
        check(asked.model)
        prompt, sampling, stops = asked.asked(), asked.sampling(), asked.stop
        facts = {"id": f"{key}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": name}
        if not asked.stream:
            answer = await engine.run(lambda unwanted: speak(writer, prompt, sampling, stops, unwanted=unwanted))
            said = {what: {"role": "assistant", "content": answer.text} if what == "message" else answer.text}
            return JSONResponse(facts | {"choices": [_choice(said, answer.finish)], "usage": _usage(answer)})
        pieces = engine.stream(lambda say, unwanted: speak(writer, prompt, sampling, stops, say, unwanted))
        await anext(pieces)  # the prompt is accepted: from here on the status is 200
        events = _events(pieces, facts, what == "message", asked.stream_options.include_usage)
        return StreamingResponse(events, headers={"Cache-Control": "no-cache"}, media_type="text/event-stream")

    @app.post("/v1/chat/completions")
    async def chat(asked: Chat) -> Response:
        return await complete(asked, "chat.completion", "chatcmpl", "message")

    @app.post("/v1/completions")
    async def completion(asked: Completion) -> Response:
        return await complete(asked, "text_completion", "cmpl", "text")


async def _events(
    pieces: AsyncGenerator[str | Answer], facts: dict[str, Any], chat: bool, counted: bool
) -> AsyncGenerator[str]:
    """An answer as server-sent events, in OpenAI's chunks; counted: each names its usage, which only the last one has."""
    facts["object"] = "chat.completion.chunk" if chat else "text_completion"

    def chunk(choices: list[Any], **usage: Any) -> str:
        return _event(facts | {"choices": choices} | ({"usage": None} | usage if counted else {}))

    if chat:
        yield chunk([_choice({"delta": {"role": "assistant", "content": ""}})])
    async with contextlib.aclosing(pieces):
        try:
            async for piece in pieces:
                if isinstance(piece, Answer):
                    yield chunk([_choice({"delta": {}} if chat else {"text": ""}, piece.finish)])
                    if counted:
                        yield chunk([], usage=_usage(piece))
                elif piece:
                    yield chunk([_choice({"delta": {"content": piece}} if chat else {"text": piece})])
        except Exception:  # the status is sent already: what is left is to say it in the stream
            logging.getLogger(__name__).exception("an answer broke off")
            yield _event(problem(500, "the answer broke off by a fault in the service; its log says more"))
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _choice(said: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, **said, "logprobs": None, "finish_reason": finish}


def _usage(answer: Answer) -> dict[str, int]:
    """All tokens that were generated count, an end token included."""
    total = answer.prompt_tokens + answer.new_tokens
    return {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.new_tokens, "total_tokens": total}


# ----------------------------------------------------------------------------------------------------------- other runs


def _prediction(app: FastAPI, engine: Engine, predictor: Predictor, name: str, check: Check, most: int) -> None:
    """`/v1/predict`."""
    text = predictor.kind == "text"
    about = "texts" if text else "image files in base64, with or without `data:…;base64,` before it"
    inputs: Any = Field(min_length=1, max_length=most, description=about)
    Inputs = create_model("Inputs", __base__=Strict, model=(str | None, None), inputs=(list[Text], inputs))
    content: dict[str, Any] = {"application/json": {"schema": Inputs.model_json_schema()}}
    if not text:
        files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, "maxItems": most}
        form = {"type": "object", "properties": {"file": files}, "required": ["file"]}
        content["multipart/form-data"] = {"schema": form}
    body = {"requestBody": {"content": content, "required": True}}

    @app.post("/v1/predict", response_model=_predictions(predictor.labels), openapi_extra=body)
    async def predict(request: Request) -> dict[str, Any]:
        sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if sent not in content:
            raise RequestError(415, f"Content-Type: found {sent!r}, expected {' or '.join(content)}")
        names: list[str] = []
        given: Sequence[str | bytes]
        if sent == "multipart/form-data":
            names, given = await _uploaded(request, most)
        else:
            asked: Any = Inputs.model_validate_json(await request.body())
            check(asked.model)
            given = asked.inputs if text else [_decoded(number, each) for number, each in enumerate(asked.inputs)]
        data = await engine.run(lambda unwanted: answer_all(predictor, given, unwanted))
        for row, uploaded in zip(data, names, strict=False):
            row["input"] = uploaded
        return {"object": "list", "model": name, "data": data}


def _predictions(labels: Sequence[str]) -> Any:
    """The schema of a response: which labels there are. What a run says beside them, or in their place, is let through."""
    label: Any = Literal.__getitem__(tuple(labels)) if labels else str
    said: dict[str, Any] = {"label": (label, ...), "probabilities": (dict[label, float], ...)} if labels else {}
    named = Field(description="the text, or the name of the uploaded file")
    one: Any = create_model("Prediction", __config__=ConfigDict(extra="allow"), input=(str, named), **said)
    fields: dict[str, Any] = {"object": (Literal["list"], "list"), "model": (str, ...), "data": (list[one], ...)}
    return create_model("Predictions", **fields)


async def _uploaded(request: Request, most: int) -> tuple[list[str], list[bytes]]:
    """Names and contents of the files of a form; a part of it that is not a `file` is an error."""
    async with request.form(max_files=most, max_fields=0) as form:
        parts = form.multi_items()
        files = [part for name, part in parts if name == "file" and isinstance(part, UploadFile)]
        if not files or len(files) < len(parts):
            found = sorted({name for name, _ in parts} - {"file"}) or "none"
            raise RequestError(400, f"found {found}, expected files, each in a part named 'file'", param="file")
        return [file.filename or "" for file in files], [await file.read() for file in files]


def _decoded(number: int, text: str) -> bytes:
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except ValueError as error:
        raise RequestError(400, f"image {number + 1}: not base64: {error}", param=f"inputs.{number}") from None
