"""The whole cpu path on a Ray cluster of two machines, one of which is lost while it trains and comes back.

Each is a network namespace of its own, with a /tmp that the other does not see; nothing is shared but the S3
server, the installed packages and the two cores. Where the host allows no namespaces, both are nodes of this
machine."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import yaml

from tests.conftest import ROOT
from tutorial import s3server

pytestmark = pytest.mark.faults
HEAD, WORKER = "10.77.0.1", "10.77.0.2"
LINKS = {"head": "tutorial-h", "worker": "tutorial-w"}
RAY = str(ROOT / ".venv" / "bin" / "ray")
# The installed packages stay, should they be in /tmp too.
OWN_TMP = """
set -e
mount --bind "$0" /mnt
mount -t tmpfs tmpfs /tmp
mkdir -p "$0"
mount --bind /mnt "$0"
cd /
exec "$@"
"""
# How many files Ray Train has written there.
COUNT = """
import boto3
found = boto3.client("s3").list_objects_v2(Bucket="two", Prefix="two-machines/training/")
print(found.get("KeyCount", 0))
"""


def ip(command: str) -> None:
    subprocess.run(["/usr/sbin/ip", *command.split()], check=True, capture_output=True)


def apart() -> bool:
    """Whether the host allows network namespaces."""
    try:
        ip("netns add tutorial-try")
        ip("netns del tutorial-try")
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@pytest.fixture
def machines():
    """The commands that run a program on the head and on the worker, and the addresses of the two."""
    if not apart():
        yield [], [], "127.0.0.1", "127.0.0.1"
        return
    for name in ("tutorial-head", "tutorial-worker"):
        with suppress(subprocess.CalledProcessError):
            ip(f"netns del {name}")
    ip("netns add tutorial-head")
    ip("netns add tutorial-worker")
    try:
        ip("link add tutorial-h type veth peer name tutorial-w")
        for name, end, address in (("head", "tutorial-h", HEAD), ("worker", "tutorial-w", WORKER)):
            ip(f"link set {end} netns tutorial-{name}")
            ip(f"-n tutorial-{name} address add {address}/24 dev {end}")
            ip(f"-n tutorial-{name} link set {end} up")
            ip(f"-n tutorial-{name} link set lo up")
        own_tmp = ["unshare", "-m", "sh", "-c", OWN_TMP, str(ROOT / ".venv")]
        inside = ["ip", "netns", "exec"]
        yield [*inside, "tutorial-head"], [*inside, "tutorial-worker", *own_tmp], HEAD, WORKER
    finally:
        ip("netns del tutorial-head")
        ip("netns del tutorial-worker")


def recipe(project) -> None:
    """Three CPUs a training worker: one has room on a machine of four, two have not."""
    path = project / "lora_sft_ray_cpu.yaml"
    content = yaml.safe_load(path.read_text())
    content["ray"]["resources_per_worker"] = {"CPU": 3}
    path.write_text(yaml.safe_dump(content))


def test_one_of_two_machines_is_lost_and_comes_back(start, machines, project, seen, tmp_path):
    on_head, on_worker, head, worker = machines
    recipe(project)
    s3 = {"AWS_ACCESS_KEY_ID": "tutorial", "AWS_SECRET_ACCESS_KEY": "of this test alone"}
    s3 |= {
        "AWS_ENDPOINT_URL": f"http://{head}:8433",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    (tmp_path / "s3").mkdir()
    server = s3server.command(head, [8433, *s3server.free_ports(len(s3server.PORTS) - 1)], "two")
    start([*on_head, *server], tmp_path / "s3", **s3server.environment(tmp_path / "s3", s3))
    node = [RAY, *"start --block --num-cpus=4 --object-store-memory=300000000 --disable-usage-stats".split()]
    temp = f"/tmp/two-{os.getpid()}"  # noqa: S108  short: a socket's path has 107 bytes at most
    lead = ["--head", f"--node-ip-address={head}", "--port=6399", "--include-dashboard=false"]
    # Gloo would look the machine's name up, which is the same for both.
    gloo = {side: {"GLOO_SOCKET_IFNAME": name if on_head else "lo"} for side, name in LINKS.items()}
    leads = start([*on_head, *node, *lead, f"--temp-dir={temp}"], **s3, **gloo["head"])
    leads.wait_for(lambda: "Ray runtime started" in leads.said())
    follow = [*on_worker, *node, f"--address={head}:6399", f"--node-ip-address={worker}"]
    follows = start(follow, **s3, **gloo["worker"])
    follows.wait_for(lambda: "Ray runtime started" in follows.said())

    def files() -> int:
        return int(subprocess.check_output([*on_head, sys.executable, "-c", COUNT], env=os.environ | s3))

    settings = {
        "STORAGE": "s3://two",
        "RUN_NAME": "two-machines",
        "RAY_ADDRESS": f"{head}:6399",
        "PROFILE": "cpu",
    }
    run = start([*on_head, sys.executable, "-m", "tutorial.run"], project, **s3, **settings)
    run.wait_for(lambda: follows.processes("ray::RayTrainWorker") and leads.processes("ray::RayTrainWorker"))
    run.wait_for(lambda: files() > 5)
    follows.kill()
    start_ = time.monotonic()
    time.sleep(10)
    back = start(follow, **s3, **gloo["worker"])
    run.wait_for(lambda: back.processes("ray::RayTrainWorker") and leads.processes("ray::RayTrainWorker"))
    took = time.monotonic() - start_
    run.end(timeout_s=600)
    found = json.loads((project / "out" / "results.json").read_text())
    assert found["training"]["steps"] == found["training"]["steps_planned"] == 8
    assert found["training"]["workers"] == 2
    assert found["batch"]["rows_out"] == found["batch"]["rows_in"] == 32
    assert found["batch"]["rows_failed"] == 0
    base, adapter, *_ = found["serving"]["answers"].values()
    assert base != adapter
    shutil.rmtree(temp, ignore_errors=True)
    promise = "Ray Train waits for a machine, and goes on from the last checkpoint"
    what = "two machines, no file shared but through S3: all stages ended well"
    seen(
        "training",
        "one of two machines, with all its processes: SIGKILL; back after 10 s",
        promise,
        what,
        took,
    )
