"""Exact match against the number of training rows, or against the way of asking. From the project's root:

    python -m benchmarks.curve 75 150 300 600
    python -m benchmarks.curve --pitfalls

Runs README.ipynb up to its batch stage once for each number, with the settings of the environment, and scores
the fine-tuned model on the test rows. The points are added to the JSON of `--out` under the name of profile
and data; the pages show benchmarks/results/curve-cpu-h200.json.

With `--pitfalls` it trains once and asks the test rows three ways: as the notebook does; with the instruction
in the user turn, where LLaMA-Factory's default puts it and most prompts do not; and sampled, with the
temperature and top_p of Qwen2.5's generation_config, which `vllm serve` takes if none is set.
"""

import json
from collections import UserDict
from typing import Any

from benchmarks import common
from tutorial import score

CURVE = common.RESULTS / "curve-cpu-h200.json"


def point() -> dict[str, Any]:
    """Train and ask with the settings of the environment: exact match, and on what."""
    with common.notebook() as names:
        return _scored(names, {"fine-tuned": names["SYSTEMS"]["fine-tuned"]})


def pitfalls() -> dict[str, Any]:
    """Train with the settings of the environment, and ask in three ways."""

    def preprocess(row: dict) -> dict:
        asked = as_trained(row)
        if row["joined"]:
            user = f"{row['instruction']}\n{row['input']}"
            system = {"role": "system", "content": "You are a helpful assistant."}
            asked["messages"] = [system, {"role": "user", "content": user}]
        # All rows with the same keys: Arrow keeps one type for a column.
        sampling = (
            {"temperature": 0.7, "top_p": 0.8} if row["sampled"] else {"temperature": 0.0, "top_p": 1.0}
        )
        return asked | {"sampling_params": UserDict(sampling | {"max_tokens": max_tokens, "seed": 0})}

    with common.notebook() as names:
        from tutorial import batch  # imports Ray

        as_trained, max_tokens = names["preprocess"], names["run"].task.max_tokens
        given = names["profile"], names["engine_kwargs"], str(names["model_source"]), names["lora_path"]
        names["processor"] = names["make_processor"](*given, batch.guarded(preprocess))
        one = names["SYSTEMS"]["fine-tuned"] | {"joined": False, "sampled": False}
        ways = {
            "as trained": one,
            "another layout": one | {"joined": True},
            "sampled": one | {"sampled": True},
        }
        return _scored(names, ways)


def _scored(names: dict[str, Any], systems: dict[str, dict]) -> dict[str, Any]:
    exact = {}
    for name, part in common.ask(names, names["rows"]["test"], systems).items():
        scores = score.scores(list(part["answer"]), list(part["target"]), names["run"].kind)
        exact[name] = scores.iloc[0].to_dict()  # exact match
    return common.facts(names) | {"exact match": exact}


def add(curves: dict[str, dict], found: dict[str, Any]) -> None:
    """Put a point where it belongs; a curve keeps the facts of its last run."""
    new = {"train_rows": found.pop("train_rows")} | found.pop("exact match")["fine-tuned"]
    name = f"{found['profile']}, {found['data']}"
    earlier = curves.get(name, {"points": []})["points"]
    others = [other for other in earlier if other["train_rows"] != new["train_rows"]]
    points = sorted([*others, new], key=lambda each: each["train_rows"])
    curves[name] = found | {"points": points}
    print(new, flush=True)


def main(argv: list[str] | None = None) -> None:
    """Measure what the command line says."""
    options = common.parser(__doc__, "curve")
    options.add_argument("train_rows", type=int, nargs="*", help="numbers of training rows")
    options.add_argument("--pitfalls", action="store_true", help="train once, ask in three ways")
    args = common.parse(options, None, argv)
    from tutorial import stage

    own = {"KILL_WORKER": "0"} | (common.SMALL if args.small else {})
    own |= {"DATA": args.data} if args.data else {}
    if args.pitfalls:
        found = common.alone(pitfalls, env=own)
        print(json.dumps(found["exact match"], indent=2))
        stage.write(args.out.with_stem(f"{args.out.stem}-pitfalls"), found)
    curves = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for train_rows in args.train_rows:
        add(curves, common.alone(point, env=own | {"TRAIN_ROWS": str(train_rows)}))
        stage.write(args.out, curves)


if __name__ == "__main__":
    main()
