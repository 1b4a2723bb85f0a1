"""``GET /metrics``: counts and times for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from palidecode.serve.service import Service

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The numbers of one server."""

    def __init__(self, service: Service | None) -> None:
        self._registry = CollectorRegistry()
        names = ["path", "status"]
        self._requests = Counter("palidecode_requests", "Requests", names, registry=self._registry)
        self._seconds = Histogram(
            "palidecode_request_seconds",
            "Seconds of a request",
            ["path"],
            registry=self._registry,
            buckets=_SECONDS,
        )
        if service is not None:
            for name, text, value in _gauges(service):
                Gauge(name, text, registry=self._registry).set_function(value)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request; a status of 0 is a client that went away."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Return the numbers in Prometheus' format."""
        return generate_latest(self._registry)


def _gauges(service: Service) -> Iterable[tuple[str, str, Callable[[], float]]]:
    yield "palidecode_answers_in_progress", "Answers being written", lambda: service.load[0]
    yield "palidecode_requests_waiting", "Requests that wait", lambda: service.load[1]
    yield "palidecode_tokens_written", "Tokens of all answers", lambda: service.tokens


async def metrics(request: Request) -> Response:
    """Answer ``GET /metrics``."""
    numbers: Metrics = request.app.state.metrics
    return Response(numbers.text(), media_type=CONTENT_TYPE_LATEST)
