"""The service's door: Ray Serve LLM's public ingress behind keys, with every error in OpenAI's form.

`ray.serve.llm.build_openai_app` takes no FastAPI app, and so no check of keys. Ray's advice is an ingress of one's
own (ray#59578); it is built here from public parts.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import from_json
from ray import serve
from ray.serve.exceptions import BackPressureError
from ray.serve.llm import LLMConfig, LLMServingArgs, build_llm_deployment
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutorial import TutorialError, adapters, one_line, settings
from tutorial.files import Place

T = TypeVar("T", bound=BaseModel)
logger = logging.getLogger("ray.serve")
ROUTES = {
    "models": lambda app: app.get("/v1/models"),
    "model_data": lambda app: app.get("/v1/models/{model:path}"),
    "completions": lambda app: app.post("/v1/completions"),
    "chat": lambda app: app.post("/v1/chat/completions"),
}
OFFERED = "GET /v1/models, GET /v1/models/{model}, POST /v1/completions and POST /v1/chat/completions"
KEY_LENGTH = 16  # characters, at least
LARGEST = 4 * 2**20  # bytes of a request's body
# With these a client tells Ray Serve how long its request may take, and not to notice that it went away.
LIMITS = ("x-request-timeout-seconds", "x-request-disconnect-disabled")
# The only headers that go on to the model's process: none of them is a secret.
PASSED_ON = {"accept", "content-type", "content-length", "content-encoding", "transfer-encoding", "host"}
PASSED_ON |= {"x-request-id", "x-session-id", "user-agent", "traceparent", "tracestate"}
# By these vLLM's own server knows mistakes of the client's; Ray Serve LLM knows the second alone.
CLIENTS = {
    "VLLMClientError",
    "ValueError",
    "TypeError",
    "OverflowError",
    "NotImplementedError",
    "TemplateError",
}
AT_ONCE = 2  # pieces of a streamed answer: the role, which has no text, and the first token
STORAGE_S = 3  # that the storage may take to say whether an adapter is still there
CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    503: "overloaded",
}


class Refused(Exception):
    """What a client is told: status, message, code, the parameter that is wrong, headers. Pickles."""

    def __init__(self, status: int, message: str, code: str | None = None, param=None, headers=None):
        super().__init__(status, message, code, param, headers)
        self.status, self.message, self.code, self.param, self.headers = self.args


def refusal(error: Exception, request_id: str) -> Refused:
    """The one place where an exception becomes what the client is told. Its own mistakes are below 500; of a
    failure of the service it learns the request's id, by which the log has the rest."""
    cause = getattr(error, "cause", None) or error  # as Ray brings it from another process
    if isinstance(cause, Refused) and cause.status < 500:
        return cause
    if isinstance(cause, BackPressureError):
        wait = {"Retry-After": f"{cause.retry_after_s:.0f}"} if cause.retry_after_s else {}
        return Refused(503, "as many requests as may wait are waiting; try again", "overloaded", None, wait)
    if isinstance(cause, HTTPException):
        message = {404: f"not found; there are {OFFERED}", 405: f"not allowed here; there are {OFFERED}"}
        text = message.get(cause.status_code, str(cause.detail))
        return Refused(cause.status_code, text, None, None, dict(cause.headers or {}))
    status, message = getattr(cause, "status_code", 500), getattr(cause, "message", "")
    if status in (400, 404, 408, 422, 501) and isinstance(message, str):  # Ray's and vLLM's own refusals
        return Refused(400 if status in (422, 501) else status, one_line(ValueError(message)))
    logger.error("request %s failed", request_id, exc_info=error)
    return Refused(500, f"the service failed; request {request_id}", "internal_error")


def envelope(refused: Refused) -> dict[str, Any]:
    """An error as OpenAI's API words it."""
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    code = refused.code or CODES.get(refused.status, "invalid_value")
    return {"error": {"message": refused.message, "type": kind, "param": refused.param, "code": code}}


def keys(given: SecretStr | None) -> list[str]:
    """The keys of `API_KEYS`, separated by commas; one made for this run if none is given.

    Raises:
        TutorialError: one is short. It does not say which: a key stands in no message.
    """
    listed = given.get_secret_value().split(",") if given else []
    found = [key.strip() for key in listed if key.strip()] or [secrets.token_urlsafe(32)]
    if any(len(key) < KEY_LENGTH or not key.isascii() for key in found):
        raise TutorialError(f"API_KEYS: a key has fewer than {KEY_LENGTH} characters, or some beyond ASCII")
    return found


