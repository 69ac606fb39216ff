"""Bytes that a run will need on the disk and in this machine's memory at once, and its CPUs and GPUs.

Pure arithmetic on the config, the iterations that are left, and the models' parameter counts. Checkpoints make up most
of the disk space and are exact except for a few kB of tokenizer. Rows are an upper bound: every output counts as
`max_new_tokens` long. Three iterations of the `laptop` profile with ArmoRM took 36.4 MB, 32.0 MB of it checkpoints; the
forecast is 31.8 MB of checkpoints, 36 MB of rows (the miniature's short ones filled an eighth of that) and 21 MB while
training. 400 outputs of 600 English words, with all columns of `Sample`, took 7 to 9 bytes per word.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpo.config.contexts import pair_writers
from tpo.config.judges import (
    ArmoRMJudge,
    EnsembleJudge,
    GenerativeJudge,
    JudgeConfig,
    PairwiseJudge,
    RewardModelJudge,
    RubricJudge,
    VerifierJudge,
    members_of,
)
from tpo.config.recipes import SelfTrain, ThinkPo, Tpo
from tpo.config.resources import EngineConfig
from tpo.config.run import RunConfig
from tpo.planning.workload import attacked_groups

ModelJudge = RewardModelJudge | ArmoRMJudge | PairwiseJudge | RubricJudge
"""A judge that is a model."""

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per parameter."""
_TOKEN = 10
"""Bytes per output token in Parquet: its id and its text, which is stored twice, raw and parsed."""
_PROMPT_TOKEN = 4
"""Bytes per prompt token."""
_ROW = 400
"""Bytes of a judgment without text, and of a row's score, ids and share of seals."""
_STATE = 12
"""Bytes per trained parameter in a checkpoint to resume from: the parameter and Adam's two moments, in float32."""
_TRAINING = 16
"""Bytes per trained parameter in memory: the same, and its gradient."""


@dataclass(frozen=True)
class Disk:
    """Bytes that a run will write."""

    rows: int
    """Samples, judgments, scores and pairs; an upper bound."""
    checkpoints: int
    """A model per epoch; the chosen one takes no extra space. Between the rounds of an iteration, a model and what the
    next round continues from."""
    scratch: int
    """The trainer's checkpoints, removed when training ends: one, and the next while it is written."""

    @property
    def total(self) -> int:
        """Bytes of all three."""
        return self.rows + self.checkpoints + self.scratch


def disk_needed(config: RunConfig, iterations: Sequence[int], *, parameters: int, written: int = 0) -> Disk:
    """Bytes that the given iterations will write; iteration 0 is the seed's evaluation.

    `parameters` are the seed model's; `written` are the bytes of their checkpoints that are already on the disk.
    """
    if not isinstance(config.recipe, Tpo):
        return _model_table_disk(config, max(iterations, default=0), parameters=parameters, written=written)
    trained = len(iterations) - (0 in iterations)
    evaluated = config.data.validation * config.train.epochs + config.data.test
    rows = trained * (
        _answers(config, config.data.count, config.sample.k, config.judge)
        + _answers(config, config.data.validation * config.train.epochs, 1, config.judge)
        + _answers(config, config.data.test, 1, config.evaluation.judge)
        + config.data.count * (config.sample.max_new_tokens * 2 + config.data.max_prompt_tokens) * _PROMPT_TOKEN
    )
    if 1 in iterations and config.health.max_attacked is not None:
        rows += _answers(config, *attacked_groups(config, config.data.count), config.judge)
    if 0 in iterations:
        rows += _answers(config, config.data.validation, 1, config.judge)
        rows += 2 * _answers(config, config.data.test, 1, config.evaluation.judge)
    rows += (trained * (config.data.count + evaluated)) * _ROW
    if share := config.pair.replay_share:
        # Own pairs are stored again with those that are replayed.
        replayed = config.data.count / (1 - share) * max(0, trained - (1 in iterations))
        rows += round(replayed * (config.sample.max_new_tokens * 2 + config.data.max_prompt_tokens) * _PROMPT_TOKEN)
    rows += (trained + 2 * (0 in iterations)) * _benchmark_rows(config)
    second = config.second_judges.values()
    rows += len(iterations) * config.data.validation * sum(2 * _ROW + _judgment_bytes(judge, 1) for judge in second)
    model = parameters * BYTES[config.train.precision]
    between = (config.train.rounds - 1) * (model + _STATE * _trained(config, parameters))
    return Disk(
        rows=rows,
        checkpoints=max(0, trained * (config.train.epochs * model + between) - written),
        scratch=2 * _STATE * _trained(config, parameters) if trained else 0,
    )


