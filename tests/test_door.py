"""Malformed requests, thousands of them, over HTTP at the real service: whatever a client sends is its own
mistake, told in OpenAI's form and at once; nothing of the inside leaks; nothing hangs."""

import asyncio
import json
import pickle
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import hypothesis
import pytest
import requests
from fastapi import Request
from hypothesis import strategies as st
from ray.serve._private import constants
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from starlette.responses import JSONResponse

from tests.conftest import ROOT
from tutorial import door
from tutorial.door import Door, Refused

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
FIELDS = {
    CHAT: sorted(ChatCompletionRequest.model_fields),
    COMPLETIONS: sorted(CompletionRequest.model_fields),
}
INSIDE = ("Traceback", "site-packages", "s3://", "ray::", 'File "', "/home/", str(ROOT), ".py:", "0x7f")
JSON = {"Content-Type": "application/json"}

INTEGERS = st.sampled_from([0, -1, 1, 2, 2**15, 2**31, -(2**31) - 1, 2**53, 2**63, -(2**63) - 1, 10**30])
NUMBERS = INTEGERS | st.sampled_from([-0.0, 0.5, 1e-300, 1.5, 1e308, -1e308, 1e999, float("nan")])
TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "",
        "\0",
        "\ud800",
        "{{",
        "{{ 1/0 }}",
        "([",
        "root ::= (",
        "../../etc/passwd",
        "x" * 3000,
        "😀",
        "auto",
        "none",
    ]
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
SCHEMAS = st.sampled_from(
    [
        {"type": "nonsense"},
        {"type": "string", "pattern": "(["},
        {"$ref": "#/nowhere"},
        {"$ref": "http://127.0.0.1:1/x.json"},
        {"type": "object", "properties": 5},
        {"enum": []},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "array", "minItems": 5, "maxItems": 1},
        {"type": "integer", "minimum": 10**30},
        "text",
        [],
    ]
)


def one(**values):
    """A dictionary of one of these keys."""
    return st.one_of([st.fixed_dictionaries({key: value}) for key, value in values.items()])


REGEXES = st.sampled_from(
    ["(a*)*b", "a{1,100000}", "(?<=a)b", "\\p{Nope}", "[z-a]", "([", "a" * 3000, "\\d+", "(", ""]
)
GRAMMARS = st.sampled_from(
    [
        "root ::= root",
        "root ::= nowhere",
        "start: /[/",
        'a ::= "b"',
        "root ::= (",
        'root ::= "b"+',
        'start: "a"',
        "",
    ]
)
GUIDES = (
    one(
        json=SCHEMAS,
        regex=REGEXES,
        choice=st.lists(TEXTS, max_size=3),
        grammar=GRAMMARS,
        json_object=st.booleans(),
    )
    | one(
        json=VALUES, regex=TEXTS, choice=VALUES, grammar=TEXTS, structural_tag=TEXTS | VALUES, nothing=VALUES
    )
    | st.just({"regex": "a", "json": {}})
)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {"type": st.just("function") | TEXTS},
        optional={
            "function": st.fixed_dictionaries({"name": TEXTS}, optional={"parameters": SCHEMAS | VALUES})
        },
    ),
    max_size=2,
)
PARTS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "image_url", "input_audio", "video_url", "refusal", "nothing"])},
        optional={"text": VALUES, "image_url": st.just({"url": "http://127.0.0.1:1/a.png"}) | VALUES},
    ),
    max_size=2,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(
                ["user", "system", "assistant", "tool", "developer", "function", "nobody", ""]
            )
        },
        optional={
            "content": TEXTS | PARTS | VALUES,
            "tool_calls": VALUES | TOOLS,
            "name": VALUES,
            "tool_call_id": VALUES,
        },
    ),
    max_size=3,
)
# More likely to pass pydantic and to fail behind it than any value.
APT = {
    "messages": MESSAGES,
    "structured_outputs": GUIDES,
    "response_format": st.fixed_dictionaries(
        {"type": st.sampled_from(["json_schema", "json_object", "text", "structural_tag", "nothing"])},
        optional={
            "json_schema": st.fixed_dictionaries({"name": TEXTS}, optional={"schema": SCHEMAS}) | VALUES
        },
    ),
    "tools": TOOLS,
    "tool_choice": st.sampled_from(
        ["auto", "required", "none", {"type": "function", "function": {"name": "f"}}]
    ),
    "stream": st.just(True),
    "stream_options": st.just({"include_usage": True}) | VALUES,
    "logit_bias": st.dictionaries(
        st.sampled_from(["1", "-1", "49159", "49160", "9" * 30, "x", ""]), NUMBERS, max_size=2
    ),
    "prompt": st.lists(INTEGERS, max_size=3) | st.lists(st.lists(INTEGERS, max_size=2), max_size=2) | TEXTS,
    "model": st.sampled_from(
        ["", ":", "benchmark-tiny:", "benchmark-tiny:../random", "benchmark-tiny:random/", "x" * 500]
    ),
    "max_tokens": INTEGERS.filter(lambda number: not 2 < number < 10_000),  # no answers that take long
    "max_completion_tokens": INTEGERS.filter(lambda number: not 2 < number < 10_000),
    "stop": TEXTS | st.lists(TEXTS, max_size=5),
    "bad_words": st.lists(TEXTS, max_size=3),
} | {
    name: st.lists(INTEGERS, max_size=3)
    for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids")
}


