"""What Ray and vLLM measure of themselves, as Prometheus would read it."""

import time
from collections import defaultdict

import requests
from prometheus_client.parser import text_string_to_metric_families


def wait_for(names: list[str], nodes: list[dict], timeout_s: float = 60) -> dict[str, float]:
    """`scrape`, again until all names are there, as processes report every few seconds; NaN for one that is
    not after `timeout_s`."""
    start = time.monotonic()
    while set(names) - set(found := scrape(nodes)) and time.monotonic() - start < timeout_s:
        time.sleep(1)
    return dict.fromkeys(names, float("nan")) | found


def scrape(nodes: list[dict]) -> dict[str, float]:
    """Samples by name, each summed over the nodes and processes that report it, without histograms' buckets.

    vLLM's names begin with `ray_vllm_`, Ray Serve's with `ray_serve_`; a histogram has `_sum`, `_count`. Of
    vLLM's engines those that serve are counted, and not the batch stage's. A node that does not answer is
    named in a line, and left out.

    Args:
        nodes: `ray.nodes()`.
    """
    found: dict[str, float] = defaultdict(float)
    for node in nodes:
        if not node["Alive"]:
            continue
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        try:
            answer = requests.get(url, timeout=10)
            answer.raise_for_status()
        except requests.RequestException as error:
            print(f"no metrics of {url}: {type(error).__name__}")
            continue
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                served = sample.labels.get("ReplicaId") != ""  # vLLM's label, empty outside Ray Serve
                if served and not sample.name.endswith("_bucket"):
                    found[sample.name] += sample.value
    return dict(found)
