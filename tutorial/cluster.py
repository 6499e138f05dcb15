"""The Ray cluster: what must be set before it starts, whether it answers and fits, what it leaves behind."""

import contextlib
import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tutorial import TutorialError, machine
from tutorial.settings import ROOT, SUBMITTED, Settings, export

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Caches that libraries would keep in the home folder. They are kept in this project's `.cache`.
CACHES = ("HF_DATASETS_CACHE", "HF_MODULES_CACHE", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "MPLCONFIGDIR")
CACHES += ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR")
# The last is never written to, but vLLM 0.26 keeps a compiled model under a name that depends on it.
CACHES += ("TORCH_HOME", "VLLM_XLA_CACHE_PATH")
# Switches of other launchers: LLaMA-Factory would start Ray or FSDP again inside Ray Train's workers.
LAUNCHERS = ("USE_RAY", "USE_MCA", "USE_KT", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
# Ray Serve saves threads and messages; its direct ingress, without HAProxy, leaves ports open for 30 s. At a
# niceness of 15, Ray's own, other programs leave a worker a thirtieth of a core (ray#33287).
RAY = dict(RAY_SERVE_THROUGHPUT_OPTIMIZED="1", RAY_SERVE_ENABLE_DIRECT_INGRESS="0", RAY_worker_niceness="0")


def prepare(env_file: Path = ROOT / ".env") -> None:
    """Set what Ray and the libraries below it read when they are imported. Call it before `import ray`.

    A cluster that `ray.init` starts here answers only to processes that hold a token made for it. A cluster
    that it joins keeps its own environment; `containerfile` sets the switches of Ray Serve.

    Raises:
        TutorialError: Ray was imported before, and has read that there is no token; or `.env` is wrong.
    """
    export(env_file)
    keep_local()
    if joins():
        return
    # No spaces; short, as sockets' paths have 107 characters at most; outside this project, which Ray packs.
    path = rf"(?!{re.escape(str(ROOT))}(/|$))[\w./+-]"
    if "RAY_TMPDIR" not in os.environ and not re.fullmatch(path + "{1,38}", tempfile.gettempdir()):
        os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="tutorial-ray-", dir="/tmp")
    if not re.fullmatch(path + "*", os.path.abspath(given := os.environ.get("RAY_TMPDIR") or "/")):
        raise TutorialError(f"RAY_TMPDIR={given}: set a path without spaces, outside this project")
    optimize_ray()
    if "RAY_AUTH_MODE" in os.environ:
        return
    if "ray" in sys.modules:
        raise TutorialError("Ray was imported before its authentication was set up; restart the kernel")
    # In the environment, not in Ray's own token file: that one would outlive the run.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def keep_local() -> None:
    """Keep caches in this project, and requests to this machine away from proxies."""
    (ROOT / ".cache").mkdir(exist_ok=True)  # IPython looks whether it may write there
    home = os.environ.get("HOME", "")  # without one, what the hub's client downloads is kept here too
    for name in CACHES if os.path.isdir(home) and os.access(home, os.W_OK) else (*CACHES, "HF_HOME"):
        os.environ.setdefault(name, str(ROOT / ".cache" / name.lower()))
    upper, lower = os.environ.get("NO_PROXY"), os.environ.get("no_proxy")  # programs read one of the two
    for name, value in {"NO_PROXY": upper or lower, "no_proxy": lower or upper}.items():
        hosts = (value or "").split(",")
        if "*" not in hosts:
            os.environ[name] = ",".join(filter(None, dict.fromkeys([*hosts, *LOOPBACK])))


def optimize_ray() -> None:
    """Set the switches of the Ray that this process imports and starts, unless they are set."""
    os.environ |= RAY | dict(os.environ)


def _address() -> tuple[str | None, str]:
    """Of the cluster that `ray.init` will join, None if it starts one here; and where it says so."""
    address = os.environ.get("RAY_ADDRESS", "")
    file = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
    if address in ("", "auto") and file.is_file():
        return (address := file.read_text().strip()), f"{file} ({address})"
    return None if address in ("", "local") else address, f"RAY_ADDRESS={address}"


