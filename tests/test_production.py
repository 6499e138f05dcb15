"""Stage 7 as a team would do it: a job on a Ray cluster, then a service for the adapter that the job left."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import openai
import pandas as pd
import pytest
import requests
import yaml

from tests.conftest import ROOT
from tutorial import model, s3server, serving, settings
from tutorial.files import Place

KEY, TOKEN = "a-key-of-some-customer", "0123456789abcdef" * 4
DASHBOARD, SERVE = 8266, 8131
RUN, ADDRESS = "nightly-1", f"http://127.0.0.1:{DASHBOARD}"
# Ray reports metrics every ten seconds, and a rate needs two reports: the batch stage must take longer.
ROWS = {"DATA": "sample", "TRAIN_ROWS": "32", "VAL_ROWS": "4", "TEST_ROWS": "48", "KILL_WORKER": "0"}

KEPT = {"enable_lora", "max_lora_rank", "generation_config", "override_generation_config"}

pytestmark = pytest.mark.production


@pytest.fixture(scope="module")
def server():
    """An S3 server, which a team would have elsewhere."""
    started = s3server.S3Server()
    started.start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def stored(server):
    """The storage: its address, and its place."""
    return f"s3://{s3server.BUCKET}/jobs", server.place() / "jobs"


@pytest.fixture(scope="module")
def environment(server):
    """Of the cluster's machines, and of those who speak to it."""
    outside = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return (
        outside
        | server.keys
        | server.address()
        | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_ADDRESS": ADDRESS}
    )


@pytest.fixture(scope="module")
def cluster(environment):
    """`ray start`, as on a machine of one's own."""
    folder = Path(tempfile.mkdtemp(prefix="p-"))  # short: Ray makes sockets there
    env = environment | {"API_KEYS": KEY, "PYTHONPATH": str(ROOT)}
    env.pop("RAY_ADDRESS")
    command = f"""ray start --head --block --port=6390 --num-cpus=8 --temp-dir={folder}
        --include-dashboard=true --dashboard-port={DASHBOARD} --disable-usage-stats"""
    with (folder / "said").open("wb") as said:
        head = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), *command.split()[1:]],
            env=env,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        token = {"Authorization": f"Bearer {TOKEN}"}
        for _ in range(120):
            with suppress(requests.RequestException):
                if requests.get(f"{ADDRESS}/api/version", headers=token, timeout=5).ok:
                    break
            time.sleep(0.5)
        assert requests.get(f"{ADDRESS}/api/version", timeout=5).status_code == 401, "without the token"
        yield folder
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def prometheus(cluster, tmp_path_factory):
    """Debian's Prometheus on the machines that Ray lists for it; None if it is not installed."""
    if not (program := shutil.which("prometheus")):
        yield None
        return
    folder, url = tmp_path_factory.mktemp("prometheus"), f"http://127.0.0.1:{serving.check_port(None)}"
    found = {
        "job_name": "ray",
        "file_sd_configs": [{"files": [f"{cluster}/prom_metrics_service_discovery.json"]}],
    }
    config = {"global": {"scrape_interval": "5s"}, "scrape_configs": [found]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    options += [f"--web.listen-address={url.removeprefix('http://')}", "--log.level=warn"]
    process = subprocess.Popen([program, *options])
    yield url
    process.terminate()
    process.wait(60)


@pytest.fixture(scope="module")
def service_of_a_job(cluster, prometheus, environment, stored, tmp_path_factory):
    """A client of the service for the adapter that a job left."""
    folder = tmp_path_factory.mktemp("job")
    submit(environment, folder, STORAGE=stored[0])
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(service(stored[0])))
    ours(["serve", "deploy", str(path), "--address", ADDRESS], environment)
    for _ in range(60):
        status = yaml.safe_load(ours(["serve", "status", "--address", ADDRESS], environment))
        if (state := status["applications"]["llm"]["status"]) in ("RUNNING", "DEPLOY_FAILED"):
            break
        time.sleep(5)  # the command itself keeps a core busy for seconds
    assert state == "RUNNING", status
    return openai.OpenAI(base_url=f"http://127.0.0.1:{SERVE}/v1", api_key=KEY)


def ours(command: list[str], environment: dict[str, str], returncode: int = 0) -> str:
    """Run a command of Ray's; what it printed."""
    command = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == returncode, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def left(place: Place, name: str) -> bytes:
    """A file of the job's run."""
    return (place / RUN / name).read()


def submit(environment, folder: Path, returncode: int = 0, **env: str) -> str:
    """The notebook as deploy/job.yaml's job, with the cpu profile."""
    shared = str(settings.load().shared_folder())
    job = yaml.safe_load((ROOT / "deploy" / "job.yaml").read_text())
    small = ROWS | {"PROFILE": "cpu", "RUN_NAME": RUN, "PORT": str(SERVE), "SHARED_DIR": shared}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job | {"env_vars": job["env_vars"] | small | env}))
    command = ["ray", "job", "submit", "--working-dir", ".", "--runtime-env", str(path)]
    return ours([*command, "--", "python", "-m", "tutorial.run"], environment, returncode)


