"""The service's door: Ray Serve LLM's ingress, with keys, and errors that OpenAI's client understands.

Built of Ray's public ingress; its app and its list of routes are from inside the pinned version.
"""

import hashlib
import hmac
import secrets
import sys
from collections.abc import AsyncGenerator

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from pydantic import SecretStr
from ray import serve
from ray.exceptions import RayTaskError
from ray.llm._internal.common.dict_utils import maybe_apply_llm_deployment_config_defaults
from ray.llm._internal.serve.constants import RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING
from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
from ray.llm._internal.serve.core.ingress.ingress import DEFAULT_ENDPOINTS, init
from ray.serve._private.constants import (
    SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
    SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
)
from ray.serve.deployment import Application
from ray.serve.exceptions import BackPressureError
from ray.serve.llm import LLMServingArgs, build_llm_deployment
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tutorial import TutorialError, adapters, one_line, settings

ROUTES = ("models", "model_data", "completions", "chat")  # what is offered of `DEFAULT_ENDPOINTS`
KEY_LENGTH = 16  # characters, at least
AT_ONCE = 2  # pieces of a streamed answer: the role, which has no text, and the first token
# By these a client tells Ray Serve how long its request may take, and not to see whether it went away.
UNBOUND = (SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER, SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER)


def error(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as OpenAI's API words it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    content = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return JSONResponse(content, status, headers)


def keys(given: SecretStr | None) -> list[str]:
    """The keys of `API_KEYS`, separated by commas; one made for this run where none is given.

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


class Keys:
    """ASGI middleware: nothing gets in without `Authorization: Bearer <key>`, nor past the service's limits.

    Args:
        app: what it stands before.
        digests: of the keys that are let in.
    """

    def __init__(self, app: ASGIApp, digests: list[str]):
        self.app, self.digests = app, digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask for the key; 401 without one or with another, 400 for a header that lifts a limit."""
        app = self.app
        if scope["type"] != "lifespan":
            headers = Headers(scope=scope)
            kind, _, key = headers.get("authorization", "").partition(" ")
            found = digest(key.strip())
            # All are compared, each in constant time: how long it takes says nothing about the key.
            known = [hmac.compare_digest(found, each) for each in self.digests]
            if kind.lower() != "bearer" or not any(known):
                message = "a key is needed that this service knows: Authorization: Bearer <key>"
                app = error(401, message, "invalid_api_key", {"WWW-Authenticate": "Bearer"})
            elif lifts := [name for name in UNBOUND if name in headers]:
                app = error(
                    400, f"{lifts[0]}: how long a request may take is the service's", "invalid_header"
                )
        await app(scope, receive, send)


class Server(LLMServer):
    """Ray Serve LLM's server, but the beginning of a streamed answer does not wait.

    Ray holds the pieces of an answer back and passes on together what came in `stream_batching_interval_ms`:
    each message on the way to the client costs more than the token in it. The first token would wait too.
    """

    def _batch_output_stream(self, generator: AsyncGenerator) -> AsyncGenerator[list]:
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
    """Ray Serve LLM's ingress, which also says at once what it cannot answer."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._known: set[str] = set()  # what was found once is served though the storage may be silent now

    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        """`/v1/chat/completions`."""
        return await self._answer(super().chat, body, request)

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """`/v1/completions`."""
        return await self._answer(super().completions, body, request)

    async def _answer(self, ask, body, request: Request) -> Response:
        if body.model and body.model not in self._known:
            if await self.model(body.model) is None:
                message = f"there is no model {body.model!r}; /v1/models lists those there are"
                return error(404, message, "model_not_found")
            self._known.add(body.model)
        try:
            return await ask(body, request)
        except BackPressureError as full:
            wait = {"Retry-After": f"{full.retry_after_s:.0f}"} if full.retry_after_s else {}
            return error(full.status_code, "as many requests as may wait are waiting", "overloaded", wait)
        except Exception as failed:
            cause = failed.cause if isinstance(failed, RayTaskError) else failed  # as Serve's gRPC brings it
            if "has already been loaded" in str(cause):  # several were the first to ask for an adapter
                return await ask(body, request)
            known = sys.modules.get("vllm.exceptions")  # imported with an error of its own
            if not known or not isinstance(cause, known.VLLMValidationError):
                raise
            return error(400, one_line(cause), "invalid_value")


def build(args: dict) -> Application:
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
    if RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING:
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
        if config.lora_config:
            adapters.verify_all(config.lora_config.dynamic_lora_loading_path, base=config.model_id)
    app: FastAPI = init()
    app.user_middleware = [each for each in app.user_middleware if each.cls is not CORSMiddleware]
    app.add_middleware(Keys, digests=digests)  # the last one added is the first that is asked
    ingress = make_fastapi_ingress(
        Ingress, endpoint_map={name: DEFAULT_ENDPOINTS[name] for name in ROUTES}, app=app
    )
    options = maybe_apply_llm_deployment_config_defaults(
        Ingress.get_deployment_options(configs), serving.ingress_deployment_config
    )
    return serve.deployment(ingress, **options).bind(
        llm_deployments={
            config.model_id: build_llm_deployment(
                config, deployment_cls=config.server_cls or Server, name_prefix=f"{LLMServer.__name__}:"
            )
            for config in configs
        },
        model_cards={config.model_id: to_model_metadata(config.model_id, config) for config in configs},
        lora_paths={
            config.model_id: config.lora_config.dynamic_lora_loading_path
            for config in configs
            if config.lora_config
        },
    )
