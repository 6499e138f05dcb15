"""Starting a Serve application without waiting for ever."""

import atexit
import socket
import time

import ray
from ray import serve
from ray.llm._internal.common.callbacks.base import CallbackBase

from tutorial import TutorialError


class QuickStart(CallbackBase):
    """For `LLMConfig(callback_config=...)`: fewer processes that import vLLM, one after the other.

    That import is most of a replica's start on a small machine.
    """

    async def on_before_node_init(self) -> None:
        """Ray Serve LLM's hook in the replica, before it prepares the nodes."""
        # Imported here: in the replica, where vLLM is imported anyway, and not in the notebook.
        from ray.llm._internal.common.utils.cloud_utils import is_remote_path
        from ray.llm._internal.serve.engines.vllm import vllm_models
        from ray.llm._internal.serve.observability.usage_telemetry import usage

        # Where the base model is a folder that every node sees: no process on each node to find that out.
        self.ctx.run_init_node = is_remote_path(self.llm_config.model_loading_config.model_source)
        # On CPU: the engine's process runs the model too. (Ray Serve LLM sets `mp`; GPUs are not touched.)
        vllm_models.EXECUTOR_BACKEND_MP = "uni"
        # The replica waits for this actor at its end; it starts beside the engine now.
        usage._get_or_create_telemetry_agent()


def check_port(port: int, host: str = "127.0.0.1") -> None:
    """TutorialError if another process listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise TutorialError(f"PORT={port}: not allowed to this user; set PORT above 1023") from None
        except OSError:
            raise TutorialError(
                f"PORT={port}: another process uses this port; set PORT to a free one"
            ) from None


def check_cluster() -> None:
    """TutorialError if the cluster that was joined serves something: its port and limits are set already, and
    an application of the same name or route would be replaced, and deleted at the end of the run."""
    if running := sorted(serve.status().applications):
        raise TutorialError(
            f"the cluster serves {', '.join(running)} already; run this on another, or delete what it serves "
            "(serve shutdown)"
        )


def delete_at_exit(application: str) -> None:
    """Delete the application when this process ends, whatever ends it but SIGKILL: on a cluster that was
    joined it would go on, and keep its GPU. Serve ends with it, where it serves nothing else."""

    def delete() -> None:
        if ray.is_initialized():
            serve.delete(application)
            if not serve.status().applications:
                serve.shutdown()  # a controller that stays keeps the port and other options of its own

    atexit.register(delete)


def wait_until_ready(application: str, timeout_s: float) -> float:
    """Return once the application runs; the seconds that it took.

    Raises:
        TutorialError: it failed, or does not run after `timeout_s` seconds; with Serve's own reason.
    """
    start = time.monotonic()
    while True:
        status = serve.status().applications[application]
        if status.status == "RUNNING":
            return time.monotonic() - start
        reasons = [d.message for d in status.deployments.values() if d.message] + [status.message]
        reason = next((r.strip().splitlines()[-1] for r in reasons if r.strip()), "no reason given")
        if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise TutorialError(f"the application {application!r} failed to start: {reason}")
        if time.monotonic() - start > timeout_s:
            raise TutorialError(
                f"the application {application!r} is {status.status} after {timeout_s:.0f} s "
                f"(SERVE_TIMEOUT_S): {reason}"
            )
        time.sleep(0.5)
