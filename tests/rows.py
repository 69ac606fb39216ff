"""Records and files for tests, with sensible defaults for everything that a test doesn't care about."""

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

from tasks.handles import JudgedSamples
from tpo.config.data import DataConfig, FileSource, ModelConfig, SampleConfig
from tpo.config.run import RunConfig
from tpo.config.training import TrainConfig
from tpo.records import Artifact, Demonstration, Prompt, Rating, Sample, Score
from tpo.storage.store import Stage

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
"""Real instructions by other authors; absent on most machines."""


def a_prompt(prompt_id: str = "p", *, instruction: str = "Say it.", reference: str | None = None) -> Prompt:
    return Prompt(prompt_id, instruction, reference)


def a_sample(
    prompt_id: str = "p",
    index: int = 0,
    *,
    thought: str = "Hm.",
    response: str = "Yes.",
    parse_error: str | None = None,
    tries: int = 1,
) -> Sample:
    return Sample(
        prompt_id=prompt_id,
        index=index,
        prompt_token_ids=[1, 2],
        output_token_ids=[*thought.encode(), 0, *response.encode(), 0, index],
        output=f"{thought}|{response}|{index}",
        thought=thought,
        response=response,
        parse_error=parse_error,
        tries=tries,
    )


def a_score(
    prompt_id: str = "p", index: int = 0, value: float | None = 1.0, *, chars: int = 4, unscored: str | None = None
) -> Score:
    return Score(prompt_id, index, value, unscored, None, chars)


def a_demonstration(prompt_id: str, output: str) -> Demonstration:
    """A given output whose tokens are its characters."""
    return Demonstration(prompt_id, [1, 2], [*map(ord, output)], output, "given")


def some_answers(root: Path, name: str, outputs: Mapping[str, Sequence[tuple[str, bool | None]]]) -> JudgedSamples:
    """Stored answers by prompt, each a text whose tokens are its characters, and whether it is right."""
    samples, scores = list[Sample](), list[Score]()
    for prompt_id, group in outputs.items():
        for index, (text, correct) in enumerate(group):
            samples.append(Sample(prompt_id, index, [1, 2], [*map(ord, text)], text, "", text, None, 1))
            value = None if correct is None else float(correct)
            scores.append(Score(prompt_id, index, value, None if value is not None else "x", correct, len(text)))
    return JudgedSamples(stored(root, f"{name}/samples", samples), stored(root, f"{name}/scores", scores))


def stored(root: Path, name: str, rows: Sequence[Prompt | Sample | Score | Demonstration | Rating]) -> Artifact:
    """Some rows of one kind, stored as a stage of this name would."""
    stage = Stage(root, name, type(rows[0]), inputs={}, config={})
    stage.begin()
    stage.write_shard(0, rows)
    return stage.commit(1)


LLAMA: Mapping[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 32,
    "num_hidden_layers": 1,
    "tie_word_embeddings": True,
    "vocab_size": 640,
}
"""The shape of a model that takes almost no space."""


def a_model(folder: Path, *, context: int = 512, **config: object) -> Path:
    """A folder that looks like a model to everything that doesn't load it."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {**LLAMA, "max_position_embeddings": context, **config}
    (folder / "config.json").write_text(json.dumps(values))
    some_weights(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def some_weights(folder: Path, *, rows: int = 640) -> None:
    """Weights of `LLAMA`'s shape with `rows` tokens; sparse, so they take no disk space."""
    layer, size = "model.layers.0", 64
    shapes = {
        "model.embed_tokens.weight": [rows, size],
        "model.norm.weight": [size],
        **{f"{layer}.{name}.weight": [size] for name in ("input_layernorm", "post_attention_layernorm")},
        **{f"{layer}.self_attn.{name}_proj.weight": [size, size] for name in "qkvo"},
        **{f"{layer}.mlp.{name}_proj.weight": [size, size] for name in ("gate", "up", "down")},
    }
    header, end = dict[str, object](), 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def a_config(folder: Path, **changes: object) -> RunConfig:
    """A run in `folder` with its own model and prompt file; `changes` replace whole sections."""
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        prompts.write_text("".join(json.dumps({"instruction": f"Question {i}?"}) + "\n" for i in range(20)))
    sections: dict[str, object] = {
        "name": "tried",
        "folder": folder / "runs",
        "model": ModelConfig(path=str(a_model(folder / "model"))),
        "data": DataConfig(source=FileSource(path=prompts), per_iteration=2, validation=2, test=2),
        "sample": SampleConfig(k=2),
        "train": TrainConfig(epochs=2),
    }
    return RunConfig.model_validate(sections | changes)
