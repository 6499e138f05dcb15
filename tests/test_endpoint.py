"""The cell `service` of the notebook, alive: Ray Serve and vLLM, a tiny model with random weights."""

import asyncio
import contextlib
import json
import subprocess
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import psutil
import pytest
import ray
import requests
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from ray import serve
from ray.serve.llm import LLMConfig
from ray.serve.llm.openai_api_models import CompletionRequest

from benchmarks import common
from tests.conftest import suspended
from tests.test_door import Attack
from tutorial import TutorialError, adapters, cluster, door, endpoint, replica, run, serving, stage, storage

KEYS = ["a-key-of-the-first-team", "a-key-of-the-second-team"]
TIME_LIMIT_S, MOST_TOKENS = 8, 6000
LONG = {"max_tokens": MOST_TOKENS, "extra_body": {"ignore_eos": True}}


@contextlib.contextmanager
def running(time_limit_s):
    """The storage, the adapter's folder and the address, while the notebook's service runs.

    The name of its model's folder is one that Ray Serve would read as an adapter of another model.
    """
    folder, adapter = common.prepare("tiny")
    named = tempfile.TemporaryDirectory()
    model_path = Path(named.name, "benchmark:tiny")
    model_path.symlink_to(folder)
    profile = common.profile(True, model_path, {"engine": {"max_model_len": 8192}})
    profile.deployment |= {"max_ongoing_requests": 4, "max_queued_requests": 4}
    store = storage.Storage.open(None, "test-serving")
    try:
        base = serving.model_id(str(model_path))
        adapters.publish(store, adapter, common.ADAPTER, base=base, max_rank=common.RANK, recipe={})
        # One thread: of two, one would wait for the other while the tests beside it run.
        profile.worker_env |= store.engine_env() | {"TMPDIR": named.name, "OMP_NUM_THREADS": "1"}
        # Ray Serve keeps a thousand lines of a log in memory, unless it is told to write each at once.
        with store.worker_keys(), pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE", "1")
            ray.shutdown()  # if a test built a service before this one: that starts Ray
            ray.init(
                runtime_env=cluster.runtime_env(store.worker_env()),
                log_to_driver=False,
                logging_level="error",
                **cluster.options(),
            )
        make_service = run.define("service", serving=serving)["make_service"]
        engine = profile.engine_kwargs(common.RANK, MOST_TOKENS)
        app = make_service(profile, engine, str(model_path), store.for_engines("adapters"), KEYS)
        port = serving.check_port(None)
        serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": time_limit_s})
        serve.run_many([serve.RunTarget(app, name="llm")], wait_for_applications_running=False)
        serving.wait_until_ready("llm", timeout_s=300)
        url = f"http://127.0.0.1:{port}"
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEYS[0])
        patient = client.with_options(max_retries=20)  # a cold engine takes its time
        for name in ("benchmark-tiny", f"benchmark-tiny:{common.ADAPTER}"):
            ask(patient, name, max_tokens=2)
        # The first request with a grammar, which vLLM's `auto` would not give to xgrammar.
        with contextlib.suppress(openai.BadRequestError):
            ask(patient, max_tokens=2, extra_body={"structured_outputs": {"regex": "\0"}})
        yield store, adapter, url
    finally:
        with stage.reports():
            serve.shutdown()
            ray.shutdown()
        store.close()
        named.cleanup()


@pytest.fixture(scope="module")
def service():
    with running(TIME_LIMIT_S) as names:
        yield names


@pytest.fixture(scope="module")
def url(service):
    return service[-1]


