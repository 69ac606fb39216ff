"""Placement of a run: which model does each kind of work, on which devices of which machines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tpo.config.base import Endpoint
from tpo.config.contexts import pair_writers
from tpo.config.data import SyntheticConfig
from tpo.config.fine_grained import FineGrainedConfig
from tpo.config.judges import (
    EnsembleJudge,
    GenerativeJudge,
    JudgeConfig,
    ServedJudge,
    SingleJudge,
    VerifierJudge,
    members_of,
)
from tpo.config.resources import EngineConfig, TrainerConfig
from tpo.config.run import RunConfig
from tpo.models.shape import Model
from tpo.planning.workload import Kind
from tpo.storage.ledger import API


@dataclass(frozen=True)
class Cluster:
    """The machines that a run is planned for."""

    nodes: int
    """Number of nodes."""
    gpus: int
    """GPUs per node."""
    gpu_bytes: int
    """Memory of each GPU, in bytes; 0 if there are none or it isn't known."""
    gpu: str
    """Name of the GPUs."""
    known_by: str
    """The source of this information; human-readable."""
    memory_bytes: int
    """Memory of this machine, in bytes."""
    cpus: int
    """CPUs of this machine that Ray can assign."""
    disk_bytes: int
    """Free bytes on the disk of the run folder, or of its working copy, on this machine."""


@dataclass(frozen=True)
class Models:
    """The models of a run."""

    seed: Model
    """M_0."""
    judge: Model | None
    """The judge of training and validation; None if it runs no model here."""
    evaluation: Model | None
    """The judge of the test set; None if it runs no model here."""
    generator: Model | None = None
    """The model that writes prompts, possibly M_0; None if no prompts are written, or a server writes them."""
    writers: Mapping[str, Model] = field(default_factory=dict)
    """The models that write ThinkPO's pairs, by kind of work; possibly M_0."""
    rater: Model | None = None
    """The model that rates instructions; None if there is none, or a server does."""
    members: Mapping[Path | None, Model] = field(default_factory=dict)
    """The models of ensembles' members, by their folders."""

    def by_folder(self, config: RunConfig) -> dict[Path | None, Model]:
        """The models of a run with this config by folder, M_0 at None."""
        found: dict[Path | None, Model] = {}
        for judge, model in ((config.judge, self.judge), (config.evaluation.judge, self.evaluation)):
            if model is not None and not isinstance(judge, VerifierJudge):
                found[judge.folder] = model
        found |= self.members
        if config.data.synthetic is not None and self.generator is not None:
            found[config.data.synthetic.folder] = self.generator
        if config.evaluation.fine_grained is not None and self.rater is not None:
            found[config.evaluation.fine_grained.folder] = self.rater
        found |= {writer.folder: self.writers[writer.work] for writer in pair_writers(config)}
        return found | {None: self.seed}

    def of_member(self, judge: SingleJudge) -> Model | None:
        """The model of an ensemble's member; None if it runs none here."""
        return None if isinstance(judge, VerifierJudge) or judge.folder is None else self.members[judge.folder]


@dataclass(frozen=True)
class Server:
    """A server that does a kind of work."""

    name: str
    """The model and its server, as in the ledger."""
    endpoint: Endpoint
    """Its address and limits."""


@dataclass(frozen=True)
class EngineGroup:
    """The engines or workers that do one kind of work, and where they run."""

    work: Kind
    """The kind of work."""
    who: str
    """Their number, kind and model; human-readable."""
    each: int
    """GPUs per engine or worker; 0 on CPUs and for servers."""
    count: int
    """Number of engines or workers."""
    device: str
    """The device's name, as in the ledger."""
    places: Sequence[str]
    """GPUs by node, as one possible arrangement; Ray decides."""

    @property
    def gpus(self) -> int:
        """GPUs of all of them together."""
        return self.each * self.count

    @property
    def devices(self) -> int:
        """The number that a rate is multiplied by: GPUs or, on CPUs, engines or workers."""
        return self.gpus or self.count


