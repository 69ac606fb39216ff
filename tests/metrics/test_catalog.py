"""Claims about the catalog: names follow Prometheus's conventions, and the dashboard and the alerts ask for what a run
exports, all of it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tpo.metrics import catalog
from tpo.metrics.catalog import METRICS, REPLY_ERROR_KINDS
from tpo.metrics.export import Exported
from tpo.metrics.live import GpuReading, Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
NAME = re.compile(r"\btpo_[a-z_]+\b")
TABLE = {
    "tpo_tokens_total": ("counter", ("work", "direction")),
    "tpo_answers_total": ("counter", ("work",)),
    "tpo_work_seconds_total": ("counter", ("work",)),
    "tpo_stage_items_remaining": ("gauge", ("work",)),
    "tpo_actors": ("gauge", ("role", "state")),
    "tpo_actor_failures_total": ("counter", ("role",)),
    "tpo_server_calls": ("gauge", ("state",)),
    "tpo_reply_errors_total": ("counter", ("work", "error")),
    "tpo_training_flops_total": ("counter", ()),
    "tpo_training_mfu_ratio": ("gauge", ()),
    "tpo_training_peak_flops_per_second": ("gauge", ()),
    "tpo_gpu_utilization_ratio": ("gauge", ("node", "gpu")),
    "tpo_gpu_memory_used_bytes": ("gauge", ("node", "gpu")),
    "tpo_gpu_memory_total_bytes": ("gauge", ("node", "gpu")),
}
"""What dashboards of users rest on: a name, a kind or a label that changes breaks them."""


def full() -> Metrics:
    """Metrics as a run on GPUs with a judge's server has them in training and judging at once."""
    metrics = Metrics()
    metrics.begin("judge")
    metrics.remaining(3)
    metrics.spent("judge", answers=2, tokens_in=20, tokens_out=4, seconds=1.5)
    metrics.expect_replies()
    metrics.failed_reply("timeout")
    metrics.show_actors("pool", "engine", ["busy", "busy", "idle"])
    metrics.report_gpus("engine", [GpuReading("node-1", "0", "NVIDIA H200", 0.87, 61 * 2**30, 141 * 2**30)])
    metrics.set(catalog.CALLS, 4, "in_flight")
    metrics.add(catalog.TRAINING_FLOPS, 1e12)
    metrics.set(catalog.TRAINING_MFU, 0.41)
    metrics.set(catalog.TRAINING_PEAK, 989e12)
    return metrics


def text_of(metrics: Metrics) -> str:
    registry = CollectorRegistry()
    registry.register(Exported(metrics))
    return generate_latest(registry).decode()


def test_names_kinds_and_labels_stay_as_they_are():
    assert {metric.name: (metric.kind, metric.labels) for metric in METRICS} == TABLE


def test_an_export_has_every_metric_by_its_name_and_help():
    families = {family.name: family for family in text_string_to_metric_families(text_of(full()))}
    for metric in METRICS:
        family = families.pop(metric.name.removesuffix("_total"))
        assert (family.type, family.documentation) == (metric.kind, metric.about)
        assert {tuple(sample.labels) for sample in family.samples} == {tuple(sorted(metric.labels))}
        assert {sample.name for sample in family.samples} == {metric.name}
    assert not families


def test_the_dashboard_queries_what_is_exported_and_all_of_it():
    assert {name for query in QUERIES for name in NAME.findall(query)} == set(TABLE)


def test_alerts_rest_on_metrics_that_are_exported():
    rules = re.sub(r"\bTpo\w+|description: .*", "", (DEPLOY / "prometheus" / "alerts.yml").read_text())
    named = set(NAME.findall(rules))
    assert named and named <= set(TABLE)


def test_the_dashboard_can_be_imported_anywhere():
    sources = {json.dumps(each["datasource"]) for each in DASHBOARD["panels"]}
    assert sources == {json.dumps({"type": "prometheus", "uid": "${DS_PROMETHEUS}"})}
    assert [each["name"] for each in DASHBOARD["__inputs"]] == ["DS_PROMETHEUS"] and DASHBOARD["id"] is None
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


def test_a_label_can_only_have_values_from_code_or_from_the_cluster():
    errors = [labels for labels in full().snapshot()[catalog.REPLY_ERRORS] if labels[0] == "judge"]
    assert {error for _, error in errors} == set(REPLY_ERROR_KINDS)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Prometheus")
@pytest.mark.parametrize("command", [["config", "prometheus.yml"], ["rules", "alerts.yml"], ["metrics"]])
def test_prometheus_own_checks_pass(command: list[str]):
    done = subprocess.run(
        ["promtool", "check", *command],
        cwd=DEPLOY / "prometheus",
        input=text_of(full()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