@st.composite
def bodies(draw) -> tuple[str, dict]:
    """A body that would be answered, with some of its fields replaced or added."""
    path = draw(st.sampled_from([CHAT, COMPLETIONS]))
    body = {"model": "benchmark-tiny" + draw(st.sampled_from(["", ":random"])), "max_tokens": 2}
    body |= {"messages": [{"role": "user", "content": "Hello"}]} if path == CHAT else {"prompt": "Hello"}
    chance = draw(st.randoms(use_true_random=True))  # hypothesis itself likes the first of many
    apt = sorted(set(APT) & set(FIELDS[path]))
    for name in {chance.choice(chance.choice([FIELDS[path], apt])) for _ in range(chance.randint(1, 3))}:
        body[name] = draw(APT.get(name, NUMBERS | VALUES) if chance.random() < 0.8 else VALUES)
    if body.get("max_tokens") is None or body.get("max_completion_tokens", 0) is None:
        body["max_tokens"] = body["max_completion_tokens"] = 2  # null is as many as there is room for
    return path, body


@st.composite
def raw(draw) -> dict:
    """A request whose body is no such object, or is not declared to be one, or goes nowhere."""
    text = json.dumps(draw(bodies())[1]).encode()
    cut = draw(st.integers(0, len(text)))
    inserted = draw(
        st.binary(max_size=4)
        | st.sampled_from([b"{" * 20_000, b"[" * 300, b"\xff", b"9" * 5000, b"\xef\xbb\xbf"])
    )
    content = draw(
        st.sampled_from(
            [b"", b"null", b"[]", b'"text"', b"5", b"{}", text[:cut], text[:cut] + inserted + text[cut:]]
        )
        | st.binary(max_size=30)
        | VALUES.map(lambda value: json.dumps(value).encode())
    )
    kinds = ["application/json"] * 4 + [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ]
    paths = (
        [CHAT] * 4
        + [COMPLETIONS] * 2
        + ["/v1/models", "/v1/embeddings", "/v1/responses", "/", "/v1/models/%00", "/v1/models/a:b"]
    )
    return {
        "method": draw(st.sampled_from(["POST"] * 6 + ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "QUERY"])),
        "path": draw(st.sampled_from(paths) | st.text("abc/.%-:?#", max_size=8).map(lambda text: f"/{text}")),
        "data": content,
        "headers": {"Content-Type": draw(st.sampled_from(kinds))},
    }


