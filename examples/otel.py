"""Spans and metrics by OpenTelemetry, for any netkit server.

Start it in a checkout, with the package opentelemetry-distro:

    OTEL_TRACES_EXPORTER=console OTEL_METRICS_EXPORTER=console OTEL_LOGS_EXPORTER=none \\
        opentelemetry-instrument python3 -m netkit serve examples.otel:shout 8080

A span must be current in the thread of its client, so a decorator of the handler makes it. All else
is in the events: see docs/events.md.
"""

import functools
from collections.abc import Callable

from opentelemetry import metrics, trace

import netkit

tracer = trace.get_tracer("netkit")
meter = metrics.get_meter("netkit")
active = meter.create_up_down_counter("netkit.active_connections", unit="{connection}")
duration = meter.create_histogram("netkit.connection.duration", unit="s")
refused = meter.create_counter("netkit.refused_connections", unit="{connection}")


def observe(event: netkit.Event) -> None:
    if isinstance(event, netkit.ConnectionOpened):
        active.add(1)
    elif isinstance(event, netkit.ConnectionClosed):
        active.add(-1)
        duration.record(event.seconds, {"end": event.end})
    elif isinstance(event, netkit.ClientRefused):
        refused.add(1, {"reason": event.reason})


def traced(handler: Callable[..., None]) -> Callable[..., None]:
    """Have `handler`, a function, serve each client in a span of its own."""

    @functools.wraps(handler)
    def handle(conn: netkit.Connection, *args: object, **settings: object) -> None:
        attributes = {"client.address": conn.remote_address, "netkit.id": conn.id}
        kind = trace.SpanKind.SERVER
        with tracer.start_as_current_span(handler.__name__, kind=kind, attributes=attributes):
            handler(conn, *args, **settings)

    return handle


@traced
def shout(conn: netkit.Connection, ending: str = "!") -> None:
    for line in conn.lines():
        with tracer.start_as_current_span("line"):
            conn.write(f"{line.upper()}{ending}\n")


netkit.subscribe(observe)