def joins() -> bool:
    """Whether `ray.init` will join a cluster that runs already, rather than start one here."""
    return _address()[0] is not None


def options() -> dict[str, Any]:
    """What `ray.init` needs to start a cluster of this machine alone; nothing if it joins one.

    Raises:
        TutorialError: no Ray answers where it would join, or not to this user; or memory is short.
    """
    if joins():
        _refuse_silence()
        return {}
    machine.check_memory()
    # Eight at least: some processes wait for others, and Ray must let all of them start.
    options = {"num_cpus": max(8, machine.cores()), "include_dashboard": False}
    if version("torch").endswith("+cpu"):  # this environment's torch cannot use a GPU
        options["num_gpus"] = 0
    return options


def _refuse_silence() -> None:
    """Ask the cluster for a sign of life, by gRPC: `ray.init` waits for minutes if it is gone."""
    import grpc

    address, where = _address()
    if os.environ.get("RAY_USE_TLS") == "1" or address.startswith("anyscale:"):
        return  # these need Ray's own client
    method = "RayletDriver/ClusterInfo" if address.startswith("ray:") else "NodeInfoGcsService/CheckAlive"
    token = os.environ.get("RAY_AUTH_TOKEN", "") if os.environ.get("RAY_AUTH_MODE") == "token" else None
    with grpc.insecure_channel(address.removeprefix("ray://"), [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            call = channel.unary_unary(f"/ray.rpc.{method}")
            call(b"", timeout=5, metadata=[("authorization", f"Bearer {token}")] if token else None)
        except grpc.RpcError as error:
            code = error.code().name
            if code == "UNAUTHENTICATED" and token != "":  # "": in a file, for Ray to read
                wants = "wants its token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
                raise TutorialError(f"{where}: this Ray cluster {wants}") from None
            if code not in ("UNAUTHENTICATED", "NOT_FOUND"):  # NOT_FOUND: of a client that is not connected
                start = "set RAY_ADDRESS=local to start a cluster here"
                raise TutorialError(f"{where}: no Ray cluster answers there; {start}") from None


def runtime_env(env_vars: dict[str, str]) -> dict[str, Any]:
    """`ray.init`'s runtime environment: this project's code and these variables for every worker.

    A submitted job (`ray job submit --working-dir`) has its code already; Ray takes it from one side alone.
    """
    code = {} if SUBMITTED in os.environ else {"working_dir": str(ROOT)}
    if not joins() and shlex.quote(sys.executable) != sys.executable:
        code["py_executable"] = shlex.quote(sys.executable)  # Ray itself does not quote a space in it
    return code | {"env_vars": dict.fromkeys(LAUNCHERS, "0") | env_vars}


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
        advice = "run this on another, or delete what it serves (serve shutdown)"
        raise TutorialError(f"the cluster serves {', '.join(running)} already; {advice}")


def all_see(config: Settings, nodes: list[dict]) -> bool:
    """Whether every machine of `ray.nodes()` sees `config.shared_folder()`."""
    # A cluster that was joined may get more machines later.
    alone = sum(node["Alive"] for node in nodes) == 1 and not joins()
    return alone or config.shared_dir is not None or config.shared_folder() != ROOT / ".cache"


def session_folder() -> Path | None:
    """Ray's folder of sockets and logs, if the cluster was started here; ask before `ray.shutdown`."""
    import ray

    return None if joins() else Path(ray.nodes()[0]["RayletSocketName"]).parents[1]


def delete_session(folder: Path | None) -> None:
    """Delete what `session_folder` named, once Ray is shut down; and Ray's own folder, if that was all."""
    if folder is None or not folder.name.startswith("session_"):
        return
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # another cluster's files are there
        if not (latest := folder.parent / "session_latest").exists():
            latest.unlink(missing_ok=True)
        folder.parent.rmdir()
        if folder.parents[1].name.startswith("tutorial-ray-"):
            folder.parents[1].rmdir()
