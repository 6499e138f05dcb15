"""Latency and throughput of the service against `vllm serve`. From the project's root, where there is a GPU:

    python -m benchmarks.serving

README.ipynb's Serve app, built with the gpu profile and a candidate's switches, and `vllm serve` with the
same engine options serve the same adapter and answer the same prompts, each answer as long as the row's own.
vLLM's own `vllm bench serve` asks, in a process of its own: time to the first token (TTFT) and time per
output token (TPOT), p50 and p99, and requests a second, at each number of concurrent requests. Prints a table
and writes benchmarks/gpu_serving.json. What stands in brackets is relative to `vllm serve`.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
import yaml

from benchmarks import common

# Of what stands before the model, Ray's default is one replica.
ONE, FOUR = ({"ingress": {"autoscaling_config": {"min_replicas": n, "max_replicas": n}}} for n in (1, 4))
# Ray's own server, not the project's (tutorial/endpoint.py), which sends the first piece at once.
RAY = {"server_cls": "ray.serve.llm.deployment:LLMServer"}
DEFAULT = ONE | {"serving": RAY}
AT_ONCE = ONE | {"serving": RAY | {"experimental_configs": {"stream_batching_interval_ms": 0}}}
# HAProxy wants two open files a connection: for Ray's 20,000 more than a process may have on most machines.
HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_MAXCONN": "4000"}
RAYS_OWN, WHOLLY = ({"RAY_SERVE_THROUGHPUT_OPTIMIZED": on} for on in "01")
OPTIMIZED = WHOLLY | {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}  # as README.ipynb has it
DIRECT = HAPROXY | {"RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1"}  # it needs HAProxy
VLLM = "vllm serve"
CANDIDATES = {
    VLLM: {},
    "profile": {"env": OPTIMIZED},
    "Ray's defaults": DEFAULT,
    "first piece at once": ONE,
    "first piece at once, 4 ingresses": FOUR,
    "first piece at once, throughput": ONE | {"env": OPTIMIZED},
    "first piece at once, 4 ingresses, throughput": FOUR | {"env": OPTIMIZED},
    "first piece at once, HAProxy": ONE | {"env": HAPROXY},
    "first piece at once, HAProxy, 4 ingresses": FOUR | {"env": HAPROXY},
    "no stream batching": AT_ONCE,
    "no stream batching, HAProxy": AT_ONCE | {"env": HAPROXY},
    "no stream batching, HAProxy, 4 ingresses": AT_ONCE | FOUR | {"env": HAPROXY},
    "no stream batching, throughput": AT_ONCE | {"env": OPTIMIZED},
    "no stream batching, HAProxy, throughput": AT_ONCE | {"env": HAPROXY | WHOLLY},
    "direct streaming": {"env": DIRECT},
    "direct streaming, throughput": {"env": DIRECT | WHOLLY},
}
MEASURES = ("p50_ttft_ms", "p99_ttft_ms", "p50_tpot_ms", "p99_tpot_ms", "request_throughput")


def bench(  # noqa: PLR0917
    url: str,
    name: str,
    model_path: Path,
    prompts: Path,
    args: argparse.Namespace,
    measures: tuple[str, ...] = MEASURES,
) -> list[dict]:
    """`vllm bench serve`, once for each number of concurrent requests: milliseconds, requests a second."""
    from vllm.benchmarks.serve import add_cli_args
    from vllm.benchmarks.serve import main as bench_serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    options = FlexibleArgumentParser()
    add_cli_args(options)
    found = []
    for level in args.levels:
        command = f"""--backend openai-chat --base-url {url} --endpoint /v1/chat/completions --model {name}
            --tokenizer {model_path} --dataset-name custom --dataset-path {prompts} --skip-chat-template
            --custom-output-len -1 --ignore-eos --temperature 0 --num-prompts {args.each * max(level, 4)}
            --max-concurrency {level} --num-warmups {level} --percentile-metrics ttft,tpot,e2el
            --metric-percentiles 50,95,99 --disable-tqdm"""
        with contextlib.redirect_stdout(said := io.StringIO()):
            answered = bench_serve(options.parse_args(command.split()))
        if answered["failed"] or not answered["completed"]:
            raise RuntimeError(
                f"{answered['failed']} of {level}'s requests failed: {said.getvalue()[-1000:]}"
            )
        counted = {"concurrency": level, "requests": answered["completed"]}
        found.append(counted | {key: answered[key] for key in measures})
    return found


@contextlib.contextmanager
def vllm_serve(args: argparse.Namespace, model_path: Path, adapter: Path) -> Iterator[str]:
    """vLLM's server; the name to ask for."""
    profile = common.profile(args, model_path, {"engine": args.engine})
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder, "engine.yaml"), Path(folder, "log")
        engine = common.engine_kwargs(profile)
        config.write_text(yaml.safe_dump({key.replace("_", "-"): value for key, value in engine.items()}))
        # What `vllm serve` starts; the command itself asks for a package `vllm`, which the CPU build is not.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_path)]
        command += ["--config", str(config), "--host", "127.0.0.1", "--port", str(args.port)]
        command += ["--lora-modules", f"{common.ADAPTER}={adapter}"]
        with log.open("wb") as out:
            server = subprocess.Popen(command, env=os.environ | profile.worker_env, stdout=out, stderr=out)
        try:
            while True:
                with contextlib.suppress(requests.ConnectionError):
                    if requests.get(f"http://127.0.0.1:{args.port}/health", timeout=5).ok:
                        break
                if server.poll() is not None:
                    raise RuntimeError(f"vllm serve ended: {log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.5)
            yield common.ADAPTER
        finally:
            server.terminate()
            server.wait(60)


@contextlib.contextmanager
def ray_serve(args: argparse.Namespace, model_path: Path, adapter: Path, overrides: dict) -> Iterator[str]:
    """The Serve app of the notebook's cell; the name to ask for."""
    sections = {"engine": args.engine} | {key: overrides.get(key, {}) for key in ("serving", "ingress")}
    profile = common.profile(args, model_path, sections)
    profile.serving["deployment_config"]["autoscaling_config"] = {"min_replicas": 1, "max_replicas": 1}
    engine, name = common.engine_kwargs(profile), f"{model_path.name}:{common.ADAPTER}"
    if "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING" in os.environ:
        # The requests go past the part of Ray Serve that fetches adapters: vLLM is told of it at its start.
        from vllm.entrypoints.openai.models.protocol import LoRAModulePath

        engine["lora_modules"] = [LoRAModulePath(name=name, path=str(adapter))]
    with common.served(profile, adapter, engine, port=args.port) as names:
        os.environ["OPENAI_API_KEY"] = names["api_keys"][0]  # where vLLM's client looks for it
        yield name


@contextlib.contextmanager
def prompts(args: argparse.Namespace, model_path: Path) -> Iterator[Path]:
    """A file of questions, each with the number of tokens of the row's own answer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    lines = [
        {
            "prompt": row["instruction"] + "\n" + row["input"],
            "output_tokens": len(tokenizer(row["output"])["input_ids"]),
        }
        for row in common.rows(args.rows, args.data)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "prompts.jsonl")
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        yield path


def measure(
    name: str, overrides: dict, args: argparse.Namespace, model_path: Path, adapter: Path
) -> dict[str, Any]:
    """Start one server, ask it, stop it."""
    server = (
        vllm_serve(args, model_path, adapter)
        if name == VLLM
        else ray_serve(args, model_path, adapter, overrides)
    )
    with prompts(args, model_path) as path:
        start = time.monotonic()
        with server as served:
            ready_s = time.monotonic() - start
            url = f"http://127.0.0.1:{args.port}"
            # Each twice, and the second counts: kernels are compiled for a size when it first comes.
            twice = argparse.Namespace(**vars(args) | {"levels": [*reversed(args.levels), *args.levels]})
            levels = common.alone(bench, url, served, model_path, path, twice)[len(args.levels) :]
    return {"ready_s": ready_s, "levels": levels}


def table(found: dict[str, dict]) -> list[dict]:
    """The rows of the table; what is relative to `vllm serve` is worked out here."""
    vllm = {level["concurrency"]: level for level in found.get(VLLM, {}).get("levels", [])}
    shown = []
    for name, each in found.items():
        for level in each.get("levels", []):
            base = vllm.get(level["concurrency"])
            level["of_vllm"] = {key: level[key] / base[key] for key in MEASURES} if base else None
            shown.append(
                {"concurrent": level["concurrency"], "candidate": name}
                | {
                    key: f"{level[key]:.4g}" + (f" ({level['of_vllm'][key]:.2f})" if base else "")
                    for key in MEASURES
                }
            )
    return sorted(shown, key=lambda row: row["concurrent"])


def main() -> None:
    """Measure the candidates of the command line."""
    options = common.parser(__doc__, __file__, CANDIDATES)
    options.add_argument("--levels", type=int, nargs="+", default=[1, 8, 32, 128], help="concurrent requests")
    options.add_argument("--each", type=int, default=8, help="requests for each that is concurrent")
    options.add_argument("--rows", type=int, default=1083, help="prompts, as many as ViGGO's test rows")
    options.add_argument("--engine", type=yaml.safe_load, default={}, metavar="YAML", help="for all engines")
    options.add_argument("--port", type=int, default=8000)
    args = common.parse(options, CANDIDATES)

    from tutorial.serving import check_port

    check_port(args.port)
    model_path, adapter = common.prepare(args.model)

    def run(name: str, overrides: dict) -> dict[str, Any]:
        # In a process of its own: Ray Serve reads its switches from the environment when it is imported.
        return common.alone(
            measure, name, overrides, args, model_path, adapter, env=RAYS_OWN | overrides.get("env", {})
        )

    common.run(args, run, table)


if __name__ == "__main__":
    main()