def digest(key: str) -> str:
    """What the service knows of a key. (A key is random and long: its SHA-256 does not give it away.)"""
    return hashlib.sha256(key.encode()).hexdigest()


class Door:
    """ASGI middleware: lets in who has a key, passes no secret on, and answers every error in OpenAI's form.

    Args:
        app: what it stands before.
        digests: of the keys that are let in.
    """

    def __init__(self, app: ASGIApp, digests: list[str]):
        self.app, self.digests = app, digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the key and the headers, then ask the app."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers, begun = Headers(scope=scope), {}

        async def watched(message: Message) -> None:
            begun.update(message)
            await send(message)

        try:
            self._check(headers)
            passed = [
                (name, value) for name, value in scope["headers"] if name.decode("latin-1") in PASSED_ON
            ]
            await self.app(scope | {"headers": passed}, receive, watched)
        except Exception as error:
            refused = refusal(error, headers.get("x-request-id", ""))
            if not begun:
                await JSONResponse(envelope(refused), refused.status, refused.headers)(scope, receive, send)
            else:  # a stream: its last event is the error
                body = f"data: {json.dumps(envelope(refused))}\n\n".encode()
                await send({"type": "http.response.body", "body": body, "more_body": False})

    def _check(self, headers: Headers) -> None:
        kind, _, key = headers.get("authorization", "").partition(" ")
        found = digest(key.strip())
        # All are compared, each in constant time: how long it takes says nothing about the key.
        known = [hmac.compare_digest(found, each) for each in self.digests]
        if kind.lower() != "bearer" or not any(known):
            message = "a key is needed that this service knows: Authorization: Bearer <key>"
            raise Refused(401, message, headers={"WWW-Authenticate": "Bearer"})
        if limits := [name for name in LIMITS if name in headers]:
            raise Refused(
                400, f"{limits[0]}: the service decides how long a request may take", "invalid_header"
            )


