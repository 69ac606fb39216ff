"""Outputs of one model for one set of prompts, K per prompt, written shard by shard with thought and response apart.

For training, an output that breaks the format is kept with its error, since it may become a rejected output. For
evaluation it is sampled again, up to a limit (2410.10630, §3.1).
"""

import contextlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prompts.native import Decode, NativeThoughts, OutputTokens
from prompts.thought import ThoughtPrompt, load_prompt
from tasks.handles import SamplingSpec, prompt_templates
from tasks.spending import sampling_meter
from tasks.stage import complete_or_begun, stage_task
from tpo.config.contexts import context_of
from tpo.config.data import SampleConfig
from tpo.config.recipes import ThinkPo
from tpo.config.run import RunConfig
from tpo.console import Advance, progress_bar, say
from tpo.engines.engines import engines_of_run
from tpo.engines.inference.forcing import CalculatorRule, Rule, ThoughtBudget
from tpo.engines.inference.sampler import Output, Request, request_seed
from tpo.errors import InputError
from tpo.models.chat import ChatEncoder, writer_encoder
from tpo.models.folder import check_model_folder
from tpo.records import Artifact, Prompt, RowCounts, Sample
from tpo.storage.ledger import Meter
from tpo.storage.store import (
    Stage,
    check_files,
    read_rows,
    read_shards,
)


@stage_task("sample", run_name="sample {spec.folder}")
def sample(
    config: RunConfig,
    spec: SamplingSpec,
    model: Artifact,
    prompts: Artifact,
    beside: Callable[[], None] | None = None,
) -> Artifact:
    """Outputs of `model` for `prompts`, sampled as `spec` says.

    `beside` is for sampling while another stage is shown as the one at work: it is called after each shard, and may
    raise to end this.
    """
    stage = samples_stage(config, spec, model, prompts)
    if (done := complete_or_begun(stage, shard_size=config.engine.shard_prompts)) is not None:
        return done
    size = stage.shard_size or config.engine.shard_prompts
    thought_prompt, rows = load_prompt(spec.prompt), read_rows(prompts, Prompt)
    shards = [rows[i : i + size] for i in range(0, len(rows), size)]
    missing = [i for i in range(len(shards)) if not stage.has_shard(i)]
    resolved = stage.config["sample"]
    k, tries = resolved["k"], resolved["tries"]
    how = spec.sample.model_copy(update={"temperature": resolved["temperature"]})
    encoder = writer_encoder(model.path, config.model)
    if not isinstance(config.recipe, ThinkPo):
        thought_prompt = thought_prompt.for_model(encoder)
    else:  # ThinkPO trains the model's own way of thinking
        thought_prompt = thought_prompt.keeping_native_thoughts()
    requests = [
        StoredRequests(_request(prompt, thought_prompt, encoder, config.seed, spec) for prompt in shards[i])
        for i in missing
    ]
    rules = rules_of(how, thought_prompt)
    longest = _context(config, spec, requests, model)
    pool = engines_of_run().sampler_pool(config.engine, config.cluster, longest, forcing=how.forces_tokens)
    if missing:
        check_files(model)
    with (
        _progress(f"sample {spec.folder}", len(rows) * k, beside) as advance,
        sampling_meter(config, stage.name, model.path, beside=beside is not None) as meter,
    ):
        if missing:
            meter.check()
        done_rows = len(rows) - sum(len(shards[i]) for i in missing)
        left = len(missing)
        for position, outputs in pool.generate(
            model,
            _within_budget(requests, meter),
            how,
            n=k,
            tries=tries,
            accept=lambda output, decode: (
                thought_prompt.split(
                    output.text, finished=output.finished, tokens=OutputTokens(output.token_ids, decode)
                ).error
                is None
            ),
            rules=rules,
            shard_count=len(missing),
        ):
            shard, asked = missing[position], requests[position].read()
            meter.book(
                prompts=len(outputs),
                answers=sum(map(len, outputs)),
                tokens_in=sum(len(request.prompt_token_ids) for request in asked),
                tokens_out=sum(len(o.token_ids) + o.discarded_tokens for group in outputs for o in group),
            )
            stage.write_shard(shard, make_samples(shards[shard], asked, outputs, thought_prompt, encoder.decode))
            done_rows += len(shards[shard])
            advance(done_rows * k)
            left -= 1
        if left:
            meter.check()
    artifact = stage.commit(len(shards), account=RowCounts(len(rows) * k, len(rows) * k, {}))
    say(_describe(stage.name, artifact))
    return artifact


@contextlib.contextmanager
def _progress(label: str, outputs: int, beside: Callable[[], None] | None) -> Iterator[Advance]:
    if beside is None:
        with progress_bar(label, outputs, "outputs") as advance:
            yield advance
    else:
        yield lambda _: beside()