@pytest.fixture(scope="module")
def client(url):
    """Asks again if a busy machine was too slow."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEYS[0], max_retries=5)


@pytest.fixture
def impatient(client):
    return client.with_options(max_retries=0)


def ask(client, model="benchmark-tiny", **options):
    asked = [{"role": "user", "content": "Tell me of a game."}]
    return client.chat.completions.create(model=model, messages=asked, temperature=0, **options)


def replica_process():
    [found] = [
        process
        for process in psutil.Process().children(recursive=True)
        if "ray::ServeReplica:llm:LLMServer" in " ".join(process.cmdline())
    ]
    return found


def test_nobody_gets_in_without_a_key(url):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEYS[0]}"}):
        for path in ("/v1/models", "/v1/models/benchmark-tiny", "/v1/chat/completions", "/docs", "/nowhere"):
            answer = requests.get(url + path, headers=headers, timeout=60)
            assert answer.status_code == 401, path
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert "access-control-allow-origin" not in answer.headers
    for key in (KEYS[0][:-1], ", ".join(KEYS), endpoint.digest(KEYS[0])):
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key=key).models.list()
    for key in KEYS:
        assert openai.OpenAI(base_url=f"{url}/v1", api_key=key).models.list().data


def test_no_client_lifts_the_service_s_limits(url):
    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    for lifts in ({"X-Request-Timeout-Seconds": "0"}, {"x-request-disconnect-disabled": "?1"}):
        answer = requests.get(f"{url}/v1/models", headers=headers | lifts, timeout=60)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_header"


def test_what_serve_s_own_proxy_tells_anybody(url):
    """No more than that it is there, and the application's name."""
    for path, said in (("/-/healthz", "success"), ("/-/routes", '{"/":"llm"}')):
        answer = requests.get(f"{url}{path}", timeout=60)
        assert (answer.status_code, answer.text) == (200, said)


def test_no_site_may_ask_with_a_visitor_s_credentials(url):
    headers = {"Authorization": f"Bearer {KEYS[0]}", "Origin": "https://example.com"}
    answer = requests.get(f"{url}/v1/models", headers=headers, timeout=60)
    assert answer.ok
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_it_listens_on_loopback(url):
    port = int(url.rpartition(":")[2])
    listening = {c.laddr.ip for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port}
    assert listening == {"127.0.0.1"}


def test_keys_that_cannot_be(monkeypatch):
    with pytest.raises(TutorialError, match=r"^API_KEYS: a key has fewer than 16 characters") as error:
        serving.keys(SecretStr("a-key-of-the-first-team, short"))
    assert "short" not in str(error.value)
    assert serving.keys(SecretStr(" , ".join(KEYS))) == KEYS
    assert len(serving.keys(None)[0]) > 30
    monkeypatch.setenv("API_KEYS", ",")  # none, whatever stands in .env: the environment wins
    with pytest.raises(TutorialError, match=r"^API_KEYS is not set"):
        endpoint.build({"llm_configs": []})


def test_the_ingress_scales_as_it_is_told():
    scaling = {"min_replicas": 2, "max_replicas": 8, "target_ongoing_requests": 64}
    served = {"model_loading_config": {"model_id": "tiny", "model_source": str(common.prepare("tiny")[0])}}
    args = {"llm_configs": [served], "key_digests": ["0"]}
    app = endpoint.build(args | {"ingress_deployment_config": {"autoscaling_config": scaling}})
    found = app._bound_deployment._deployment_config.autoscaling_config
    assert {key: getattr(found, key) for key in scaling} == scaling


def test_the_ingress_reaches_the_storage_as_the_engines_do():
    served = {"model_loading_config": {"model_id": "tiny"}}
    env = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "here", "VLLM_LOGGING_LEVEL": "WARNING"}
    args = {"llm_configs": [served | {"runtime_env": {"env_vars": env}}], "key_digests": ["0"]}
    options = {"ray_actor_options": {"num_cpus": 0.5, "runtime_env": {"env_vars": {"AWS_REGION": "there"}}}}
    app = endpoint.build(args | {"ingress_deployment_config": options})
    found = app._bound_deployment.ray_actor_options
    assert found["num_cpus"] == 0.5
    assert found["runtime_env"]["env_vars"] == {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_REGION": "there",
    }


def test_a_number_of_ingresses_takes_the_place_of_scaling():
    served = {"model_loading_config": {"model_id": "tiny"}}
    args = {"llm_configs": [served], "key_digests": ["0"], "ingress_deployment_config": {"num_replicas": 3}}
    assert endpoint.build(args)._bound_deployment.num_replicas == 3


