"""The service's door: who comes in, what goes on to the model, and how every error is told."""

import hashlib
import hmac
import json
import logging
import traceback
from collections.abc import Iterator
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from ray.serve.exceptions import BackPressureError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutorial import one_line

T = TypeVar("T", bound=BaseModel)
LARGEST = 2**20  # bytes of a request's body
MOST = 1000  # elements of a list in it, except for a prompt
MOST_ANSWERS = 128  # to one request; as OpenAI's limit of `n`
LONGEST = 500  # characters of a message
# With these a client tells Ray Serve how long its request may take, and not to notice that it went away.
LIMITS = ("x-request-timeout-seconds", "x-request-disconnect-disabled")
# The headers that go on to the model's process. Ray would send all: the key, cookies, what else is secret.
PASSED_ON = ("accept", "content-encoding", "content-length", "content-type", "host", "transfer-encoding")
PASSED_ON += ("user-agent", "x-request-id")
# By these vLLM's own server tells a client's mistake from a failure. Ray Serve LLM knows ValueError alone.
CLIENTS = {"VLLMClientError", "ValueError", "TypeError", "OverflowError", "NotImplementedError"}
CLIENTS |= {"TemplateError"}  # Jinja's
# What vLLM reads a request with: whatever fails in there fails by what the client sent.
READING = ("vllm.v1.engine.input_processor", "vllm.sampling_params", "vllm.renderers")
READING += ("vllm.entrypoints.chat_utils",)
CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 408: "timeout"}
CODES |= {413: "too_large", 415: "unsupported_media_type", 500: "internal_error", 503: "overloaded"}
ERROR = b'data: {"error":'  # so begins an event of a stream that is an error


def digest(key: str) -> str:
    """What the service knows of a key. (A key is random and long: its SHA-256 does not give it away.)"""
    return hashlib.sha256(key.encode()).hexdigest()


class Refused(Exception):
    """What a client is told. Ray can send it from one process to another."""

    def __init__(self, status: int, message: str, code: str | None = None, param=None, headers=None):
        super().__init__(status, message, code, param, headers)
        self.status, self.headers = status, headers
        kind = "invalid_request_error" if status < 500 else "server_error"
        error = {"message": message[:LONGEST], "type": kind, "param": None if param is None else str(param)}
        self.content = {"error": error | {"code": code or CODES.get(status, "invalid_value")}}


def no_model(name: str) -> Refused:
    """For who asks for a model that is not there."""
    message = f"there is no model {name!r}; GET /v1/models lists those there are"
    return Refused(404, message, "model_not_found", "model")


