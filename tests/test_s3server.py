import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.conftest import ROOT, SOON_S
from tutorial import TutorialError
from tutorial.s3server import BUCKET, PORTS, S3Server, free_ports

IP_LOCAL_PORT_RANGE = 51  # Linux's; Python has no name for it


def test_a_free_port_goes_to_nobody_who_asks_for_any():
    for port in free_ports(2):
        with socket.socket() as other:
            alone = (port << 16 | port).to_bytes(4, sys.byteorder)
            try:
                other.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, alone)
            except OSError:
                pytest.skip("Linux before 6.3 chooses among all ports")
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", 0))
        with socket.create_server(("127.0.0.1", port)):
            pass


@pytest.fixture
def server():
    made = S3Server()
    made.start()
    yield made
    made.stop()


def status(url: str, method: str) -> int:
    return requests.request(
        method, url, data=b"EVIL" if method in ("PUT", "POST") else None, timeout=60
    ).status_code


def test_nothing_is_read_or_written_without_a_key(server):
    """The filer, which is no S3 and whose port is found in no documentation of this tutorial, neither."""
    place = server.place() / "run/adapters/a"
    place.write(b"weights")
    ports = dict(zip(PORTS, server.ports, strict=True))
    for method in ("GET", "PUT", "POST", "DELETE"):
        path = f"buckets/{BUCKET}/run/adapters/a"
        assert status(f"http://127.0.0.1:{ports['filer.port']}/{path}", method) == 401
        assert status(f"{server.endpoint}/{BUCKET}/run/adapters/a", method) in (403, 405)
        for other in ("volume.port", "master.port", "admin.port"):
            assert status(f"http://127.0.0.1:{ports[other]}/{path}", method) >= 400
    assert place.read() == b"weights"
    assert (server.place() / "run").listing() == {"adapters/a": 7}


def test_all_ports_are_on_loopback(server):
    for port in server.ports:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((address(), port), timeout=5)


def address() -> str:
    """An address of this machine other than loopback's first."""
    return "127.0.0.2"


def test_its_secret_is_in_no_file(server):
    secret = server.keys["AWS_SECRET_ACCESS_KEY"].encode()
    (server.place() / "x").write(b"x")
    assert not [p for p in server.folder.rglob("*") if p.is_file() and secret in p.read_bytes()]


def test_six_start_at_once():
    servers = [S3Server() for _ in range(6)]
    try:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(S3Server.start, servers))
        for number, server in enumerate(servers):
            (server.place() / "x").write(str(number).encode())
        assert [(server.place() / "x").read() for server in servers] == [b"0", b"1", b"2", b"3", b"4", b"5"]
    finally:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(S3Server.stop, servers))


def test_a_port_that_is_lost_to_others_is_replaced():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        tries = []

        def ports(count: int) -> list[int]:
            tries.append(free_ports(count))
            return [taken.getsockname()[1], *tries[0][1:]] if len(tries) == 1 else tries[-1]

        server = S3Server(ports)
        try:
            server.start()
            assert len(tries) == 2
            assert server.place().exists()
        finally:
            server.stop()


def test_the_server_s_own_reason_is_shown():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = S3Server(lambda count: [port, *free_ports(count - 1)])
        start = time.monotonic()
        with pytest.raises(TutorialError) as error:
            server.start()
    assert time.monotonic() - start < SOON_S
    assert f"port {port} for S3" in str(error.value)
    assert "is not available" in str(error.value)
    assert "\n" not in str(error.value)
    assert ".go:" not in str(error.value)
    assert server.folder is None


def leftovers(ports: list[int]) -> set[str]:
    """What belongs to SeaweedFS in the temporary folders."""
    names = {path.name for folder in {"/tmp", tempfile.gettempdir()} for path in Path(folder).iterdir()}  # noqa: S108
    ours = {f"-{port}.sock" for port in ports}
    return {name for name in names if name.startswith("weed") or name.endswith(tuple(ours))}


@pytest.mark.parametrize("kill", [False, True])
def test_nothing_is_left(kill):
    before = leftovers([])
    server = S3Server()
    server.start()
    (server.place() / "x").write(b"x")
    folder, ports = server.folder, server.ports
    if kill:
        server.process.kill()
        server.process.wait()
    server.stop()
    server.stop()
    assert not folder.exists()
    assert leftovers(ports) <= before
    for port in ports:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), timeout=5)


HOLD = """
import os, sys, threading, time
from tutorial.s3server import S3Server
server = S3Server()
thread = threading.Thread(target=server.start)
thread.start()
thread.join()
time.sleep(1)
print(server.process.pid, server.folder, server.place().exists(), flush=True)
time.sleep(600)
"""


def test_it_outlives_the_thread_that_started_it_and_not_the_process(tmp_path):
    """From a folder with a space and a comma, in an environment that is not activated, behind a proxy."""
    temporary = tmp_path / "a b,c"
    temporary.mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PATH"}
    env |= {"TMPDIR": str(temporary), "HTTP_PROXY": "http://127.0.0.1:9", "PATH": "/usr/bin:/bin"}
    env |= {"NO_PROXY": "127.0.0.1", "AWS_SESSION_TOKEN": "mine", "AWS_PROFILE": "mine"}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        pid, *folder, answers = process.stdout.readline().split()
        assert answers == "True"
        assert " ".join(folder).startswith(str(temporary))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    while Path(f"/proc/{pid}").exists() or any(temporary.iterdir()):
        time.sleep(0.1)


def test_the_environment_stays_as_it_is():
    before = dict(os.environ)
    server = S3Server()
    server.start()
    assert dict(os.environ) == before
    server.stop()
    assert dict(os.environ) == before
