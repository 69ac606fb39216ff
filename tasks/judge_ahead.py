"""Judging that begins while a model is still sampled, if the judge is behind a server and needs none of our engines.

A thread has shards of samples judged as they are sealed. Since the samples as a whole have no fingerprint yet, what it
makes is a stage for each shard, identified by the shard's own content. The judge's stage takes over what is there for
its samples, and removes it. An error ends judging ahead, not the run: the judge's stage goes on from there.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from judges.base import Group, Judge
from judges.registry import build_judge
from tasks.follower import Follower
from tasks.handles import JudgedSamples, JudgeInput, SamplingSpec, baseline_of
from tasks.judge_stages import AHEAD, ahead_stage, shards_together
from tasks.spending import api_tokens, booking, judging_meter
from tasks.stored_groups import Asked, StoredGroups
from tpo.config.judges import JudgeConfig, ServedJudge, compares
from tpo.config.run import RunConfig
from tpo.records import Artifact, Judgment, SampledResponse
from tpo.storage.disk import remove
from tpo.storage.journal import Journal, JournalByPrompt
from tpo.storage.ledger import Meter
from tpo.storage.store import Stage, read_manifest, stream_rows

POLL_SECONDS = 0.5
"""How often the thread looks for new shards."""


@contextlib.contextmanager
def judging_ahead(
    config: RunConfig, spec: SamplingSpec, samples: Stage, prompts: Artifact, against: JudgedSamples | None = None
) -> Iterator[None]:
    """Judges samples while their stage makes them in this context, if the judge is behind a server.

    On exit, waits for what is being judged. After an error, waits for one reply.
    """
    # A judge that only compares, with nothing else to compare with, compares the samples with themselves.
    alone = spec.purpose == "evaluate" and compares(spec.judge) and against is None
    # Two meters at once don't see each other's spending, so a budget is kept by working in turn.
    in_turn = config.budget.is_set or alone or not _is_served(spec.judge)
    if in_turn or (samples.folder / "manifest.json").exists():
        yield
        return
    baseline = None if against is None else baseline_of(spec, against.samples, against)
    with _ShardFollower(config, spec, samples, prompts, baseline).beside():
        yield


def _is_served(judge: JudgeConfig) -> bool:
    """Whether a judge is one model behind a server."""
    return isinstance(judge, ServedJudge) and judge.endpoint is not None


@dataclass(frozen=True)
class AheadShard:
    """A shard of samples to judge by itself."""

    groups: Sequence[Group]
    """What the judge sees of it."""
    stage: Stage
    """Where its judgments go."""


def judge_shards(
    judge_: Judge, shards: Sequence[AheadShard], meter: Meter, check: Callable[[], None] = lambda: None
) -> None:
    """Has some shards judged together, and keeps the judgments of each; replies of an earlier call aren't asked for
    again. `check` is called after each reply, and may raise to end this."""
    meter.check()
    with contextlib.ExitStack() as stack:
        journals = dict[str, Journal]()
        for shard in shards:
            shard.stage.begin()
            journal = stack.enter_context(Journal(_journal(shard.stage)))
            journals |= {group.prompt_id: journal for group in shard.groups}
        groups = [group for shard in shards for group in shard.groups]
        judged = judge_.judge(groups, JournalByPrompt(journals, check), booking(meter))
        for shard in shards:
            rows = [row for judgments in itertools.islice(judged, len(shard.groups)) for row in judgments]
            meter.book(prompts=len(shard.groups))
            shard.stage.write_shard(0, rows)
            shard.stage.commit(1)


class _ShardFollower(Follower):
    """Judges the shards of a stage of samples as they are sealed."""

    def __init__(
        self, config: RunConfig, spec: SamplingSpec, samples: Stage, prompts: Artifact, baseline: Artifact | None
    ) -> None:
        super().__init__(f"judging ahead {spec.folder}", f"{spec.folder}: judging waits until all is sampled")
        self._config, self._spec, self._samples = config, spec, samples
        self._prompts, self._baseline = prompts, baseline
        self._seen = set[int]()

    def follow(self) -> None:
        """Judges shards as they are sealed."""
        asked = judge_ = None
        while not self.ended.is_set():
            new = self._samples.sealed(self._seen)
            if not new:
                self.ended.wait(POLL_SECONDS)
                continue
            asked = asked or Asked(self._spec, self._prompts, self._baseline)
            judge_ = judge_ or _build(self._config, self._spec)
            shards = self._shards(asked, new)
            if shards:
                stage, judge = f"{self._spec.folder}/judgments", self._spec.judge
                with judging_meter(self._config, stage, judge, beside=True) as meter:
                    judge_shards(judge_, shards, meter, self.check)

    def _shards(self, asked: Asked, new: Mapping[int, str]) -> list[AheadShard]:
        """The first of the new shards: as many as keep the server busy."""
        shards, most = list[AheadShard](), None
        for number, sha256 in new.items():
            if most is not None and len(shards) >= most:
                break
            self._seen.add(number)
            stage = ahead_stage(self._config, self._spec, self._prompts, self._baseline, number, sha256)
            rows = self._samples.read_shard(number, sha256, SampledResponse)
            if rows is None or stage.complete() is not None:
                continue
            shards.append(AheadShard(asked.of(rows), stage))
            most = most or shards_together(self._config, self._spec.judge, shards[0].groups)
        return shards


class JudgedAhead:
    """What was judged ahead of some samples, which are complete."""

    def __init__(self, config: RunConfig, spec: SamplingSpec, submitted: JudgeInput, groups: StoredGroups) -> None:
        self._config, self._spec, self._submitted, self._groups = config, spec, submitted, groups
        self._folder = config.root / spec.folder / AHEAD
        self._is_there = self._folder.is_dir()
        manifest = read_manifest(submitted.samples.path) if self._is_there else None
        self._sha256 = [file["sha256"] for file in manifest.files] if manifest else []

    def begun(self) -> list[AheadShard]:
        """The shards of samples that were being judged when the run was stopped: some replies may be there."""
        stages = {i: self._stage(i) for i in range(len(self._sha256))}
        begun = [i for i, stage in stages.items() if _journal(stage).exists() and stage.complete() is None]
        return [AheadShard(self._groups.of_shard(i), stages[i]) for i in begun]

    def judgments(self, start: int, stop: int) -> dict[str, list[Judgment]]:
        """The judgments of the prompts whose groups are from position `start` to before `stop`, by prompt, as far as
        they are there; groups of prompts nearby may be among them."""
        found = dict[str, list[Judgment]]()
        for shard in self._groups.shards_between(start, stop) if self._is_there else ():
            if (done := self._stage(shard).complete()) is not None:
                for row in stream_rows(done, Judgment):
                    found.setdefault(row.prompt_id, []).append(row)
        return found

    def _stage(self, shard: int) -> Stage:
        prompts, baseline = self._submitted.prompts, self._submitted.baseline
        return ahead_stage(self._config, self._spec, prompts, baseline, shard, self._sha256[shard])


def remove_judged_ahead(config: RunConfig, spec: SamplingSpec) -> None:
    """Removes what was judged ahead, once the judge's stage has taken it over."""
    if (folder := config.root / spec.folder / AHEAD).is_dir():
        remove(folder)


def _journal(stage: Stage) -> Path:
    return stage.folder / "journal-00000.jsonl"


def _build(config: RunConfig, spec: SamplingSpec) -> Judge:
    return build_judge(spec.judge, config.judge_engine, config.cluster, api_tokens(config.root))
