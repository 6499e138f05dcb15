"""What makes a folder a model of the Hugging Face hub: its card, and the push."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tutorial import TutorialError, model, one_line

CARD = Path(__file__).with_name("card.md.j2")
# What the folder of a model does not say: where it comes from, and its licence.
KNOWN = {model.PACKAGED: {"base_model": f"HuggingFaceTB/{model.PACKAGED}", "license": "apache-2.0"}}


def write_card(folder: Path, run: Any, check: dict[str, Any]) -> None:
    """Write the model card README.md of a merged model.

    Args:
        folder: the model's.
        run: an `export.Export`.
        check: how many answers are `equal` to the adapter's, and `right`, and `adapter_right`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    hub, own = run.base.partition("@")[0], run.base_folder / "README.md"
    about = ModelCard.load(own).data.to_dict() if own.is_file() else {}
    about |= {"base_model": None if Path(hub).exists() else hub} | KNOWN.get(run.base, {})
    data = ModelCardData(
        base_model=about["base_model"],
        license=about.get("license"),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["llama-factory", "lora"],
    )
    ModelCard.from_template(
        data,
        template_path=str(CARD),
        about=about,
        base=run.manifest.base_model,
        revision=model.revision(run.base_folder),
        check=check,
        messages=json.dumps(run.chat.messages(run.rows.iloc[0]), indent=4, ensure_ascii=False),
        recipe=yaml.safe_dump(run.manifest.recipe, sort_keys=False),
        rows=_list("split", "rows", run.results["data"]["used"]),
        run=run,
        scores=_table(run.results["batch"]["scores"]),
        versions=_list("package", "version", run.manifest.versions),
    ).save(folder / "README.md")


def _list(key: str, value: str, found: dict[str, Any]) -> str:
    return pd.DataFrame(found.items(), columns=[key, value]).to_markdown(index=False)


def _table(scores: dict[str, dict[str, Any]]) -> str:
    def shown(score: Any) -> str:
        low, high = (score.get(key) for key in ("low", "high")) if isinstance(score, dict) else (None, None)
        value = score["value"] if isinstance(score, dict) else score
        return f"{value:.3f}" + (f" ({low:.2f} to {high:.2f})" if low is not None else "")

    rows = {system: {key: shown(each) for key, each in found.items()} for system, found in scores.items()}
    return pd.DataFrame(rows).T.to_markdown(disable_numparse=True)


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
