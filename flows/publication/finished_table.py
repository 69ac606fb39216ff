"""A model of a finished run of ThinkPO or self-training, with everything that is published of it.

Of ThinkPO, the model that it ends with; of self-training, SFT_t, whose DPO_t only wrote for it. Refused unless all of
the run's stages up to it are there as the run's end noted them.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.publication.finished_model import FinishedModel, PublishedPair, check_prompt, has_ended
from prompts.thought import load_prompt
from tasks.source import prompt_id_of
from tpo.config.recipes import PairFile, SelfTrain, ThinkPo
from tpo.config.run import RunConfig
from tpo.data.pair_files import read_pair_rows
from tpo.errors import InputError
from tpo.models.chat import writer_encoder
from tpo.records import Artifact, Message, Pair, Prompt, read_turns
from tpo.report.model_table import MODEL_TABLE, ModelTable, read_model_table
from tpo.storage.current import FINISHED
from tpo.storage.disk import bring_here
from tpo.storage.store import Manifest, check_files, combined_sha256, complete_artifact, read_manifest, stream_rows

_TEST = ("test/samples", "test/judgments", "test/scores")


@dataclass(frozen=True)
class TableModel(FinishedModel):
    """A model that a table of models has as a row."""

    table: ModelTable
    """The run's table of models."""
    made_in: str
    """The folder of the stages that made it: `dpo`, `iter_2/sft`."""

    @property
    def parent(self) -> str:
        """SHA-256 over the files of the base."""
        return self.manifests["base/test/samples"].inputs["model"]

    @property
    def judged(self) -> tuple[Manifest | None, Manifest]:
        """The judgments of what self-training imitates, and those of the test."""
        training = None
        if isinstance(self.config.recipe, SelfTrain):
            kept = [name for name in self.manifests if name.endswith("/judgments") and "/test/" not in name]
            training = self.manifests[kept[-1]] if kept else None
        return training, self.manifests[f"{self.made_in}/test/judgments"]

    def pairs(self) -> list[PublishedPair]:
        """The pairs of ThinkPO, or those of DPO_t; empty if there was no DPO."""
        stage = self.made_in.replace("/sft", "/dpo")
        if f"{stage}/pairs" not in self.manifests:
            return []
        asked = self._asked()
        rows = stream_rows(complete_artifact(self.root / stage / "pairs"), Pair)
        return [self._published(pair, asked) for pair in rows]

    def _asked(self) -> dict[str, list[Message]]:
        """The messages of each prompt that a pair may be of."""
        source = self.config.recipe.source if isinstance(self.config.recipe, ThinkPo) else None
        if isinstance(source, PairFile):
            return {
                prompt_id_of(row.instruction, row.history): [
                    *read_turns(row.history),
                    Message(role="user", content=row.instruction),
                ]
                for row in read_pair_rows(source)
            }
        name = "base/prompts/train" if "base/prompts/train" in self.manifests else "sft/prompts"
        prompts = stream_rows(complete_artifact(self.root / name), Prompt)
        return {row.prompt_id: [*row.earlier, Message(role="user", content=row.instruction)] for row in prompts}

    def _published(self, pair: Pair, asked: Mapping[str, list[Message]]) -> PublishedPair:
        if pair.prompt_id not in asked:
            raise InputError(
                f"the file of pairs has changed since {self.root} was made and lacks a prompt: restore the earlier "
                "one, or publish without pairs (PAIRS=0)"
            )
        chosen, rejected = (
            self.encoder.tokenizer.decode(ids, skip_special_tokens=True)
            for ids in (pair.chosen_token_ids, pair.rejected_token_ids)
        )
        return PublishedPair(
            prompt_id=pair.prompt_id,
            prompt=asked[pair.prompt_id],
            chosen=[{"role": "assistant", "content": chosen}],
            rejected=[{"role": "assistant", "content": rejected}],
            chosen_response=self.prompt.split(chosen, finished=True).response,
            rejected_response=self.prompt.split(rejected, finished=True).response,
            chosen_score=pair.chosen_score,
            rejected_score=pair.rejected_score,
            margin=pair.margin,
            kind=pair.kind,
        )


