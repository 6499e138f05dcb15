"""The Ray cluster: what it needs before it starts, whether it fits, and what it leaves behind."""

import contextlib
import os
import secrets
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tutorial import TutorialError
from tutorial.settings import ROOT, Settings, export

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Caches that libraries keep in the home folder, and where this project keeps them instead.
CACHES = {
    "HF_DATASETS_CACHE": "datasets",  # holds training rows
    "VLLM_CACHE_ROOT": "vllm",
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
    "IPYTHONDIR": "ipython",
}
# Set by another launcher, these would have LLaMA-Factory start a second one in each of Ray Train's workers.
LAUNCHERS = (
    "USE_RAY",
    "USE_MCA",
    "USE_KT",
    "FORCE_TORCHRUN",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
)
ANSWER_S = 5  # that a cluster which is to be joined may take to answer


def prepare(env_file: Path = ROOT / ".env") -> None:
    """Set what Ray and the libraries below it read when they are imported. Call it before `import ray`.

    A cluster that `ray.init` starts here answers only to processes that hold a token made for it. A cluster
    that it joins keeps its own environment; `containerfile` sets the switches of Ray Serve.

    Raises:
        TutorialError: Ray was imported before, and has read that there is no token; or `.env` is wrong.
    """
    export(env_file)
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host.strip()]
        if "*" not in hosts:
            os.environ[name] = ",".join(hosts + [host for host in LOOPBACK if host not in hosts])
    for name, folder in CACHES.items():
        os.environ.setdefault(name, str(ROOT / ".cache" / folder))
    if joins():
        return
    optimize_serve()
    if "RAY_AUTH_MODE" in os.environ:
        return
    if "ray" in sys.modules:
        raise TutorialError("Ray was imported before its authentication was set up; restart the kernel")
    # In the environment, not in Ray's own token file: that one would outlive the run.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def optimize_serve() -> None:
    """Have the Ray Serve that this process imports and starts save threads and messages, unless it is set."""
    os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    # Direct ingress only pays behind HAProxy; alone it leaves a port open for 30 s per ingress.
    os.environ.setdefault("RAY_SERVE_ENABLE_DIRECT_INGRESS", "0")


def joins() -> bool:
    """Whether `ray.init` will join a cluster that runs already, rather than start one here."""
    started = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()), "ray", "ray_current_cluster")
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local") or started.is_file()


def options() -> dict[str, Any]:
    """What `ray.init` needs to start a cluster of this machine alone; nothing if it joins one."""
    if joins():
        return {}
    options = {"num_cpus": max(8, len(os.sched_getaffinity(0))), "include_dashboard": False}
    if version("torch").endswith("+cpu"):  # this environment's torch cannot use a GPU
        options["num_gpus"] = 0
    return options


def runtime_env(env_vars: dict[str, str]) -> dict[str, Any]:
    """`ray.init`'s runtime environment: this project's code and these variables for every worker.

    A submitted job (`ray job submit --working-dir`) has its code already; Ray takes it from one side alone.
    """
    code = {} if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else {"working_dir": str(ROOT)}
    return code | {"env_vars": {name: "0" for name in LAUNCHERS if name in os.environ} | env_vars}


def check_fits(resources: dict[str, float], workers: int, each: dict[str, float]) -> None:
    """On a cluster of this machine alone, TutorialError if the training workers find no room in `resources`.

    A joined cluster may add machines when asked: there Ray Train waits, and this prints what it waits for.
    """
    for kind, amount in each.items():
        if workers * amount > resources.get(kind, 0):
            needed = f"{workers} workers with {amount:g} {kind} each need {workers * amount:g} {kind}"
            if not joins():
                here = f"this machine has {resources.get(kind, 0):g}"
                raise TutorialError(f"{needed}, {here}; set WORKERS to fewer")
            print(f"{needed}, the cluster has {resources.get(kind, 0):g}: waiting for more, or set WORKERS")


def check_idle() -> None:
    """TutorialError if the cluster that was joined serves something: its port and limits are set already, and
    an application of the same name or route would be replaced, and deleted at the end of the run."""
    from ray import serve

    if running := sorted(serve.status().applications):
        raise TutorialError(
            f"the cluster serves {', '.join(running)} already; run this on another, or delete what it serves "
            "(serve shutdown)"
        )


def all_see(config: Settings, nodes: list[dict]) -> bool:
    """Whether every machine of `ray.nodes()` sees `config.shared_folder()`."""
    # A cluster that was joined may get more machines later.
    alone = sum(node["Alive"] for node in nodes) == 1 and not joins()
    return alone or config.shared_dir is not None or config.on_anyscale()


def session_folder() -> Path | None:
    """Ray's folder of sockets and logs, if the cluster was started here; call it before `ray.shutdown`."""
    import ray

    if joins():
        return None
    return Path(ray.nodes()[0]["RayletSocketName"]).parents[1]


def delete_session(folder: Path | None) -> None:
    """Delete what `session_folder` named, and the folder around it if nothing else is there."""
    if folder is None:
        return
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        (folder.parent / "session_latest").unlink()
        folder.parent.rmdir()
