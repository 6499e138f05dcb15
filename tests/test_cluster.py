"""The cluster that the notebook starts."""

import json
import os
import subprocess
import sys

from tests import drive

JOIN = """
import os, subprocess, sys
address = ray.get_runtime_context().gcs_address
def join(**env):
    said = subprocess.run(
        [sys.executable, "-c", f"import ray; ray.init({address!r}); print('let in')"],
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")} | env,
        capture_output=True, text=True, timeout=100,
    )
    return "let in" in said.stdout
print("WITHOUT", join(RAY_gcs_rpc_server_reconnect_timeout_s="5"))
print("WRONG", join(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64))
print("RIGHT", join(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.environ["RAY_AUTH_TOKEN"]))
"""


def test_only_who_holds_the_token_joins():
    cells = ["cell-01b", "cell-02", "cell-04", JOIN, *drive.END]
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.drive", json.dumps(cells)],
        env=env | {"DATA": "sample"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert [line for line in done.stdout.splitlines() if line.split()[0].isupper()] == [
        "WITHOUT False",
        "WRONG False",
        "RIGHT True",
    ]
