"""Claims about the endpoint: it is off unless asked for, on loopback alone, and a port that is taken is said before
work."""

import re
import socket
import urllib.error
import urllib.request

import pytest

from tpo.config.resources import MetricsConfig
from tpo.errors import InputError
from tpo.metrics.export import LOOPBACK, check_port, exported
from tpo.metrics.live import Metrics


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        number: int = free.getsockname()[1]
        return number


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def test_metrics_are_served_while_the_context_is_open(port: int):
    metrics, config = Metrics(), MetricsConfig(port=port)
    check_port(config)
    with exported(metrics, config):
        assert page(port) == ""
        metrics.spent("sample", answers=8, tokens_in=30, tokens_out=500, seconds=2.5)
        assert 'tpo_tokens_total{direction="out",work="sample"} 500.0' in page(port)
    with pytest.raises(urllib.error.URLError):
        page(port)
    check_port(config)


def test_other_addresses_of_this_machine_do_not_answer(port: int):
    with (
        exported(Metrics(), MetricsConfig(port=port)),
        socket.socket() as other,
        pytest.raises(ConnectionRefusedError),
    ):
        other.connect(("127.0.0.2", port))


def test_without_a_port_nothing_listens():
    assert MetricsConfig().port is None
    check_port(MetricsConfig())
    with exported(Metrics(), MetricsConfig()):
        pass


def test_a_port_that_is_taken_is_refused_with_the_setting(port: int):
    config = MetricsConfig(port=port)
    said = re.escape(f"metrics.port is {port}, but something else listens on port {port} of 127.0.0.1, perhaps another")
    with exported(Metrics(), config):
        with pytest.raises(InputError, match=said):
            check_port(config)
        with pytest.raises(InputError, match=said), exported(Metrics(), config):
            pass
