"""What the benchmarks on a GPU share: cells of the notebook, models, rows, command line, table and JSON."""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import yaml
from pydantic import SecretStr
from ray.exceptions import RayError
from tabulate import tabulate

from tutorial import adapters, data, failure, model, results, settings, storage, task
from tutorial.settings import ROOT

# Shapes with random weights: the speed of a model does not depend on their values.
SHAPES = {
    "7b": {  # Qwen2.5-7B's config.json
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 49160,  # a few more than the tokenizer knows, as Qwen's has
    },
}
RANK = 8  # of the adapter, as in lora_sft_ray.yaml
ADAPTER = "random"  # the adapter's name
TASK = task.load("viggo")


def parser(doc: str, file: str, candidates: dict[str, Any]) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    found = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{Path(file).stem}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="candidates:\n" + "\n".join(f"  {name!r}: {each}" for name, each in candidates.items()),
    )
    found.add_argument("--small", action="store_true", help="a tiny model on the CPU, to see that it works")
    found.add_argument(
        "--model", choices=[*SHAPES, "135m"], default="7b", help="7b has random weights, 135m is the real one"
    )
    found.add_argument("--data", help="DATA, as in .env.example; not set: the task's embedded sample")
    found.add_argument("--candidates", nargs="+", metavar="NAME", help="these alone, in this order")
    found.add_argument(
        "--try",
        dest="more",
        action="append",
        default=[],
        metavar="YAML",
        help="one more: 'name: {key: value}'",
    )
    found.add_argument("--minutes", type=float, default=9, help="no candidate begins that would end later")
    found.add_argument(
        "--out",
        type=Path,
        default=Path(file).with_name(f"gpu_{Path(file).stem}.json"),
        help="default: beside the script",
    )
    return found


def parse(options: argparse.ArgumentParser, candidates: dict[str, Any]) -> argparse.Namespace:
    """The command line, with the candidates to run; ends the program where there is no GPU."""
    args = options.parse_args()
    for text in args.more:
        candidates = candidates | yaml.safe_load(text)
    if unknown := set(args.candidates or []) - set(candidates):
        options.error(f"no candidate {', '.join(sorted(unknown))}; known: {', '.join(candidates)}")
    args.candidates = {name: candidates[name] or {} for name in args.candidates or candidates}
    import torch  # imported here: it takes seconds, and --help does not need it

    if args.small:
        args.model = "tiny"
        if "rows" in args:
            args.rows = min(args.rows, 96)
    elif not torch.cuda.is_available():
        options.exit(1, "No GPU here; --small runs a tiny model on the CPU\n")
    return args


def cell(marker: str) -> str:
    """The source of the one code cell of README.ipynb that holds the marker."""
    cells = json.loads((ROOT / "README.ipynb").read_text(encoding="utf-8"))["cells"]
    [source] = [s for c in cells if c["cell_type"] == "code" and marker in (s := "".join(c["source"]))]
    return source


def execute(source: str, names: dict[str, Any]) -> None:
    """Run a cell among these names. As in the notebook, what it defines goes to Ray's workers by value."""
    names.setdefault("__name__", "__main__")
    exec(source, names)  # noqa: S102  the project's own cell


def alone(function: Callable[..., Any], *args: Any, env: dict[str, str] | None = None) -> Any:
    """Call a function in a process of its own: `env` is set before its imports, its GPU memory free after."""
    before = dict(os.environ)
    os.environ.update(env or {})
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_call, function, *args).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _call(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except RayError as error:  # some of these cannot be sent to another process
        raise RuntimeError(failure.reason(error)) from None


def run(
    args: argparse.Namespace,
    measure: Callable[[str, dict], dict],
    show: Callable[[dict], list],
    together: Callable[[dict], dict] = lambda found: {},
) -> None:
    """Measure the candidates one by one; what is known is written after each.

    Args:
        args: of the command line.
        measure: from a candidate's name and overrides to what was found.
        show: from all that was found to the rows of the table.
        together: from all that was found to what is written beside it.
    """
    stamp, found, start, longest = results.stamp(alone(machine)), {}, time.monotonic(), 0.0
    options = {key: value for key, value in vars(args).items() if key not in ("out", "candidates")}
    options["data"] = Path(args.data or "sample").name  # where it is kept is the machine's own
    for name, overrides in args.candidates.items():
        begun = time.monotonic()
        if begun - start + longest > 60 * args.minutes:
            found[name] = {"overrides": overrides, "failed": f"not begun, for --minutes {args.minutes:g}"}
        else:
            print(f"[{begun - start:4.0f} s] {name}: {overrides}", flush=True)
            try:
                found[name] = {"overrides": overrides} | measure(name, overrides)
            except Exception as error:  # whatever it was, the next candidate may work
                found[name] = {"overrides": overrides, "failed": failure.reason(error)}
        longest = max(longest, time.monotonic() - begun)
        shown = show(found)
        written = {"stamp": stamp, "options": options, "candidates": found} | together(found)
        results.write(args.out, written)
    failed = [{"candidate": name, "failed": f["failed"]} for name, f in found.items() if "failed" in f]
    for table in filter(None, (shown, failed)):
        print(tabulate(table, headers="keys", tablefmt="github", floatfmt=".4g"), flush=True)


def machine() -> dict[str, float]:
    """This machine's GPUs, in the way of `ray.cluster_resources()`."""
    import torch

    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"GPU": len(names)} | {f"accelerator_type:{name}": 1.0 for name in names}