def _benchmark_rows(config: RunConfig) -> int:
    """Bytes that one model's outputs for all benchmarks take."""
    return sum(
        _answers(config, benchmark.known_size, 1, benchmark.verifier or config.evaluation.judge)
        + benchmark.known_size * (benchmark.max_new_tokens or 0) * _TOKEN
        + benchmark.known_size * (benchmark.max_prompt_tokens or 0) * _PROMPT_TOKEN
        for benchmark in config.evaluation.benchmarks
    )


def _model_table_disk(config: RunConfig, iterations: int, *, parameters: int, written: int) -> Disk:
    """Bytes that a whole run of ThinkPO writes, or of self-training to SFT_T, T = `iterations`."""
    train, sft = config.train, config.sft
    test = _answers(config, config.data.test, 1, config.evaluation.judge)
    prompts = config.data.count if sft is not None else 0
    imitated = (sft.max_tokens * _TOKEN + _ROW) if sft is not None else 0
    # The demonstrations: once among the prompts, and once as training rows.
    rows = config.data.test * config.data.max_prompt_tokens * _PROMPT_TOKEN + 2 * prompts * imitated
    if isinstance(config.recipe, SelfTrain):
        how, dpo = config.recipe, iterations if config.recipe.dpo else 0
        tunings, preferences, tested = iterations + 1, dpo, iterations + 2 + dpo
        rows += iterations * _answers(config, prompts, how.label_outputs, config.judge)
        rows += dpo * _answers(config, prompts, how.pair_outputs, config.judge)
        # SFT_t is trained on the demonstrations and on one output per question from each earlier iteration.
        rows += iterations * (iterations + 1) // 2 * prompts * imitated
        pairs = dpo * prompts * how.pairs_per_question
    else:
        tunings, preferences, tested = int(sft is not None), 1, 3 if sft is not None else 2
        for writer in pair_writers(config):
            # Once as samples, and again as training rows.
            rows += prompts * 2 * (writer.sample.max_new_tokens * _TOKEN + _ROW)
        pairs = config.recipe_as(ThinkPo).max_pairs or config.data.count
    rows += tested * test + pairs * (2 * train.max_tokens * _PROMPT_TOKEN + _ROW)
    models = preferences * train.passes(max(1, pairs)) * BYTES[train.precision]
    if sft is not None:
        models += tunings * sft.passes(max(1, prompts)) * BYTES[sft.precision]
    trainings = [train] * (preferences > 0) + ([sft] if sft is not None else [])
    trained = any(training.lora is None for training in trainings)
    return Disk(
        rows=rows,
        checkpoints=max(0, models * parameters - written),
        scratch=2 * _STATE * parameters if trained else 0,
    )


def _answers(config: RunConfig, prompts: int, k: int, judge: JudgeConfig) -> int:
    """Bytes of K outputs per prompt and their judgments."""
    output = config.sample.max_new_tokens * _TOKEN + _ROW
    return prompts * (config.data.max_prompt_tokens * _PROMPT_TOKEN + k * (output + _ROW) + _judgment_bytes(judge, k))


