"""GET /metrics, in Prometheus's text form."""

import dataclasses
from collections.abc import Iterable

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from griffinlm.generation.job import Counts
from griffinlm.generation.service import MemoryUse
from griffinlm.generation.store import StoreCounts
from griffinlm.serve.served import AskerDependency, Served

router = APIRouter()


@router.get("/metrics")
async def metrics(asker: AskerDependency) -> Response:
    """What the server has done, and what it holds."""
    served = asker.served
    store = await asker.on_record_thread(served.store.counts)
    counts, memory, gauges = await served.worker.call(lambda: _read(served, store))
    registry = CollectorRegistry()
    registry.register(_Collected([*_counters(counts), *_gauges(memory, store, gauges)]))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _read(served: Served, store: StoreCounts) -> tuple[Counts, MemoryUse, dict[str, int]]:
    service = served.worker.service
    gauges = {
        "running_answers": service.num_running,
        "waiting_answers": service.num_waiting,
        "free_slots": service.num_free_slots,
    }
    return dataclasses.replace(service.counts), service.memory_with(store.memory_bytes), gauges


def _counters(counts: Counts) -> Iterable[Metric]:
    for field in dataclasses.fields(counts):
        name = field.name.removeprefix("num_")
        family = CounterMetricFamily(f"griffinlm_{name}", name.replace("_", " ") + " since the server began")
        family.add_metric([], getattr(counts, field.name))
        yield family


def _gauges(memory: MemoryUse, store: StoreCounts, gauges: dict[str, int]) -> Iterable[Metric]:
    values = gauges | {
        "slot_bytes": memory.slot_bytes,
        "aside_bytes": memory.aside_bytes,
        "store_memory_bytes": memory.store_bytes,
        "store_record_bytes": store.record_bytes,
        "store_states": store.num_states,
        "store_damaged_records": store.num_damaged,
    }
    for name, value in values.items():
        yield GaugeMetricFamily(f"griffinlm_{name}", name.replace("_", " "), value)


class _Collected(Collector):
    """Metrics that were read before."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics
