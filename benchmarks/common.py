"""What the benchmarks share: command line, processes, models, rows, the notebook's cells, tables and JSON."""

import argparse
import contextlib
import importlib
import io
import os
import pickle
import re
import secrets
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from tabulate import tabulate

from tutorial import cluster, data, model, run, settings, storage, tasks
from tutorial.settings import ROOT

RESULTS = ROOT / "benchmarks" / "results"
SHAPES = settings.read_yaml(ROOT / "benchmarks" / "shapes.yaml")  # with random weights
RANK = 8  # of the adapter, as in lora_sft_ray.yaml
ADAPTER = "random"  # the adapter's name
TASK = tasks.load("viggo")
# Settings of a run of the notebook that takes minutes on two CPU cores.
SMALL = {"PROFILE": "cpu", "RECIPE": "lora_sft_ray_cpu.yaml", "DATA": "sample", "SEED": "0"}
SMALL |= {"TRAIN_ROWS": "24", "VAL_ROWS": "4", "TEST_ROWS": "6"}


def parser(
    doc: str, script: str, candidates: dict[str, Any] | None = None, model: bool = False
) -> argparse.ArgumentParser:
    """The options that benchmarks share: of those that compare candidates, and make a `model` for it."""
    form = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(f"python -m benchmarks.{script}", description=doc, formatter_class=form)
    found.set_defaults(script=script)
    found.add_argument("--small", action="store_true", help="a tiny run on the CPU, to see that it works")
    found.add_argument("--data", help="DATA, as in .env.example; not set: the task's synthetic sample")
    found.add_argument("--out", type=Path, help=f"default: benchmarks/results/{script}-<this machine>.json")
    if candidates:
        found.epilog = "candidates:\n" + "\n".join(f"  {name!r}: {each}" for name, each in candidates.items())
        found.add_argument("--candidates", nargs="+", metavar="NAME", help="only these, in this order")
        found.add_argument(
            "--try", dest="more", action="append", default=[], help="YAML: 'name: {key: value}'"
        )
        found.add_argument(
            "--minutes", type=float, default=9, help="no candidate starts that would end later"
        )
    if model:
        shapes = {"choices": [*SHAPES, "135m"], "default": "7b"}
        found.add_argument("--model", **shapes, help="7b has random weights, 135m is SmolLM2")
    return found


def parse(
    options: argparse.ArgumentParser, candidates: dict[str, Any] | None, argv: list[str] | None
) -> argparse.Namespace:
    """The command line with this machine's kind, and for a benchmark that needs a GPU the candidates to run.

    Nothing may have imported Ray before, as this sets up what Ray reads when it is imported.
    """
    args = options.parse_args(argv)
    if candidates:
        for text in args.more:
            candidates = candidates | yaml.safe_load(text)
        if unknown := set(args.candidates or []) - set(candidates):
            options.error(f"no candidate {', '.join(sorted(unknown))}; known: {', '.join(candidates)}")
        args.candidates = {name: candidates[name] or {} for name in args.candidates or candidates}
    args.cpu = args.small or not torch.cuda.is_available()
    if args.small:
        vars(args).update(model="tiny", rows=96)
    if args.cpu and candidates and not args.small:
        options.exit(1, "No GPU here; --small runs a tiny model on the CPU\n")
    cluster.prepare()
    args.machine = {} if args.cpu else alone(machine)
    if not args.out:
        kinds = [*re.findall(r"\w*\d\w*", " ".join(args.machine)), "cpu"]  # H100, 80GB, HBM3, cpu
        folder, kind = (ROOT / "out", "small") if args.small else (RESULTS, kinds[0].lower())
        args.out = folder / f"{args.script}-{kind}.json"
    return args


def machine() -> dict[str, float]:
    """This machine's GPUs, in the form of `ray.cluster_resources()`."""
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"GPU": len(names)} | {f"accelerator_type:{name}": 1.0 for name in names}


def alone(function: Callable[..., Any], *args: Any, env: dict[str, str] | None = None) -> Any:
    """Call a function in a process of its own, which has `env` from its start and frees its GPU memory.

    Raises:
        RuntimeError: the function raised an error, given in one line, or its process was killed.
    """
    module = function.__module__
    if module == "__main__":  # of `python -m benchmarks.train`
        module = sys.modules["__main__"].__spec__.name
    with tempfile.TemporaryDirectory() as folder:
        call, outcome = Path(folder, "call"), Path(folder, "outcome")
        call.write_bytes(pickle.dumps((sys.path, module, function.__name__, args)))
        command = [sys.executable, "-c", "from benchmarks import common; common.child()", folder]
        code = subprocess.run(command, cwd=ROOT, env=os.environ | (env or {}), check=False).returncode
        if not outcome.is_file():
            raise RuntimeError(f"{function.__name__}: its process ended with exit status {code}")
        found, failed = pickle.loads(outcome.read_bytes())  # noqa: S301  written by this program
    if failed:
        raise RuntimeError(failed)
    return found


