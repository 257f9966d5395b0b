"""The trace that a call belongs to, for the headers of the calls that it makes (W3C trace context)."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

PROPAGATOR = TraceContextTextMapPropagator()


def trace_headers() -> dict[str, str] | None:
    """`traceparent` of the current span; None outside of a trace and where it is not recorded."""
    if not trace.get_current_span().is_recording():
        return None
    headers: dict[str, str] = {}
    PROPAGATOR.inject(headers)
    return headers
