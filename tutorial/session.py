"""A run of the notebook: its settings, its storage, what it measured, and what is left at its end.

`Run` holds what the cells would otherwise repeat. Its methods are the steps between the lesson's own.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tutorial import STARTED, adapters, answers, cluster, data, gpus, model, recipe, settings, stage, tasks
from tutorial.files import Place
from tutorial.kind import Kind
from tutorial.machine import has_bf16
from tutorial.progress import around
from tutorial.settings import ROOT, Profile
from tutorial.storage import Storage


class Run:
    """Read `.env` and the environment, check every setting, and open the storage.

    Create it before `import ray`: it sets environment variables that Ray reads at import time.

    Attributes:
        settings: what the user has set.
        task: the task that `TASK` names, or one made from `DATA`; see `tasks.choose`.
        name: the run's name, and that of its folder in the storage.
        storage: where the run keeps its files.
        place: the run's folder in it.
        api_keys: what clients send; a key made for this run if `API_KEYS` is not set.
        profile: once `choose_profile` was called.
        model_path: the base model's folder on this machine, once `base_model` was called.
        kind: what the answers are, a `kind.Kind`, once `load_rows` was called.
        results: what out/results.json will hold.

    Raises:
        TutorialError: a setting is wrong, the port is taken, or the storage refuses.
    """

    profile: Profile
    model_path: Path
    kind: Kind

    def __init__(self, env_file: Path = ROOT / ".env"):
        cluster.prepare(env_file)
        from tutorial import serving  # imports Ray

        stage.quiet()
        self.settings = config = settings.load(env_file)
        self.task = tasks.choose(config.task, config.data)
        self.api_keys = serving.keys(config.api_keys)
        if config.port:
            serving.check_port(config.port)
        self.storage = Storage.open(config.storage_uri(), config.run_name, config.resume)
        self.place, self.name = self.storage.place, config.run_name
        self.results, self.seconds = {}, {}
        self._rejected = ROOT / "out" / "rejected.jsonl" if config.skip_bad_rows else None
        self._scratch = tempfile.TemporaryDirectory(prefix="adapter-")  # deleted when this process ends
        self._engines = tempfile.TemporaryDirectory(prefix="vllm-", dir="/tmp")  # a short path, for sockets
        self._since = STARTED  # imports are part of a run's time

    @cached_property
    def port(self) -> int:
        """The service's, on loopback: `PORT`, or one that is free when the service is about to start."""
        from tutorial import serving

        return serving.check_port(self.settings.port)

    @property
    def ray_options(self) -> dict[str, Any]:
        """For `ray.init`; TutorialError if no Ray cluster answers where one should run already."""
        env = cluster.runtime_env(self.storage.worker_env())
        return {"runtime_env": env, "log_to_driver": False, "logging_level": "error"} | cluster.options()

    def choose_profile(self) -> Profile:
        """The profile that `PROFILE` names, else the one that fits the cluster; TutorialError if the cluster
        has machines that cannot reach the storage, or serves something else."""
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_no_progress_timeout_s = self.settings.batch_timeout_s
        self.resources, self._session = ray.cluster_resources(), cluster.session_folder()
        # Else the base model's rows share batches with an adapter's, whose tokens a CPU must then pick out.
        context.execution_options.preserve_order = not self.resources.get("GPU")
        self.storage.check_nodes(nodes := ray.nodes())
        self._all_see = cluster.all_see(self.settings, nodes)
        cluster.check_idle()
        self.profile = self.settings.choose_profile(self.resources)
        name, (cpus, gpus) = self.profile.name, (self.resources.get(kind, 0) for kind in ("CPU", "GPU"))
        self.profile.engine |= {} if gpus or has_bf16() else {"dtype": "float32"}
        self._dtype = self.profile.engine.get("dtype", "auto")
        print(f"profile {name}: {cpus:.0f} CPUs, {gpus:.0f} GPUs, {self._dtype}; files: {self.storage}")
        return self.profile

    def base_model(self) -> str | Place:
        """What workers and engines load the base model from: a folder that all machines see, or a copy in the
        storage; TutorialError if `model.resolve` finds none."""
        self.model_path = model.resolve(self.profile.model, self.settings.shared_folder(), self._dtype)
        source = model.publish(self.model_path, self.storage, self._all_see)
        self.lap("set up")
        return source

    def load_rows(self) -> dict[str, list[dict]]:
        """The rows of each split that the run uses; see `data.load`."""
        config, counts = self.settings, self.profile.rows.model_dump()
        allowed = config.sample_allowed(self.profile)
        rows = data.load(self.task, config.data, self._rejected, allowed, counts=counts, seed=config.seed)
        self.results["data"] = data.summary(rows)
        self.kind = answers.of(self.task, rows)
        return rows

    def load_recipe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The profile's recipe as LLaMA-Factory's arguments and Ray Train's; a copy goes to the storage.
        TutorialError if the recipe is wrong, or the cluster or a GPU is too small for it."""
        path = ROOT / self.profile.recipe
        args, ray_args = recipe.load(path, self.resources.get("GPU", 0), gpus.shapes(self.model_path))
        args |= {"bf16": False} if self._dtype == "float32" else {}
        ray_args["num_workers"] = self.settings.workers or ray_args["num_workers"]
        cluster.check_fits(self.resources, ray_args["num_workers"], ray_args["resources_per_worker"])
        if ray_args["use_gpu"]:
            gpus.check(self.model_path, args, self.profile.engine, ray_args["num_workers"])
        self.storage.publish(path.parent, "recipe", [path.name])
        return {"run_name": self.name} | args | {"seed": self.settings.seed}, ray_args

    def publish_rows(self, splits: dict[str, list[dict]], columns: dict[str, str]) -> Place:
        """Write the rows and LLaMA-Factory's `dataset_info.json` to the storage; see `data.write`."""
        with tempfile.TemporaryDirectory() as folder:
            place = self.storage.publish(folder, "data", data.write(splits, Path(folder), columns))
        if self._rejected and self._rejected.exists():
            self.storage.publish(self._rejected.parent, "rejected", [self._rejected.name])
        self.lap("data ingestion")
        return place

    def training_config(self, args: dict[str, Any], model_source: str | Place, rows: Place) -> dict[str, Any]:
        """What `training.workspace` reads on each worker."""
        # Not the callbacks themselves: for them, Ray Train's controller too would import transformers.
        noted = {"place": self.place, "kill_worker": self.settings.kill_worker}
        return {"args": args, "model": model_source, "data": rows, "scratch": self.storage.scratch} | noted

    @contextmanager
    def stage(self, name: str, hint: str = "see the error above") -> Iterator[None]:
        """Around a long call: a line says how far it is, and an error of Ray's becomes a TutorialError with
        this `hint`."""
        folder = Path(tempfile.gettempdir(), self.storage.scratch)
        with stage.in_one_line(name, hint, folder), around(name, self.place, self.results):
            yield
        self.lap(name)

    def collect(self, result):
        """The adapter of a result of Ray Train's, the log, and what became of the killed worker: a
        `training.Trained`."""
        from tutorial import training

        trained = training.Trained(result, self._scratch.name, self.place)
        self.results["training"] = result.metrics | {
            "loss": trained.log["loss"].dropna().tolist(),
            "fault": trained.fault,
            "adapter_mb": round((trained.folder / adapters.WEIGHTS).stat().st_size / 1e6),
        }
        return trained

    def engines(self, chat, rank: int) -> tuple[dict[str, Any], str]:
        """vLLM's engine_kwargs, for adapters of at most this rank, and the address of the adapters that the
        engines may load. What `chat`, a `prompt.Chat`, changes in the chat template goes to the profile."""
        self.profile.worker_env |= self.storage.engine_env()
        if not cluster.joins():  # vLLM leaves its sockets behind, Ray the adapter in the hub's cache
            left = ("VLLM_RPC_BASE_PATH", "XDG_CACHE_HOME")
            self.profile.worker_env |= dict.fromkeys(left, self._engines.name)
        self.profile.processor["chat_template_stage"] |= chat.template_stage
        return self.profile.engine_kwargs(rank, self.task.max_tokens), self.storage.for_engines("adapters")

    def lap(self, name: str) -> None:
        """The time since the last lap, or since the start, belongs to the stage `name`."""
        now = time.monotonic()
        self.seconds[name] = round(self.seconds.get(name, 0) + now - self._since, 1)
        self._since = now

    def close(self) -> None:
        """Write out/results.json and publish it. With `CLEAN_UP=1`, delete what the run wrote. Call it after
        `ray.shutdown`. TutorialError if the storage does not take the results or delete the files."""
        self.lap("clean up")
        about = {"stamp": stage.stamp(self.resources), "profile": self.profile.name, "task": self.task.name}
        about |= {"model": model.model_id(self.profile.model), "max_tokens": self.task.max_tokens}
        times = {"seconds": self.seconds, "total_s": round(sum(self.seconds.values()))}
        stage.write(ROOT / "out" / "results.json", about | self.results | times)
        self.storage.publish(ROOT / "out", "results", ["results.json"], replace=True)
        print(f"{times['total_s']} s in all: {self.seconds}")
        if self.settings.clean_up:  # last, as a storage that is gone must not take the figures with it
            print(f"{self.storage.clean_up()} files of this run deleted")
        elif adapters.keep(self.storage):
            print(f"what `make export` needs is kept in out/{self.name}")
        self.storage.close()
        cluster.delete_session(self._session)
        self._scratch.cleanup()
        self._engines.cleanup()
