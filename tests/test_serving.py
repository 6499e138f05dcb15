import socket

import pytest

from tutorial import TutorialError, serving


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TutorialError, match=f"^PORT={port}: another process uses this port"):
            serving.check_port(port)
    serving.check_port(port)
