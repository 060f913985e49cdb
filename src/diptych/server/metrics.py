"""What Prometheus reads at /metrics; all names begin with `diptych_`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
