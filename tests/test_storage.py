import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from gcp_storage_emulator.server import create_server

from tests.conftest import SOON_S, suspended
from tutorial import TutorialError, files, s3server
from tutorial.files import Place
from tutorial.storage import Storage

FILES = ["adapter_config.json", "adapter_model.safetensors"]


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    return folder


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "kept"


@pytest.fixture
def opened():
    """`Storage.open`; all are closed in the end."""
    made = []

    def open_one(*arguments, **options):
        made.append(Storage.open(*arguments, **options))
        return made[-1]

    yield open_one
    for each in made:
        each.close()


def keys_of(bucket):
    """All objects as S3 itself lists them, those in place of folders too."""
    return sorted(each.key for each in boto3.Session().resource("s3").Bucket(bucket).objects.all())


def one_line_error(message, call, *arguments, **options):
    start = time.monotonic()
    with pytest.raises(TutorialError, match=message) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return time.monotonic() - start


def one_line(uri, message, **options):
    assert one_line_error(message, Storage.open, uri, "viggo-4", **options) < SOON_S


# What is published


def test_published_files_come_back_and_no_others(store, adapter):
    place = store.publish(adapter, "adapters/a", FILES)
    assert place.listing() == {"adapter_config.json": 2, "adapter_model.safetensors": 7}
    assert (place / FILES[1]).read() == b"weights"
    assert str(place) == store.for_engines("adapters/a") == f"s3://{s3server.BUCKET}/viggo-1/adapters/a"
    assert str(store) == "an S3 server of this run, on loopback"


def test_a_folder_starts_a_server_only_when_an_engine_needs_one(opened, adapter, kept):
    run = opened(str(kept), "viggo-2")
    run.publish(adapter, "adapters/a", FILES)
    assert (kept / "viggo-2/adapters/a" / FILES[1]).read_bytes() == b"weights"
    assert run.server.folder is None
    with run.worker_keys():
        assert os.environ["AWS_SECRET_ACCESS_KEY"] == run.server.keys["AWS_SECRET_ACCESS_KEY"]
    assert run.for_engines("adapters") == f"s3://{s3server.BUCKET}/viggo-2/adapters"
    assert (run.server.place() / "viggo-2/adapters/a" / FILES[1]).read() == b"weights"
    assert run.engine_env()["AWS_ENDPOINT_URL"] == run.server.endpoint
    assert not set(run.engine_env().values()) & set(run.server.keys.values())
    run.close()
    assert (kept / "viggo-2/adapters/a" / FILES[0]).is_file()