def child() -> None:
    """What `alone` starts."""
    cluster.prepare()
    folder = Path(sys.argv[1])
    call = (folder / "call").read_bytes()
    sys.path[:], module, name, args = pickle.loads(call)  # noqa: S301  written by this program
    try:
        outcome = getattr(importlib.import_module(module), name)(*args), ""
    except Exception as error:
        from tutorial import stage

        traceback.print_exc()
        outcome = None, stage.reason(error)
    (folder / "outcome").write_bytes(pickle.dumps(outcome))


def compare(
    args: argparse.Namespace,
    measure: Callable[[str, dict], dict],
    derive: Callable[[dict], dict],
    columns: tuple[str, ...],
    levels: str | None = None,
) -> None:
    """Measure the candidates one by one; after each, the JSON is written. Then print a table.

    Args:
        args: what `parse` returned.
        measure: from a candidate's name and overrides to what was found.
        derive: adds what depends on several candidates, and returns what is written beside them.
        columns: of the table: keys of what was found, nested ones as `loss/mean`.
        levels: the key of a list; the table then has a row for each of its items.
    """
    from tutorial import stage

    found, start, longest = {}, time.monotonic(), 0.0
    hidden = ("out", "candidates", "script", "cpu", "machine")
    options = {key: value for key, value in vars(args).items() if key not in hidden}
    options["data"] = Path(args.data or "sample").name  # where it is kept is the machine's own
    for name, overrides in args.candidates.items():
        begun = time.monotonic()
        found[name] = {"overrides": overrides}
        print(f"[{begun - start:4.0f} s] {name}: {overrides}", flush=True)
        try:
            if begun - start + longest > 60 * args.minutes:
                raise TimeoutError(f"not started, for --minutes {args.minutes:g}")
            found[name] |= measure(name, overrides)
        except Exception as error:  # whatever it was, the next candidate may work
            found[name]["failed"] = stage.reason(error)
        longest = max(longest, time.monotonic() - begun)
        done = {name: each for name, each in found.items() if "failed" not in each}
        beside = derive(done)
        written = {"stamp": stage.stamp(args.machine), "options": options, "candidates": found}
        stage.write(args.out, written | beside)
    if named := [{"candidate": name} | each for name, each in done.items()]:
        show(pd.json_normalize(named, levels, ["candidate"] if levels else None, sep="/"), columns)
    for name in found.keys() - done:
        print(f"{name}: {found[name]['failed']}")


def show(table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    """Print these columns, as far as they are there."""
    shown = table.reindex(columns=["candidate", *columns]).dropna(axis="columns", how="all")
    print(tabulate(shown, headers="keys", tablefmt="github", floatfmt=".4g", showindex=False), flush=True)


def rows(count: int, uri: str | None) -> list[dict[str, str]]:
    """Rows of all splits, repeated if there are fewer than `count`."""
    splits = data.load(TASK, uri or "sample")
    return list(islice(cycle(row for part in splits.values() for row in part), count))


def profile(cpu: bool, model_path: Path, overrides: dict[str, dict], **autoscaling: Any) -> settings.Profile:
    """The profile for one engine, with a candidate's sections laid over it; `autoscaling` is Ray Serve's."""
    config = settings.load().model_copy(update={"profile": "cpu" if cpu else "gpu", "workers": 1})
    found = config.choose_profile({})
    found.model = str(model_path)
    for section, changes in overrides.items():
        getattr(found, section).update(changes)
    if autoscaling:
        found.deployment["autoscaling_config"] = autoscaling
    return found


def publish(store: storage.Storage, adapter: Path, base: Path) -> str:
    """Put the adapter where Ray's engines look for it; the address they get."""
    from tutorial import adapters

    adapters.publish(store, adapter, ADAPTER, base=str(base), max_rank=RANK, recipe={})
    return store.for_engines("adapters")


def start_ray(store: storage.Storage | None = None) -> None:
    """Start Ray as the notebook's cell `ray` does; its workers get the keys of `store`."""
    import ray

    with store.worker_keys() if store else contextlib.nullcontext():
        ray.init(
            runtime_env=cluster.runtime_env(store.worker_env() if store else {}),
            log_to_driver=False,
            logging_level="error",
            **cluster.options(),
        )
    ray.data.DataContext.get_current().enable_progress_bars = False


def end_ray(first: Callable[[], None] = lambda: None) -> None:
    """Call `first`, then end Ray."""
    import ray

    from tutorial import stage

    with stage.reports():
        first()
        ray.shutdown()


@contextlib.contextmanager
def served(chosen: settings.Profile, adapter: Path, port: int) -> Iterator[tuple[Callable[..., None], str]]:
    """Run the notebook's service on a Ray of its own, with an adapter's folder as `ADAPTER`.

    Yields a function that deploys it again, from a profile and the tokens of an answer; and the clients' key.
    """
    from ray import serve

    from tutorial import serving

    key = secrets.token_urlsafe(32)
    make_service = run.define("service", serving=serving)["make_service"]
    store = storage.Storage.open(None, "benchmark-serving")

    def deploy(chosen: settings.Profile, max_tokens: int = TASK.max_tokens) -> None:
        engine = chosen.engine_kwargs(RANK, max_tokens)
        app = make_service(chosen, engine, chosen.model, lora_path, [key])
        serve.run_many([serve.RunTarget(app, name="llm")], wait_for_applications_running=False)

    try:
        lora_path = publish(store, adapter, Path(chosen.model))
        chosen.worker_env |= store.engine_env()
        start_ray(store)
        serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 300})
        deploy(chosen)
        serving.wait_until_ready("llm", timeout_s=900)
        yield deploy, key
    finally:
        end_ray(serve.shutdown)
        store.close()