def mistake(error: BaseException | None) -> Refused | None:
    """The client's mistake behind an exception of pydantic's or vLLM's, if it is one."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = f"{place}: {first['msg']}".removeprefix(": ")
        return Refused(400, message, param=place.partition(".")[0] or None)
    if CLIENTS & {kind.__name__ for kind in type(error).__mro__}:
        return Refused(400, one_line(error), param=getattr(error, "parameter", None))
    if type(error).__name__ == "EngineGenerateError":  # vLLM's, around whatever it was
        return mistake(error.__cause__)
    frames = [frame for frame, _ in traceback.walk_tb(getattr(error, "__traceback__", None))]
    reading = any(frame.f_globals.get("__name__", "").startswith(READING) for frame in frames)
    return Refused(400, "the request is not understood") if reading else None


def refusal(error: Exception, request_id: str, offered: str) -> Refused:
    """The one place where an exception becomes what a client is told.

    Of a failure of the service that is the request's id; the log has the rest under it.
    """
    error = getattr(error, "cause", None) or error  # from another process
    if isinstance(error, Refused) and error.status < 500:
        return error
    if isinstance(error, BackPressureError):
        wait = {"Retry-After": f"{error.retry_after_s:.0f}"} if error.retry_after_s else {}
        return Refused(503, "as many requests as may wait are waiting; try again", headers=wait)
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        return Refused(error.status_code, f"{error.detail}; there are {offered}", headers=error.headers)
    status = getattr(error, "status_code", 500)  # of what Ray and vLLM refuse by themselves
    if status < 500 or status == 501:  # 501: what this model cannot do
        message = getattr(error, "message", "") or getattr(error, "detail", "")
        return Refused(status if status in (404, 408) else 400, one_line(ValueError(message)))
    logging.getLogger("ray.serve").error("request %s failed", request_id, exc_info=error)
    return Refused(500, f"the service failed; request {request_id}")


class Door:
    """ASGI middleware: lets in who has a key, passes no secret on, and tells every error in OpenAI's form.

    Args:
        app: what it stands before.
        digests: of the keys that are let in.
        offered: the routes, for who asks for another.
    """

    def __init__(self, app: ASGIApp, digests: list[str], offered: str):
        self.app, self.digests, self.offered = app, digests, offered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the key and the headers, then ask the app."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers, held, begun = Headers(scope=scope), [], False

        async def pass_on(message: Message) -> None:
            nonlocal begun
            for line in message.get("body", b"").splitlines():
                if line.startswith(ERROR):  # in vLLM's words
                    said = json.loads(line.removeprefix(b"data: "))["error"]
                    raise Refused(int(said["code"]), str(said["message"]), param=said.get("param"))
            held.append(message)
            if message["type"] == "http.response.start":
                return  # held until it is known that no error comes first: that has a status of its own
            begun = True
            while held:
                await send(held.pop(0))

        try:
            self._check(headers)
            passed = [(name, value) for name, value in headers.raw if name.decode("latin-1") in PASSED_ON]
            await self.app(scope | {"headers": passed}, receive, pass_on)
        except Exception as error:
            told = refusal(error, headers.get("x-request-id", ""), self.offered)
            if not begun:
                await JSONResponse(told.content, told.status, told.headers)(scope, receive, send)
            else:  # a stream that began as a 200: its last event is the error
                event = f"data: {json.dumps(told.content)}\n\n".encode()
                await send({"type": "http.response.body", "body": event})

    def _check(self, headers: Headers) -> None:
        kind, _, key = headers.get("authorization", "").partition(" ")
        found = digest(key.strip())
        # All are compared, each in constant time: how long it takes says nothing about the key.
        known = [hmac.compare_digest(found, each) for each in self.digests]
        if kind.lower() != "bearer" or not any(known):
            message = "a key is needed that this service knows: Authorization: Bearer <key>"
            raise Refused(401, message, headers={"WWW-Authenticate": "Bearer"})
        if limits := [name for name in LIMITS if name in headers]:
            raise Refused(400, f"{limits[0]}: the service decides how long a request takes", "invalid_header")


async def read(request: Request, kind: type[T]) -> T:
    """A request's body, read once and checked whole: what its validation raises is the client's mistake."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" or request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "send JSON, not compressed, with Content-Type: application/json")
    body, size = bytearray(), 0
    async for piece in request.stream():
        size += len(piece)
        body += piece if size <= LARGEST else b""  # read to its end: who still sends would miss the answer
    if size > LARGEST:
        raise Refused(413, f"the body has {size:,} bytes; at most {LARGEST:,} are taken")
    try:
        given = from_json(bytes(body), allow_inf_nan=False)
        json.dumps(given, allow_nan=False)  # 1e999 is infinite too
        if not isinstance(given, dict):
            raise ValueError("the body is not a JSON object")
        asked = kind.model_validate(given)
        for name, value in asked:
            if name != "prompt" and isinstance(value, list | dict) and len(value) > MOST:
                raise ValueError(f"{name}: {len(value)} elements; at most {MOST} are taken")
            setattr(asked, name, _whole(value))
        prompts = getattr(asked, "prompt", None)
        texts = sum(not isinstance(each, int) for each in prompts) if isinstance(prompts, list) else 1
        if (answers := texts * (asked.n or 1)) > MOST_ANSWERS:
            raise ValueError(f"n: {answers} answers are asked for; at most {MOST_ANSWERS} are given")
        return asked
    except Exception as error:
        raise mistake(error) or Refused(400, "the request is not understood") from None


def _whole(value: Any) -> Any:
    """Pydantic checks some lists when they are read (pydantic#9467); until then they cannot be sent on."""
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    return [_whole(each) for each in value] if isinstance(value, list | Iterator) else value
