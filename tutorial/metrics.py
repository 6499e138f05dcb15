"""What Ray and vLLM measure of themselves, as Prometheus would read it."""

from collections import defaultdict

import requests
from prometheus_client.parser import text_string_to_metric_families


def scrape(nodes: list[dict]) -> dict[str, float]:
    """Samples by name, each summed over the nodes and processes that report it, without histograms' buckets.

    vLLM's names begin with `ray_vllm_`, Ray Serve's with `ray_serve_`; a histogram has `_sum`, `_count`. Of
    vLLM's engines those that serve are counted, and not the batch stage's.

    Args:
        nodes: `ray.nodes()`.

    Raises:
        requests.RequestException: a node does not answer.
    """
    found: dict[str, float] = defaultdict(float)
    for node in nodes:
        if not node["Alive"]:
            continue
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        answer = requests.get(url, timeout=10)
        answer.raise_for_status()
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                served = sample.labels.get("ReplicaId") != ""  # vLLM's label, empty outside Ray Serve
                if served and not sample.name.endswith("_bucket"):
                    found[sample.name] += sample.value
    return dict(found)
