"""A model of a finished run, and M_t of one of TPO; the whole iteration must be complete.

The run folder isn't changed. If the run is in a bucket, the needed files are downloaded into its working copy.
"""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompts.thought import ThoughtPrompt, load_prompt
from tasks.handles import prompt_templates, round_folder
from tpo.config.run import RunConfig
from tpo.errors import InputError, StoreError
from tpo.models.chat import ChatEncoder, writer_encoder
from tpo.records import Artifact, Message, Pair, Prompt, Sample
from tpo.report.summary import SUMMARY, Summary, read_summary
from tpo.storage.current import FINISHED
from tpo.storage.disk import bring_here
from tpo.storage.store import Manifest, check_files, complete_artifact, file_sha256, read_manifest, stream_rows

ROUND = ("prompts", "samples", "judgments", "scores", "pairs", "train")
"""The stages of a complete round."""
ITERATION = ("model", "test/samples", "test/judgments", "test/scores")
"""The stages of a complete iteration that belong to none of its rounds."""


@dataclass(frozen=True)
class PublishedPair:
    """A pair for training elsewhere: the published chat template adds the thought prompt to its messages."""

    prompt_id: str
    """The prompt."""
    prompt: list[Message]
    """The messages, without the thought prompt."""
    chosen: list[dict[str, str]]
    """The chosen output, including thought and markers, as an assistant message."""
    rejected: list[dict[str, str]]
    """The rejected output, in the same form."""
    chosen_response: str
    """The part of the chosen output that the judge saw."""
    rejected_response: str
    """The part of the rejected output that the judge saw or would have seen."""
    chosen_score: float | None
    """The judge's score of the chosen response."""
    rejected_score: float | None
    """The judge's score of the rejected response; None if it breaks the format."""
    margin: float | None
    """Difference of the length-controlled scores."""
    kind: str
    """`regular`, or `error_rejected` if the rejected output breaks the format."""


@dataclass(frozen=True)
class FinishedModel(ABC):
    """A model of a finished run."""

    root: Path
    """The run folder."""
    config: RunConfig
    """The run's config."""
    name: str
    """Its name in the run: M_2, SFT_1, ThinkPO."""
    folder: Path
    """Its folder in the run."""
    files: Sequence[Mapping[str, Any]]
    """Name in that folder, bytes and SHA-256 of each of its files."""
    sha256: str
    """SHA-256 over its files."""
    manifests: Mapping[str, Manifest]
    """Manifests of the stages that it comes from, by stage."""
    prompt: ThoughtPrompt
    """The thought prompt, which also parses the model's outputs."""
    encoder: ChatEncoder
    """Encodes its chats."""

    @property
    @abstractmethod
    def parent(self) -> str:
        """SHA-256 over the files of the model that the run began with."""

    @property
    @abstractmethod
    def judged(self) -> tuple[Manifest | None, Manifest]:
        """The judgments of training, None if it had none, and those of the test."""

    @abstractmethod
    def pairs(self) -> list[PublishedPair]:
        """The pairs that it was trained on, if any."""


@dataclass(frozen=True)
class TpoModel(FinishedModel):
    """M_t of a run of TPO."""

    iteration: int
    """t."""
    summary: Summary
    """The run's summary."""

    @property
    def parent(self) -> str:
        """SHA-256 over the files of M_0."""
        return self.manifests[f"{self.last_round}/prompts"].inputs["model"]

    @property
    def judged(self) -> tuple[Manifest | None, Manifest]:
        """The judgments of its last round's samples, and of its test."""
        return self.manifests[f"{self.last_round}/judgments"], self.stage("test/judgments")

    def stage(self, name: str) -> Manifest:
        """A stage of this iteration."""
        return self.manifests[f"iter_{self.iteration}/{name}"]

    @property
    def last_round(self) -> str:
        """The folder of this iteration's last round."""
        return rounds_of(self.config, self.iteration)[-1]

    def pairs(self) -> list[PublishedPair]:
        """The pairs that it was trained on: of each round, its own and then those that were replayed."""
        pairs = [pair for folder in rounds_of(self.config, self.iteration) for pair in self._trained_on(folder)]
        wanted = {(pair.prompt_id, i) for pair in pairs for i in (pair.chosen_index, pair.rejected_index)}
        prompts, samples = dict[str, Prompt](), dict[tuple[str, int], Sample]()
        for iteration in range(self.iteration, 0, -1):
            if wanted <= samples.keys():
                break
            for folder in rounds_of(self.config, iteration):
                rows = stream_rows(self._rows(f"{folder}/samples"), Sample)
                samples |= {(row.prompt_id, row.index): row for row in rows if (row.prompt_id, row.index) in wanted}
                prompts |= {row.prompt_id: row for row in stream_rows(self._rows(f"{folder}/prompts"), Prompt)}
        return [
            _published(pair, prompts[pair.prompt_id], *(samples[pair.prompt_id, i] for i in _indices(pair)))
            for pair in pairs
        ]

    def _trained_on(self, folder: str) -> Iterator[Pair]:
        replayed = f"{folder}/replay"
        return stream_rows(self._rows(replayed if replayed in self.manifests else f"{folder}/pairs"), Pair)

    def _rows(self, stage: str) -> Artifact:
        return complete_artifact(self.root / stage)


def rounds_of(config: RunConfig, iteration: int) -> list[str]:
    """The folders of an iteration's rounds, in their order."""
    return [round_folder(config, iteration, number) for number in range(1, config.train.rounds + 1)]


