"""A finished run's adapter, merged and checked; the card; what Ollama is told; what is refused early."""

import json
import os
import re
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import ClassVar

import pandas as pd
import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import models
from tests.conftest import ROOT
from tutorial import (
    TutorialError,
    adapters,
    export,
    gguf,
    merged,
    prompt,
    recipe,
    settings,
    storage,
    tasks,
)

NAME, RECIPE = "viggo-1", ROOT / "lora_sft_ray_cpu.yaml"
ROWS = tasks.load("viggo").sample_rows()["test"][:6]
RESULTS = {
    "profile": "cpu",
    "task": "viggo",
    "max_tokens": 96,
    "data": {"used": {"train": 48, "val": 8, "test": 6}},
}
SCORES = {
    "base model": {"exact match": {"value": 0.5, "low": 0.1, "high": 0.9}, "attribute F1": {"value": 0.25}}
}


@pytest.fixture(scope="module")
def base(request, tmp_path_factory):
    """A base model's folder."""
    return models.make(getattr(request, "param", "Llama"), tmp_path_factory.mktemp("a model"))


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """The folder of a finished run, with an adapter of random weights and its answers."""
    folder = tmp_path_factory.mktemp("finished")
    store = storage.Storage.open(str(folder / "runs"), NAME)
    torch.manual_seed(0)
    tuned = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(tuned, config).eval()
    for name, weights in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.2)
    tuned.save_pretrained(folder / "adapter")
    made_by = {"base": str(base), "max_rank": 8, "recipe": {"lora_rank": 8}}
    adapters.publish(store, folder / "adapter", NAME, **made_by)
    args, _ = recipe.load(RECIPE, gpus=0)
    chat, tokenizer = prompt.Chat(base, args), AutoTokenizer.from_pretrained(base)
    asked, answers = [], []
    for number, row in enumerate(ROWS):
        text = chat.template.render(chat.messages(row))
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            said = tuned.generate(**ids, do_sample=False, max_new_tokens=96)
        answer = tokenizer.decode(said[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        for system in ({"guided": False}, {"guided": True}):
            key = {"id": len(asked)}
            asked.append(row | {"model": NAME, "few_shot": False} | system | key)
            answers.append({"answer": answer, "error": "too long" if number == 5 else ""} | key)
    for name, table in (("questions", asked), ("answers", answers)):
        (folder / name).mkdir()
        pd.DataFrame(table).to_parquet(folder / name / "0.parquet")
        store.publish(folder / name, name, ["0.parquet"])
    store.publish(ROOT, "recipe", [RECIPE.name])
    (folder / "results.json").write_text(json.dumps(RESULTS | {"batch": {"scores": SCORES}}))
    store.publish(folder, "results", ["results.json"])
    return folder / "runs"


@pytest.fixture
def run(base, finished, tmp_path, monkeypatch):
    """A finished run that a test may change; what the user sets."""
    runs = shutil.copytree(finished, tmp_path / "runs")
    for key, value in {"MODEL": base, "STORAGE": runs, "RUN_NAME": NAME, "PROFILE": "cpu"}.items():
        monkeypatch.setenv(key, str(value))
    return storage.Storage.open(str(runs), NAME, resume=True)


def exported(monkeypatch, *args):
    """`python -m tutorial.export`, in this process."""
    monkeypatch.setattr(sys, "argv", ["export", *args])
    export.main()


@pytest.mark.parametrize("base", ["Llama", "Gemma 3", "Qwen3"], indirect=True)
def test_the_merged_model_is_the_base_model_and_the_adapter(run, base, monkeypatch, capsys):
    exported(monkeypatch)
    said = capsys.readouterr().out
    equal, of = map(int, re.search(r"answers that equal the adapter's: (\d+) of (\d+)\n", said).groups())
    assert of == 5, "the rows that were answered, zero-shot and free"
    folder = run.root / NAME / "merged" / NAME
    assert said.splitlines()[-1] == f"published: {folder}"
    files = set(folder.listing())
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"} <= files
    assert not {file for file in files if not file.endswith((".json", ".safetensors", ".jinja", ".md"))}

    weights, before = load_file(f"{folder.path}/model.safetensors"), load_file(base / "model.safetensors")
    [layer] = [name for name in weights if name.endswith("layers.0.mlp.up_proj.weight")]
    matrices = load_file(f"{run.place.path}/adapters/{NAME}/adapter_model.safetensors")
    a, b = (
        matrices[f"base_model.model.{layer.replace('weight', side)}.weight"] for side in ("lora_A", "lora_B")
    )
    expected = before[layer].float() + 16 / 8 * b.float() @ a.float()
    assert weights[layer].dtype == torch.bfloat16
    torch.testing.assert_close(weights[layer].float(), expected, rtol=2**-7, atol=1e-3)

    # Other programs ask and stop as the batch stage did, without being told.
    tokenizer = AutoTokenizer.from_pretrained(folder.path)
    chat = export.Export.of(settings.load()).chat
    options = {"tokenize": False, "add_generation_prompt": True}
    assert [tokenizer.apply_chat_template(chat.messages(row), **options) for row in ROWS] == [
        chat.template.render(chat.messages(row)) for row in ROWS
    ]
    ends = json.loads((folder / "generation_config.json").read())["eos_token_id"]
    assert sorted(ends) == sorted(chat.template.stops)

    card = (folder / "README.md").read().decode()
    head = yaml.safe_load(card.split("---")[1])
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llama-factory", "lora"],
    }
    assert f"{equal} of 5 greedy answers" in card
    assert "| base model | 0.500 (0.10 to 0.90) | 0.250          |" in card
    assert re.search(r"\| train +\| +48 \|", card)
    assert "lora_rank: 8" in card
    assert re.search(r"\| peft +\| \d", card)
    assert str(base.parent) not in card, "no path of this machine"
    assert re.search(r'"content": "(.*\\n)?\.\.\."', card), "after the instruction, or alone"
    assert ROWS[0]["instruction"] in card
    private = [row[key] for row in ROWS for key in ("input", "output")]
    assert not [text for text in private if text in card], "test rows may be private"


@pytest.mark.parametrize("family", ["Llama", "Qwen2.5", "Gemma 3", "Mistral"])
def test_ollama_asks_what_the_engines_ask(family, tmp_path):
    folder = models.make(family, tmp_path)
    chat = prompt.Chat(folder, recipe.load(RECIPE, gpus=0)[0])
    row = ROWS[0]
    made = gguf.modelfile("a.gguf", chat, {row["instruction"]}, 96)
    text = re.search(r'TEMPLATE """(.*?)"""', made, re.DOTALL)[1]
    text = re.sub(r"{{ if .System }}(.*?)({{ else }}.*?)?{{ end }}", r"\1", text, flags=re.DOTALL)
    said = {"System": row["instruction"], "Prompt": row["input"], "Response": "yes"}
    for name, value in said.items():
        text = text.replace(f"{{{{ .{name} }}}}", value)
    trained = chat.template.render(chat.messages(row)).removeprefix(chat.template.first) + "yes"
    assert text == trained + chat.template.end
    assert f'SYSTEM """{row["instruction"]}"""' in made
    for end in chat.template.names(chat.template.stops):
        assert f'PARAMETER stop "{end}"' in made
    assert made.startswith("FROM ./a.gguf\n")
    assert "SYSTEM" not in gguf.modelfile("a.gguf", chat, {"one", "another"}, 96)


def test_a_merged_model_with_another_chat_template_is_not_published(run, monkeypatch):
    merge = merged.merge

    def other(*args):
        merge(*args)
        (args[-1] / "chat_template.jinja").write_text(
            "{% for turn in messages %}{{ turn.content }}{% endfor %}"
        )

    monkeypatch.setattr(merged, "merge", other)
    with pytest.raises(TutorialError, match=r"its chat template asks '.*', not '"):
        exported(monkeypatch)
    assert not (run.place / "merged").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RUN_NAME": "viggo-2"}, "RUN_NAME=viggo-2: .* holds no run of this name; set STORAGE and RUN_NAME"),
        (
            {"MODEL": "SmolLM2-135M-Instruct"},
            "made for a-model.*, not for SmolLM2-135M-Instruct; set MODEL as",
        ),
    ],
)
def test_other_settings_than_the_runs_are_told_in_one_line(run, monkeypatch, changed, message):
    for key, value in changed.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(TutorialError, match=message) as error:
        exported(monkeypatch)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("questions", "no answers to"), ("answers", "no answers to"), ("results", "no results")],
)
def test_a_run_that_has_not_ended_is_told_in_one_line(run, monkeypatch, name, message):
    (run.place / name).delete()
    with pytest.raises(TutorialError, match=f"holds {message}.*; RESUME=1 resumes"):
        exported(monkeypatch)