def questions(place: Place) -> list[list[dict]]:
    """The job's test rows, as messages."""
    rows = pd.read_parquet(io.BytesIO(left(place, "data/test.parquet"))).to_dict("records")
    turns = (("system", "instruction"), ("user", "input"))
    return [[{"role": role, "content": row[column]} for role, column in turns] for row in rows]


def test_a_wrong_setting_is_a_job_that_fails_in_one_line(cluster, environment, stored, tmp_path):
    said = submit(environment, tmp_path, returncode=1, STORAGE=stored[0], TRAIN_ROWS="none")
    assert "TRAIN_ROWS='none'" in said


def test_a_job_then_a_service(service_of_a_job, stored):
    client, place = service_of_a_job, stored[1]
    assert json.loads(left(place, f"adapters/{RUN}/manifest.json"))["base_model"] == model.PACKAGED
    found = json.loads(left(place, "results/results.json"))
    assert found["batch"]["rows_out"] == found["batch"]["rows_in"] > 0

    asked = questions(place)[0]
    name = f"{model.PACKAGED}:{RUN}"
    assert name in [listed.id for listed in client.models.list()]
    assert (
        client.chat.completions.create(model=name, messages=asked, max_tokens=40).choices[0].message.content
    )
    more = {"max_tokens": 500, "extra_body": {"ignore_eos": True}}
    longest = client.chat.completions.create(model=name, messages=asked, **more)
    assert longest.usage.completion_tokens == 96, "the most that deploy/serve.yaml allows"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=client.base_url, api_key="another-key-of-some-length").models.list()


# What this service's engines do not do, so that its dashboards' panels stay empty.
NOT_HERE = {
    "swapped": "vLLM's engine of today swaps no requests",
    "kv_offload": "no KV cache is offloaded",
    "external_prefix_cache": "nor kept outside the engine",
    "nixl": "no KV cache is sent between engines",
}


def panels(dashboard: dict) -> list[dict]:
    """All panels, those of rows too."""
    inner = [panels(panel) for panel in dashboard.get("panels", [])]
    return [*dashboard.get("panels", []), *(panel for some in inner for panel in some)]


def test_the_dashboards_of_ray_have_data(service_of_a_job, prometheus, cluster, stored):
    """Each query of a panel, asked as Grafana does if all models, workers and deployments are chosen."""
    if prometheus is None:
        pytest.skip("no Prometheus here (Debian: apt-get install prometheus)")
    begun, chats = time.time(), questions(stored[1])[:8]
    # Only whole blocks of tokens are cached. A question longer than a few of them is found again for certain.
    chats.append([{"role": "user", "content": " ".join(turns[1]["content"] for turns in chats)}])
    while time.time() - begun < 40:  # some scrapes
        for messages in chats:
            service_of_a_job.chat.completions.create(
                model=f"{model.PACKAGED}:{RUN}", messages=messages, max_tokens=40
            )
    empty, asked = [], 0
    for name in ("serve_llm", "data_llm"):
        path = cluster / f"session_latest/metrics/grafana/dashboards/{name}_grafana_dashboard.json"
        for panel in panels(json.loads(path.read_text())):
            for target in panel.get("targets", []):
                query = re.sub(r"\$(interval|__rate_interval)\b", "1m", target["expr"])
                query = re.sub(r"\$\w+", ".*", query)
                if any(kind in query for kind in NOT_HERE):
                    continue
                asked += 1
                span = {"start": begun - 900, "end": time.time(), "step": "5s"}
                answer = requests.get(
                    f"{prometheus}/api/v1/query_range", params=span | {"query": query}, timeout=60
                )
                series = answer.json()["data"]["result"]
                if not any(value != "NaN" for each in series for _, value in each["values"]):
                    empty.append(f"{name}: {panel['title']}: {target['expr']}")
    assert not empty, "\n".join(empty)
    assert asked > 60


def service(stored: str) -> dict:
    """deploy/serve.yaml, with the cpu profile's sizes and this storage."""
    config = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text())
    profile = settings.load().model_copy(update={"profile": "cpu"}).choose_profile({})
    config["http_options"]["port"] = SERVE
    [application] = config["applications"]
    del application["runtime_env"]  # the code is on this machine
    [served] = application["args"]["llm_configs"]
    source = model.resolve(profile.model, settings.load().shared_folder())
    served["model_loading_config"] = {"model_id": profile.model, "model_source": str(source)}
    served["engine_kwargs"] |= profile.engine
    for key in set(served["engine_kwargs"]) - set(profile.engine) - KEPT:
        del served["engine_kwargs"][key]
    served["lora_config"] = profile.lora | {"dynamic_lora_loading_path": f"{stored}/{RUN}/adapters"}
    served |= {"runtime_env": {"env_vars": profile.worker_env}, "deployment_config": profile.deployment}
    return config | {"applications": [application | {"args": {"llm_configs": [served | profile.serving]}}]}
