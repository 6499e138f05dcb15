"""The way out: a run's adapter merged into its base model, checked, and published beside the adapter.

    RUN_NAME=viggo-1 STORAGE=s3://bucket/runs python -m tutorial.export [--push-to owner/name]

If the run had a MODEL, set it again. If STORAGE is not set, what is needed is in out/. If RUN_NAME
is not set, the last run of the folder is exported.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from dotenv import dotenv_values

from tutorial import (
    TutorialError,
    adapters,
    cluster,
    hub,
    merged,
    model,
    prompt,
    recipe,
    settings,
    stage,
)
from tutorial.files import Place
from tutorial.settings import ROOT, Settings
from tutorial.storage import Storage

MOST_ROWS = 64  # that are answered again


@dataclass
class Export:
    """A finished run, fetched from its storage to export it.

    Attributes:
        store: where it is.
        name: the adapter's.
        base: the base model, as MODEL or the profile names it, and `base_folder` its folder.
        manifest: the adapter's.
        results: what the run published as results.json.
        chat: how the model is asked.
        rows: the test rows with the adapter's answers, see `merged.answered`.
    """

    store: Storage
    name: str
    base: str
    base_folder: Path
    manifest: adapters.Manifest
    results: dict[str, Any]
    chat: prompt.Chat
    rows: pd.DataFrame

    @classmethod
    def of(cls, config: Settings) -> "Export":
        """Fetch the run that the settings name.

        Raises:
            TutorialError: it is not there, has not ended, or had another base model; says what to set.
        """
        store = find(config)
        name, place = store.run_name, store.place
        if not (place / "results" / "results.json").exists():
            raise TutorialError(f"{place} holds no results: the run has not ended; RESUME=1 resumes it")
        results = json.loads((place / "results" / "results.json").read())
        base = config.model_copy(update={"profile": results["profile"]}).choose_profile({}).model
        manifest = adapters.verify(place / "adapters" / name, base)
        rows, folder = merged.answered(place, name)[:MOST_ROWS], model.resolve(base, config.shared_folder())
        with tempfile.TemporaryDirectory() as local:
            (place / "recipe").copy_to(Place.of(local))
            args, _ = recipe.load(next(Path(local).glob("*.y*ml")))
        return cls(store, name, base, folder, manifest, results, prompt.Chat(folder, args), rows)

    def answers_again(self, folder: Path, **source: str) -> list[str]:
        """What a model that was made of this run answers to its test rows."""
        return merged.answer(
            folder, self.chat, self.rows.to_dict("records"), self.results["max_tokens"], **source
        )

    def publish(self, folder: Path, kind: str) -> Place:
        """Copy a folder beside the run's `adapters`, over what is there."""
        files = sorted(path.name for path in folder.iterdir())
        return self.store.publish(folder, f"{kind}/{self.name}", files, replace=True)


def find(config: Settings) -> Storage:
    """The storage of the run to export: RUN_NAME's, or the last run in a folder.

    Raises:
        TutorialError: there is no such run; says what to set.
    """
    root = Place.of(config.storage_uri() or ROOT / "out")
    name = os.environ.get("RUN_NAME") or dotenv_values(ROOT / ".env").get("RUN_NAME")
    if not name:
        if root.scheme:
            raise TutorialError(f"STORAGE={root}: set RUN_NAME to the run to export")
        found = sorted(Path(root.path).glob(f"*/adapters/*/{adapters.MANIFEST}"), key=os.path.getmtime)
        if not found:
            raise TutorialError(f"{root} holds no run; start one (make run), or set STORAGE and RUN_NAME")
        name = found[-1].parents[2].name
    return Storage.open(str(root), name, resume=True)


def main() -> None:
    """Merge, check, publish, push."""
    parser = argparse.ArgumentParser("python -m tutorial.export", description=__doc__.splitlines()[0])
    parser.add_argument("--push-to", metavar="OWNER/NAME", help="a model of the Hugging Face hub")
    args = parser.parse_args()
    config = settings.load()
    target = hub.Hub(args.push_to) if args.push_to else None  # before any work
    run = Export.of(config)
    print(f"{run.name}: {run.manifest.base_model} with the adapter of {run.store.place}", flush=True)
    with tempfile.TemporaryDirectory(prefix="merged-") as scratch:
        folder = Path(scratch, run.name)
        (run.store.place / "adapters" / run.name).copy_to(Place.of(f"{scratch}/adapter"))
        merged.merge(run.base_folder, Path(scratch, "adapter"), run.chat, folder)
        answers, before = run.answers_again(folder), list(run.rows["answer"])
        check = {"equal": merged.equal(answers, before)}
        check |= {"right": merged.equal(answers, list(run.rows["output"]))}
        check |= {"adapter_right": merged.equal(before, list(run.rows["output"]))}
        print(f"answers that equal the adapter's: {check['equal']}", flush=True)
        hub.write_card(folder, run, check)
        print(f"published: {run.publish(folder, 'merged')}", flush=True)
        if target:
            print(f"pushed: {target.push(folder)}")


def program(command: Callable[[], None]) -> None:
    """Run a command line; a mistake of its user's ends it with one line."""
    cluster.keep_local()
    stage.quiet()
    try:
        command()
    except TutorialError as error:
        sys.exit(f"TutorialError: {error}")


if __name__ == "__main__":
    program(main)