def test_boto3_reads_what_the_engines_get_in_a_process_that_ray_starts(opened, adapter, monkeypatch):
    """`worker_keys` and `engine_env` are all that vLLM's loader has, whatever the user has set for AWS."""
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID"):
        monkeypatch.setenv(name, "http://of.the.user")
    before = dict(os.environ)
    run = opened(None, "viggo-2")
    run.publish(adapter, "adapters/a", FILES)
    program = (
        f"import boto3; print(boto3.client('s3').list_objects_v2(Bucket='{s3server.BUCKET}')['KeyCount'])"
    )
    with run.worker_keys():
        worker = dict(os.environ)
    assert dict(os.environ) == before
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=worker | run.engine_env(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "2", done.stderr


def test_keys_go_to_a_cluster_that_is_joined_alone(opened, kept, monkeypatch):
    run = opened(str(kept), "viggo-2")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("RAY_TMPDIR", str(kept))
    assert run.worker_env() == {}
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert run.worker_env() == run.server.keys


def test_an_object_store_of_the_user_s_gets_no_server_and_no_keys(user, bucket, opened, adapter):
    before = dict(os.environ)
    run = opened(f"s3://{bucket}/some/where", "viggo-2")
    assert str(run) == f"s3://{bucket}/some/where"
    assert run.server is None
    assert run.engine_env() == run.worker_env() == {}
    with run.worker_keys():
        assert dict(os.environ) == before
    assert run.for_engines("adapters") == f"s3://{bucket}/some/where/viggo-2/adapters"


def test_a_user_s_bucket_may_be_called_as_that_of_a_run_s_server(user, opened, adapter):
    """Two stores in one process, each with its own keys: the user's, and that of a server of a run."""
    mine = Place.of(f"s3://{s3server.BUCKET}/mine", "DATA")
    mine.write(b"the user's")
    run = opened(None, "viggo-2")
    other = run.root / "mine"
    assert not other.exists()
    other.write(b"the run's")
    assert mine.read() == Place.of(f"s3://{s3server.BUCKET}/mine", "DATA").read() == b"the user's"
    mine.delete()
    assert other.read() == b"the run's"


# What is deleted


def test_clean_up_takes_this_run_and_nothing_else(user, bucket, opened, adapter):
    root = f"s3://{bucket}/some/where"
    beside = Place.of(f"s3://{bucket}/some/where") / "viggo-1.txt"
    beside.write(b"mine")
    one, ten = (opened(root, name) for name in ("viggo-1", "viggo-10"))
    for run in (one, ten):
        run.publish(adapter, "adapters/a", FILES)
    assert one.clean_up() == 2
    assert one.listing() == {}
    assert set(ten.listing()) == {f"adapters/a/{file}" for file in FILES}
    assert ten.clean_up() == 2
    assert keys_of(bucket) == ["some/where/viggo-1.txt"]


def test_ray_leaves_nothing_either(user, bucket, opened, adapter):
    """Ray makes folders, which pyarrow makes empty objects of, up to the root unless they are there."""
    run = opened(f"s3://{bucket}/some/where", "viggo-1")
    run.publish(adapter, "data", FILES)
    run.place.files.create_dir(f"{run.place.path}/training/checkpoint", recursive=True)
    with run.place.files.open_output_stream(f"{run.place.path}/training/checkpoint/x") as stream:
        stream.write(b"x")
    run.place.files.delete_dir(f"{run.place.path}/training/checkpoint")
    assert run.clean_up() == 2
    assert keys_of(bucket) == []


@pytest.mark.parametrize(
    "address", ["s3://{}/team#1", "s3://{}/team?x", "s3://{}/team/../team", "s3:/{}/team"]
)
def test_another_run_is_safe_from_an_address_that_is_cut(address, bucket, opened, adapter):
    """An address is taken as it is written or not at all: what a parser cuts off may name another run."""
    other = opened(f"s3://{bucket}/team", "viggo-1")
    other.publish(adapter, "adapters/a", FILES)
    before = keys_of(bucket)
    one_line_error(r"^STORAGE=s3:", Storage.open, address.format(bucket), "viggo-1")
    assert keys_of(bucket) == before


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../b", "a#1", "a?b", "a b", "-x"])
def test_a_run_s_name_is_one_step_of_a_path(name, kept, tmp_path):
    one_line_error(r"^RUN_NAME=", Storage.open, str(kept), name)
    assert not kept.exists()


def test_what_is_deleted_ends_with_the_run_s_name(kept, adapter):
    (kept / "mine").mkdir(parents=True)
    (kept / "mine/file").write_text("mine")
    run = Storage(Place.of(str(kept)), "../kept/mine")
    with pytest.raises((TutorialError, ValueError)):
        run.clean_up()
    assert (kept / "mine/file").is_file()


def test_clean_up_of_a_folder_takes_this_run_and_nothing_else(opened, adapter, kept):
    one, ten = (opened(str(kept / "deeper"), name) for name in ("viggo-1", "viggo-10"))
    for run in (one, ten):
        run.publish(adapter, "adapters/a", FILES)
    (kept / "deeper/viggo-1.txt").write_text("mine")
    assert one.clean_up() == 2
    assert sorted(path.name for path in (kept / "deeper").iterdir()) == ["viggo-1.txt", "viggo-10"]
    assert ten.clean_up() == 2
    (kept / "deeper/viggo-1.txt").unlink()
    third = opened(str(kept / "other/deep"), "viggo-1")
    third.publish(adapter, "data", FILES)
    assert third.clean_up() == 2
    assert [path.name for path in kept.iterdir()] == ["deeper"], "folders that the run made are left"


def test_close_leaves_nothing_on_this_machine(opened):
    before = dict(os.environ)
    run = opened(None, "viggo-3")
    process, folder = run.server.process, run.server.folder
    temporary = Path(tempfile.gettempdir(), run.scratch)
    (temporary / "model").mkdir(parents=True)
    run.close()
    run.close()
    assert process.poll() is not None
    assert not folder.exists()
    assert dict(os.environ) == before
    assert temporary.exists(), "what a failed training left is kept"
    again = opened(None, "viggo-3")
    again.scratch = run.scratch
    again.clean_up()
    assert not temporary.exists()


def test_nobody_can_guess_a_temporary_folder(opened, kept):
    one, again = (opened(str(kept), "viggo-1").scratch for _ in range(2))
    assert one.startswith("viggo-1-")
    assert len(one) >= len("viggo-1-") + 16
    assert one != again


# A run of the same name


def test_a_run_of_the_same_name_is_refused(opened, adapter, kept):
    opened(str(kept), "viggo-5").publish(adapter, "adapters/a", FILES)
    with pytest.raises(TutorialError, match=r"^RUN_NAME=viggo-5: .* holds a run of this name"):
        opened(str(kept), "viggo-5")
    opened(str(kept), "viggo-6")


def test_a_resumed_run_keeps_the_files_it_had(opened, adapter, kept):
    opened(str(kept), "viggo-9").publish(adapter, "data", FILES)
    again = opened(str(kept), "viggo-9", resume=True)
    again.publish(adapter, "data", FILES)
    (adapter / FILES[1]).write_bytes(b"another")
    with pytest.raises(TutorialError, match=r"^RESUME=1: data/adapter_model.safetensors differs from that"):
        again.publish(adapter, "data", FILES)
    assert (kept / "viggo-9/data" / FILES[1]).read_bytes() == b"weights"
    again.publish(adapter, "data", FILES, replace=True)
    assert (kept / "viggo-9/data" / FILES[1]).read_bytes() == b"another"


def test_a_run_that_is_not_there_cannot_be_resumed(kept):
    message = r"^RUN_NAME=viggo-4: .* holds no run of this name; set STORAGE and RUN_NAME"
    one_line(str(kept), message, resume=True)


# A storage that does not work


def test_an_error_of_this_machine_is_not_waited_for(adapter, kept, tmp_path):
    kept.mkdir()
    (kept / "viggo-8").write_text("a file where the run's folder should be")
    run = Storage(Place.of(str(kept)), "viggo-8", local=tmp_path / "out")
    message = (
        rf"^STORAGE={run.root}: data cannot be written \(.*; its files are kept in {run.local}/viggo-8/data$"
    )
    assert one_line_error(message, run.publish, adapter, "data", FILES) < SOON_S
    assert (run.local / "viggo-8/data" / FILES[1]).read_bytes() == b"weights"


def test_an_unknown_scheme():
    one_line("ftp://host/x", r"^STORAGE=ftp://host/x: unknown scheme 'ftp'; set a folder or s3://")


def test_too_little_disk():
    one_line(None, r"GiB free, the run needs 1048576; set TMPDIR", free={"TMPDIR": 2**50, "STORAGE": 0})


def test_too_little_disk_where_the_storage_is(tmp_path):
    one_line(
        str(tmp_path),
        rf"^{tmp_path}: .* GiB free.*; set STORAGE to a larger",
        free={"TMPDIR": 0, "STORAGE": 2**50},
    )


def test_a_bucket_that_is_not_there(user):
    one_line("s3://nobody-made-this/x", r"^STORAGE=s3://nobody-made-this/x: there is no bucket")


@pytest.mark.parametrize(
    ("action", "refused"),
    [("Put", "CreateMultipartUpload"), ("Get", "HeadObject"), ("Delete", "DeleteObject")],
)
def test_keys_that_may_not_write_read_or_delete(user, bucket, action, refused):
    rule = {"Effect": "Deny", "Principal": "*", "Action": [f"s3:{action}Object"]}
    rule["Resource"] = [f"arn:aws:s3:::{bucket}/*"]
    user.BucketPolicy(bucket).put(Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]}))
    one_line(
        f"s3://{bucket}/x", rf"^STORAGE=s3://{bucket}/x: .*{refused} operation.*; check AWS_ACCESS_KEY_ID"
    )


