"""The service: Ray Serve LLM's public ingress and server, behind a door that asks for a key.

`ray.serve.llm.build_openai_app` takes no FastAPI app, and so no check of keys. Ray's advice is an ingress of
one's own (ray#59578); it is built here from public parts.
"""

import asyncio
import os
import time

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
from tutorial.door import Door, Refused, digest, read
from tutorial.files import Place
from tutorial.replica import Server, adapters_of

ROUTES = {
    "models": ("GET", "/v1/models"),
    "model_data": ("GET", "/v1/models/{model:path}"),
    "completions": ("POST", "/v1/completions"),
    "chat": ("POST", "/v1/chat/completions"),
}
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
        names = [name for base in self.configs for name in await self._names(base)]
        return {"object": "list", "data": [self._card(name) for name in names]}

    async def model_data(self, model: str) -> dict:
        """`/v1/models/{model}`."""
        await self._find(model)
        return self._card(model)

    async def _ask(self, ask, body: ChatCompletionRequest | CompletionRequest, request: Request) -> Response:
        if body.model not in {None, *self.known}:  # a name that was found once is looked for at its replica
            await self._find(body.model)
            self.known.add(body.model)
        return await ask(body, request)

    async def _find(self, model: str) -> None:
        base = model.partition(":")[0]
        if base not in self.configs or model not in await self._names(base):
            message = f"there is no model {model!r}; GET /v1/models lists those there are"
            raise Refused(404, message, "model_not_found", "model")

    async def _names(self, base: str) -> list[str]:
        place, last = self.places[base], f"/{adapters.CONFIG}"  # an adapter's last file
        files = await asyncio.to_thread(place.listing) if place else {}
        names = sorted(file.removesuffix(last) for file in files if file.endswith(last))
        return [base, *(f"{base}:{name}" for name in names if "/" not in name)]

    def _card(self, model: str) -> dict:
        base = model.partition(":")[0]
        longest = self.configs[base].engine_kwargs.get("max_model_len")
        card = {"id": model, "object": "model", "created": self.created, "owned_by": "organization-owner"}
        return card | {"max_model_len": longest, "parent": base if model != base else None}


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
    _verify(configs)
    app = FastAPI(openapi_url=None)
    offered = ", ".join(f"{method} {path.replace(':path', '')}" for method, path in ROUTES.values())
    app.add_middleware(Door, digests=digests, offered=offered)
    app.add_exception_handler(HTTPException, _raise)
    endpoints = {
        name: lambda app, method=method, path=path: app.api_route(path, methods=[method])
        for name, (method, path) in ROUTES.items()
    }
    prefix = f"{LLMServer.__name__}:"
    servers = {
        each.model_id: build_llm_deployment(
            each, deployment_cls=each.server_cls or Server, name_prefix=prefix
        )
        for each in configs
    }
    ingress = serve.deployment(make_fastapi_ingress(Ingress, endpoint_map=endpoints, app=app))
    return ingress.options(**_options(configs, given.ingress_deployment_config)).bind(servers, configs)


def _aws(config: LLMConfig) -> dict[str, str]:
    env_vars = (config.runtime_env or {}).get("env_vars", {})
    return {name: value for name, value in env_vars.items() if name.startswith("AWS_")}


def _verify(configs: list[LLMConfig]) -> None:
    """Compare what is published already with its manifests, in a worker: it has the keys to the storage."""

    def verify(path: str, base: str) -> None:
        adapters.verify_all(Place.of(path, "dynamic_lora_loading_path"), base)

    for config in configs:
        if path := config.lora_config and config.lora_config.dynamic_lora_loading_path:
            task = ray.remote(verify).options(num_cpus=0, runtime_env={"env_vars": _aws(config)})
            try:
                ray.get(task.remote(path, config.model_id))
            except RayTaskError as error:
                told = error.cause if isinstance(error.cause, TutorialError) else None
                raise told or TutorialError(
                    f"dynamic_lora_loading_path={path}: {one_line(error.cause)}"
                ) from None


def _options(configs: list[LLMConfig], given: dict) -> dict:
    """Ray's options for an ingress, with those that are given, and the engines' way to the storage."""
    options = Ingress.get_deployment_options(configs)
    scaling = options.pop("autoscaling_config")
    options |= given
    if "num_replicas" not in given:
        options["autoscaling_config"] = scaling | given.get("autoscaling_config", {})
    env = given.get("ray_actor_options", {}).get("runtime_env", {})
    env_vars = {name: value for config in configs for name, value in _aws(config).items()}
    env_vars |= env.get("env_vars", {})
    if env_vars:
        actor = given.get("ray_actor_options", {}) | {"runtime_env": env | {"env_vars": env_vars}}
        options["ray_actor_options"] = actor
    return options


async def _raise(request: Request, error: Exception) -> Response:
    raise error
