"""Makes demonstrations: outputs to imitate, as the model that is to imitate them would write them.

In: prompts, and the responses that are given with them or that another model has written. Out: `Demonstration`s, one a
prompt at most, in the tokens of the model that learns from them.

Text is encoded anew even where a model sampled it: the model that learns is asked in its own way, and may have another
tokenizer.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from prefect import task
from prefect.cache_policies import NO_CACHE

from prompts.thought import load_prompt
from tasks.lineage import demonstrations_stage
from tasks.retry import may_pass
from tpo.config.run import RunConfig
from tpo.config.training import SftConfig
from tpo.console import say
from tpo.errors import InputError
from tpo.models.chat import ChatEncoder
from tpo.records import Account, Artifact, Demonstration, Prompt, Sample
from tpo.storage.store import read_rows, stream_rows


@task(name="demonstrate", task_run_name="demonstrate {folder}", cache_policy=NO_CACHE, retry_condition_fn=may_pass)
def demonstrate(
    config: RunConfig,
    folder: str,
    model: Artifact,
    prompts: Artifact,
    written: Artifact | None = None,
    *,
    most: int | None = None,
) -> Artifact:
    """Demonstrations for `model`: what is given with `prompts`, or their first samples in `written` that parse.

    With `most`, so many of them at most: those of the first prompts.

    Raises `InputError` where there is not a single one, with the counts that say why.
    """
    stage = demonstrations_stage(config, folder, model, prompts, written, most)
    if (done := stage.complete()) is not None:
        return done
    for change in stage.begin():
        say(f"{stage.name}: made again, {change}")
    asked = read_rows(prompts, Prompt)
    if written is None:
        outputs = {prompt.prompt_id: prompt.demonstration for prompt in asked if prompt.demonstration}
    else:
        outputs = first_outputs(stream_rows(written, Sample))
    encoder, prompt = ChatEncoder(model.path), load_prompt(config.prompt)
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
        prompt_ids = encoder.encode(prompt.render(row.instruction))
        fitted = fit(prompt_ids, encoder.encode_output(output), config.fine_tuning)
        if fitted is None:
            dropped["too_long"] += 1
        else:
            made.append(Demonstration(row.prompt_id, prompt_ids, fitted, output, origin))
    account = Account(len(asked), len(made), dict(dropped))
    if not made:
        remedy = "name data.source.demonstration_column" if written is None else f"look at {written.path}"
        raise InputError(
            f"{stage.name}: 0 outputs to imitate for {len(asked)} prompts ({_reasons(account)}): {remedy}, or raise "
            "recipe.sft.max_tokens"
        )
    stage.write_shard(0, made)
    artifact = stage.commit(1, account=account)
    say(f"{stage.name}: {len(made)} outputs to imitate; dropped: {_reasons(account) or 'none'}")
    return artifact


def first_outputs(samples: Iterable[Sample]) -> dict[str, str]:
    """The first sample of each prompt that parses, by prompt."""
    found: dict[str, str] = {}
    for sample in samples:
        if sample.parse_error is None:
            found.setdefault(sample.prompt_id, sample.output)
    return found


def fit(prompt_ids: list[int], output_ids: list[int], sft: SftConfig) -> list[int] | None:
    """An output as it can be trained on behind its prompt; None where it is left out."""
    room = sft.max_tokens - len(prompt_ids)
    if len(output_ids) <= room:
        return output_ids
    return output_ids[:room] if sft.overlong == "truncate" and room > 0 else None


def _reasons(account: Account) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(account.dropped.items()))