def find_table_model(root: Path, config: RunConfig, iteration: int | None) -> TableModel:
    """The last model of a run in `root` that has a table of models, or its SFT_t.

    Raises `InputError` if the run isn't at its end, has no such model, or isn't complete; `DamagedError` if a file
    isn't what its manifest says.
    """
    if not has_ended(root, MODEL_TABLE):
        raise InputError(f"{root} isn't finished, and only finished runs can be published; {_to_make(root, config)}")
    table = read_model_table(root / MODEL_TABLE)
    name, made_in = _model(root, config, table, iteration)
    manifests = _manifests(root, config, name, made_in)
    train = manifests[f"{made_in}/train"]
    epoch = f"epoch_{train.facts['epochs']}"
    folder, prefix = root / made_in / "train" / epoch, f"{epoch}/"
    files = [
        {**file, "name": file["name"].removeprefix(prefix)} for file in train.files if file["name"].startswith(prefix)
    ]
    bring_here(folder)
    check_files(Artifact(folder, len(files), combined_sha256(files)))
    check_prompt(root, config, name, manifests[f"{made_in}/test/samples"])
    encoder = writer_encoder(folder, config.model)
    prompt = load_prompt(config.prompt).for_model(encoder)
    sha256 = combined_sha256(files)
    return TableModel(root, config, name, folder, files, sha256, manifests, prompt, encoder, table, made_in)


def _model(root: Path, config: RunConfig, table: ModelTable, iteration: int | None) -> tuple[str, str]:
    """Name of the model, and the folder of the stages that made it."""
    names = [row.model for row in table.rows]
    if isinstance(config.recipe, ThinkPo):
        if iteration is not None:
            raise InputError(f"{root} is a run of ThinkPO, which has no iterations: leave out ITER=")
        return names[-1], "dpo"
    reached = max(int(name.removeprefix("SFT_")) for name in names if name.startswith("SFT_"))
    t = reached if iteration is None else iteration
    if not 0 <= t <= reached:
        raise InputError(f"{root} has reached SFT_{reached}, expected SFT_{t}: {_to_make(root, config, t)}")
    return f"SFT_{t}", f"iter_{t}/sft"


def _manifests(root: Path, config: RunConfig, name: str, made_in: str) -> dict[str, Manifest]:
    """The manifests of the stages that the run's end noted, if those of the model are among them."""
    noted = json.loads((root / FINISHED).read_text(encoding="utf-8"))["stages"]
    found = dict[str, Manifest]()
    for stage, fingerprint in noted.items():
        manifest = read_manifest(root / stage)
        if manifest is not None and manifest.fingerprint == fingerprint and _is_before(stage, made_in):
            found[stage] = manifest
    rows = "pairs" if made_in == "dpo" else "demonstrations"
    needed = ["base/prompts/test", "base/test/samples", *(f"{made_in}/{each}" for each in (rows, "train", *_TEST))]
    if missing := [stage for stage in needed if stage not in found]:
        raise InputError(
            f"{name} of {root} isn't complete: {missing[0]} is missing or isn't the one that the run ended with; "
            + _to_make(root, config)
        )
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def _is_before(stage: str, made_in: str) -> bool:
    """Whether a stage belongs to a model or to one before it."""
    return _order(stage)[0] <= _order(made_in)[0]


def _order(stage: str) -> tuple[int, int, str]:
    """The iteration of a stage, its place among the folders of a run without iterations, and its name: within an
    iteration, DPO comes before the fine-tuning that it writes for."""
    first = stage.partition("/")[0]
    iteration = int(first.removeprefix("iter_")) if first.startswith("iter_") else 0
    return iteration, ("base", "sft", "dpo").index(first) if first in ("base", "sft", "dpo") else 3, stage


def trainings(model: TableModel) -> Iterator[tuple[str, str, Manifest]]:
    """Folder and kind of each training that the model comes from, in their order, with its manifest.

    SFT_t starts from the base and learns from what the models before it wrote, so all of them count.
    """
    for stage, manifest in model.manifests.items():
        if stage.endswith("/train") and "/prompts/" not in stage:
            folder = stage.removesuffix("/train")
            yield folder, "dpo" if folder.endswith("dpo") else "sft", manifest


def _to_make(root: Path, config: RunConfig, t: int | None = None) -> str:
    command = "thinkpo" if isinstance(config.recipe, ThinkPo) else "self-train"
    return f"run make {command}{'' if t is None else f' ITER={t}'} RUN={root.name} with the PROFILE= of the run"
