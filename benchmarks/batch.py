"""Rows a second of the batch stage against plain vLLM. From the project's root, on a machine with a GPU:

    python -m benchmarks.batch

The same rows go to plain vLLM, `LLM.chat` with all of them at once, and through README.ipynb's processor,
with the gpu profile and a candidate's sections laid over it. All ask for the same adapter, and every answer
has the same number of tokens. The engine is started and warmed before the clock: the rows are held back until
the answers of a first few have come out at the end. Prints a table and writes JSON.

Of plain vLLM also: GiB of the weights, and milliseconds until a single request has its first token. With a
trained `--adapter`, plain vLLM answers the test rows as the notebook does, and exact match is counted.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common
from tutorial import data, score
from tutorial.settings import ROOT

# What `LLM` takes by itself on a GPU of 70 GiB or more. Ray Data's engine takes 128 and 2048 there and on any
# other: vLLM's defaults depend on who asks (vllm.engine.arg_utils, get_batch_defaults).
LARGE = {"max_num_seqs": 1024, "max_num_batched_tokens": 16384}
BATCH = {"batch_size": 256}  # eight at a time: twice what the engine takes
ENGINE_TOKENIZES = {"tokenize_stage": {"enabled": False}, "detokenize_stage": {"enabled": False}}
CANDIDATES = {
    "plain vLLM": {"plain": True, "engine": LARGE},
    "profile": {},
    "large, batch 256": {"engine": LARGE, "processor": BATCH},
    "large, batch 256, engine tokenizes": {"engine": LARGE, "processor": BATCH | ENGINE_TOKENIZES},
}


def weights(network) -> float:
    """GiB of a network's weights."""
    return sum(each.numel() * each.element_size() for each in network.parameters()) / 2**30


def plain(engine: dict, adapter: Path, sampling: dict, warm: list[list], asked: list[list]) -> dict[str, Any]:
    """What `LLM.chat` takes for `asked`, each a list of messages, after `warm`; and the answers."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    start = time.monotonic()
    llm, lora = LLM(**engine), LoRARequest(common.ADAPTER, 1, str(adapter))
    found = {"start_s": time.monotonic() - start, "weights_gib": llm.apply_model(weights)[0]}

    def seconds(messages: list[list], **changes: Any) -> tuple[float, list]:
        start = time.monotonic()
        answers = llm.chat(messages, SamplingParams(**sampling | changes), use_tqdm=False, lora_request=lora)
        return time.monotonic() - start, answers

    seconds(warm)
    alone = [seconds([each], max_tokens=1)[0] for each in warm[:32]]
    found["first_token_ms"] = 1000 * statistics.median(alone)
    found["seconds"], answers = seconds(asked)
    ends = sampling["ignore_eos"]
    assert all(len(each.outputs[0].token_ids) == sampling["max_tokens"] for each in answers if ends)
    return found | {"answers": [each.outputs[0].text for each in answers]}


def processed(processor, warm: list[list], asked: list[list]) -> float:
    """Seconds that the processor takes for `asked`, each a list of messages, after `warm`."""
    import ray

    warm, asked = ([{"id": n, "messages": each} for n, each in enumerate(part)] for part in (warm, asked))
    with tempfile.TemporaryDirectory() as folder:
        gate = Path(folder, "open")

        def wait(block):
            while not gate.exists():
                time.sleep(0.01)
            return block

        held = ray.data.from_items(asked, override_num_blocks=-(-len(asked) // 100))
        held = held.map_batches(wait, batch_size=None, concurrency=1, num_cpus=0.1)
        answers = processor(ray.data.from_items(warm, override_num_blocks=1).union(held))
        seen, start = 0, None
        # Without prefetching, which would keep the last block of the first rows until the next one is there.
        for part in answers.iter_batches(batch_size=None, prefetch_batches=0):
            seen += len(part["id"])
            assert not any(part["__inference_error__"]), part["__inference_error__"]
            if seen == len(warm):
                start = time.monotonic()
                gate.touch()
        seconds = time.monotonic() - start
    assert seen == len(warm) + len(asked), f"{seen} answers"
    return seconds


def derive(found: dict[str, dict]) -> dict:
    """Work out the ratio to plain vLLM."""
    fastest = max((e["rows_per_s"] for e in found.values() if e["overrides"].get("plain")), default=None)
    for each in found.values():
        each["over_plain"] = each["rows_per_s"] / fastest if fastest else None
    return {}


def main(argv: list[str] | None = None) -> None:
    """Measure the candidates of the command line."""
    options = common.parser(__doc__, "batch", CANDIDATES, model=True)
    options.add_argument("--rows", type=int, default=20_000, help="the task's, repeated")
    options.add_argument("--tokens", type=int, default=40, help="of every answer; ViGGO's have about as many")
    options.add_argument("--adapter", type=Path, help="the folder of a trained one")
    args = common.parse(options, CANDIDATES, argv)
    from tutorial import prompt, recipe, run, storage

    model_path, adapter = common.prepare(args.model)
    trained, args.adapter = args.adapter, bool(args.adapter)
    chat = prompt.Chat(model_path, recipe.load(ROOT / common.profile(args.cpu, model_path, {}).recipe)[0])
    rows = data.load(common.TASK, args.data)["test"] if trained else common.rows(args.rows, args.data)
    asked = [chat.messages(row) for row in rows]
    tokens = common.TASK.max_tokens if trained else args.tokens
    sampling = {"temperature": 0.0, "max_tokens": tokens, "ignore_eos": not trained}
    store = storage.Storage.open(None, "benchmark-batch")
    lora_path = common.publish(store, adapter, model_path)
    make_processor = run.define("processor")["make_processor"]

    question = {"model": common.ADAPTER, "sampling_params": sampling, "__inference_error__": ""}

    def preprocess(row: dict) -> dict:
        return question | {"messages": row["messages"]}

    def measure(name: str, overrides: dict) -> dict[str, Any]:
        sections = {key: overrides[key] for key in ("engine", "processor") if key in overrides}
        profile = common.profile(args.cpu, model_path, sections)
        rank = json.loads((trained or adapter).joinpath("adapter_config.json").read_text())["r"]
        engine = profile.engine_kwargs(rank, common.TASK.max_tokens)
        warm = asked[: 2 * profile.processor["batch_size"]]
        if overrides.get("plain"):
            engine["model"] = str(model_path)
            env = profile.worker_env | {
                "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"
            }  # `weights` goes to the engine
            found = common.alone(plain, engine, trained or adapter, sampling, warm, asked, env=env)
            answers, seconds = found.pop("answers"), found["seconds"]
            if trained:
                found["exact_match"] = score.exact_match(answers, [row["output"] for row in rows])
        else:
            found = {}
            profile.worker_env |= store.engine_env()
            profile.processor["chat_template_stage"] |= chat.template_stage
            common.start_ray(store)  # one for each: the one before has given the GPU back for certain
            try:
                processor = make_processor(profile, engine, str(model_path), lora_path, preprocess)
                seconds = processed(processor, warm, asked)
            finally:
                common.end_ray()
        return found | {"seconds": seconds, "rows_per_s": len(asked) / seconds}

    columns = ("rows_per_s", "over_plain", "first_token_ms", "weights_gib", "exact_match")
    common.compare(args, measure, derive, columns)
    store.close()


if __name__ == "__main__":
    main()