@pytest.mark.parametrize("given", [{}, {"reasoning_parser": "qwen3"}, {"backend": "guidance"}])
def test_one_library_reads_all_grammars(given):
    served = {"model_loading_config": {"model_id": "tiny"}, "engine_kwargs": {"max_loras": 2}}
    served["engine_kwargs"]["structured_outputs_config"] = given
    [config] = endpoint.build({"llm_configs": [served], "key_digests": ["0"]})._bound_deployment.init_args[1]
    expected = {"backend": "xgrammar"} | given
    assert config.engine_kwargs == {"max_loras": 2, "structured_outputs_config": expected}


def test_adapters_without_a_place():
    served = {
        "model_loading_config": {"model_id": "tiny"},
        "lora_config": {"max_num_adapters_per_replica": 2},
    }
    assert endpoint.build({"llm_configs": [served], "key_digests": ["0"]})


def test_the_beginning_of_an_answer_does_not_wait_for_the_rest():
    hour = {"stream_batching_interval_ms": 3_600_000}
    served = {"model_loading_config": {"model_id": "tiny"}, "experimental_configs": hour}
    app = endpoint.build({"llm_configs": [served], "key_digests": ["0"]})._bound_deployment
    [model] = app.init_args[0].values()

    class Server(model._bound_deployment.func_or_class):  # without an engine, and so with nothing to end
        __init__ = __del__ = lambda self: None

    server = Server()
    server._llm_config = LLMConfig(**served)

    async def ask(count):
        go_on = asyncio.Event()

        async def engine():
            for number in range(count):
                if number == replica.AT_ONCE:
                    await go_on.wait()
                yield number

        pieces, sent = server._batch_output_stream(engine()), []
        async with asyncio.timeout(60):
            async for together in pieces:
                sent.append(together)
                if len(sent) == replica.AT_ONCE:
                    go_on.set()
        return sent

    assert asyncio.run(ask(9)) == [[0], [1], [2, 3, 4, 5, 6, 7, 8]]
    assert asyncio.run(ask(1)) == [[0]]
    assert asyncio.run(ask(0)) == []


def test_what_is_wrong_with_a_stream_is_asked_for_without_one():
    class Server(replica.Server):  # without an engine
        __init__ = __del__ = lambda self: None

    server = Server()
    server.loading = defaultdict(asyncio.Lock)
    asked = []

    async def ask(request, info):
        asked.append(request)

        async def pieces():
            yield ["data: one"]
            yield ['data: {"error": {"message": "", "code": 500}}']

        async def whole():
            raise ValueError("a bad word")
            yield

        return pieces() if request.stream else whole()

    async def answer(**options):
        request = CompletionRequest(prompt="Hello", max_tokens=9, **options)
        return [piece async for piece in server._ask(ask, request, None)]

    with pytest.raises(door.Refused) as told:
        asyncio.run(answer(stream=True, stream_options={"include_usage": True}))
    assert told.value.content["error"]["message"] == "a bad word"
    assert [(request.stream, request.max_tokens) for request in asked] == [(True, 9), (False, 1)]


def test_models_that_are_not_there(client):
    for name in ("benchmark-tiny:nobody", "other-model", "other-model:one"):
        with pytest.raises(openai.NotFoundError, match=name) as error:
            ask(client, name)
        assert error.value.code == "model_not_found"


