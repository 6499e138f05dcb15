"""What is set before Ray starts, clusters that answer or do not, and the one that the notebook starts."""

import contextlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from tests import cells
from tests.conftest import ROOT, SOON_S
from tutorial import TutorialError, batch, cluster, machine, s3server, settings

NO_FILE = ROOT / "no.env"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
JOIN = """
import os, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
address = ray.get_runtime_context().gcs_address
def join(**env):
    said = subprocess.run(
        [sys.executable, "-c", f"import ray; ray.init({address!r}); print('let in')"],
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")} | env,
        capture_output=True, text=True,
    )
    return "let in" in said.stdout
with ThreadPoolExecutor() as pool:  # at the same time: who is not let in tries for a while
    without = pool.submit(join, RAY_gcs_rpc_server_reconnect_timeout_s="5")
    wrong = pool.submit(join, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
    right = pool.submit(join, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.environ["RAY_AUTH_TOKEN"])
print("WITHOUT", without.result())
print("WRONG", wrong.result())
print("RIGHT", right.result())
"""
# Its reports are printed by the thread that stage.reports knows: seen once, and not in a stage.
DIE = """
import contextlib, io, time
from tutorial import cluster, stage
@ray.remote(max_retries=0)
def die():
    os._exit(1)
def seen(around):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(Exception), around:
        print("mine")
        try:
            ray.get(die.remote())
        finally:
            time.sleep(2)
    return ["mine" in printed.getvalue(), "worker died" in printed.getvalue().lower()]
print("REPORTED", seen(contextlib.nullcontext()))
print("QUIET", seen(stage.in_one_line("x", "y")))
@ray.remote
def switch():
    return os.environ["USE_RAY"], os.environ["MPLCONFIGDIR"], os.environ["no_proxy"], os.nice(0)
print("WORKER", ray.get(switch.remote()))
print("CPUS", run.resources["CPU"])
session = cluster.session_folder()
print("SESSION", (session / "logs" / "raylet.out").is_file())
"""
GONE = "cluster.delete_session(session); print('GONE', not session.exists())"
# As the processor's stages do: each batch becomes rows, and rows become a batch again.
THROUGH = """
one = {"few_shot": False, "system": "fine-tuned", "model": "none"}
rows = [row | one | {"guided": n > 60 and n % 2 == 0} for n, row in enumerate((99 * rows["test"])[:100])]
def stage(batch):
    return {"__data": [dict(row) for row in batch["__data"]]}
asked = ray.data.from_items(rows, override_num_blocks=1).map(lambda row: {"__data": prepare(row)})
for _ in range(2):
    asked = asked.map_batches(stage, batch_size=32, num_cpus=0.1)
guided = [bool(row["__data"]["sampling_params"].get("structured_outputs")) for row in asked.take_all()]
print("GUIDED", sum(guided), len(guided))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the notebook's cells and the sources above print; Matplotlib's folder there. No engine starts."""
    folder = str(tmp_path_factory.mktemp("mpl"))
    items = ["environment", "ray", JOIN, DIE, "model", "rows", *cells.PREPARE, *cells.UNTRAINED]
    items += ["processor", "questions", THROUGH, *cells.END, GONE]
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    env |= {"DATA": "sample", "VAL_ROWS": "4", "TEST_ROWS": "8"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.cells", json.dumps(items)],
        env=env | {"USE_RAY": "1", "MPLCONFIGDIR": folder, "no_proxy": "mine"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if line and line.split()[0].isupper()], folder


def test_the_cluster_that_the_notebook_starts(said):
    lines, folder = said
    assert [line for line in lines if not line.startswith("GUIDED")] == [
        "WITHOUT False",
        "WRONG False",
        "RIGHT True",
        "REPORTED [True, True]",
        "QUIET [True, False]",
        f"WORKER ('0', '{folder}', 'mine,127.0.0.1,localhost,::1', 0)",
        f"CPUS {max(8, machine.cores()):.1f}",
        "SESSION True",
        "GONE True",
    ]


def test_rows_with_and_without_a_grammar_in_several_batches_of_one_task(said):
    assert "GUIDED 19 100" in said[0]


def test_too_little_memory_is_one_line(no_cluster, monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: 4 * 2**30)
    with pytest.raises(
        TutorialError, match=r"^this machine or container has 4.0 GiB of memory, the run needs 7;"
    ):
        cluster.options()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(cluster, "_refuse_silence", lambda: None)
    assert cluster.options() == {}, "a cluster that is joined has its own memory"


def printed(source, **environment):
    """What a new process prints that runs `source` in this environment, but for variables that are None."""
    env = {key: value for key, value in (os.environ | environment).items() if value is not None}
    command = [sys.executable, "-c", source]
    return subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.fixture
def no_cluster(monkeypatch, tmp_path):
    """No cluster was started here."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def nobody():
    """A port of loopback that is bound, and where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def refused(match):
    start = time.monotonic()
    with pytest.raises(TutorialError, match=match) as error:
        cluster.options()
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < SOON_S


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:{port}",
        "localhost:{port}",
        "[::1]:{port}",
        "ray://127.0.0.1:{port}",
        "http://127.0.0.1:{port}",
        "no-host.invalid:{port}",
        "auto",
        "nonsense",
        "a b",
    ],
)
def test_an_address_where_nobody_answers(no_cluster, nobody, monkeypatch, address):
    address = address.format(port=nobody)
    monkeypatch.setenv("RAY_ADDRESS", address)
    refused(f"^RAY_ADDRESS={re.escape(address)}: no Ray cluster answers there; set RAY_ADDRESS=local to")


