"""What the server counts and times, for Prometheus."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import bitnet

__all__ = ["Metrics", "MetricsMiddleware", "metrics"]

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
TOKEN_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


class Metrics:
    """The counts and times of one server.

    Parameters
    ----------
    service : Service
        Whose engine is looked at whenever somebody reads.
    """

    def __init__(self, service: Any) -> None:
        self._service = service
        self.registry = CollectorRegistry()
        self.requests = Counter("bitnet_requests", "Answered requests.", ["path", "status"], registry=self.registry)
        self.request_s = Histogram("bitnet_request_seconds", "From the request to the end of the answer.", ["path"],
                                   registry=self.registry, buckets=SECONDS)  # fmt: skip
        self.first_s = Histogram("bitnet_time_to_first_token_seconds", "From the request's turn in the queue, waiting "
                                 "included, to its first token.", registry=self.registry, buckets=SECONDS)  # fmt: skip
        self.token_s = Histogram("bitnet_inter_token_seconds", "Between two tokens of an answer.",
                                 registry=self.registry, buckets=TOKEN_S)  # fmt: skip
        self.prompt_tokens = Counter("bitnet_prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self.cached_tokens = Counter("bitnet_cached_prompt_tokens", "Of these, those that were computed before.",
                                     registry=self.registry)  # fmt: skip
        self.tokens = Counter("bitnet_generated_tokens", "Tokens of answers.", registry=self.registry)
        self.ends = Counter("bitnet_answers", "Answers, by why they ended.", ["reason"], registry=self.registry)
        self.registry.register(self)

    def watcher(self) -> Callable[[Any], None]:
        """Give a function that notes what comes of one request's generations.

        Returns
        -------
        callable
            Takes a `News`.
        """
        last: dict[int, float] = {}

        def seen(news: Any) -> None:
            if news.piece is not None:
                now = time.perf_counter()
                if news.number in last and news.piece.token is not None:
                    self.token_s.observe(now - last[news.number])
                last[news.number] = now
            elif news.completion is not None:
                done = news.completion
                self.first_s.observe(done.first_token_s)
                self.prompt_tokens.inc(done.prompt_tokens)
                self.cached_tokens.inc(done.cached_tokens)
                self.tokens.inc(len(done.tokens))
                self.ends.labels(done.finish_reason).inc()

        return seen

    def collect(self) -> Iterable[Metric]:
        """Look at the engine: what Prometheus's registry asks for.

        Yields
        ------
        Metric
        """
        service = self._service
        gauges: dict[str, tuple[str, float]] = {
            "bitnet_requests_active": ("Requests in progress that generate or embed.", service.active),
            "bitnet_ready": ("Whether requests are taken.", service.state == "ready"),
        }
        if service.state == "ready":
            now = service.engine.activity(service.model)
            gauges |= {
                "bitnet_queue_waiting": ("Generations that wait for their turn.", now.waiting),
                "bitnet_batch_running": ("Generations that have pages, and take part in steps.", now.running),
                "bitnet_kv_pages": ("Pages of keys and values that have memory.", now.kv_pages),
                "bitnet_kv_pages_used": ("Of these, those that running generations use.", now.kv_pages_used),
                "bitnet_pauses": ("How often a generation gave its pages back for others.", now.pauses),
                "bitnet_steps": ("Steps of the engine so far.", now.steps),
                "bitnet_step_tokens": ("Tokens of all steps so far; by steps, the size of a batch.", now.step_tokens),
            }
        for name, (meaning, value) in gauges.items():
            yield GaugeMetricFamily(name, meaning, float(value))
        memory = GaugeMetricFamily("bitnet_memory_bytes", "Native memory, by tag.", labels=["tag"])
        for tag, stats in bitnet.HybridMemoryPool.instance().get_stats().by_tag.items():
            memory.add_metric([tag], stats.bytes)
        yield memory


async def metrics(request: Request) -> Response:
    """What there is to read, in the format that is asked for."""
    encode, kind = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(request.app.state.service.metrics.registry), headers={"Content-Type": kind})


class MetricsMiddleware:
    """Counts and times requests.

    Parameters
    ----------
    app : ASGI application
    metrics : Metrics
    paths : list of str
        Those of routes; others are counted together, or anybody could make as many as they like.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Iterable[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.request_s.labels(path).observe(time.perf_counter() - start)