def test_wrong_keys(user, bucket, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    one_line(f"s3://{bucket}", rf"^STORAGE=s3://{bucket}: .*; check AWS_ACCESS_KEY_ID")


def test_an_endpoint_that_is_down(user, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    one_line(f"s3://{bucket}/x", rf"^STORAGE=s3://{bucket}/x: .*Could not connect to server; check AWS_")


def test_an_endpoint_that_does_not_answer(user, bucket, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        one_line(f"s3://{bucket}/x", rf"^STORAGE=s3://{bucket}/x: .*Timeout was reached.*; check AWS_")


def test_a_folder_that_cannot_be_written():
    one_line("/proc/nowhere", r"^STORAGE=/proc/nowhere: ")


def test_a_server_on_loopback_is_for_one_machine(store):
    store.check_nodes([{"Alive": True}, {"Alive": False}])
    with pytest.raises(TutorialError, match=r"the cluster has 2 machines.*set STORAGE"):
        store.check_nodes([{"Alive": True}, {"Alive": True}])


# Google's storage


@pytest.fixture
def gcs(monkeypatch):
    """The address of a bucket on an emulator of Google's storage, which wants no keys."""
    port = s3server.free_ports(1)[0]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="tutorial")
    server.start()
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{port}")
    files._connect.cache_clear()  # each file system keeps the address that it was made with
    yield "gs://anonymous@tutorial"
    files._connect.cache_clear()
    server.stop()


def test_google_s_storage(gcs, opened, adapter):
    one, ten = (opened(f"{gcs}/some/where", name) for name in ("viggo-1", "viggo-10"))
    for run in (one, ten):
        place = run.publish(adapter, "adapters/a", FILES)
        assert run.for_engines("adapters/a") == str(place)
    assert (place / FILES[1]).read() == b"weights"
    one_line_error(r"RUN_NAME=viggo-1: .* holds a run of this name", opened, f"{gcs}/some/where", "viggo-1")
    assert one.clean_up() == 2
    assert set(ten.listing()) == {f"adapters/a/{file}" for file in FILES}
    assert ten.clean_up() == 2
    assert Place.of(gcs).files.get_file_info("tutorial/some").type.name == "NotFound", "a folder is left"
    one_line("gs://anonymous@none/where", r"there is no bucket 'none', or these credentials")


def test_a_silent_google(gcs, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)
        message = r"^STORAGE=gs://anonymous@bucket/x: no answer in 30 s"
        assert one_line_error(message, Storage.open, "gs://anonymous@bucket/x", "viggo-4") < SOON_S


# A storage that goes away half way


@pytest.fixture
def doomed(tmp_path, opened):
    """A run with a server of its own, which a test may kill."""
    run = opened(None, "viggo-7")
    run.local = tmp_path / "out"
    return run


@pytest.mark.faults
def test_an_endpoint_gone_half_way_is_named_and_no_file_is_lost(doomed, adapter, tmp_path):
    place = doomed.publish(adapter, "adapters/a", FILES)
    doomed.server.process.kill()
    doomed.server.process.wait()
    kept = tmp_path / "out/viggo-7/adapters/b"
    gone = r"^STORAGE=s3://tutorial: {} \(.*Could not connect to server.*\)"
    written = gone.format("adapters/b cannot be written") + f"; its files are kept in {kept}$"
    listed = gone.format("the files of viggo-7 cannot be listed")
    with ThreadPoolExecutor() as pool:  # at the same time: each insists for about a minute
        asked = [
            pool.submit(one_line_error, written, doomed.publish, adapter, "adapters/b", FILES),
            pool.submit(one_line_error, listed, doomed.listing),
            pool.submit(one_line_error, listed, doomed.clean_up),
        ]
        assert all(each.result() > 20 for each in asked)
    assert sorted(path.name for path in kept.iterdir()) == FILES
    assert (kept / FILES[1]).read_bytes() == b"weights"
    assert place.path.endswith("viggo-7/adapters/a")


@pytest.mark.faults
def test_an_endpoint_that_comes_back_is_waited_for(doomed, adapter, tmp_path):
    server = doomed.server
    server.process.kill()
    server.process.wait()
    folder = shutil.copytree(server.folder, tmp_path / "second", ignore=shutil.ignore_patterns("*.sock"))
    again = s3server.command("127.0.0.1", server.ports)
    second = subprocess.Popen(
        ["/bin/sh", "-c", 'sleep 4; exec "$@"', "sh", *again],
        cwd=folder,
        env=s3server.environment(folder, server.keys),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        start = time.monotonic()
        doomed.publish(adapter, "adapters/a", FILES)
        assert time.monotonic() - start > 4
        assert len(doomed.listing()) == len(FILES)
    finally:
        second.terminate()
        second.wait()


@pytest.mark.faults
def test_an_endpoint_that_falls_silent_half_way(doomed, adapter):
    with suspended(doomed.server.process.pid):
        message = r"data cannot be written \(.*Timeout was reached"
        assert one_line_error(message, doomed.publish, adapter, "data", FILES) > 60