def test_an_adapter_published_while_serving(service, client, tmp_path):
    def listed():
        return [model.id for model in client.models.list()]

    before = listed()
    assert before[0] == "benchmark-tiny"
    assert f"benchmark-tiny:{common.ADAPTER}" in before
    store, adapter, _ = service
    # The same adapter with its B negated: as good as another training.
    from safetensors.numpy import load_file, save_file

    for file in adapters.FILES:
        (tmp_path / file).write_bytes(Path(adapter, file).read_bytes())
    weights = load_file(tmp_path / adapters.WEIGHTS)
    save_file({k: -v if "lora_B" in k else v for k, v in weights.items()}, tmp_path / adapters.WEIGHTS)
    made_by = {"base": "benchmark-tiny", "max_rank": common.RANK, "recipe": {}}
    for name in ("two", "three"):  # with the first, more than the engine holds
        adapters.publish(store, tmp_path, name, **made_by)
    new = ["benchmark-tiny:two", "benchmark-tiny:three"]
    assert listed() == [before[0], *sorted([*before[1:], *new])]

    def text(name):
        return ask(client, name, max_tokens=12).choices[0].message.content

    names = ["benchmark-tiny", f"benchmark-tiny:{common.ADAPTER}", *new]
    alone = [text(name) for name in names]
    assert len(set(alone)) == 3, "each is a model of its own, but two and three are one"
    stream = ask(client, new[1], stream=True, **LONG)
    next(stream)
    assert [text(name) for name in names[:2]] == alone[:2], "in a batch with another adapter"
    stream.close()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(text, names)) == alone


def test_every_model_is_retrieved_by_its_name(service, client):
    store, adapter, _ = service
    made_by = {"base": "benchmark-tiny", "max_rank": common.RANK, "recipe": {}}
    adapters.publish(store, adapter, "my--run.2", **made_by)
    listed = {model.id: model for model in client.models.list()}
    assert {"benchmark-tiny", "benchmark-tiny:my--run.2"} <= set(listed)
    for name, model in listed.items():
        assert client.models.retrieve(name) == model
        assert set(model.to_dict()) == {"id", "object", "created", "owned_by", "max_model_len", "parent"}
    assert ask(client, "benchmark-tiny:my--run.2", max_tokens=2).model == "benchmark-tiny:my--run.2"


def test_an_adapter_that_goes_away_or_changes(service, client):
    store, adapter, _ = service
    made_by = {"base": "benchmark-tiny", "max_rank": common.RANK, "recipe": {}}
    for name in ("gone", "replaced", "tampered"):
        adapters.publish(store, adapter, name, **made_by)
    for name in ("gone", "replaced"):
        assert ask(client, f"benchmark-tiny:{name}", max_tokens=2).usage.completion_tokens == 2
    published = store.place / "adapters"
    (published / "gone").delete()
    manifest = published / "replaced" / adapters.MANIFEST
    manifest.write(manifest.read() + b" ")
    weights = published / "tampered" / adapters.WEIGHTS
    weights.write(weights.read()[:-4] + b"\1\2\3\4")
    for name, code in (
        ("gone", "model_not_found"),
        ("replaced", "model_invalid"),
        ("tampered", "model_invalid"),
    ):
        for _ in range(2):
            with pytest.raises(openai.NotFoundError, match=f"benchmark-tiny:{name}") as error:
                ask(client, f"benchmark-tiny:{name}", max_tokens=2, stream=True)
            assert error.value.code == code
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("benchmark-tiny:gone")
    assert "benchmark-tiny:gone" not in [model.id for model in client.models.list()]
    assert ask(client, f"benchmark-tiny:{common.ADAPTER}", max_tokens=2).usage.completion_tokens == 2


def test_a_storage_that_is_silent_takes_no_adapter_away(service, client):
    store, _, url = service
    with suspended(store.server.process.pid):
        answer = ask(client, f"benchmark-tiny:{common.ADAPTER}", max_tokens=2)
        assert answer.usage.completion_tokens == 2
        headers = {"Authorization": f"Bearer {KEYS[0]}", "X-Request-Id": "one-of-mine"}
        answer = requests.get(f"{url}/v1/models", headers=headers, timeout=60)
        assert answer.status_code == 500, "nor does it let one be listed"
        assert answer.json()["error"]["message"] == "the service failed; request one-of-mine"


def test_several_are_the_first_to_ask_for_an_adapter(service, client):
    store, adapter, _ = service
    adapters.publish(store, adapter, "wanted", base="benchmark-tiny", max_rank=common.RANK, recipe={})
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda _: ask(client, "benchmark-tiny:wanted", max_tokens=2), range(4))
        assert [answer.usage.completion_tokens for answer in answers] == [2] * 4


