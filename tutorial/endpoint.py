"""The service: Ray Serve LLM's public ingress and server, behind a door that asks for a key.

`ray.serve.llm.build_openai_app` takes no FastAPI app, and so no check of keys. Ray's advice is an ingress of
one's own (ray#59578); it is built here from public parts.
"""

import asyncio
import os
import time
from functools import partial

import ray
from fastapi import FastAPI, Request
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.llm import LLMConfig, LLMServingArgs, build_llm_deployment
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tutorial import TutorialError, adapters, one_line, serving, settings
from tutorial.door import Door, digest, no_model, read
from tutorial.files import Place
from tutorial.replica import Server, adapters_of

ROUTES = {
    "models": ("GET", "/v1/models"),
    "model_data": ("GET", "/v1/models/{model:path}"),
    "completions": ("POST", "/v1/completions"),
    "chat": ("POST", "/v1/chat/completions"),
}
# With vLLM's `auto`, the first request with a grammar decides which library reads those of all requests. If
# that is not xgrammar, every `choice` is refused, and so is every grammar of this project (vllm#43920).
GUIDED = {"structured_outputs_config": {"backend": "xgrammar"}}
ARGS = ("llm_configs", "ingress_deployment_config", "key_digests")


class Ingress(OpenAiIngress):
    """Ray Serve LLM's ingress, which reads requests by itself, and lists the adapters that are there now."""

    def __init__(self, servers: dict, configs: list[LLMConfig]):
        super().__init__(servers, dict.fromkeys(servers))
        self.configs = {each.model_id: each for each in configs}
        self.places = {each.model_id: adapters_of(each, attempts=1, timeout_s=2) for each in configs}
        self.known, self.created = set(self.configs), int(time.time())

    async def chat(self, request: Request) -> Response:
        """`/v1/chat/completions`."""
        return await self._ask(super().chat, await read(request, ChatCompletionRequest), request)

    async def completions(self, request: Request) -> Response:
        """`/v1/completions`."""
        return await self._ask(super().completions, await read(request, CompletionRequest), request)

    async def models(self) -> dict:
        """`/v1/models`."""
        return {"object": "list", "data": [card for base in self.configs for card in await self._cards(base)]}

    async def model_data(self, model: str) -> dict:
        """`/v1/models/{model}`."""
        for card in await self._cards(model.partition(":")[0]):
            if card["id"] == model:
                return card
        raise no_model(model)

    async def _ask(self, ask, body: ChatCompletionRequest | CompletionRequest, request: Request) -> Response:
        if body.model not in {None, *self.known}:  # a name that was found once is looked for at its replica
            await self.model_data(body.model)
            self.known.add(body.model)
        return await ask(body, request)

    async def _cards(self, base: str) -> list[dict]:
        """A base model and its adapters, as they are listed; [] if it is not served."""
        if base not in self.configs:
            return []
        names = await asyncio.to_thread(adapters.listed, place) if (place := self.places[base]) else []
        card = {"id": base, "object": "model", "created": self.created, "owned_by": "organization-owner"}
        card |= {"max_model_len": self.configs[base].engine_kwargs.get("max_model_len"), "parent": None}
        return [card, *(card | {"id": f"{base}:{name}", "parent": base} for name in names)]


def build(args: dict) -> serve.Application:
    """`ray.serve.llm.build_openai_app`, but behind keys, and without its CORS, which lets every site in.

    Args:
        args: `llm_configs` and `ingress_deployment_config`, as for `build_openai_app`, and `key_digests`, the
            `digest` of each key; without them the keys are those of `API_KEYS` where this runs.

    Raises:
        TutorialError: there is no key; something else is asked for; or an adapter that is there already is
            not what was published, or made for another base model.
    """
    if unknown := set(args) - set(ARGS):
        raise TutorialError(f"{min(unknown)}: not known here; {', '.join(ARGS)} are")
    if os.environ.get("RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING", "0") != "0":
        raise TutorialError("RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING: it goes past the keys; unset it")
    digests = args.get("key_digests")
    if not digests:
        given = settings.load().api_keys
        if not given or not given.get_secret_value().strip(" ,"):
            raise TutorialError("API_KEYS is not set: the service would let nobody in; set one or more")
        digests = [digest(key) for key in serving.keys(given)]
    given = LLMServingArgs.model_validate({key: args[key] for key in ARGS[:2] if key in args})
    configs = given.llm_configs
    for config in configs:
        _verify(config)
        config.engine_kwargs = _merged(GUIDED, config.engine_kwargs)
    app = FastAPI(openapi_url=None, exception_handlers={HTTPException: _raise})
    offered = ", ".join(f"{method} {path.replace(':path', '')}" for method, path in ROUTES.values())
    app.add_middleware(Door, digests=digests, offered=offered)
    routes = {
        name: partial(FastAPI.api_route, path=path, methods=[method])
        for name, (method, path) in ROUTES.items()
    }
    deploy = partial(build_llm_deployment, name_prefix=f"{LLMServer.__name__}:")
    servers = {each.model_id: deploy(each, deployment_cls=each.server_cls or Server) for each in configs}
    ingress = serve.deployment(make_fastapi_ingress(Ingress, endpoint_map=routes, app=app))
    return ingress.options(**_options(configs, given.ingress_deployment_config)).bind(servers, configs)


def _aws(config: LLMConfig) -> dict[str, str]:
    env_vars = (config.runtime_env or {}).get("env_vars", {})
    return {name: value for name, value in env_vars.items() if name.startswith("AWS_")}


def _verify(config: LLMConfig) -> None:
    """Compare what is published already with its manifests, in a worker: it has the keys to the storage."""

    def verify(path: str, base: str) -> None:  # goes to the worker by value, which imports these two alone
        adapters.verify_all(Place.of(path, "dynamic_lora_loading_path"), base)

    if path := config.lora_config and config.lora_config.dynamic_lora_loading_path:
        task = ray.remote(verify).options(num_cpus=0, runtime_env={"env_vars": _aws(config)})
        try:
            ray.get(task.remote(path, config.model_id))
        except RayTaskError as error:
            if isinstance(error.cause, TutorialError):
                raise error.cause from None
            raise TutorialError(f"dynamic_lora_loading_path={path}: {one_line(error.cause)}") from None


def _options(configs: list[LLMConfig], given: dict) -> dict:
    """Ray's options for an ingress and the engines' way to the storage; over them, what is given."""
    env_vars = {name: value for config in configs for name, value in _aws(config).items()}
    options = {"ray_actor_options": {"runtime_env": {"env_vars": env_vars}}} if env_vars else {}
    options |= Ingress.get_deployment_options(configs)
    if "num_replicas" in given:
        del options["autoscaling_config"]
    return _merged(options, given)


def _merged(one: dict, other: dict) -> dict:
    """The keys of both, and those of dictionaries in both; of others the second's value."""
    both = (key for key, value in other.items() if isinstance(value, dict) and isinstance(one.get(key), dict))
    return one | other | {key: _merged(one[key], other[key]) for key in both}


async def _raise(request: Request, error: Exception) -> Response:
    raise error
