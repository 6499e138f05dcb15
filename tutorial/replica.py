"""The model's process behind the service: Ray Serve LLM's server, with adapters that are checked."""

import asyncio
import shutil
import tempfile
from collections import defaultdict
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace

from ray import serve
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest

from tutorial import TutorialError, adapters
from tutorial.door import ERROR, Refused, mistake, no_model
from tutorial.files import Place

AT_ONCE = 2  # pieces of a streamed answer: the role, which has no text, and the first token
GUIDES = ("structured_outputs", "response_format", "tools")  # what makes a grammar
ALONE = {"stream": False, "stream_options": None, "n": 1, "min_tokens": 0}
ALONE |= {"max_tokens": 1, "max_completion_tokens": None}
STORAGE_S = 1  # that the storage may take to say whether an adapter is still there


def adapters_of(config: LLMConfig, **limits: int) -> Place | None:
    """Where a model's adapters are published, if it has any; `limits` as for `Place.of`."""
    path = config.lora_config and config.lora_config.dynamic_lora_loading_path
    return Place.of(path, "dynamic_lora_loading_path", **limits) if path else None


class Adapters:
    """For `LLMServer(model_downloader=...)`: adapters, compared with their manifests when they are fetched.

    They go to a folder of this process. Ray's own belongs to the first account that served on the machine.
    """

    def __init__(self, config: LLMConfig):
        self.place, self.base = adapters_of(config), config.model_id
        self.asked = adapters_of(config, attempts=1, timeout_s=STORAGE_S)
        self.folder = tempfile.TemporaryDirectory(prefix="adapters-")
        self.loaded: dict[str, tuple[str, bytes]] = {}  # folder and manifest, by name

    async def load_model_from_config(self, lora_model_id: str, llm_config: LLMConfig) -> SimpleNamespace:
        """Copy an adapter to this machine, once. Refuse it if that is not what was published."""
        name = lora_model_id.partition(":")[2]

        def fetch() -> None:
            folder = tempfile.mkdtemp(dir=self.folder.name)
            try:
                (self.place / name).copy_to(Place.of(folder))
                adapters.verify(Place.of(folder), base=self.base)
                self.loaded[name] = folder, Path(folder, adapters.MANIFEST).read_bytes()
            finally:
                if name not in self.loaded:
                    shutil.rmtree(folder)

        try:
            if name not in self.loaded:  # Ray asks again for one that it dropped; `check` looks after it
                await asyncio.to_thread(fetch)
        except FileNotFoundError:
            raise no_model(lora_model_id) from None
        except TutorialError as error:
            message = f"{lora_model_id} is not what was published, and is not served"
            raise Refused(404, message, "model_invalid", "model") from error
        return SimpleNamespace(model_id=lora_model_id, local_path=self.loaded[name][0])

    async def check(self, name: str) -> None:
        """Refuse an adapter that was deleted or replaced after this replica loaded it."""

        def manifest() -> bytes:
            if not (self.asked / name / adapters.CONFIG).exists():
                raise FileNotFoundError
            return (self.asked / name / adapters.MANIFEST).read()

        if name not in self.loaded:
            return
        try:
            found = await asyncio.wait_for(asyncio.to_thread(manifest), STORAGE_S)
        except FileNotFoundError:
            raise no_model(f"{self.base}:{name}") from None
        except OSError:  # TimeoutError is one too
            return  # a storage that does not answer takes nothing away
        if found != self.loaded[name][1]:
            message = f"{self.base}:{name} was replaced while it was served; publish it under another name"
            raise Refused(404, message, "model_invalid", "model")


class Server(LLMServer):
    """Ray Serve LLM's server, with adapters that are checked, and a client's mistakes told from failures."""

    async def __init__(self, llm_config: LLMConfig, **options):
        self.adapters, self.loading = Adapters(llm_config), defaultdict(asyncio.Lock)
        await super().__init__(llm_config, model_downloader=lambda **limits: self.adapters, **options)

    async def chat(self, request: ChatCompletionRequest, raw_request_info=None) -> AsyncGenerator:
        """The pieces of a chat completion."""
        return self._ask(super().chat, request, raw_request_info)

    async def completions(self, request: CompletionRequest, raw_request_info=None) -> AsyncGenerator:
        """The pieces of a completion."""
        return self._ask(super().completions, request, raw_request_info)

    async def _ask(self, ask, request, info) -> AsyncGenerator:
        model, checked = serve.get_multiplexed_model_id(), None
        if model:  # beside the request: the first piece waits for both
            checked = asyncio.create_task(self.adapters.check(model.partition(":")[2]))
            checked.add_done_callback(lambda task: task.cancelled() or task.exception())  # or Python warns
        guided = any(getattr(request, name, None) for name in GUIDES)
        if request.stream and guided:
            await self._try(ask, request, info)
        async with self.loading[model]:  # the engine refuses to load an adapter that it is loading already
            pieces = await ask(request, info)
        try:
            async for piece in pieces:
                if checked:
                    await checked
                if isinstance(piece, list) and any(str(each).startswith(ERROR.decode()) for each in piece):
                    await self._try(ask, request, info)
                yield piece
        except Exception as error:
            told = mistake(error)
            if guided and type(error).__name__ == "GenerationError":  # vLLM's, of a request that failed alone
                told = Refused(400, "no answer can follow the grammar, schema or expression that was sent")
            if told:
                raise told from None
            raise

    async def _try(self, ask, request, info) -> None:
        """Ask for one token without a stream: in a stream vLLM does not say what is wrong with a request."""
        known = {name: value for name, value in ALONE.items() if name in type(request).model_fields}
        async for _ in self._ask(ask, request.model_copy(update=known), info):
            pass

    def _batch_output_stream(self, generator: AsyncGenerator) -> AsyncGenerator[list]:
        """Send the beginning of a streamed answer at once. Ray holds pieces back for some milliseconds and
        sends them together; the first token would wait too (until ray#64534 is in)."""
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

    async def __del__(self) -> None:
        """Called by Ray Serve at a replica's end."""
        self.adapters.folder.cleanup()
        await super().__del__()
