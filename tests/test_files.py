import os
import pickle
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tutorial import TutorialError
from tutorial.files import Place

ODD = "with space, ü, %20, +, = and @"


def keys_of(user, bucket):
    """All objects as S3 itself lists them, those in place of folders too."""
    return sorted(each.key for each in user.Bucket(bucket).objects.all())


@pytest.mark.parametrize(
    ("address", "wrong"),
    [
        ("s3:/bucket/prefix", "not a whole address"),
        ("s3:bucket", "not a whole address"),
        ("s3://", "not a whole address"),
        ("s3:///prefix", "not a whole address"),
        ("s3://bucket/team#1", "not a whole address"),
        ("s3://bucket/team?x=1", "not a whole address"),
        ("gs://bucket/team#1", "not a whole address"),
        ("s3://bucket/../other", "not a whole address"),
        ("s3://bucket/.", "not a whole address"),
        ("s3://bucket//prefix", "not a whole address"),
        ("s3://bucket\\\\prefix", "not a whole address"),
        ("s3://buck et/prefix", "not a whole address"),
        ("S3://bucket/prefix", "unknown scheme 'S3'"),
        ("s3a://bucket/prefix", "unknown scheme 's3a'"),
        ("file:///tmp/x", "unknown scheme 'file'"),
        ("hf://datasets/x", "unknown scheme 'hf'"),
        ("abfss://box@account.dfs/x", "unknown scheme 'abfss'"),
        ("http://host/x", "unknown scheme 'http'"),
    ],
)
def test_an_address_that_is_not_understood_is_refused(address, wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        TutorialError, match=rf"^STORAGE=.*: {wrong}; set a folder or s3://.*, gs://"
    ) as error:
        Place.of(address)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir()), "a folder of that name was made"


def test_data_is_told_of_the_web_too():
    with pytest.raises(TutorialError, match=r"^DATA=hf://x/y: unknown scheme 'hf'; set .*gs://.*https://"):
        Place.of("hf://x/y", "DATA")


def test_what_is_no_folder():
    for address in ("", " ", "\0", "~no-such-user-at-all/x\0"):
        with pytest.raises(TutorialError, match=r"^STORAGE="):
            Place.of(address)


def test_keys_in_an_address_are_not_repeated():
    with pytest.raises(TutorialError) as error:
        Place.of("s3://AKIA:secret/secret@bucket/x")
    assert "secret" not in str(error.value)
    assert "AKIA" not in str(error.value)


@pytest.mark.parametrize("name", ["..", "a/../../b", "", "a//b", "."])
def test_a_name_below_a_place_stays_below_it(name):
    with pytest.raises(ValueError, match="is not below"):
        Place.of("/somewhere") / name


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_what_is_written_is_read_listed_copied_and_deleted(kind, user, bucket, tmp_path):
    root = Place.of(f"{tmp_path}/here #?" if kind == "folder" else f"s3://{bucket}/some/where/")
    place = root / ODD
    assert not place.exists()
    assert place.listing() == {}
    (place / "a/b").write(b"one")
    (place / ODD).write(b"two!")
    (root / f"{ODD}1").write(b"beside")
    assert place.listing() == {"a/b": 3, ODD: 4}
    assert (place / "a/b").read() == b"one"
    assert (place / "a/b").sha256().startswith("7692c3ad3540bb80")
    back = pickle.loads(pickle.dumps(place))  # noqa: S301
    assert back == place
    assert back.listing() == place.listing()
    copy = Place.of(str(tmp_path / "copy"))
    place.copy_to(copy)
    assert copy.listing() == place.listing()
    copy.copy_to(root / "again")
    assert (root / "again").listing() == place.listing()
    with pytest.raises(FileNotFoundError, match="is not there"):
        (place / "none").copy_to(copy)
    for each in (root / "again", place, place):
        each.delete()
    assert root.listing() == {f"{ODD}1": 6}
    if kind == "s3":
        assert keys_of(user, bucket) == [f"some/where/{ODD}1"], "objects in place of folders"
    (root / f"{ODD}1").delete()
    assert root.listing() == {}
    if kind == "s3":
        assert keys_of(user, bucket) == []


def test_gz_is_not_unpacked(tmp_path):
    place = Place.of(str(tmp_path)) / "x.gz"
    place.write(b"no gzip")
    assert place.read() == b"no gzip"


def test_a_profile_s_keys_and_endpoint_are_used(user, bucket, store, monkeypatch, tmp_path):
    keys, address = store.server.keys, store.server.address()
    for name in keys | address:
        monkeypatch.delenv(name)
    config = "\n".join(
        [
            "[profile mine]",
            *(f"{key.lower()}={value}" for key, value in keys.items()),
            f"endpoint_url={address['AWS_ENDPOINT_URL']}",
            "region=us-east-1",
        ]
    )
    (tmp_path / "config").write_text(config)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    before = dict(os.environ)
    place = Place.of(f"s3://{bucket}/x")
    place.write(b"mine")
    assert place.read() == b"mine"
    place.delete()
    assert dict(os.environ) == before
    monkeypatch.setenv("AWS_PROFILE", "nobody's")
    with pytest.raises(TutorialError, match=r"^DATA=s3://.*config profile \(nobody's\).*AWS_PROFILE"):
        Place.of(f"s3://{bucket}/x", "DATA")


def test_a_public_bucket_is_read_without_credentials(user, bucket, monkeypatch):
    Place.of(f"s3://{bucket}/rows").write(b"public")
    rule = '{"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::%s/*"}'
    user.BucketPolicy(bucket).put(Policy='{"Version": "2012-10-17", "Statement": [' + rule % bucket + "]}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert Place.of(f"s3://{bucket}/rows", "DATA").read() == b"public"


def test_an_anonymous_address_sends_no_credentials(user, bucket):
    """Though the environment has some."""
    place = Place.of(f"s3://anonymous@{bucket}/rows", "DATA")
    assert place.options["anonymous"]
    assert not {"access_key", "secret_key"} & place.options.keys()
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        place.read()


def test_the_endpoint_of_s3_alone_goes_before_that_of_all(user, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert not Place.of(f"s3://{bucket}/none").exists()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "localhost:9000")
    with pytest.raises(TutorialError, match=r"^STORAGE=s3://.*localhost:9000"):
        Place.of(f"s3://{bucket}/none")


def test_places_keep_their_keys_when_the_environment_changes(user, bucket, monkeypatch):
    """Two clients side by side: this run's server and the user's, in one process."""
    place = Place.of(f"s3://{bucket}/x")
    place.write(b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert place.read() == b"x"


@pytest.mark.faults
def test_a_storage_that_fails_is_waited_for():
    """Dead: no connection. Silent: a connection and no byte."""
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
        closed.close()
        quiet = f"http://127.0.0.1:{silent.getsockname()[1]}"

        def connected(endpoint: str) -> Place:
            options = {"access_key": "a", "secret_key": "b", "region": "us-east-1"}
            place = Place.of("s3://bucket/x", endpoint_override=endpoint, **options)
            place = pickle.loads(pickle.dumps(place))  # noqa: S301
            assert place.files  # pyarrow connects only while no request is on its way
            return place

        def seconds(place: Place, message: str) -> float:
            start = time.monotonic()
            with pytest.raises(OSError, match=message):
                place.read()
            return time.monotonic() - start

        places = [connected(dead), connected(quiet)]
        with ThreadPoolExecutor() as pool:
            gone, mute = pool.map(seconds, places, ["Could not connect to server", "Timeout was reached"])
    assert 20 < gone < 130
    assert 60 < mute < 300
