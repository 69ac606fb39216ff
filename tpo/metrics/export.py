"""Metrics for Prometheus: an HTTP server on loopback for as long as a run works; off unless `metrics.port` is set."""

import contextlib
import errno
import socket
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tpo.config.resources import MetricsConfig
from tpo.errors import InputError
from tpo.metrics.live import Metrics

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

LOOPBACK = "127.0.0.1"
"""The only address that the server listens on."""


def check_port(config: MetricsConfig) -> None:
    """Raises `InputError` if the port can't be had."""
    if config.port is None:
        return
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # As the server does.
        try:
            taken.bind((LOOPBACK, config.port))
            taken.listen()
        except OSError as error:
            raise _no_port(config.port, error) from None


@contextlib.contextmanager
def exported(metrics: Metrics, config: MetricsConfig) -> Iterator[None]:
    """Serves the metrics while the context is open, if the config has a port.

    Raises `InputError` if the port can't be had.
    """
    if config.port is None:
        yield
        return
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()  # Not the default one, which has Python's and this process's own metrics.
    registry.register(Exported(metrics))
    try:
        server, thread = start_http_server(config.port, LOOPBACK, registry=registry)
    except OSError as error:
        raise _no_port(config.port, error) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Exported:
    """Metrics as a collector of `prometheus_client`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> "Iterable[Family]":
        """All metrics that have a value."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for metric, series in self._metrics.snapshot().items():
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.about, labels=metric.labels)
            for labels, value in sorted(series.items()):
                family.add_metric(labels, value)
            yield family


def _no_port(port: int, error: OSError) -> InputError:
    if error.errno == errno.EADDRINUSE:
        found = f"something else listens on port {port} of {LOOPBACK}, perhaps another run"
    else:
        found = f"port {port} of {LOOPBACK} cannot be opened ({error.strerror})"
    return InputError(f"metrics.port is {port}, but {found}: set another port, or leave it out to export no metrics")
