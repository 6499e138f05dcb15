"""Rows a second of the batch stage against plain vLLM. From the project's root, on a machine with a GPU:

    python -m benchmarks.batch

The same rows go to plain vLLM, `LLM.chat` with all of them at once, and through the processor of
README.ipynb's cell, built with the gpu profile and a candidate's sections laid over it. All ask for the same
adapter, and every answer has the same number of tokens. The engine is started and warmed before the clock:
the rows are held back until the answers of a first few have come out at the end. Prints a table and writes
benchmarks/gpu_batch.json. The ratio is to the fastest plain vLLM of the run.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common

# What `LLM` takes by itself on a GPU of 70 GiB or more. Ray Data's engine takes 128 and 2048 there and on any
# other: vLLM's defaults depend on who asks (vllm.engine.arg_utils, get_batch_defaults).
LARGE = {"max_num_seqs": 1024, "max_num_batched_tokens": 16384}
BATCH = {"batch_size": 256}  # eight at a time: twice what the engine takes
ENGINE_TOKENIZES = {"tokenize_stage": {"enabled": False}, "detokenize_stage": {"enabled": False}}
CANDIDATES = {
    "plain vLLM": {"plain": True, "engine": LARGE},
    "profile": {},
    "128 sequences": {"engine": {"max_num_seqs": 128, "max_num_batched_tokens": 2048}},
    "256 sequences": {"engine": {"max_num_seqs": 256, "max_num_batched_tokens": 8192}},
    "large": {"engine": LARGE},
    "large, batch 256": {"engine": LARGE, "processor": BATCH},
    "large, batch 256, engine tokenizes": {"engine": LARGE, "processor": BATCH | ENGINE_TOKENIZES},
    "large, batch 256, blocks of 256": {"engine": LARGE, "processor": BATCH, "rows_per_block": 256},
    "large, 32 batches of 64": {"engine": LARGE, "processor": {"max_concurrent_batches": 32}},
    "large, batch 256, no metrics": {"engine": LARGE, "processor": BATCH | {"log_engine_metrics": False}},
    "plain vLLM, no prefix caching": {"plain": True, "engine": LARGE | {"enable_prefix_caching": False}},
    "large, batch 256, no prefix caching": {
        "engine": LARGE | {"enable_prefix_caching": False},
        "processor": BATCH,
    },
}


def plain(engine: dict, adapter: Path, sampling: dict, warm: list[dict], rows: list[dict]) -> float:
    """Seconds that `LLM.chat` takes for the rows."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    from tutorial import data

    llm = LLM(**engine)

    def ask(asked: list[dict]) -> float:
        start = time.monotonic()
        answers = llm.chat(
            [data.messages(row) for row in asked],
            SamplingParams(**sampling),
            use_tqdm=False,
            lora_request=LoRARequest(common.ADAPTER, 1, str(adapter)),
        )
        seconds = time.monotonic() - start
        assert all(len(answer.outputs[0].token_ids) == sampling["max_tokens"] for answer in answers)
        return seconds

    ask(warm)
    return ask(rows)


def processed(
    names: dict[str, Any], sampling: dict, warm: list[dict], rows: list[dict], blocks: int
) -> float:
    """Seconds that the processor of the notebook's cell takes for the rows."""
    import ray

    common.execute(common.cell("processor = build_processor("), names)
    names["SAMPLING"] = sampling
    processor = names["processor"]

    asks = {"model": common.ADAPTER, "system": "fine-tuned", "few_shot": False, "guided": False}
    warm, rows = ([row | asks | {"id": n} for n, row in enumerate(part)] for part in (warm, rows))
    with tempfile.TemporaryDirectory() as folder:
        gate = Path(folder, "open")

        def wait(block):
            while not gate.exists():
                time.sleep(0.01)
            return block

        held = ray.data.from_items(rows, override_num_blocks=blocks)
        held = held.map_batches(wait, batch_size=None, concurrency=1, num_cpus=0.1)
        answers = processor(ray.data.from_items(warm, override_num_blocks=1).union(held))
        answers = answers.map(names["answer"])
        seen, start = 0, None
        # Without prefetching, which would keep the last block of the first rows until the next one is there.
        for part in answers.iter_batches(batch_size=None, prefetch_batches=0):
            seen += len(part["answer"])
            assert not any(part["error"]), part["error"]
            if seen == len(warm):
                start = time.monotonic()
                gate.touch()
        seconds = time.monotonic() - start
    assert seen == len(warm) + len(rows), f"{seen} answers"
    return seconds


def table(found: dict[str, dict]) -> list[dict]:
    """The rows of the table; the ratio is worked out here."""
    done = {name: each for name, each in found.items() if "failed" not in each}
    fastest = max((e["rows_per_s"] for e in done.values() if e["overrides"].get("plain")), default=None)
    for each in done.values():
        each["over_plain"] = each["rows_per_s"] / fastest if fastest else None
    return [
        {"candidate": name, "rows/s": e["rows_per_s"], "of plain": e["over_plain"]}
        for name, e in done.items()
    ]


def main() -> None:
    """Measure the candidates of the command line."""
    options = common.parser(__doc__, __file__, CANDIDATES)
    options.add_argument("--rows", type=int, default=20_000, help="the task's, repeated")
    options.add_argument("--tokens", type=int, default=40, help="of every answer; ViGGO's have about as many")
    args = common.parse(options, CANDIDATES)

    import ray

    from tutorial import data, quiet, results, settings, storage

    model_path, adapter = common.prepare(args.model)
    rows = common.rows(args.rows, args.data)
    sampling = {"temperature": 0.0, "max_tokens": args.tokens, "ignore_eos": True}
    store = storage.Storage.open(None, "benchmark-batch")
    common.publish(store, adapter, model_path)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def measure(name: str, overrides: dict) -> dict[str, Any]:
        sections = {key: overrides[key] for key in ("engine", "processor") if key in overrides}
        profile = common.profile(args, model_path, sections)
        warm = rows[: 2 * profile.processor["batch_size"]]
        if overrides.get("plain"):
            engine = common.engine_kwargs(profile) | {"model": str(model_path)}
            seconds = common.alone(plain, engine, adapter, sampling, warm, rows, env=profile.worker_env)
        else:
            names = {
                "clock": results.Stopwatch(),
                "profile": profile,
                "llamafactory_args": {"lora_rank": common.RANK},
                "task": common.TASK,
                "model_source": str(model_path),
                "store": store,
                "data": data,
                "EXAMPLES": [],
            }
            blocks = -(
                -len(rows) // overrides.get("rows_per_block", 100)
            )  # 100: what from_items makes of them
            # A cluster for each: the one before has given the GPU back for certain.
            ray.init(
                runtime_env=settings.runtime_env(store.worker_env()),
                log_to_driver=False,
                logging_level="error",
                **settings.local_cluster(),
            )
            try:
                seconds = processed(names, sampling, warm, rows, blocks)
            finally:
                with quiet.reports():
                    ray.shutdown()
        return {"seconds": seconds, "rows_per_s": len(rows) / seconds}

    common.run(args, measure, table)
    store.close()


if __name__ == "__main__":
    main()