def test_the_last_run_of_a_folder_is_exported(tmp_path, monkeypatch):
    monkeypatch.delenv("RUN_NAME", raising=False)
    monkeypatch.setenv("STORAGE", str(tmp_path))
    with pytest.raises(TutorialError, match="holds no run; start one"):
        export.find(settings.load())
    for age, name in enumerate(("viggo-2", "viggo-1", "viggo-3")):
        manifest = tmp_path / name / "adapters" / name / adapters.MANIFEST
        manifest.parent.mkdir(parents=True)
        manifest.write_text("{}")
        os.utime(manifest, (1000 - age, 1000 - age))
    assert export.find(settings.load()).run_name == "viggo-2"
    monkeypatch.setenv("STORAGE", "gs://anonymous@bucket/runs")
    with pytest.raises(TutorialError, match="set RUN_NAME to the run to export"):
        export.find(settings.load())


def test_a_run_whose_storage_ends_with_it_is_kept(store, tmp_path, monkeypatch):
    for name in ("adapters/viggo-1/manifest.json", "answers/0.parquet", "data/train.jsonl"):
        (store.place / name).write(b"{}")
    monkeypatch.setattr(store, "local", tmp_path)
    kept = adapters.keep(store)
    assert (kept.path, set(kept.listing())) == (
        str(tmp_path / store.run_name),
        {"adapters/viggo-1/manifest.json", "answers/0.parquet"},
    )
    assert adapters.keep(storage.Storage.open(str(tmp_path / "folder"), "viggo-2")) is None


