"""Rows on their way through batch inference: the questions, what is kept of an answer, and all answers."""

import json
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Row = dict[str, Any]


def questions(rows: list[Row], systems: dict[str, dict]) -> list[Row]:
    """Every row, with its `input` and `output`, for every system, with an `id` from 0.

    A system, by its name, has a `model`, and `few_shot` and `guided` if they are true. A `history` becomes a
    text of JSON: Arrow has no type for lists that are all empty, and each block of rows has its own.
    """
    plain = {"few_shot": False, "guided": False}
    rows = [row | {name: json.dumps(row[name]) for name in ("history",) if name in row} for row in rows]
    asked = [row | plain | system | {"system": name} for name, system in systems.items() for row in rows]
    return [question | {"id": number} for number, question in enumerate(asked)]


def sampling(params: dict[str, Any]) -> UserDict:
    """vLLM's sampling parameters as a row carries them. A dict would become one Arrow type for all rows, with
    and without a grammar."""
    return UserDict(params)


def guarded(preprocess: Callable[[Row], Row]) -> Callable[[Row], Row]:
    """`preprocess`, but a row without a question gets an error, and skips the engine."""

    def prepare(row: Row) -> Row:
        if not isinstance(row["input"], str) or not row["input"].strip():
            return {"__inference_error__": f"input: a text is needed, not {row['input']!r}"}
        return preprocess(row) | {"__inference_error__": ""}

    return prepare


def answer(row: Row) -> Row:
    """What is kept of a row, answered or failed."""
    kept = {"target": row["output"], "answer": row.get("generated_text") or ""}
    return {key: row[key] for key in ("id", "system", "input")} | kept | {"error": row["__inference_error__"]}


def answered(run, asked: list[Row]) -> dict[str, pd.DataFrame]:
    """The answers by system, in the order of the questions: columns id, input, target, answer, error.

    The run, a `session.Run`, has them in its storage, and records their scores.
    """
    place = run.place / "answers"
    table = ray.data.read_parquet(place.path, filesystem=place.files).to_pandas().sort_values("id")
    _unlock({question["model"].replace("/", "--") for question in asked})
    release_gpus()
    assert list(table["id"]) == [question["id"] for question in asked], "every question has one answer"
    failed, parts = int(sum(table["error"] != "")), dict(iter(table.groupby("system", sort=False)))
    print(f"{len(table)} rows came back, {failed} of them with an error")
    counts = {"rows_in": len(asked), "rows_out": len(table), "rows_failed": failed}
    run.results["batch"] = run.kind.report(parts) | counts | {"few_shot": run.task.few_shot}
    return parts


def _unlock(names: set[str]) -> None:
    """Delete the file with which Ray locked each adapter's download, in the home folder of every machine."""

    def delete() -> None:
        for name in names:
            Path.home().joinpath(f"{name}-full.lock").unlink(missing_ok=True)

    task, machines = ray.remote(num_cpus=0)(delete), [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    there = [NodeAffinitySchedulingStrategy(machine, soft=False) for machine in machines]
    ray.get([task.options(scheduling_strategy=each).remote() for each in there])


def release_gpus() -> None:
    """Remove this job's placement groups. Ray Data leaves those of engines with Ray's executor, such as one
    on several GPUs, until the job ends (ray#64035), and the service would wait for a GPU."""
    job = ray.get_runtime_context().get_job_id()
    for number, group in placement_group_table().items():
        if number.endswith(job) and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(number)))
