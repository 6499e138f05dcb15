"""The object store goes away half way: the stage ends in one line, and what it had is kept here."""

import re
import shutil
import time
from pathlib import Path

import boto3
import pytest
import yaml

from tests import cells
from tests.conftest import ROOT
from tutorial import s3server

pytestmark = pytest.mark.faults
KEYS = {
    "AWS_ACCESS_KEY_ID": "tutorial",
    "AWS_SECRET_ACCESS_KEY": "of this test alone",
    "AWS_REGION": "us-east-1",
}


@pytest.fixture
def s3(start, tmp_path):
    """An S3 server of the test's own, the variables that lead to it, and a client."""
    folder, ports = tmp_path / "s3", s3server.free_ports(len(s3server.PORTS))
    url = f"http://127.0.0.1:{ports[0]}"
    folder.mkdir()
    command = s3server.command("127.0.0.1", ports, "gone")
    server = start(command, folder, **s3server.environment(folder, KEYS))
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )

    def bucket() -> bool:
        try:
            return bool(client.list_buckets()["Buckets"])
        except Exception:  # it is not up yet, which wait_for bounds
            return False

    server.wait_for(bucket, 60)
    return server, KEYS | {"AWS_ENDPOINT_URL": url, "STORAGE": "s3://gone"}, client


def files(client, prefix: str) -> list[str]:
    return [
        found["Key"] for found in client.list_objects_v2(Bucket="gone", Prefix=prefix).get("Contents", [])
    ]


def test_while_training(drive, s3, seen, tmp_path):
    server, env, client = s3
    recipe = yaml.safe_load((ROOT / "lora_sft_ray_cpu.yaml").read_text())
    recipe["ray"]["max_failures"] = 0  # each new attempt would wait a minute for the rows
    (tmp_path / "once.yaml").write_text(yaml.safe_dump(recipe))
    run = drive(cells.TRAIN, RUN_NAME="gone", RECIPE=str(tmp_path / "once.yaml"), **env)
    run.wait_for(lambda: any("optimizer" in key for key in files(client, "gone/training/")))
    server.kill()
    begun = time.monotonic()
    line = run.end(1)
    took = time.monotonic() - begun
    assert line.startswith("TutorialError: fine-tuning: "), run.said()[-3000:]
    kept = Path(re.search(r"its files are kept in (\S+); ", line)[1])
    assert kept.name.startswith("gone-")
    assert list(kept.rglob("adapter_model.safetensors"))
    run.all_gone()
    shutil.rmtree(kept)
    promise = "one line; the last checkpoint is kept on the worker's machine"
    seen(
        "training",
        "the S3 server ends half way",
        promise,
        "one line, which names the folder with the adapter's files",
        took,
    )


def test_while_answering(drive, s3, seen):
    server, env, client = s3
    by_fours = "profile.processor['batch_size'] = profile.engine['max_num_seqs'] = 4"
    cells_ = [*cells.SET_UP, by_fours, *cells.PREPARE, *cells.ASK]
    run = drive(cells_, RUN_NAME="gone", TEST_ROWS="32", **env)
    run.wait_for(lambda: files(client, "gone/answers/"))
    server.kill()
    begun = time.monotonic()
    line = run.end(1)
    took = time.monotonic() - begun
    assert line.startswith("TutorialError: batch inference: "), run.said()[-3000:]
    run.all_gone()
    seen("batch inference", "the S3 server ends half way", "one line", "one line, no process left", took)
