"""Every metric of a run: name, kind, labels, meaning. The dashboard in `deploy/grafana` queries exactly these.

Names follow Prometheus's conventions: base units as suffixes, `_total` for counters. A label has few values, which come
from code or from the cluster, never from prompts, outputs, addresses or keys.
"""

from dataclasses import dataclass
from typing import Literal

Needs = Literal["actors", "judge", "server", "gpu", "known gpu"]


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    """Its name."""
    kind: Literal["counter", "gauge"]
    """Counters begin at 0 with the process."""
    about: str
    """Its help text."""
    labels: tuple[str, ...] = ()
    """The names of its labels."""
    needs: Needs | None = None
    """What it is absent without: Ray's actors, a language model that judges, a server, a GPU, or one whose peak is
    known."""


TOKENS = Metric(
    "tpo_tokens_total",
    "counter",
    "Tokens read (in) and written (out) by kind of work; in training, all tokens count as read. As in ledger.jsonl",
    ("work", "direction"),
)
ANSWERS = Metric(
    "tpo_answers_total",
    "counter",
    "Outputs sampled, judge's replies read, or pairs trained on (each pass counts) by kind of work. As in ledger.jsonl",
    ("work",),
)
SECONDS = Metric(
    "tpo_work_seconds_total",
    "counter",
    "Wall-clock time by kind of work, engine starts included. As in ledger.jsonl",
    ("work",),
)
REMAINING = Metric(
    "tpo_stage_items_remaining",
    "gauge",
    "Outputs to sample, prompts to judge, or optimizer steps to make in the current stage",
    ("work",),
)
ACTORS = Metric(
    "tpo_actors",
    "gauge",
    "Engines, scorers and training workers by state: not placed yet (requested), loading (preparing), idle, busy",
    ("role", "state"),
    needs="actors",
)
ACTOR_FAILURES = Metric(
    "tpo_actor_failures_total",
    "counter",
    "Engines, scorers and training workers that died, hung or failed, and were replaced or given up",
    ("role",),
    needs="actors",
)
CALLS = Metric(
    "tpo_server_calls",
    "gauge",
    "Chats for a judge's or generator's server: under way (in_flight), or not begun (waiting)",
    ("state",),
    needs="server",
)
REPLY_ERRORS = Metric(
    "tpo_reply_errors_total",
    "counter",
    "Failed calls of a server, each attempt counted, refused chats, and replies without a readable verdict",
    ("work", "error"),
    needs="judge",
)
TRAINING_FLOPS = Metric(
    "tpo_training_flops_total",
    "counter",
    "Arithmetic operations that the model's training takes, the reference's forward pass included, recomputation not",
)
TRAINING_MFU = Metric(
    "tpo_training_mfu_ratio",
    "gauge",
    "Model FLOPs utilization: operations of the current training so far, by its time and the peak of its GPUs",
    needs="known gpu",
)
TRAINING_PEAK = Metric(
    "tpo_training_peak_flops_per_second",
    "gauge",
    "Published dense bfloat16 peak of the training's GPUs together",
    needs="known gpu",
)
GPU_UTILIZATION = Metric(
    "tpo_gpu_utilization_ratio",
    "gauge",
    "Share of time in which a kernel ran on a GPU, since its actor's last report",
    ("node", "gpu"),
    needs="gpu",
)
GPU_MEMORY_USED = Metric(
    "tpo_gpu_memory_used_bytes", "gauge", "Memory in use on a GPU, by all processes", ("node", "gpu"), needs="gpu"
)
GPU_MEMORY = Metric("tpo_gpu_memory_total_bytes", "gauge", "Memory of a GPU", ("node", "gpu"), needs="gpu")

METRICS = (
    TOKENS,
    ANSWERS,
    SECONDS,
    REMAINING,
    ACTORS,
    ACTOR_FAILURES,
    CALLS,
    REPLY_ERRORS,
    TRAINING_FLOPS,
    TRAINING_MFU,
    TRAINING_PEAK,
    GPU_UTILIZATION,
    GPU_MEMORY_USED,
    GPU_MEMORY,
)
"""All of them, in the order of the export."""
REPLY_ERROR_KINDS = (
    "timeout", "connection", "rate_limit", "server", "client", "no_completion", "refused", "unreadable"
)  # fmt: skip
"""Values of `error`: no answer in time; no connection; status 429, 5xx, another 4xx; an answer that isn't a chat
completion; a chat that is always refused; a reply without a verdict."""
