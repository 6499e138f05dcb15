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


def test_a_free_port_where_none_is_set():
    found = {serving.check_port(None) for _ in range(3)}
    assert all(serving.check_port(port) == port for port in found)


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen2.5-7B-Instruct"),
        ("/models/qwen3:135m", "qwen3-135m"),
        ("/models/my model (final)/", "my-model-final"),
        ("Qwen--Qwen2.5", "Qwen-Qwen2.5"),
        ("modèle-à-moi", "modele-a-moi"),
        ("模型", "model"),
        (".hidden", "hidden"),
        ("a%2Fb?c#d", "a-2Fb-c-d"),
    ],
)
def test_a_name_that_ray_serve_can_serve(name, served):
    assert serving.model_id(name) == served
    assert serving.model_id(served) == served