@contextlib.contextmanager
def notebook() -> Iterator[dict[str, Any]]:
    """README.ipynb's cells up to `ask`, run with the settings of the environment: what they define."""
    ids = list(run.cells())
    with contextlib.redirect_stdout(io.StringIO()):
        names = run.define(*ids[: ids.index("ask") + 1])
    try:
        yield names
    finally:
        end_ray()
        names["run"].storage.close()


def ask(names: dict[str, Any], rows: list[dict], systems: dict[str, dict]) -> dict[str, pd.DataFrame]:
    """The batch stage's answers by each of `systems` (as the notebook's `SYSTEMS`), in the rows' order."""
    from tutorial import batch

    questions, size = batch.questions(rows, systems), names["profile"].processor["batch_size"]
    names["ask_all_rows"](questions, names["processor"], names["run"].place, size)
    found = batch.answered(names["run"], questions)
    assert not any(any(part["error"]) for part in found.values())
    return found


def facts(names: dict[str, Any]) -> dict[str, Any]:
    """What a run of the notebook was of, for its JSON."""
    from tutorial import stage

    task, chosen, rows = names["run"].task, names["profile"], names["rows"]
    whole = rows["train"].read == task.expected.get("train")
    return {
        "stamp": stage.stamp(names["run"].resources),
        "profile": chosen.name,
        "data": task.name if whole else f"{task.name}, sample",
        "model": Path(chosen.model).name,
        "recipe": Path(chosen.recipe).name,
        "train_rows": len(rows["train"]),
        "test_rows": len(rows["test"]),
    }


def prepare(name: str) -> tuple[Path, Path]:
    """The folders of a model and of an adapter for it, made once; no hub is asked."""
    config = settings.load()
    real = model.resolve(config.model or model.PACKAGED, config.shared_folder())
    folder = config.shared_folder() / "models" / f"benchmark-{name}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            alone(_make, name, real, Path(made, "model"))
            with contextlib.suppress(OSError):  # another process may have made it too
                Path(made, "model").rename(folder)
    return (folder if name in SHAPES else real), folder / "adapter"


def _make(name: str, real: Path, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    torch.manual_seed(0)
    if name in SHAPES:
        tokenizer = AutoTokenizer.from_pretrained(real)  # Qwen's own is on a hub
        tokenizer.save_pretrained(folder)
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = Qwen2Config(**SHAPES[name], **ends, bos_token_id=None, max_position_embeddings=32768)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            # Greedy decoding must not choose a token that the tokenizer cannot spell: such a token's logit is
            # half of another's, and the largest logit of many is above zero.
            head, known = network.lm_head.weight.data, len(tokenizer)
            head[known:] = head[torch.arange(known, len(head)) % known] / 2
        network.save_pretrained(folder)
    else:
        network = AutoModelForCausalLM.from_pretrained(real, dtype=torch.bfloat16)
    adapter = LoraConfig(
        r=RANK,
        lora_alpha=16,
        target_modules="q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split(),
        init_lora_weights=False,  # B is not zero, as after training
        task_type="CAUSAL_LM",
    )
    get_peft_model(network, adapter).save_pretrained(folder / "adapter", save_embedding_layers=False)
