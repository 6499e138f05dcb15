"""What the notebook's run measured: `make test` runs README.ipynb at a small size, then these."""

import pytest


def test_every_row_comes_back(results):
    assert results["batch"]["rows_in"] == results["batch"]["rows_out"]
    assert results["batch"]["rows_in"] == len(results["batch"]["scores"]) * results["data"]["used"]["test"]


def test_a_worker_was_killed_and_the_run_went_on(results):
    training, fault = results["training"], results["training"]["fault"]
    assert training["steps"] == training["steps_planned"]
    assert 1 < fault["resumed"]["step"] <= fault["killed"]["step"] < training["steps"]
    assert fault["resumed"]["time"] > fault["killed"]["time"]


def test_the_loss_fell(results):
    loss = results["training"]["loss"]
    assert loss[-1] < 0.3 * loss[0]


def test_two_workers_trained(results):
    if results["profile"] != "cpu":
        pytest.skip("the number of workers is the cpu profile's")
    assert results["training"]["workers"] == 2


def exact_match(results, system):
    return results["batch"]["scores"][system]["exact match"]["value"]


def test_the_adapter_is_better_than_the_base_model(results):
    assert exact_match(results, "base model") <= 0.05
    assert exact_match(results, "fine-tuned") >= exact_match(results, "base model") + 0.1


def test_guided_answers_are_valid(results):
    """Not all: a value may run until the limit of tokens, and an attribute may come twice."""
    if "fine-tuned, guided" not in results["batch"]["scores"]:
        pytest.skip(f"the task {results['task']!r} has no grammar")
    guided, free = (results["batch"]["scores"][name] for name in ("fine-tuned, guided", "fine-tuned"))
    assert guided["valid answers"]["value"] >= free["valid answers"]["value"]
    assert guided["exact match"]["value"] >= free["exact match"]["value"] - 0.05
    assert all(speed > 0 for speed in results["serving"]["tokens_per_s"].values())


def test_the_adapter_answers_and_not_the_base_model(results):
    assert all(row["adapter"] != row["base model"] for row in results["serving"]["answers"])


def test_a_streamed_answer_equals_the_unstreamed_one(results):
    assert results["serving"]["streamed"] == results["serving"]["unstreamed"]