@dataclass(frozen=True)
class Placement:
    """Assignment of each kind of work to models and devices, for a run with this config on these machines."""

    config: RunConfig
    """The run."""
    models: Models
    """Its models."""
    cluster: Cluster
    """The machines."""

    def judge(self, kind: Kind, member: int = 0) -> SingleJudge | None:
        """The judge that does this work, of an ensemble one member; None if it isn't judging."""
        if kind.verb != "judge":
            return None
        return members_of(self._whole_judge(kind))[member]

    def _whole_judge(self, kind: Kind) -> JudgeConfig:
        return self.config.evaluation.judge if kind.purpose in ("test", "benchmark") else self.config.judge

    def server(self, kind: Kind, member: int = 0) -> Server | None:
        """The server that does this work; None if it is done here."""
        others = {"generate": self.config.data.synthetic, "rate": self.config.evaluation.fine_grained}
        who = others[kind.verb] if kind.verb in others else self.judge(kind, member)
        if not isinstance(who, SyntheticConfig | ServedJudge | FineGrainedConfig) or who.endpoint is None:
            return None
        return Server(who.server, who.endpoint)

    def model(self, kind: Kind, member: int = 0) -> Model | None:
        """The local model that does this work."""
        if kind.verb == "generate":
            return self.models.generator
        if kind.verb == "rate":
            return self.models.rater
        if kind.verb == "judge":
            judge = self.judge(kind, member)
            if isinstance(self._whole_judge(kind), EnsembleJudge):
                return None if judge is None else self.models.of_member(judge)
            return self.models.evaluation if kind.purpose in ("test", "benchmark") else self.models.judge
        return self.models.writers.get(kind, self.models.seed)

    def section(self, kind: Kind) -> EngineConfig | TrainerConfig:
        """The config section with this work's resources."""
        if kind.verb == "train":
            return self.config.trainer
        return self.config.judge_engine if kind.verb in ("judge", "rate") else self.config.engine

    def device(self, kind: Kind, member: int = 0) -> str:
        """The device of this work, as in the ledger."""
        if self.server(kind, member) is not None:
            return API
        on_cpu = isinstance(self.judge(kind, member), VerifierJudge) or self.section(kind).device == "cpu"
        return "cpu" if on_cpu else self.cluster.gpu

    def engines(self, kind: Kind, member: int = 0) -> EngineGroup:
        """The engines or workers of this work, and where they run."""
        section, judge, device = self.section(kind), self.judge(kind, member), self.device(kind, member)
        on_gpu = device not in ("cpu", API)
        if isinstance(judge, VerifierJudge):
            return EngineGroup(kind, "the flow itself (verifier)", 0, 0, device, ())
        if (server := self.server(kind, member)) is not None:
            who = f"{server.name}, {server.endpoint.concurrency} calls at once"
            return EngineGroup(kind, who, 0, 1, device, ())
        if isinstance(section, TrainerConfig):
            count, each, what = section.workers, int(on_gpu), f"{section.strategy} worker"
        elif judge is not None and not isinstance(judge, GenerativeJudge):
            count, each, what = section.count, 1, "reward model"
        else:
            count, each, what = section.count, section.tensor_parallel, "vLLM engine"
        what += "s" if count > 1 else ""
        of = f", {each} GPUs each" if on_gpu and each > 1 else ""
        model = self.model(kind, member)
        who = f"{count} {what}{of}: {model.name if model else ''}"
        places = _places(count, each, max(1, self.cluster.gpus)) if on_gpu else ()
        return EngineGroup(kind, who, each if on_gpu else 0, count, device, places)


def _places(count: int, each: int, per_node: int) -> list[str]:
    """Where they go if nodes are filled one by one; nodes with the same GPUs are named together."""
    if each == 1:
        whole, rest = divmod(count, per_node)
        full = [f"{_of('node', range(whole))}: {_of('GPU', range(per_node))}"] if whole else []
        return full + ([f"node {whole}: {_of('GPU', range(rest))}"] if rest else [])
    nodes: dict[int, list[str]] = {}
    for i in range(count):
        taken = range(i * each, (i + 1) * each)
        for node in sorted({gpu // per_node for gpu in taken}):
            there = [gpu % per_node for gpu in taken if gpu // per_node == node]
            nodes.setdefault(node, []).append(_of("GPU", there))
    same: dict[str, list[int]] = {}
    for node, taken_there in nodes.items():
        same.setdefault(" | ".join(taken_there), []).append(node)
    return [f"{_of('node', found)}: {gpus}" for gpus, found in same.items()]


def _of(what: str, numbers: Sequence[int]) -> str:
    """`GPU 3`, `GPUs 0-3`, or a list if the numbers aren't consecutive."""
    if len(numbers) == 1:
        return f"{what} {numbers[0]}"
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{what}s {numbers[0]}-{numbers[-1]}"
    return f"{what}s {', '.join(map(str, numbers))}"