def command(env, *args):
    """`python -m tutorial.export` as a user's: its exit status, and what it said last."""
    env = {key: value for key, value in (os.environ | env).items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-m", "tutorial.export", *args],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).strip().splitlines()[-1]


def test_no_token_ends_a_push_before_any_work(tmp_path):
    env = {"HF_TOKEN": None, "HF_HOME": str(tmp_path), "STORAGE": str(tmp_path / "none"), "RUN_NAME": None}
    said = command(env, "--push-to", "owner/name")
    assert said == (1, "TutorialError: PUSH_TO=owner/name: set HF_TOKEN to a token that may write there")


class Refusing(BaseHTTPRequestHandler):
    """A hub that knows no token."""

    def do_GET(self):
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_token_that_the_hub_does_not_take_is_told_in_one_line(tmp_path):
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    env = {
        "HF_TOKEN": "hf_secret",
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
    }
    code, line = command(env, "--push-to", "owner/name")
    server.shutdown()
    assert code == 1
    assert line.startswith("TutorialError: PUSH_TO=owner/name: ")
    assert "hf_secret" not in line
    code, line = command(env | {"HF_ENDPOINT": "http://127.0.0.1:9"}, "--push-to", "owner/name")
    assert code == 1
    assert line.startswith("TutorialError: PUSH_TO=owner/name: ")


class Taking(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a push of small files uses; `said` are the requests."""

    said: ClassVar[list] = []

    def do_GET(self):
        self.reply({"name": "owner", "type": "user", "auth": {}, "orgs": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.said.append((self.path, self.headers["Authorization"], body))
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.reply({"files": files})
        url = f"http://{self.headers['Host']}/owner/name"
        self.reply({"url": url, "commitUrl": url, "commitOid": "0" * 40, "errors": [], "warnings": []})

    def reply(self, found):
        content = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_a_push_makes_a_private_model_of_the_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"a": 1}')
    (tmp_path / "model" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    server = HTTPServer(("127.0.0.1", 0), Taking)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    env = os.environ | {"HF_TOKEN": "hf_secret", "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home")}
    program = "import pathlib, sys; from tutorial import export; "
    program += "print(export.Hub('owner/name').push(pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-c", program, str(tmp_path / "model")]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == f"{url}/owner/name"
    asked = {path: body for path, key, body in Taking.said if key == "Bearer hf_secret"}
    made = json.loads(asked["/api/repos/create"])
    assert (made["name"], made["organization"], made["visibility"]) == ("name", "owner", "private")
    [commit] = [body for path, body in asked.items() if path.endswith("/commit/main")]
    lines = [json.loads(line) for line in commit.splitlines()]
    assert {line["value"]["path"] for line in lines if line["key"] == "file"} == {"config.json", "README.md"}
    assert "hf_secret" not in done.stdout + done.stderr
