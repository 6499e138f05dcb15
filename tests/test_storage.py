import json
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
from gcp_storage_emulator.server import create_server

from tutorial import TutorialError, storage


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "optimizer.pt").write_bytes(b"a pickle")
    return tmp_path


FILES = ["adapter_config.json", "adapter_model.safetensors"]


def test_published_files_come_back_and_no_others(store, adapter, tmp_path):
    uri = store.publish(adapter, "adapters/a", FILES)
    storage.fetch(uri, tmp_path / "back")
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == FILES
    assert (tmp_path / "back" / FILES[1]).read_bytes() == b"weights"


def test_the_server_is_on_loopback_and_its_keys_are_in_no_file(store):
    assert store.server.endpoint.startswith("http://127.0.0.1:")
    secret = store.server.env["AWS_SECRET_ACCESS_KEY"].encode()
    folder = store.server.log.parent
    assert not [p for p in folder.rglob("*") if p.is_file() and secret in p.read_bytes()]


def test_clean_up_takes_this_run_and_nothing_else(store, adapter):
    ten = storage.Storage(store.root, "viggo-10")
    for run in (store, ten):
        run.publish(adapter, "adapters/a", FILES)
    assert store.clean_up() >= 2
    assert store.listing() == {}
    assert set(ten.listing()) == {f"adapters/a/{file}" for file in FILES}
    assert ten.clean_up() == 2


def test_clean_up_of_a_folder_takes_this_run_and_nothing_else(adapter, tmp_path):
    kept = tmp_path / "kept"
    one, ten = (storage.Storage(str(kept), name) for name in ("viggo-1", "viggo-10"))
    for run in (one, ten):
        run.publish(adapter, "adapters/a", FILES)
    (kept / "viggo-1.txt").write_text("mine")
    assert one.clean_up() == 2
    assert sorted(path.name for path in kept.iterdir()) == ["viggo-1.txt", "viggo-10"]
    assert set(ten.listing()) == {f"adapters/a/{file}" for file in FILES}


def test_a_folder_holds_plain_files_and_the_engines_get_an_s3_address(adapter, tmp_path):
    opened = storage.Storage.open(str(tmp_path / "kept"), "viggo-2")
    try:
        opened.publish(adapter, "adapters/a", FILES)
        assert (tmp_path / "kept/viggo-2/adapters/a" / FILES[1]).read_bytes() == b"weights"
        uri = opened.for_engines("adapters")
        assert uri.startswith("s3://")
        storage.fetch(f"{uri}/a", tmp_path / "back")
        assert (tmp_path / "back" / FILES[1]).read_bytes() == b"weights"
    finally:
        opened.close()
    assert (tmp_path / "kept/viggo-2/adapters/a" / FILES[0]).is_file()


@pytest.fixture
def gcs(monkeypatch):
    """The address of a bucket on an emulator of Google's storage, which wants no keys."""
    port = storage._free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="tutorial")
    server.start()
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{port}")
    yield "gs://anonymous@tutorial"
    server.stop()


def test_google_s_storage(gcs, adapter, tmp_path):
    one, ten = (storage.Storage.open(f"{gcs}/some/where", name) for name in ("viggo-1", "viggo-10"))
    for run in (one, ten):
        uri = run.publish(adapter, "adapters/a", FILES)
        assert run.for_engines("adapters/a") == uri
    storage.fetch(uri, tmp_path / "back")
    assert (tmp_path / "back" / FILES[1]).read_bytes() == b"weights"
    with pytest.raises(TutorialError, match=r"RUN_NAME=viggo-1: .* holds a run of this name"):
        storage.Storage.open(f"{gcs}/some/where", "viggo-1")
    assert one.clean_up() == 2
    assert set(ten.listing()) == {f"adapters/a/{file}" for file in FILES}
    with pytest.raises(TutorialError, match=r"there is no bucket 'none', or these keys"):
        storage.Storage.open("gs://anonymous@none/where", "viggo-1")


def test_close_ends_the_server_and_gives_the_environment_back():
    before = dict(os.environ)
    opened = storage.Storage.open(None, "viggo-3")
    process, folder = opened.server._process, opened.server.log.parent
    opened.close()
    assert process.poll() is not None
    assert not folder.exists()
    assert dict(os.environ) == before


def test_a_run_of_the_same_name_is_refused(adapter, tmp_path):
    storage.Storage(str(tmp_path / "kept"), "viggo-5").publish(adapter, "adapters/a", FILES)
    with pytest.raises(TutorialError, match=r"^RUN_NAME=viggo-5: .* holds a run of this name"):
        storage.Storage.open(str(tmp_path / "kept"), "viggo-5")
    storage.Storage.open(str(tmp_path / "kept"), "viggo-6").close()


def test_a_run_goes_on_with_the_files_it_had(adapter, tmp_path):
    root = str(tmp_path / "kept")
    storage.Storage(root, "viggo-9").publish(adapter, "data", FILES)
    again = storage.Storage.open(root, "viggo-9", resume=True)
    try:
        again.publish(adapter, "data", FILES)
        (adapter / FILES[1]).write_bytes(b"another")
        with pytest.raises(TutorialError, match=r"^RESUME=1: data/adapter_model.safetensors was another in"):
            again.publish(adapter, "data", FILES)
    finally:
        again.close()
    assert (tmp_path / "kept/viggo-9/data" / FILES[1]).read_bytes() == b"weights"


def test_a_run_that_is_not_there_cannot_go_on(tmp_path):
    message = r"^RESUME=1, RUN_NAME=viggo-4: .* holds no run of this name; set STORAGE and RUN_NAME"
    one_line(str(tmp_path / "kept"), message, resume=True)