def test_adapters_are_kept_in_a_folder_of_the_replica_s_own(client):
    """Ray's is the same for all accounts of a machine, and belongs to the first."""
    process = replica_process()
    mine = Path(process.environ()["TMPDIR"]).glob("adapters-*")
    assert [path for path in mine if list(path.rglob(adapters.WEIGHTS)) and path.stat().st_mode & 0o77 == 0]
    ray_s = Path("/tmp/ray/llm/lora/cache")  # noqa: S108
    assert not ray_s.exists() or ray_s.stat().st_mtime < process.create_time()


def test_a_replica_fetches_each_adapter_once(service, client):
    """Also if Ray dropped it since, or it is asked for again and again and refused."""
    store, adapter, _ = service
    folder, names = Path(replica_process().environ()["TMPDIR"]), ("first", "second", "third", "spoilt")
    for name in names:
        adapters.publish(store, adapter, name, base="benchmark-tiny", max_rank=common.RANK, recipe={})
    (store.place / "adapters" / "spoilt" / adapters.WEIGHTS).write(b"")
    before = len(list(folder.glob("adapters-*/*")))
    for name in 2 * names:
        with pytest.raises(openai.NotFoundError) if name == "spoilt" else contextlib.nullcontext():
            ask(client, f"benchmark-tiny:{name}", max_tokens=2)
    assert len(list(folder.glob("adapters-*/*"))) == before + 3


def test_streamed_and_not_from_python_and_from_curl(url, client):
    whole = ask(client, max_tokens=20).choices[0].message.content
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in ask(client, max_tokens=20, stream=True)
        if chunk.choices
    ]
    assert "".join(pieces) == whole
    assert len(pieces) > 2
    body = {
        "model": "benchmark-tiny",
        "messages": [{"role": "user", "content": "Tell me of a game."}],
        "temperature": 0,
        "max_tokens": 20,
    }
    command = [
        "curl",
        "-s",
        f"{url}/v1/chat/completions",
        "-H",
        "Content-Type: application/json",
    ]
    command += ["-H", f"Authorization: Bearer {KEYS[1]}", "-d", json.dumps(body)]
    answered = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert answered["choices"][0]["message"]["content"] == whole
    guided = ask(client, max_tokens=20, extra_body={"structured_outputs": {"choice": ["a game", "no game"]}})
    assert guided.choices[0].message.content in ("a game", "no game")


BAD = {
    "max_tokens": -1,
    "stream_options": {"include_usage": True},
    "tool_choice": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}},
    "structured_outputs": {"grammar": "root ::= ("},
    "structured_outputs ": {"regex": "(["},
    "structured_outputs  ": {"grammar": "root ::= root"},
    "structured_outputs   ": {"regex": "\0"},
    "bad_words": [" "],
    "logit_bias": {"49160": 1},
    "n": 0,
    "messages": "no list",
    "messages ": [{"role": "user", "content": [{"type": "text"}]}],
    "messages  ": [{"role": "user", "content": "word " * 20_000}],
    "stop": [""],
    "temperature": "hot",
    "model": ["benchmark-tiny"],
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_the_client_s_own_errors(url, name, stream):
    """Before the first piece of a stream there is still a status to tell it by."""
    body = {"model": "benchmark-tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    body |= {name.strip(): BAD[name], "stream": stream and name != "stream_options"}
    answer = requests.post(
        f"{url}/v1/chat/completions",
        json=body,
        headers={"Authorization": f"Bearer {KEYS[0]}"},
        timeout=60,
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_thousands_of_malformed_requests_in_small(url, client):
    """The long form is in tests/test_door.py."""
    attack = Attack(url, KEYS[0], TIME_LIMIT_S)
    attack.run(300, derandomize=True)
    assert attack.statuses[200], "none got as far as the engine"
    assert ask(client, max_tokens=2).usage.completion_tokens == 2


def test_too_many_requests_are_told_to_come_back(client, impatient):
    def one(_, asker=impatient):
        try:
            return ask(asker, **LONG | {"max_tokens": 40}).usage.completion_tokens
        except openai.APIStatusError as error:
            return error

    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(one, range(24)))
    failed = [each for each in found if isinstance(each, Exception)]
    refused = [each for each in failed if each.status_code != 408]  # of a busy machine
    assert refused
    assert all(each.status_code == 503 and each.response.headers["retry-after"] == "1" for each in refused)
    assert len(refused) < 24, "some are let in"

    patient = client.with_options(max_retries=20)  # it waits as long as it is told to, and all are served
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(lambda n: one(n, patient), range(12))) == [40] * 12


