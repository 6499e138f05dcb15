import os
import time

import pytest

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


def one_line(uri, message, **options):
    start = time.monotonic()
    with pytest.raises(TutorialError, match=message) as error:
        storage.Storage.open(uri, "viggo-4", **options)
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 10


def test_an_unknown_scheme():
    one_line("ftp://host/x", r"^STORAGE=ftp://host/x: unknown scheme 'ftp'; set a folder, s3://")


def test_too_little_disk():
    one_line(None, r"GiB free, the run needs 1048576; set TMPDIR", needs_bytes=2**50)


def test_a_bucket_that_is_not_there(store):
    one_line("s3://nobody-made-this/x", r"^STORAGE=s3://nobody-made-this/x: there is no bucket")


def test_wrong_keys(store, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    one_line(store.root, r"^STORAGE=s3://tutorial: .*check the keys")


def test_an_endpoint_that_is_down(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    one_line("s3://bucket/x", r"^STORAGE=s3://bucket/x: ")


def test_a_folder_that_cannot_be_written():
    one_line("/proc/nowhere", r"^STORAGE=/proc/nowhere: ")


def test_a_server_on_loopback_is_for_one_machine(store):
    store.check_nodes([{"Alive": True}, {"Alive": False}])
    with pytest.raises(TutorialError, match=r"the cluster has 2 machines.*set STORAGE"):
        store.check_nodes([{"Alive": True}, {"Alive": True}])