class StoredRequests:
    """A shard's requests with their tokens in a ninth of the memory."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = [(array("i", request.prompt_token_ids), request.seed) for request in requests]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max((len(ids) for ids, _ in self._requests), default=0)

    def read(self) -> list[Request]:
        """The requests."""
        return [Request(ids.tolist(), seed) for ids, seed in self._requests]


def _context(config: RunConfig, spec: SamplingSpec, requests: Sequence[StoredRequests], model: Artifact) -> int:
    """The engine's context length: its model's setting, or more if prompts are longer in this model's format.

    Prompts were chosen by their length for M_0; another model has another template and tokenizer. Raises `InputError`
    if the longest doesn't fit this model.
    """
    planned = context_of(config, spec.work)
    prompt = max((shard.longest for shard in requests), default=0)
    needed = prompt + spec.sample.max_new_tokens
    if needed > planned and needed > (there := check_model_folder(model.path)):
        raise InputError(
            f"{spec.folder}: the longest prompt has {prompt} tokens in the chat format of {model.path}; with outputs "
            f"of {spec.sample.max_new_tokens}, that is more than its {there} tokens of context: lower "
            "data.max_prompt_tokens or the outputs' max_new_tokens"
        )
    return max(planned, needed)


def rules_of(how: SampleConfig, thought_prompt: ThoughtPrompt) -> list[Rule]:
    """The tokens that every output is forced to write."""
    rules: list[Rule] = []
    longest, marker, native = how.max_thought_tokens, thought_prompt.response_marker, thought_prompt.native
    if longest is not None and isinstance(native, NativeThoughts) and native.comes_first:
        rules.append(ThoughtBudget(longest, native.closing, native.closing_ids, native.ending_ids))
        longest += len(native.ending_ids)  # A marker written within a native thought would be part of it.
    if longest is not None and marker is not None:
        rules.append(ThoughtBudget(longest, marker))
    if how.calculator is not None:
        rules.append(CalculatorRule(how.calculator))
    return rules


def _within_budget(shards: Sequence[StoredRequests], meter: Meter) -> Iterator[Sequence[Request]]:
    """Shards, as engines ask for them, until the budget is spent; work in progress has been paid for, so it is kept."""
    for shard in shards:
        if meter.is_spent():
            return
        yield shard.read()


def make_samples(
    prompts: Sequence[Prompt],
    requests: Sequence[Request],
    outputs: Sequence[Sequence[Output]],
    thought_prompt: ThoughtPrompt,
    decode: Decode,
) -> list[Sample]:
    """The records of one shard: every output parsed, none dropped."""
    samples = []
    for prompt, request, group in zip(prompts, requests, outputs, strict=True):
        for index, output in enumerate(group):
            tokens = OutputTokens(output.token_ids, decode)
            parsed = thought_prompt.split(output.text, finished=output.finished, tokens=tokens)
            samples.append(
                Sample(
                    prompt_id=prompt.prompt_id,
                    index=index,
                    prompt_token_ids=request.prompt_token_ids,
                    output_token_ids=output.token_ids,
                    output=output.text,
                    thought=parsed.thought,
                    response=parsed.response,
                    parse_error=parsed.error,
                    tries=output.tries,
                )
            )
    return samples


def _request(
    prompt: Prompt, thought_prompt: ThoughtPrompt, encoder: ChatEncoder, seed: int, spec: SamplingSpec
) -> Request:
    ids = thought_prompt.encode(encoder, prompt.instruction, prompt.earlier)
    return Request(ids, request_seed(seed, spec.purpose, prompt.prompt_id))


def _describe(name: str, artifact: Artifact) -> str:
    errors: Counter[str] = Counter()
    tokens = 0
    for shard in read_shards(artifact, Sample):
        errors.update(sample.parse_error for sample in shard if sample.parse_error is not None)
        tokens += sum(len(sample.output_token_ids) for sample in shard)
    share = sum(errors.values()) / max(1, artifact.rows)
    return f"{name}: {artifact.rows} outputs, {tokens} tokens, {share:.1%} break the format"


def samples_stage(config: RunConfig, spec: SamplingSpec, model: Artifact, prompts: Artifact) -> Stage:
    """Outputs of one model for one set of prompts."""
    only_for = {"k", "temperature", "max_attempts", "evaluation_temperature", "evaluation_max_attempts"}
    sample = spec.sample.model_dump(mode="json", exclude=only_for)
    if spec.purpose == "train":
        sample |= {"k": spec.sample.k, "tries": spec.sample.max_attempts, "temperature": spec.sample.temperature}
    else:
        warmth = spec.sample.evaluation_temperature
        temperature = spec.sample.temperature if warmth is None else warmth
        sample |= {"k": 1, "tries": spec.sample.evaluation_max_attempts, "temperature": temperature}
    return Stage(
        config.root,
        f"{spec.folder}/samples",
        Sample,
        inputs={
            "model": model,
            "prompts": prompts,
            "prompt templates": prompt_templates(spec.prompt, config.model),
        },
        config={"seed": config.seed, "sample": sample, **config.engine.precision},
        without_effect=_sampling_without_effect(sample, spec),
    )


def _sampling_without_effect(sample: Mapping[str, Any], spec: SamplingSpec) -> set[str]:
    """Values of `sample` without effect on these outputs: the thought limit if no thought is asked for, and top-p under
    greedy decoding."""
    found = set()
    if not load_prompt(spec.prompt).thinks:
        found.add("sample.max_thought_tokens")
    if sample["temperature"] == 0:
        found.add("sample.top_p")
    return found