def rows(count: int, uri: str | None) -> list[dict[str, str]]:
    """Rows of all splits, as often as it takes."""
    splits = data.load(TASK, uri or "sample")
    return list(islice(cycle(row for part in splits.values() for row in part), count))


def profile(args: argparse.Namespace, model_path: Path, overrides: dict[str, dict]) -> settings.Profile:
    """The profile for one engine, with a candidate's sections laid over it."""
    config = settings.load().model_copy(update={"profile": "cpu" if args.small else "gpu", "workers": 1})
    found = config.choose_profile({})
    found.model = str(model_path)
    for section, changes in overrides.items():
        getattr(found, section).update(changes)
    return found


def engine_kwargs(chosen: settings.Profile) -> dict[str, Any]:
    """What the notebook gives to its engines."""
    return chosen.engine | {
        "enable_lora": True,
        "max_lora_rank": RANK,
        "generation_config": "vllm",
        "override_generation_config": {"max_new_tokens": TASK.max_tokens},
    }


def publish(store: storage.Storage, adapter: Path, base: Path) -> None:
    """Put the adapter where Ray's engines look for it."""
    adapters.publish(store, adapter, ADAPTER, base=str(base), max_rank=RANK, recipe={})


@contextlib.contextmanager
def served(
    chosen: settings.Profile, adapter: Path, engine: dict[str, Any], **config: Any
) -> Iterator[dict[str, Any]]:
    """Run the notebook's serving cell on a Ray of its own; the names that it knows and defines.

    Args:
        chosen: the profile, whose `model` is a folder.
        adapter: an adapter's folder; it is served as `ADAPTER`.
        engine: vLLM's engine_kwargs.
        config: settings to lay over those of the environment.
    """
    settings.optimize_serve()
    import ray
    from ray import serve

    from tutorial import quiet, serving

    store = storage.Storage.open(None, "benchmark-serving")
    key = SecretStr(secrets.token_urlsafe(32))  # it stays where the cell is run again
    names = {
        "adapter": ADAPTER,
        "adapters": adapters,
        "clock": results.Stopwatch(),
        "config": settings.load().model_copy(update={"api_keys": key} | config),
        "engine_kwargs": engine,
        "model_source": chosen.model,
        "Path": Path,
        "profile": chosen,
        "ray": ray,
        "serving": serving,
        "store": store,
    }
    source = cell("app = endpoint.build(")
    if "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING" in os.environ:
        # It has no ingress, and so no keys; and it refuses to fetch adapters while it serves (Ray 2.58).
        for written, instead in (
            ("endpoint.build(", "ray.serve.llm.build_openai_app("),
            (', "ingress_deployment_config": profile.ingress, "key_digests": digests', ""),
        ):
            assert written in source
            source = source.replace(written, instead)
        source = "".join(line for line in source.splitlines(True) if "lora_config=" not in line)
    try:
        publish(store, adapter, Path(chosen.model))
        ray.init(
            runtime_env=settings.runtime_env(store.worker_env()),
            log_to_driver=False,
            logging_level="error",
            **settings.local_cluster(),
        )
        with contextlib.redirect_stdout(io.StringIO()):
            execute(source, names)
        yield names
    finally:
        with quiet.reports():
            serve.shutdown()
            ray.shutdown()
        store.close()


def prepare(name: str) -> tuple[Path, Path]:
    """The folders of a model and of an adapter for it, made once; no hub is asked."""
    config = settings.load()
    real = model.folder(config.model or model.PACKAGED, config.shared_folder())
    folder = config.shared_folder() / "models" / f"benchmark-{name}"
    if not (folder / "adapter" / adapters.WEIGHTS).is_file():
        alone(_make, name, real, folder)
    return (folder if name in SHAPES else real), folder / "adapter"


def _make(name: str, real: Path, folder: Path) -> None:
    import torch
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