def find_tpo_model(root: Path, config: RunConfig, iteration: int | None) -> TpoModel:
    """M_t of the run of TPO in `root`; the latest one that was promoted if t is None.

    Raises `InputError` if there is no such run or iteration, if it isn't complete, or if the thought prompt has changed
    since; `DamagedError` if a file doesn't match its manifest.
    """
    summary = _summary(root)
    reached = summary.models[-1].iteration
    t = _last_promoted(root, summary) if iteration is None else iteration
    if not 1 <= t <= reached:
        has = f"reached M_{reached}" if reached else "trained no model yet"
        raise InputError(
            f"{root} has {has}, expected M_{t}: "
            + ("M_0 is the seed model, which this run did not train" if t == 0 else _to_make(root, t))
        )
    manifests = _manifests(root, config, t)
    folder, made = root / f"iter_{t}" / "model", manifests[f"iter_{t}/model"]
    bring_here(folder)
    check_files(Artifact(folder, 0, made.fingerprint))
    check_prompt(root, config, f"M_{t}", manifests[f"{round_folder(config, t, 1)}/samples"])
    encoder = writer_encoder(folder, config.model)
    prompt = load_prompt(config.prompt).for_model(encoder)
    return TpoModel(
        root, config, f"M_{t}", folder, made.files, made.fingerprint, manifests, prompt, encoder, t, summary
    )


def _last_promoted(root: Path, summary: Summary) -> int:
    """The last t whose M_t the gate didn't reject, if there is a gate."""
    last = summary.models[-1]
    if not last.promoted and last.iteration == 1:
        raise InputError(
            f"the gate of {root} doesn't promote M_1, so there is no model to publish: ITER=1 publishes it nevertheless"
        )
    return last.iteration - (not last.promoted)


def check_prompt(root: Path, config: RunConfig, name: str, samples: Manifest) -> None:
    """Refuses a model whose samples were made with another prompt than the config now gives."""
    if prompt_templates(config.prompt, config.model).fingerprint != samples.inputs.get("prompt templates"):
        raise InputError(
            f"the thought prompt of {root} isn't the one that {name} was trained with, since a template file has "
            f"changed: restore the earlier one ({config.prompt.user_template or config.prompt.system_template})"
        )


def _summary(root: Path) -> Summary:
    """The summary of a finished run."""
    if not has_ended(root, SUMMARY):
        raise InputError(f"{root} isn't finished, and only finished runs can be published; {_to_make(root, None)}")
    return read_summary(root / SUMMARY)


def has_ended(root: Path, result: str) -> bool:
    """Whether a run came to its end, with the file `result` as it is now."""
    try:
        noted = json.loads((root / FINISHED).read_text(encoding="utf-8"))
        return bool(file_sha256(root / result) == noted["results"][result])
    except (OSError, ValueError, KeyError, TypeError, StoreError):
        return False


def _manifests(root: Path, config: RunConfig, t: int) -> dict[str, Manifest]:
    """The manifests of iterations 1 to t and of the held-out prompts; those of iteration t must all be there, unchanged
    since the run finished."""
    stages = json.loads((root / FINISHED).read_text(encoding="utf-8"))["stages"]
    found = {}
    for iteration in range(t + 1):
        for name in _stages(config, iteration):
            manifest = read_manifest(root / name)
            if manifest is not None:
                found[name] = manifest
            if iteration == t and (manifest is None or stages.get(name) != manifest.fingerprint):
                what = "is missing" if manifest is None else "has changed since the run finished"
                raise InputError(f"M_{t} of {root} isn't complete: {name} {what}; {_to_make(root, t)}")
    return found


def _stages(config: RunConfig, iteration: int) -> list[str]:
    if iteration == 0:
        return ["iter_0/prompts/validation", "iter_0/prompts/test"]
    replays = iteration > 1 and config.pair.replay_share > 0
    names = (*ROUND, "replay") if replays else ROUND
    return [
        *(f"{folder}/{name}" for folder in rounds_of(config, iteration) for name in names),
        *(f"iter_{iteration}/{name}" for name in ITERATION),
    ]


def _to_make(root: Path, t: int | None) -> str:
    goal = "" if t is None else f" ITER={t}"
    return f"run make iterate{goal} RUN={root.name} with the PROFILE= of the run"


def runs_next_to(root: Path) -> str:
    """What to name instead of a folder that isn't a run, for the end of a message."""
    parent = root.parent if root.parent.is_dir() else Path()
    runs = sorted(path.parent.name for path in parent.glob("*/config.json") if (path.parent / FINISHED).is_file())
    if not runs:
        return "start one with make iterate; name its folder in RUN=, or its profile in PROFILE= if it is in a bucket"
    return f"name one of {', '.join(runs)} in RUN=, or the profile in PROFILE= if the run is in a bucket"


def _indices(pair: Pair) -> Iterator[int]:
    yield from (pair.chosen_index, pair.rejected_index)


def _published(pair: Pair, prompt: Prompt, chosen: Sample, rejected: Sample) -> PublishedPair:
    return PublishedPair(
        prompt_id=pair.prompt_id,
        prompt=[*prompt.earlier, Message(role="user", content=prompt.instruction)],
        chosen=[{"role": "assistant", "content": chosen.output}],
        rejected=[{"role": "assistant", "content": rejected.output}],
        chosen_response=chosen.response,
        rejected_response=rejected.response,
        chosen_score=pair.chosen_score,
        rejected_score=pair.rejected_score,
        margin=pair.margin,
        kind=pair.kind,
    )


def columns(pairs: list[PublishedPair]) -> list[dict[str, object]]:
    """The rows of a dataset."""
    return [dataclasses.asdict(pair) for pair in pairs]