@pytest.mark.parametrize("auto", ["", "auto"])
def test_a_cluster_that_died_leaves_its_address(no_cluster, nobody, monkeypatch, auto):
    (no_cluster / "ray").mkdir()
    (no_cluster / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{nobody}\n")
    monkeypatch.setenv("RAY_ADDRESS", auto)
    assert cluster.joins()
    refused(rf"^{no_cluster}/ray/ray_current_cluster \(127\.0\.0\.1:{nobody}\): no Ray cluster answers")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster.options()["num_cpus"] >= 8


@contextlib.contextmanager
def listening(server):
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_something_else_answers(no_cluster, monkeypatch, scheme):
    handler = http.server.SimpleHTTPRequestHandler
    with listening(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as port:
        monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:{port}")
        refused("no Ray cluster answers there")


def test_an_address_that_takes_calls_and_says_nothing(no_cluster, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        refused("no Ray cluster answers there")


@pytest.fixture(scope="module")
def short():
    """A folder for Ray of a test's own: its sockets' paths have 107 characters at most."""
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture(scope="module")
def guarded(short):
    """A cluster of `ray start` that wants a token: its address, the token, its Ray Client's address."""
    token, ports = "0123456789abcdef" * 2, s3server.free_ports(2)
    options = [f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}", "--num-cpus=1"]
    options += ["--include-dashboard=false", "--min-worker-port=0", "--max-worker-port=0"]
    with Path(short, "log").open("w") as log:
        head = subprocess.Popen(
            [*RAY, "start", "--head", "--block", *options],
            env=os.environ | {"RAY_TMPDIR": short, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        for port in ports:
            while connect(port):
                assert head.poll() is None, Path(short, "log").read_text()
                time.sleep(0.2)
        yield f"127.0.0.1:{ports[0]}", token, f"ray://127.0.0.1:{ports[1]}"
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def connect(port):
    """0 if somebody listens there."""
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port))


def test_a_cluster_that_answers(no_cluster, guarded, monkeypatch):
    address, token, client = guarded
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for each in (address, address.replace("127.0.0.1", "localhost"), client):
        monkeypatch.setenv("RAY_ADDRESS", each)
        assert cluster.options() == {}
    monkeypatch.delenv("RAY_AUTH_TOKEN")  # Ray will read it from a file
    assert cluster.options() == {}


@pytest.mark.parametrize("given", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x" * 32}])
def test_a_cluster_that_wants_its_token(no_cluster, guarded, monkeypatch, given):
    address, _, client = guarded
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    for each in (address, client):
        monkeypatch.setenv("RAY_ADDRESS", each)
        refused(
            f"^RAY_ADDRESS={each}: this Ray cluster wants its token; set RAY_AUTH_MODE=token and RAY_AUTH"
        )


OTHER = """
import ray
ray.init(logging_level="error", log_to_driver=False)
ray.get(ray.util.placement_group([{"CPU": 1}]).ready())
print("reserved", flush=True)
input()
"""


@pytest.fixture(scope="class")
def two_machines(short):
    """A Ray cluster of two nodes, each with processes of its own, on this machine.

    Its address is in Ray's folder: in /tmp/ray, whatever else runs here would join it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", short)
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        started.add_node(num_cpus=1)
        ray.init(address=started.address, logging_level="error", log_to_driver=False)
        yield
        ray.shutdown()
        started.shutdown()


@pytest.mark.usefixtures("two_machines")
class TestTwoMachines:
    def test_they_see_a_folder_that_is_set(self, monkeypatch, tmp_path):
        monkeypatch.setenv("SHARED_DIR", str(tmp_path))
        assert settings.load(NO_FILE).shared_folder() == tmp_path
        assert cluster.all_see(settings.load(NO_FILE), ray.nodes())
        monkeypatch.delenv("SHARED_DIR")
        assert not cluster.all_see(settings.load(NO_FILE), ray.nodes())
        assert not cluster.all_see(settings.load(NO_FILE), ray.nodes()[:1]), "more machines may come"
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # no cluster was started there
        assert cluster.all_see(settings.load(NO_FILE), ray.nodes()[:1])

    def test_the_batch_stage_gives_back_what_its_engines_reserved(self):
        reserve = [sys.executable, "-c", OTHER]
        with subprocess.Popen(reserve, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
            assert job.stdout.readline() == "reserved\n"
            ray.get(ray.util.placement_group([{"CPU": 1}]).ready())
            batch.release_gpus()
            ray.get(ray.util.placement_group([{"CPU": 1}]).ready(), timeout=SOON_S)
            states = [group["state"] for group in ray.util.placement_group_table().values()]
            assert sorted(states) == ["CREATED", "CREATED", "REMOVED"], "another job's stays"
            job.communicate("\n")


def test_more_workers_than_the_machine_has_room_for(no_cluster, monkeypatch, capsys):
    cluster.check_fits({"CPU": 8.0}, 2, {"CPU": 1})
    with pytest.raises(TutorialError, match="4 workers with 1 GPU each need 4 GPU, this machine has 1; set"):
        cluster.check_fits({"CPU": 16.0, "GPU": 1.0}, 4, {"CPU": 4, "GPU": 1})
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # a cluster that is joined may grow
    cluster.check_fits({"CPU": 1.0}, 4, {"CPU": 4, "GPU": 1})
    assert "4 workers with 4 CPU each need 16 CPU, the cluster has 1: waiting" in capsys.readouterr().out


def test_a_submitted_job_brings_its_own_code(monkeypatch):
    assert cluster.runtime_env({})["working_dir"] == str(ROOT)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    env = cluster.runtime_env({"A": "1"})
    assert "working_dir" not in env
    assert env["env_vars"]["A"] == "1"


ASK = """
import json, os, sys, threading, http.server
import boto3, requests
from openai import OpenAI
from tutorial import cluster
cluster.prepare()
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'<ListAllMyBucketsResult/>' if "AWS4" in str(self.headers) else b'{"data": []}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
threading.Thread(target=server.serve_forever, daemon=True).start()
for host in ("127.0.0.1", "localhost"):
    url = f"http://{host}:{server.server_address[1]}"
    requests.get(url, timeout=5).raise_for_status()
    OpenAI(base_url=url, api_key="x", max_retries=0).models.list()
    boto3.client("s3", endpoint_url=url, region_name="r").list_buckets()
print(os.environ["NO_PROXY"], os.environ["no_proxy"])
try:
    requests.get("http://example.org", timeout=5)
except requests.exceptions.ProxyError:
    print("the world through the proxy")
"""


@pytest.mark.parametrize(
    ("given", "both"),
    [
        ({}, ["", ""]),
        ({"NO_PROXY": "a.example,10.0.0.0/8"}, 2 * ["a.example,10.0.0.0/8,"]),
        ({"no_proxy": "a.example"}, 2 * ["a.example,"]),
        ({"NO_PROXY": "a.example", "no_proxy": "localhost"}, ["a.example,", ""]),
    ],
)
def test_loopback_goes_through_no_proxy(no_cluster, nobody, given, both):
    proxies = {name: f"http://127.0.0.1:{nobody}" for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY")}
    unset = {name: None for name in os.environ if "proxy" in name.lower()}
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    hosts, proxy = printed(ASK, **(unset | proxies | keys | given)).splitlines()
    for found, before in zip(hosts.split(), both, strict=True):
        assert found.startswith(before)
        assert {"127.0.0.1", "localhost", "::1"} <= set(found.split(","))
    assert proxy == "the world through the proxy"


def test_no_proxy_for_anything_stays(no_cluster, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("no_proxy", raising=False)
    for name in cluster.CACHES:
        monkeypatch.setenv(name, "mine")
    cluster.keep_local()
    assert (os.environ["NO_PROXY"], os.environ.get("no_proxy", "*")) == ("*", "*")
    assert {os.environ[name] for name in cluster.CACHES} == {"mine"}


@pytest.mark.parametrize("given", [None, "0"])
def test_ray_serve_saves_threads_unless_told_not_to(given, no_cluster):
    switch = "RAY_SERVE_THROUGHPUT_OPTIMIZED"
    source = """
from tutorial import cluster
cluster.prepare()
from ray.serve._private.constants import RAY_SERVE_USE_GRPC_BY_DEFAULT
print(RAY_SERVE_USE_GRPC_BY_DEFAULT)
"""
    assert printed(source, **{switch: given}).strip() == str(given is None)
    assert f"ENV {switch}=1 " in (ROOT / "containerfile").read_text()


def test_rays_folder_has_no_space_and_a_short_path(tmp_path):
    source = "import os; from tutorial import cluster; cluster.prepare(); print(os.environ.get('RAY_TMPDIR'))"
    unfit = [tmp_path / "a b", tmp_path / (50 * "x"), ROOT / "out" / "tmp"]
    for folder in (*unfit, Path("/tmp")):  # noqa: S108
        folder.mkdir(exist_ok=True, parents=True)
        ours = printed(source, TMPDIR=str(folder), RAY_TMPDIR=None, RAY_ADDRESS=None).strip()
        assert (re.fullmatch(r"/tmp/tutorial-ray-\w+", ours) is not None) == (folder in unfit)  # noqa: S108
        if folder in unfit:
            session = Path(ours, "ray", "session_1")
            session.mkdir(parents=True)
            (session.parent / "session_latest").symlink_to(session)
            cluster.delete_session(session)
            assert not os.path.exists(ours)


@pytest.mark.parametrize("given", ["{}/a b", f"{ROOT}/ray", "out/ray"])
def test_a_folder_for_ray_that_has_a_space_or_is_in_the_project(given, no_cluster, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RAY_TMPDIR", given.format(no_cluster))
    with pytest.raises(TutorialError, match=r"^RAY_TMPDIR=.*(/a b|ray): set a path without spaces, outside"):
        cluster.prepare(NO_FILE)


def test_another_clusters_files_are_left_alone(tmp_path):
    mine, other = (tmp_path / "ray" / f"session_{name}" for name in ("1", "2"))
    mine.mkdir(parents=True)
    other.mkdir()
    (tmp_path / "ray" / "session_latest").symlink_to(other)
    cluster.delete_session(mine)
    assert sorted(path.name for path in (tmp_path / "ray").iterdir()) == ["session_2", "session_latest"]
    cluster.delete_session(tmp_path)
    cluster.delete_session(None)
    assert other.is_dir()