def _judgment_bytes(judge: JudgeConfig, k: int) -> int:
    """Bytes of a judge's records of one prompt's outputs, besides a row for each: comparisons, with their text if it
    explains itself."""
    if isinstance(judge, EnsembleJudge):
        return sum(_judgment_bytes(member, k) + (k * _ROW // 2) for member in members_of(judge))
    if not isinstance(judge, GenerativeJudge):
        return 0
    comparisons = max(2, k * (k - 1)) if isinstance(judge, PairwiseJudge) else k * judge.samples
    text = (judge.max_new_tokens or 2048) // 4 * _TOKEN if judge.explains else 0
    return comparisons * (text + _ROW // 4)


def memory_needed(config: RunConfig, parameters: Callable[[Path | None], int]) -> dict[str, int]:
    """Bytes that this machine's memory must hold at once, by the part that holds them; empty if all run on GPUs or
    elsewhere.

    Engines and judges stay loaded while a model is trained. `parameters` returns the parameter count of the model in a
    folder, of M_0 for None. The overhead of processes isn't counted.
    """
    if config.cluster.address is not None:
        return {}
    needed: dict[str, int] = {}
    if config.engine.device == "cpu":
        needed["engine"] = _engines(config.engine, parameters(None), with_cache=True)
        if (writer := config.data.synthetic) is not None and writer.folder is not None:
            needed["engine (data.synthetic)"] = _engines(config.engine, parameters(writer.folder), with_cache=True)
        for folder in (each.folder for each in pair_writers(config)):
            if folder is not None:
                needed[f"engine ({folder.name})"] = _engines(config.engine, parameters(folder), with_cache=True)
    for judge in {judge.folder: judge for judge in model_judges(config)}.values():
        if config.judge_engine.device == "cpu" and judge.folder is not None:
            needed[f"judge_engine ({judge.kind})"] = _engines(
                config.judge_engine, parameters(judge.folder), with_cache=isinstance(judge, GenerativeJudge)
            )
    rater = config.evaluation.fine_grained
    if config.judge_engine.device == "cpu" and rater is not None and rater.folder is not None:
        needed["judge_engine (rater)"] = _engines(config.judge_engine, parameters(rater.folder), with_cache=True)
    if config.trainer.device == "cpu":
        needed["trainer"] = _training(config, parameters(None))
    return needed


def _training(config: RunConfig, parameters: int) -> int:
    """Bytes that all training workers hold together: everything in each of them, or one copy of it spread over them
    (FSDP)."""
    frozen = parameters * BYTES[config.train.precision] if config.train.lora else 0
    copies = 1 if config.trainer.strategy == "fsdp" else config.trainer.workers
    return copies * (_TRAINING * _trained(config, parameters) + frozen)


def _trained(config: RunConfig, parameters: int) -> int:
    """Number of trained parameters; adapters count as 0, since they are at most a few percent of a large model."""
    return 0 if config.train.lora else parameters


def gpus_needed(config: RunConfig) -> dict[str, int]:
    """GPUs that each part of a run uses. Parts take turns, so the largest number must be available."""
    needed: dict[str, int] = {}
    if config.engine.device == "gpu":
        needed["engine"] = config.engine.count * config.engine.tensor_parallel
    if config.judge_engine.device == "gpu":
        for judge in {judge.folder: judge for judge in model_judges(config)}.values():
            each = config.judge_engine.tensor_parallel if isinstance(judge, GenerativeJudge) else 1
            needed[f"judge_engine ({judge.kind})"] = config.judge_engine.count * each
        rater = config.evaluation.fine_grained
        if rater is not None and rater.folder is not None:
            needed["judge_engine (rater)"] = config.judge_engine.count * config.judge_engine.tensor_parallel
    if config.trainer.device == "gpu":
        needed["trainer"] = config.trainer.workers
    return needed


def cpus_needed(config: RunConfig) -> dict[str, int]:
    """CPUs that the local Ray cluster must have at once, by the key that requests them: for one engine, and for all
    training workers. Judges' engines request none."""
    if config.cluster.address is not None:
        return {}
    needed: dict[str, int] = {}
    if config.engine.device == "cpu":
        needed["engine.tensor_parallel"] = config.engine.tensor_parallel
    if config.trainer.device == "cpu":
        needed["trainer.workers"] = config.trainer.workers
    return needed


def model_judges(config: RunConfig) -> list[ModelJudge]:
    """The judges that run a model here: not the verifier, and not those behind a server."""
    return [
        judge for judge in config.single_judges if not isinstance(judge, VerifierJudge) and judge.folder is not None
    ]


def _engines(engine: EngineConfig, parameters: int, *, with_cache: bool) -> int:
    # As in the engine's environment variable: whole GiB, and at least one.
    cache = max(1, round(engine.kv_cache_gib)) * GIB if with_cache else 0
    return engine.count * (parameters * BYTES[engine.dtype] + cache)


def readable_size(count: int) -> str:
    """Bytes, human-readable."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:,.1f} MiB"