async def read(request: Request, kind: type[T]) -> T:
    """A request's body, read once and checked whole: what its validation raises is the client's mistake."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" or request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(
            415, "send JSON, not compressed, with Content-Type: application/json", "unsupported_media_type"
        )
    body, size = bytearray(), 0
    async for piece in request.stream():
        size += len(piece)
        if size <= LARGEST:  # the rest is read too: a client that still sends would not see the answer
            body += piece
    if size > LARGEST:
        raise Refused(413, f"the body has {size:,} bytes, at most {LARGEST:,} are read", "too_large")
    try:
        given = from_json(bytes(body), allow_inf_nan=False)
        json.dumps(given, allow_nan=False)  # 1e999 is infinite too
        if not isinstance(given, dict):
            raise ValueError("a JSON object is needed")
        asked = kind.model_validate(given)
        for name, value in asked:
            setattr(asked, name, _whole(value))
        return asked
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused(
            400, f"{place}: {first['msg']}", param=str(first["loc"][0]) if first["loc"] else None
        ) from None
    except Exception as error:
        parameter = getattr(error, "parameter", None)
        raise Refused(400, one_line(error), param=parameter and str(parameter)) from None


def _whole(value: Any) -> Any:
    """Pydantic checks some lists only when they are read (pydantic#9467); such a list cannot be sent on."""
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    return [_whole(each) for each in value] if isinstance(value, list | Iterator) else value


class Published:
    """The adapters below `dynamic_lora_loading_path`, as they are in the storage now."""

    def __init__(self, config: LLMConfig):
        path = config.lora_config and config.lora_config.dynamic_lora_loading_path
        self.base = config.model_id
        self.place = (
            Place.of(path, "dynamic_lora_loading_path", attempts=2, timeout_s=STORAGE_S) if path else None
        )
        self.loaded: dict[
            str, str
        ] = {}  # the manifests' digests, by name, as they were when this process loaded them
        self.folder = tempfile.TemporaryDirectory(prefix="adapters-")  # Ray's own is one for all users

    def names(self) -> list[str]:
        """Those that are whole: their configuration is published last."""
        found = [Path(file) for file in self.place.listing()] if self.place else []
        return sorted(
            str(file.parent) for file in found if file.name == adapters.CONFIG and len(file.parts) == 2
        )

    def manifest(self, name: str) -> str | None:
        """The digest of its manifest; None if it is not there."""
        with contextlib.suppress(FileNotFoundError):
            if (self.place / name / adapters.CONFIG).exists():
                return hashlib.sha256((self.place / name / adapters.MANIFEST).read()).hexdigest()
        return None

    def fetch(self, name: str) -> str:
        """Copy it to this machine and compare what was copied with its manifest: the folder."""
        folder = tempfile.mkdtemp(dir=self.folder.name)
        (self.place / name).copy_to(Place.of(folder))
        adapters.verify(Place.of(folder), base=self.base)
        self.loaded.setdefault(name, hashlib.sha256(Path(folder, adapters.MANIFEST).read_bytes()).hexdigest())
        return folder

    async def check(self, name: str) -> None:
        """Refuse a name that is not there any more, or stands for other files than those that were loaded."""
        try:
            async with asyncio.timeout(STORAGE_S):
                found = await asyncio.to_thread(self.manifest, name)
        except (OSError, TimeoutError):
            if name in self.loaded:  # a storage that is silent takes nothing away
                return
            raise
        if found is None:
            raise Refused(
                404,
                f"there is no model {self.base}:{name}; /v1/models lists those there are",
                "model_not_found",
            )
        if self.loaded.get(name, found) != found:
            message = f"{self.base}:{name} was replaced while it is served; publish it under another name"
            raise Refused(404, message, "model_replaced")

    # Ray Serve LLM's interface of `model_downloader`.
    async def load_model_from_config(self, lora_model_id: str, llm_config: LLMConfig) -> SimpleNamespace:
        """Fetch an adapter for the engine."""
        name = lora_model_id.partition(":")[2]
        try:
            folder = await asyncio.to_thread(self.fetch, name)
        except TutorialError as error:
            logger.error("%s", error)
            message = f"{lora_model_id} is not what was published, and is not served; publish it again"
            raise Refused(404, message, "model_invalid") from None
        return SimpleNamespace(model_id=lora_model_id, local_path=folder)


class Server(LLMServer):
    """Ray Serve LLM's server, with adapters that are checked, and client's mistakes told from failures."""

    async def __init__(self, llm_config: LLMConfig, **options):
        self.published = Published(llm_config)
        self._one_at_a_time = defaultdict(asyncio.Lock)
        await super().__init__(llm_config, model_downloader=lambda **limits: self.published, **options)

    async def chat(self, request, raw_request_info=None) -> AsyncGenerator:
        """Answer with pieces of a chat completion."""
        return await self._ask(super().chat, request, raw_request_info)

    async def completions(self, request, raw_request_info=None) -> AsyncGenerator:
        """Answer with pieces of a completion."""
        return await self._ask(super().completions, request, raw_request_info)

    async def _ask(self, ask, request, raw_request_info) -> AsyncGenerator:
        if model := serve.get_multiplexed_model_id():
            await self.published.check(model.partition(":")[2])
            # Several that are the first to ask for an adapter would each have the engine load it.
            async with self._one_at_a_time[model]:
                return self._told(await ask(request, raw_request_info))
        return self._told(await ask(request, raw_request_info))

    @staticmethod
    async def _told(pieces: AsyncGenerator) -> AsyncGenerator:
        try:
            async for piece in pieces:
                yield piece
        except Exception as error:
            if not CLIENTS & {each.__name__ for each in type(error).__mro__}:
                raise
            parameter = getattr(error, "parameter", None)
            raise Refused(400, one_line(error), param=parameter and str(parameter)) from None

    def _batch_output_stream(self, generator: AsyncGenerator) -> AsyncGenerator[list]:
        """Send the beginning of a streamed answer at once. Ray holds pieces back for some milliseconds and sends
        them together; the first token would wait too (ray#64534 changes that)."""
        rest = super()._batch_output_stream

        async def pieces():
            for _ in range(AT_ONCE):
                try:
                    yield [await anext(generator)]
                except StopAsyncIteration:
                    return
            async for together in rest(generator):
                yield together

        return pieces()


class Ingress(OpenAiIngress):
    """Ray Serve LLM's ingress, which reads and checks requests by itself, and lists what is there now."""

    def __init__(self, llm_deployments: dict, configs: list[LLMConfig]):
        self._published = {config.model_id: Published(config) for config in configs}
        self._lengths = {config.model_id: config.engine_kwargs.get("max_model_len") for config in configs}
        self._known, self._created = set(self._published), int(time.time())
        super().__init__(llm_deployments, dict.fromkeys(llm_deployments))

    async def chat(self, request: Request) -> Response:
        """`/v1/chat/completions`."""
        return await self._answer(super().chat, await read(request, ChatCompletionRequest), request)

    async def completions(self, request: Request) -> Response:
        """`/v1/completions`."""
        return await self._answer(super().completions, await read(request, CompletionRequest), request)

    async def models(self) -> dict:
        """`/v1/models`: base models and the adapters that are published now."""
        listed = [name for base in self._published for name in await self._names(base)]
        return {"object": "list", "data": [self._card(name) for name in listed]}

    async def model_data(self, model: str) -> dict:
        """`/v1/models/{model}`."""
        await self._find(model, anew=True)
        return self._card(model)

    async def _names(self, base: str) -> list[str]:
        adapter_names = await asyncio.to_thread(self._published[base].names)
        return [base, *(f"{base}:{name}" for name in adapter_names)]

    async def _find(self, model: str, anew: bool = False) -> None:
        """Refuse a model that is not there. One that was found is asked for again at its replica."""
        if model in self._known and not anew:
            return
        base = model.partition(":")[0]
        if base not in self._published or model not in await self._names(base):
            raise Refused(
                404,
                f"there is no model {model!r}; /v1/models lists those there are",
                "model_not_found",
                "model",
            )
        self._known.add(model)

    def _card(self, model: str) -> dict:
        base = model.partition(":")[0]
        card = {"id": model, "object": "model", "created": self._created, "owned_by": "organization-owner"}
        return card | {"max_model_len": self._lengths[base]} | ({"parent": base} if model != base else {})

    async def _answer(self, ask, body, request: Request) -> Response:
        if body.model is not None:
            await self._find(body.model)
        response = await ask(body, request)
        if isinstance(response, StreamingResponse):
            pieces = _checked(response.body_iterator)
            first = await anext(pieces, "")  # an error before the first piece has a status of its own
            response.body_iterator = _joined(first, pieces)
        return response


async def _joined(first: str, rest: AsyncIterator[str]) -> AsyncGenerator[str]:
    yield first
    async for piece in rest:
        yield piece


async def _checked(pieces: AsyncIterator[str]) -> AsyncGenerator[str]:
    """Raise an error that vLLM sends as an event of a stream, with its own words in it."""
    mark = 'data: {"error":'
    async for piece in pieces:
        if mark in piece and (found := [line for line in piece.splitlines() if line.startswith(mark)]):
            said = json.loads(found[0].removeprefix("data: "))["error"]
            raise Refused(int(said.get("code") or 500), str(said.get("message")), param=said.get("param"))
        yield piece


def build(args: dict) -> serve.Application:
    """`ray.serve.llm.build_openai_app`, but behind keys, and without its CORS, which lets every site in.

    Args:
        args: `llm_configs` and `ingress_deployment_config`, as for `build_openai_app`, and `key_digests`, the
            `digest` of each key; without them the keys are those of `API_KEYS` where this runs.

    Raises:
        TutorialError: there is no key; something else is asked for; or an adapter that is there already is
            not what was published, or made for another base model.
    """
    if unknown := set(args) - {"llm_configs", "ingress_deployment_config", "key_digests"}:
        known = "llm_configs, ingress_deployment_config and key_digests"
        raise TutorialError(f"{min(unknown)}: not known here; {known} are")
    if os.environ.get("RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING", "0") != "0":
        raise TutorialError("RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING: it goes past the keys; unset it")
    digests = args.get("key_digests")
    if not digests:
        given = settings.load().api_keys
        if not given or not given.get_secret_value().strip(" ,"):
            raise TutorialError("API_KEYS is not set: the service would let nobody in; set one or more")
        digests = [digest(key) for key in keys(given)]
    serving = LLMServingArgs.model_validate({k: v for k, v in args.items() if k != "key_digests"})
    configs = serving.llm_configs
    for config in configs:
        if config.lora_config and config.lora_config.dynamic_lora_loading_path:
            adapters.verify_all(Place.of(config.lora_config.dynamic_lora_loading_path), base=config.model_id)
    app = FastAPI(openapi_url=None)
    app.add_exception_handler(HTTPException, _raise)
    app.add_middleware(Door, digests=digests)
    options = Ingress.get_deployment_options(configs)
    given = serving.ingress_deployment_config
    scaling = (
        {}
        if "num_replicas" in given
        else options.pop("autoscaling_config") | given.get("autoscaling_config", {})
    )
    return serve.deployment(
        make_fastapi_ingress(Ingress, endpoint_map=ROUTES, app=app),
        **options | given | ({"autoscaling_config": scaling} if scaling else {}),
    ).bind(
        llm_deployments={
            config.model_id: build_llm_deployment(
                config, deployment_cls=config.server_cls or Server, name_prefix=f"{LLMServer.__name__}:"
            )
            for config in configs
        },
        configs=configs,
    )


async def _raise(request: Request, error: Exception) -> Response:
    raise error
