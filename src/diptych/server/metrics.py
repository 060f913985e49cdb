"""What Prometheus reads at /metrics; all names begin with `diptych_`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from diptych.types import Output


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def answered(self, route: str, last: Output) -> None:
        """A request came to its end."""

    def failed(self, route: str, status: int) -> None:
        """A request was refused, failed, or given up."""