@dataclass
class Attack:
    """Sends requests to a service, looks at each answer, and counts."""

    url: str
    key: str
    limit_s: float
    statuses: Counter = field(default_factory=Counter)
    slowest: tuple[float, str] = (0, "")

    def __post_init__(self):
        self.session = requests.Session()

    def send(self, method: str, path: str, data: bytes, headers: dict) -> requests.Response:
        """The answer, which is right in form whatever was asked."""
        start = time.monotonic()
        answer = self.session.request(
            method,
            self.url + path,
            data=data,
            headers=headers | {"Authorization": f"Bearer {self.key}"},
            timeout=self.limit_s + 5,
            allow_redirects=False,
        )
        self.statuses[answer.status_code] += 1
        self.slowest = max(self.slowest, (time.monotonic() - start, f"{method} {path} {data[:300]}"))
        self.look(answer)
        return answer

    def look(self, answer: requests.Response) -> None:
        """OpenAI's form, the client's own mistake, and nothing of the inside."""
        status, text = answer.status_code, answer.text
        assert status in (200, 307, 400, 404, 405, 413, 415) or self.is_late(answer), (status, text)
        if status >= 400 and not self.is_late(answer):
            self.look_at_error(answer.json(), text)
        for line in text.splitlines() if status == 200 else ():
            if line.startswith('data: {"error"'):
                self.look_at_error(json.loads(line.removeprefix("data: ")), line)

    def is_late(self, answer: requests.Response) -> bool:
        """Ray Serve's proxy ends what takes longer than it may, by words of its own."""
        return answer.status_code == 408 and "timed out after" in answer.text

    def look_at_error(self, content: dict, text: str) -> None:
        """Of the four keys, each of its type."""
        assert set(content) == {"error"}, text
        error = content["error"]
        assert set(error) == {"message", "type", "param", "code"}, text
        assert error["type"] == "invalid_request_error", text
        assert error["message"], text
        assert all(isinstance(error[key], str) for key in ("message", "code")), text
        assert isinstance(error["param"], str | None), text
        assert not [word for word in (*INSIDE, self.key) if word in text], text

    def run(self, examples: int, **settings) -> None:
        """Send this many requests; each failure is shrunk to a smallest one that still fails."""
        options = {"max_examples": examples // 2, "deadline": None, "database": None} | settings

        @hypothesis.settings(**options, suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(bodies())
        def send_bodies(asked):
            path, body = asked
            self.send("POST", path, json.dumps(body).encode(), JSON)

        @hypothesis.settings(**options, suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(raw())
        def send_raw(asked):
            self.send(**asked)

        send_bodies()
        send_raw()
        print(f"{self.statuses.total()} requests, {dict(self.statuses)}, slowest {self.slowest}")


KEY = "a-key-of-the-first-team"
HEADERS = {"authorization": f"Bearer {KEY}"}


def ask(app, headers=(), body=(b"",), path="/v1/models"):
    """What is sent through a door before an ASGI app: status, headers, body."""
    pieces, sent = list(body), []

    async def receive():
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message):
        sent.append(message)

    named = [(name.encode(), value.encode()) for name, value in dict(headers).items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": named, "query_string": b""}
    asyncio.run(Door(app, [door.digest(KEY)], "GET /there")(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(each.get("body", b"") for each in sent[1:])


def told(app, **asked):
    headers = {
        "authorization": f"Bearer {KEY}",
        "x-request-id": "some-id",
        "content-type": "application/json",
    }
    status, _, body = ask(app, headers, **asked)
    return status, json.loads(body).get("error")


def reading(kind):
    async def app(scope, receive, send):
        await door.read(Request(scope, receive), kind)
        await JSONResponse({})(scope, receive, send)

    return app


def raising(error):
    async def app(scope, receive, send):
        raise error

    return app


def streaming(*pieces, then=None):
    async def app(scope, receive, send):
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/event-stream")],
            }
        )
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if then:
            raise then
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    return app


def test_no_secret_goes_past_the_door():
    seen = {}

    async def app(scope, receive, send):
        seen.update((name.decode(), value.decode()) for name, value in scope["headers"])
        await streaming(b"x")(scope, receive, send)

    secret = {
        name: "secret"
        for name in ("cookie", "api-key", "x-api-key", "proxy-authorization", "x-amz-security-token")
    }
    harmless = {"content-type": "application/json", "x-request-id": "some-id"}
    assert ask(app, {"authorization": f"Bearer {KEY}"} | secret | harmless)[0] == 200
    assert seen == harmless


def test_what_ray_serve_calls_its_limits():
    known = (
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
    )
    assert known == door.LIMITS


def test_a_failure_of_the_service_is_told_by_the_request_s_id_alone():
    for error in (
        RuntimeError("s3://bucket/secret"),
        KeyError("x"),
        Refused(500, "inner words"),
        ValueError("inner"),
    ):
        status, content = told(raising(error))
        assert (status, content["type"], content["code"]) == (500, "server_error", "internal_error")
        assert (content["message"], content["param"]) == ("the service failed; request some-id", None)


def test_what_ray_and_vllm_refuse_by_themselves():
    for status, expected in (
        (400, 400),
        (404, 404),
        (408, 408),
        (422, 400),
        (501, 400),
        (500, 500),
        (503, 500),
    ):
        error = RuntimeError()
        error.status_code, error.message = status, "said\nand more"
        found, content = told(raising(error))
        assert found == expected
        assert content["message"] == ("said" if expected < 500 else "the service failed; request some-id")


def test_an_error_in_a_stream():
    inner = b'data: {"error": {"message": "%s", "type": "x", "param": null, "code": %d}}\n\n'
    piece = b'data: {"id": "1"}\n\n'
    assert told(streaming(inner % (b"a bad grammar", 400), b"data: [DONE]\n\n"))[0] == 400
    assert (
        told(streaming(inner % (b"inner words", 500)))[1]["message"] == "the service failed; request some-id"
    )
    for app in (
        streaming(piece, inner % (b"inner words", 500), piece),
        streaming(piece, then=RuntimeError("inner")),
    ):
        status, _, body = ask(app, {"authorization": f"Bearer {KEY}", "x-request-id": "some-id"})
        first, last = body.decode().strip().split("\n\n")
        assert (status, first) == (200, piece.decode().strip())
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["message"] == "the service failed; request some-id"
    text = b'data: {"choices": [{"delta": {"content": "data: {\\"error\\":1}"}}]}\n\n'
    assert text in ask(streaming(text), {"authorization": f"Bearer {KEY}"})[2]


def test_a_refusal_can_be_sent_between_processes():
    refused = pickle.loads(pickle.dumps(Refused(404, "no", "model_not_found", "model", {"a": "b"})))  # noqa: S301
    assert (refused.status, refused.headers) == (404, {"a": "b"})
    assert refused.content["error"] == {
        "message": "no",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (415, b"{}", {"content-type": "text/plain"}),
        (415, b"{}", {"content-type": "application/x-www-form-urlencoded"}),
        (415, b"{}", {}),
        (415, b"{}", {"content-encoding": "gzip"} | JSON),
        (413, b" " * (door.LARGEST + 1), JSON),
        *[
            (400, body, JSON)
            for body in (b"", b"[]", b"null", b'"text"', b"\xff", b"{" * 9999, b'{"n": NaN}')
        ],
        *[
            (400, body, JSON)
            for body in (b'{"n": 1e999}', b'{"n": %s}' % (b"9" * 9999), b'{"user": "\\ud800"}')
        ],
        *[
            (400, json.dumps({"messages": value}).encode(), JSON)
            for value in (None, 5, "x", [5], [{"role": "user", "content": [5]}])
        ],
        (400, b'{"messages": [], "stream_options": 5}', JSON),
        (400, json.dumps({"messages": [], "n": 129}).encode(), JSON),
        (400, json.dumps({"messages": [], "bad_words": ["x"] * 2000}).encode(), JSON),
    ],
)
def test_a_body_that_is_none(status, body, headers):
    pieces = [body[start : start + 2**16] for start in range(0, len(body), 2**16)] or [b""]
    found, _, content = ask(
        reading(ChatCompletionRequest),
        {"authorization": f"Bearer {KEY}"} | {k.lower(): v for k, v in headers.items()},
        pieces,
    )
    assert found == status
    error = json.loads(content)["error"]
    assert error["type"] == "invalid_request_error"
    assert isinstance(error["param"], str | None)


@pytest.mark.parametrize("prompt", [["x"] * 129, [[1]] * 129, ["x"] * 65])
def test_more_answers_than_are_given(prompt):
    status, error = told(reading(CompletionRequest), body=[json.dumps({"prompt": prompt, "n": 2}).encode()])
    assert (status, error["message"][:3]) == (400, "n: ")


def test_a_prompt_of_many_tokens_is_one_answer():
    assert told(reading(CompletionRequest), body=[json.dumps({"prompt": [1] * 5000}).encode()])[0] == 200


def test_lists_that_pydantic_reads_late_can_be_sent_on():
    asked = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]}
    received = {"type": "http.request", "body": json.dumps(asked).encode()}

    async def receive():
        return received

    scope = {"type": "http", "headers": [(b"content-type", b"application/json; charset=utf-8")]}
    body = asyncio.run(door.read(Request(scope, receive), ChatCompletionRequest))
    assert pickle.loads(pickle.dumps(body)).messages[0]["content"] == [{"type": "text", "text": "Hello"}]  # noqa: S301


