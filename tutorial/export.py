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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet
from dotenv import dotenv_values

from tutorial import (
    TutorialError,
    adapters,
    cluster,
    merged,
    model,
    one_line,
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
    """A finished run, fetched from its storage to export it."""

    store: Storage
    name: str  # the adapter's
    base: str  # the base model, as MODEL or the profile names it
    base_folder: Path
    manifest: adapters.Manifest  # the adapter's
    results: dict[str, Any]  # what the run published as results.json
    chat: prompt.Chat
    rows: pd.DataFrame  # the test rows with the adapter's answers, see `answered`

    @classmethod
    def of(cls, config: Settings) -> "Export":
        """Fetch the run that the settings name.

        TutorialError, saying what to set, if it is not there, has not ended, or had another base model.
        """
        store = find(config)
        name, place = store.run_name, store.place
        if not (place / "results" / "results.json").exists():
            raise TutorialError(f"{place} holds no results: the run has not ended; RESUME=1 resumes it")
        results = json.loads((place / "results" / "results.json").read())
        base = config.model_copy(update={"profile": results["profile"]}).choose_profile({}).model
        manifest = adapters.verify(place / "adapters" / name, base)
        rows, folder = answered(place, name)[:MOST_ROWS], model.resolve(base, config.shared_folder())
        with tempfile.TemporaryDirectory() as local:
            (place / "recipe").copy_to(Place.of(local))
            args, _ = recipe.load(next(Path(local).glob("*.y*ml")))
        return cls(store, name, base, folder, manifest, results, prompt.Chat(folder, args), rows)

    def answers_again(self, folder: Path, **source: str) -> list[str]:
        """What a model that was made of this run answers to its test rows."""
        rows = self.rows.to_dict("records")
        return merged.answer(folder, self.chat, rows, self.results["max_tokens"], **source)

    def publish(self, folder: Path, kind: str) -> Place:
        """Copy a folder beside the run's `adapters`, over what is there."""
        files = sorted(path.name for path in folder.iterdir())
        return self.store.publish(folder, f"{kind}/{self.name}", files, replace=True)


def find(config: Settings) -> Storage:
    """The storage of the run to export: RUN_NAME's, or the last run in a folder.

    TutorialError, saying what to set, if there is no such run.
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


def answered(place: Place, name: str) -> pd.DataFrame:
    """The test rows that the batch stage asked an adapter, zero-shot and not guided, with its answers.

    Columns `instruction`, `input`, `output` and `answer`; rows that failed are left out. TutorialError if the
    batch stage has no such answers.
    """
    tables = (place / "questions", place / "answers")
    if not all(table.exists() for table in tables):
        raise TutorialError(f"{place} holds no answers to compare with; RESUME=1 resumes the run")
    read = (pyarrow.parquet.read_table(table.path, filesystem=table.files) for table in tables)
    asked, answers = (table.to_pandas().set_index("id") for table in read)
    asked = asked[(asked["model"] == name) & ~asked["few_shot"] & ~asked["guided"]]
    both = asked.join(answers.loc[answers["error"] == "", ["answer"]], how="inner")
    if both.empty:
        raise TutorialError(f"{place} holds no answers of {name} to compare with; RESUME=1 resumes the run")
    return both.sort_index()


class Hub:
    """A model of the Hugging Face hub that is pushed to; it is made, for its owner alone, if it is new.

    Raises:
        TutorialError: there is no token, the hub does not take it, or it cannot be reached.
    """

    def __init__(self, identity: str):
        from huggingface_hub import HfApi, get_token

        self.identity, self.api = identity, HfApi()
        if not get_token():
            raise TutorialError(f"PUSH_TO={identity}: set HF_TOKEN to a token that may write there")
        with self._failing():
            self.api.whoami()

    def push(self, folder: Path) -> str:
        """Upload a folder; the model's address."""
        with self._failing():
            self.api.create_repo(self.identity, private=True, exist_ok=True)
            self.api.upload_folder(repo_id=self.identity, folder_path=folder)
        return f"{self.api.endpoint}/{self.identity}"

    @contextmanager
    def _failing(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except (OSError, ValueError, httpx.HTTPError) as error:
            raise TutorialError(f"PUSH_TO={self.identity}: {one_line(error)}") from None


def main() -> None:
    """Merge, check, publish, push."""
    parser = argparse.ArgumentParser("python -m tutorial.export", description=__doc__.splitlines()[0])
    parser.add_argument("--push-to", metavar="OWNER/NAME", help="a model of the Hugging Face hub")
    args = parser.parse_args()
    config = settings.load()
    target = Hub(args.push_to) if args.push_to else None  # before any work
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
        merged.write_card(folder, run, check)
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
