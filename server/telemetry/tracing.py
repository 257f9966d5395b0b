"""Traces and logs of the gateway. Where traces go, and how many, is said by OpenTelemetry's own variables:
OTEL_EXPORTER_OTLP_ENDPOINT turns them on, OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG choose.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Literal

from google.rpc.code_pb2 import DATA_LOSS, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, UNIMPLEMENTED, UNKNOWN
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from pythonjsonlogger.json import JsonFormatter

from baguni.logs import LogFormatter
from baguni.telemetry import PROPAGATOR

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request being answered, set by the gate."""

SERVER_ERRORS = (UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS)
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
LOG_FIELDS = "asctime levelname name message request_id trace_id"


class Telemetry:
    """Spans of requests and of their stages; without a provider, none and at no cost."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("baguni.server") if provider else None

    @classmethod
    def from_environment(cls) -> Telemetry:
        """Exporting over OTLP if the environment says where to."""
        if not any(os.environ.get(name) for name in ENDPOINTS):
            return cls()
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        provider = TracerProvider(resource=Resource.create({"service.name": "baguni-gateway"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def request(self, path: str, metadata: Mapping[str, str]) -> AbstractContextManager[None]:
        """Return a server span, a child of the caller's span if there is one. `path` is "/package.Service/Method"."""
        return nullcontext() if self._tracer is None else self._request(self._tracer, path, metadata)

    def answered(self, code: int) -> None:
        """Note how the request of the current span ended; the caller's own mistakes are no errors of the server."""
        if self._tracer is None:
            return
        span = trace.get_current_span()
        span.set_attribute("rpc.grpc.status_code", code)
        if code in SERVER_ERRORS:
            span.set_status(StatusCode.ERROR)

    def stage(self, name: str, part: str) -> AbstractContextManager[object]:
        """Return a span around a stage's call of a server."""
        if self._tracer is None:
            return nullcontext()
        return self._tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes={"peer.service": part})

    def shutdown(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()

    @staticmethod
    @contextmanager
    def _request(tracer: trace.Tracer, path: str, metadata: Mapping[str, str]) -> Iterator[None]:
        service, _, method = path.strip("/").partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        above = PROPAGATOR.extract(metadata)
        with tracer.start_as_current_span(
            path.strip("/"), above, SpanKind.SERVER, attributes, record_exception=False, set_status_on_exception=False
        ):
            yield


class _Origin(logging.Filter):
    """Add the request and the trace that a line belongs to."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        context = trace.get_current_span().get_span_context()
        record.trace_id = f"{context.trace_id:032x}" if context.is_valid else ""
        return True


def log_to_stderr(kind: Literal["text", "json"]) -> None:
    """Log one line for each event; `json`: one object."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Origin())
    if kind == "json":
        handler.setFormatter(JsonFormatter(LOG_FIELDS.split(), timestamp=False))
    else:
        handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(name)s %(message)s request=%(request_id)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
