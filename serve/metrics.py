"""What the server counts, as Prometheus reads it. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from .. import __version__
from .counters import EDGES_MS

if TYPE_CHECKING:
    from .repository import Repository

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
COUNTED = {
    "requests_succeeded": ("success", "Requests that were answered."),
    "requests_failed": ("fail", "Requests that were refused or failed, whatever the reason."),
    "requests_refused_queue": ("refused", "Requests that found the queue full."),
    "requests_late": ("late", "Requests whose time was over before there was an answer."),
    "requests_cancelled": ("cancelled", "Requests that nobody waited for any more."),
    "images": ("images", "Images that were computed."),
    "executions": ("executions", "Batches that were computed."),
}
SECONDS = {"queue": "queue_ns", "compute": "infer_ns"}


class Collector:
    """All models, anew for every scrape."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    def collect(self) -> Iterator[Metric]:
        models = [(model, self.repository.counters.total(model.name)) for model in self.repository.models]
        for name, (key, text) in COUNTED.items():
            family = CounterMetricFamily(f"kdzoo_{name}", text, labels=["model"])
            for model, total in models:
                family.add_metric([model.name], total[key])
            yield family
        for name, key in SECONDS.items():
            family = CounterMetricFamily(f"kdzoo_{name}_seconds", f"Seconds of {name}, over all requests.", labels=["model"])
            for model, total in models:
                family.add_metric([model.name], total[key] / 1e9)
            yield family
        times = HistogramMetricFamily("kdzoo_request_seconds", "From the first byte of a request to its answer.", labels=["model"])
        for model, total in models:
            times.add_metric([model.name], _buckets(total.times), total["success_ns"] / 1e9)
        yield times
        waiting = GaugeMetricFamily("kdzoo_queue_images", "Images that wait.", labels=["model"])
        ready = GaugeMetricFamily("kdzoo_ready", "1 where the model answers.", labels=["model"])
        info = GaugeMetricFamily("kdzoo_info", "What is served.", labels=["model", "file", "sha256", "runtime", "version"])
        for model, total in models:
            waiting.add_metric([model.name], total["waiting"])
            ready.add_metric([model.name], int(model.ready))
            artifact = model.chosen.artifact
            info.add_metric([model.name, artifact.path, artifact.sha256, model.sessions[0].ran_on.runtime, __version__], 1)
        yield from (waiting, ready, info)


def _buckets(times: list[int]) -> list[tuple[str, float]]:
    """Cumulative, by upper edge in seconds."""
    edges = [*(f"{edge / 1000:g}" for edge in EDGES_MS), "+Inf"]
    return [(edge, float(sum(times[: number + 1]))) for number, edge in enumerate(edges)]


def exposition(repository: Repository) -> bytes:
    """The text of a scrape."""
    registry: Any = CollectorRegistry(auto_describe=False)
    registry.register(Collector(repository))
    return generate_latest(registry)