QUICK = """
import asyncio, logging, sys
from ray.llm._internal.serve.observability.usage_telemetry import usage
del usage._get_or_create_telemetry_agent
from ray.serve.llm import LLMConfig
from tutorial.quickstart import QuickStart
config = LLMConfig(
    model_loading_config={"model_id": "m", "model_source": "/nowhere"},
    accelerator_config={"kind": "cpu"},
    engine_kwargs={"distributed_executor_backend": "uni"},
    callback_config={"callback_class": "tutorial.quickstart.QuickStart"},
)
start = QuickStart(llm_config=config, ctx_kwargs={})
logging.getLogger("ray.serve").addHandler(logging.StreamHandler(sys.stdout))
asyncio.run(start.run_callback("on_before_node_init"))
kwargs = config.get_engine_config().get_initialization_kwargs()
print(start.ctx.run_init_node, kwargs["distributed_executor_backend"])
"""


@pytest.mark.slow
def test_a_quick_start_without_the_name_that_it_borrows_from_ray():
    out = subprocess.run(
        [sys.executable, "-c", QUICK], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    lines = out.strip().splitlines()
    assert lines[-1] == "True uni"
    assert [line for line in lines if line.startswith("quick start: _start_telemetry left out: ImportError")]


@pytest.mark.production
def test_thousands_of_malformed_requests():
    from tests.test_endpoint import KEYS, TIME_LIMIT_S, running

    with running(TIME_LIMIT_S) as (*_, url):
        attack = Attack(url, KEYS[0], TIME_LIMIT_S)
        attack.run(3000)
        assert attack.statuses[200] > 100
        answer = attack.send("GET", "/v1/models", b"", {})
        assert answer.ok
