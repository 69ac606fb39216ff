"""Demonstrations for supervised fine-tuning: outputs to imitate, at most one per prompt, as the learning model writes
them.

Responses come with the prompts or from another model's samples. Text is encoded again even if a model sampled it: the
learning model has its own prompt and may have another tokenizer.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from prompts.thought import load_prompt
from tasks.handles import prompt_templates
from tasks.stage import complete_or_begun, stage_task
from tpo.config.renamed import as_noted
from tpo.config.run import RunConfig
from tpo.config.training import SftConfig
from tpo.console import say
from tpo.errors import InputError
from tpo.models.chat import writer_encoder
from tpo.records import Artifact, Demonstration, Prompt, RowCounts, Sample
from tpo.storage.store import (
    Stage,
    read_rows,
    stream_rows,
)


@stage_task("demonstrate", run_name="demonstrate {folder}")
def demonstrate(
    config: RunConfig,
    folder: str,
    model: Artifact,
    prompts: Artifact,
    written: Artifact | None = None,
    *,
    most: int | None = None,
) -> Artifact:
    """Demonstrations for `model`: the responses given with `prompts`, or the first sample in `written` that parses.

    `most` limits them to those of the first prompts.

    Raises `InputError` if there is none, with counts by reason.
    """
    stage = demonstrations_stage(config, folder, model, prompts, written, most)
    if (done := complete_or_begun(stage)) is not None:
        return done
    asked = read_rows(prompts, Prompt)
    if written is None:
        outputs = {prompt.prompt_id: prompt.demonstration for prompt in asked if prompt.demonstration}
    else:
        outputs = first_outputs(stream_rows(written, Sample))
    encoder, prompt = writer_encoder(model.path, config.model), load_prompt(config.prompt)
    origin: Literal["given", "sampled"] = "given" if written is None else "sampled"
    dropped: Counter[str] = Counter()
    made = list[Demonstration]()
    for row in asked:
        if (output := outputs.get(row.prompt_id)) is None:
            dropped["no_output"] += 1
            continue
        if len(made) == most:
            dropped["not_used"] += 1
            continue
        prompt_ids = prompt.encode(encoder, row.instruction, row.earlier)
        fitted = fit(prompt_ids, encoder.encode_output(output), config.fine_tuning)
        if fitted is None:
            dropped["too_long"] += 1
        else:
            made.append(Demonstration(row.prompt_id, prompt_ids, fitted, output, origin))
    account = RowCounts(len(asked), len(made), dict(dropped))
    if not made:
        remedy = "name data.source.demonstration_column" if written is None else f"look at {written.path}"
        raise InputError(
            f"{stage.name}: 0 outputs to imitate for {len(asked)} prompts ({account.reasons()}): {remedy}, or raise "
            "recipe.sft.max_tokens"
        )
    stage.write_shard(0, made)
    artifact = stage.commit(1, account=account)
    say(f"{stage.name}: {len(made)} outputs to imitate; dropped: {account.reasons()}")
    return artifact


def first_outputs(samples: Iterable[Sample]) -> dict[str, str]:
    """The first sample of each prompt that parses, by prompt."""
    found: dict[str, str] = {}
    for sample in samples:
        if sample.parse_error is None:
            found.setdefault(sample.prompt_id, sample.output)
    return found


def fit(prompt_ids: list[int], output_ids: list[int], sft: SftConfig) -> list[int] | None:
    """An output as training data after its prompt; None if it is dropped."""
    room = sft.max_tokens - len(prompt_ids)
    if len(output_ids) <= room:
        return output_ids
    return output_ids[:room] if sft.overlong == "truncate" and room > 0 else None


def demonstrations_stage(
    config: RunConfig,
    folder: str,
    model: Artifact,
    prompts: Artifact,
    written: Artifact | None,
    most: int | None = None,
) -> Stage:
    """Outputs to imitate for a set of prompts: those given with them, or those that a model has `written`.

    `model` learns from them and is an input because its tokenizer encodes them; `most` is their maximum number.
    """
    inputs = {"model": model, "prompts": prompts}
    if written is not None:
        inputs["written"] = written
    return Stage(
        config.root,
        f"{folder}/demonstrations",
        Demonstration,
        inputs=inputs | {"prompt templates": prompt_templates(config.prompt, config.model)},
        config={
            **as_noted(config.fine_tuning, include={"max_tokens", "overlong"}),
            **({} if most is None else {"most": most}),
        },
    )