def test_a_client_that_goes_away_frees_its_place(client):
    """If nobody freed it, each try would take the time limit. On a busy machine, some do all the same."""

    def seconds():
        start = time.monotonic()
        streams = [ask(client, stream=True, **LONG) for _ in range(4)]  # as many as are let in
        for stream in streams:
            next(stream)
        for stream in streams:
            stream.close()
        assert ask(client, max_tokens=2).usage.completion_tokens == 2
        return time.monotonic() - start

    assert any(seconds() < TIME_LIMIT_S for _ in range(5))


def test_a_request_that_takes_too_long_ends_and_the_others_are_served(client, impatient):
    """Its place is free again too: as many as fit are asked afterwards."""
    with ThreadPoolExecutor(8) as pool:
        start = time.monotonic()
        endless = [pool.submit(ask, impatient, **LONG) for _ in range(2)]
        while not all(each.done() for each in endless):
            assert ask(client, max_tokens=2).usage.completion_tokens == 2
        took = time.monotonic() - start
        for each in endless:
            assert isinstance(each.exception(), openai.APIStatusError)
            assert each.exception().status_code == 408
        start = time.monotonic()
        with pytest.raises(openai.OpenAIError):  # it began as a 200: the stream breaks off
            list(ask(impatient, stream=True, **LONG))
        assert TIME_LIMIT_S <= time.monotonic() - start < 3 * TIME_LIMIT_S
        assert TIME_LIMIT_S <= took < 3 * TIME_LIMIT_S
        after = pool.map(lambda _: ask(client, max_tokens=5).usage.completion_tokens, range(4))
        assert list(after) == [5] * 4


def test_an_engine_that_is_stuck_keeps_nobody_waiting_for_ever(client, impatient):
    with suspended(replica_process().pid):
        with pytest.raises(openai.APIStatusError) as error:
            ask(impatient, max_tokens=5)
        assert error.value.status_code == 408
    assert ask(client, max_tokens=5).usage.completion_tokens == 5


def scrape() -> dict[str, float]:
    """Prometheus samples by name, each summed over the processes that report it: of vLLM's engines those that
    serve, which have a `ReplicaId`."""
    found: dict[str, float] = defaultdict(float)
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for family in text_string_to_metric_families(requests.get(url, timeout=60).text):
            for sample in family.samples:
                if sample.labels.get("ReplicaId") != "":
                    found[sample.name] += sample.value
    return found


def test_metrics(client):
    tokens = "ray_vllm_generation_tokens_total"
    before = scrape().get(tokens, 0)
    ask(client, max_tokens=30, extra_body={"ignore_eos": True})
    wanted = {
        "ray_vllm_num_requests_running",
        "ray_vllm_time_to_first_token_seconds_sum",
        "ray_serve_num_http_requests_total",
    }
    for _ in range(60):  # each process reports every few seconds
        found = scrape()
        if found.get(tokens, 0) >= before + 30 and wanted <= found.keys():
            break
        time.sleep(1)
    assert found[tokens] >= before + 30
    assert wanted <= found.keys()


def test_no_key_stands_in_a_log(service, client):
    client.models.list()
    logs = Path(ray._private.worker.global_worker.node.get_session_dir_path(), "logs")
    for _ in range(60):  # a line is written after the answer
        contents = {path.name: path.read_bytes() for path in logs.rglob("*") if path.is_file()}
        if found := [name for name in contents if "Ingress" in name and b"/v1/models" in contents[name]]:
            break
        time.sleep(1)
    assert found
    for name, content in contents.items():
        assert not [key for key in KEYS if key.encode() in content], name
