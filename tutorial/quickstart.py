"""A faster start of Ray Serve LLM's replica; the profiles name it.

Each process that imports vLLM takes 10 to 15 seconds, and Ray starts them one after the other.
This depends on the inside of Ray 2.58: a step that fails with another version is left out, and the start is
slower.
"""

import logging
from pathlib import Path

from ray.serve.llm import LLMConfig

logger = logging.getLogger("ray.serve")
# The base class of callbacks has no public name; it is the default of a public field.
Callback = LLMConfig.model_fields["callback_config"].get_default(call_default_factory=True).callback_class


class QuickStart(Callback):
    """For `LLMConfig(callback_config=...)`."""

    async def on_before_node_init(self) -> None:
        """Ray Serve LLM's hook in the replica, before it prepares the nodes."""
        for step in (self._skip_download, self._one_process, self._start_telemetry):
            try:
                step()
            except Exception as error:
                logger.warning("quick start: %s left out: %r", step.__name__, error)

    def _skip_download(self) -> None:
        """A base model that is a folder here needs no task on each node that looks for it."""
        if Path(self.llm_config.model_loading_config.model_source).is_dir():
            self.ctx.run_init_node = False

    def _one_process(self) -> None:
        """The engine's own process runs the model, if the profile says `distributed_executor_backend: uni`.

        On CPUs Ray replaces that by `mp` whenever it reads its engine's configuration (ray#58334). So the
        configuration, an object of this replica alone, gets a subclass of its class.
        """
        asked = self.llm_config.engine_kwargs.get("distributed_executor_backend")
        if not asked:
            return
        config = self.llm_config.get_engine_config()

        class AsAsked(type(config)):
            def get_initialization_kwargs(self) -> dict:
                return super().get_initialization_kwargs() | {"distributed_executor_backend": asked}

        object.__setattr__(config, "__class__", AsAsked)

    def _start_telemetry(self) -> None:
        """The replica waits for an actor that counts usage, in the end: start it beside the engine."""
        from ray.llm._internal.serve.observability.usage_telemetry.usage import (  # ray#55558
            _get_or_create_telemetry_agent,
        )

        _get_or_create_telemetry_agent()
