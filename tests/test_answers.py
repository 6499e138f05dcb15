"""At temperature 0 the endpoint's answers are the batch stage's: guided, streamed, by `openai` or curl.

That holds in float32. In bfloat16, after little training, two tokens are often equally likely, to the last
bit. Then the rows that share a step of the engine decide between them, and on some CPUs a third of such
answers differ. The engines here compute in float32, and only where two tokens were nearly as likely may an
answer differ.
"""

import json
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import common
from tutorial import run

AT_ONCE = 8  # requests
TIE = 0.001  # difference of two tokens' log probabilities; float32 adds up to within a hundredth of that

pytestmark = pytest.mark.production


def test_answers_over_http_are_those_of_the_batch_stage(tmp_path):
    settings = common.SMALL | {
        "KILL_WORKER": "0",
        "PORT": "",
        "RUN_NAME": "answers-1",
        "STORAGE": str(tmp_path),
    }
    batch, ways, margins = common.alone(ask_in_every_way, env=settings)
    assert [len(answers) for answers in batch.values()] == [6, 6]
    assert len(ways) == 6
    for (system, way), answers in ways.items():
        for number, (over_http, of_batch) in enumerate(zip(answers, batch[system], strict=True)):
            near = margins[system][number] < TIE
            assert over_http == of_batch or near, (system, way, number, margins[system][number])

    resumed = common.alone(resume, env=settings | {"RESUME": "1"})
    assert resumed == batch, "a run that is resumed after its end answers nothing again"


def cells(last):
    """What the notebook's cells define, up to and including `last`, with engines that compute in float32."""
    ids = list(run.cells())
    names = run.define(*ids[: ids.index("model")])
    # Log probabilities after the grammar has ruled tokens out.
    names["profile"].engine |= {"dtype": "float32", "logprobs_mode": "processed_logprobs"}
    return run.define(*ids[ids.index("model") : ids.index(last) + 1], **names)


def of_batch(names):
    systems = ("fine-tuned", "fine-tuned, guided")
    return {system: list(names["answered"][system]["answer"]) for system in systems}


def resume():
    names = cells("scores")
    common.end_ray()
    names["run"].storage.close()
    return of_batch(names)


def ask_in_every_way():
    """The batch stage's answers by system; those over HTTP by system and way; and by system, for each answer,
    the smallest margin of its tokens over the second most likely ones."""
    names = cells("client")
    rows, model, notebook = names["rows"]["test"], f"{names['model_id']}:{names['adapter']}", names["run"]

    def ask(row, model, **options):
        messages, options = names["chat"].messages(row), names["SAMPLING"] | options
        return names["client"].chat.completions.create(model=model, messages=messages, **options)

    def whole(row, extra):
        return ask(row, model, extra_body=extra).choices[0].message.content

    def streamed(row, extra):
        chunks = ask(row, model, extra_body=extra, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    def by_curl(row, extra):
        body = {"model": model, "messages": names["chat"].messages(row)} | names["SAMPLING"] | extra
        return curl(f"{names['client'].base_url}chat/completions", notebook.api_keys[0], body)

    def margin(row, extra):
        found = ask(row, model, extra_body=extra, logprobs=True, top_logprobs=2).choices[0].logprobs.content
        likely = [[top.logprob for top in token.top_logprobs] for token in found]
        return min(first - second for first, second, *_ in likely)

    ways, margins = {}, {}
    for system, extra in {"fine-tuned": {}, "fine-tuned, guided": names["GUIDE"]}.items():
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for way in (whole, streamed, by_curl):
                ways[system, way.__name__] = list(pool.map(way, rows, [extra] * len(rows)))
            margins[system] = list(pool.map(margin, rows, [extra] * len(rows)))
    run.define("shut-down", **names)
    return of_batch(names), ways, margins


def curl(url, key, body):
    """The text of an answer, by curl; the key is in no command line, where others could read it."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        Path(file.name).write_text(json.dumps(body))
        config = f"""url = "{url}"
            header = "Authorization: Bearer {key}"
            header = "Content-Type: application/json"
            data = "@{file.name}"
            noproxy = "127.0.0.1"
            silent
            fail"""
        command = ["curl", "--config", "-"]
        said = subprocess.run(command, input=config, check=True, capture_output=True, text=True).stdout
    return json.loads(said)["choices"][0]["message"]["content"]