def one_line_error(message, call, *arguments, **options):
    start = time.monotonic()
    with pytest.raises(TutorialError, match=message) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return time.monotonic() - start


def one_line(uri, message, **options):
    assert one_line_error(message, storage.Storage.open, uri, "viggo-4", **options) < 10


def test_an_error_of_this_machine_is_not_waited_for(adapter, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "viggo-8").write_text("a file where the run's folder should be")
    run = storage.Storage(str(tmp_path / "kept"), "viggo-8", local=tmp_path / "out")
    message = (
        rf"^STORAGE={run.root}: data cannot be written \(.*; its files are kept in {run.local}/viggo-8/data$"
    )
    assert one_line_error(message, run.publish, adapter, "data", FILES) < 10


def test_an_unknown_scheme():
    one_line("ftp://host/x", r"^STORAGE=ftp://host/x: unknown scheme 'ftp'; set a folder, s3://")


def test_too_little_disk():
    one_line(None, r"GiB free, the run needs 1048576; set TMPDIR", needs_bytes=2**50)


def test_too_little_disk_where_the_storage_is(tmp_path):
    one_line(str(tmp_path), rf"^{tmp_path}: .* GiB free.*; set STORAGE to a larger", stores_bytes=2**50)


def test_a_bucket_that_is_not_there(store):
    one_line("s3://nobody-made-this/x", r"^STORAGE=s3://nobody-made-this/x: there is no bucket")


@pytest.mark.parametrize(
    ("action", "refused"),
    [("Put", "CreateMultipartUpload"), ("Get", "HeadObject"), ("Delete", "DeleteObject")],
)
def test_keys_that_may_not_write_read_or_delete(store, action, refused):
    s3, bucket = boto3.client("s3"), f"no-{action.lower()}"
    s3.create_bucket(Bucket=bucket)
    rule = {"Effect": "Deny", "Principal": "*", "Action": [f"s3:{action}Object"]}
    rule["Resource"] = [f"arn:aws:s3:::{bucket}/*"]
    policy = {"Version": "2012-10-17", "Statement": [rule]}
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    one_line(
        f"s3://{bucket}/x", rf"^STORAGE=s3://{bucket}/x: .*ACCESS_DENIED during {refused}.*check the keys"
    )


def test_wrong_keys(store, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    one_line(store.root, r"^STORAGE=s3://tutorial: .*check the keys")


def test_an_endpoint_that_is_down(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    one_line("s3://bucket/x", r"^STORAGE=s3://bucket/x: .*Could not connect to server; check the keys")


def test_an_endpoint_that_does_not_answer(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
        one_line("s3://bucket/x", r"^STORAGE=s3://bucket/x: no answer within 8 s; check the keys")


@pytest.fixture
def doomed(tmp_path):
    """A run with a server of its own, which a test may kill."""
    opened = storage.Storage.open(None, "viggo-7")
    opened.local = tmp_path / "out"
    yield opened
    opened.close()


@pytest.mark.faults
def test_an_endpoint_gone_half_way_is_named_and_no_file_is_lost(doomed, adapter, tmp_path):
    doomed.publish(adapter, "adapters/a", FILES)
    doomed.server._process.kill()
    doomed.server._process.wait()
    kept = tmp_path / "out/viggo-7/adapters/b"
    gone = r"^STORAGE=s3://tutorial: {} \(.*Could not connect to server.*\)"
    written = gone.format("adapters/b cannot be written") + f"; its files are kept in {kept}$"
    listed = gone.format("the files of viggo-7 cannot be listed")
    uri = doomed.uri("adapters")
    copied = rf"^STORAGE: {uri} cannot be copied to .* \(.*Could not"
    with ThreadPoolExecutor() as pool:  # at the same time: each insists for a minute
        asked = [
            pool.submit(one_line_error, written, doomed.publish, adapter, "adapters/b", FILES),
            pool.submit(one_line_error, listed, doomed.listing),
            pool.submit(one_line_error, listed, doomed.clean_up),
            pool.submit(one_line_error, copied, storage.fetch, uri, tmp_path / "x"),
        ]
        assert all(each.result() > storage.PATIENCE_S / 2 for each in asked)
    assert sorted(path.name for path in kept.iterdir()) == FILES
    assert (kept / FILES[1]).read_bytes() == b"weights"


@pytest.mark.faults
def test_an_endpoint_that_comes_back_is_waited_for(doomed, adapter):
    first = doomed.server._process
    first.kill()
    first.wait()
    with (doomed.server.log.parent / "second.log").open("wb") as log:
        second = subprocess.Popen(
            ["/bin/sh", "-c", f"sleep 4; exec {' '.join(first.args)}"], stdout=log, stderr=log
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
    doomed.server._process.send_signal(signal.SIGSTOP)
    try:
        message = r"data cannot be written \(.*Timeout was reached"
        one_line_error(message, doomed.publish, adapter, "data", FILES)
    finally:
        doomed.server._process.send_signal(signal.SIGCONT)


def test_a_folder_that_cannot_be_written():
    one_line("/proc/nowhere", r"^STORAGE=/proc/nowhere: ")


def test_a_server_on_loopback_is_for_one_machine(store):
    store.check_nodes([{"Alive": True}, {"Alive": False}])
    with pytest.raises(TutorialError, match=r"the cluster has 2 machines.*set STORAGE"):
        store.check_nodes([{"Alive": True}, {"Alive": True}])
