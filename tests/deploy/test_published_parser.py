"""Claims about the parser in a published folder: it reads outputs as our own server does, alone."""

import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from deploy import published_parser
from flows.publication.model_files import PARSER, parser_source
from prompts.native import NativeThoughts
from prompts.thought import VARIANTS, ThoughtPrompt
from tests.thoughts import GREEK, any_output, chunks_of
from tpo.models.thinking_template import TAGS

THINK = ("<think>", "</think>")
NATIVE: dict[str, Any] = {
    "no native thoughts": "unknown",
    "unwanted": NativeThoughts("unwanted", *THINK),
    "allowed": NativeThoughts("allowed", *THINK),
    "allowed and opened": NativeThoughts("allowed", *THINK, opened=True),
}
ODD = [
    "<think>α</think>", "<think>α", "α</think>", "</think>α<think>", "  <think>α", "[THINK]α[/THINK]", "<thi", "</th",
    "<|channel>thought", "<think></think>", "<think>\n\n</think>\n\n",
]  # fmt: skip


def loaded(source: str) -> ModuleType:
    module = ModuleType("thought_parser")
    exec(compile(source, "thought_parser.py", "exec"), vars(module))  # noqa: S102 - our own source
    return module


def outputs(prompt: ThoughtPrompt, rng: random.Random) -> list[str]:
    """Outputs that keep the format or break it, some with native thoughts at their start, middle or end."""
    plain = [any_output(prompt, rng).output for _ in range(60)]
    odd = []
    for output in plain:
        at = rng.choice([0, 0, len(output), rng.randrange(len(output) + 1)])
        odd.append(output[:at] + rng.choice(ODD) + output[at:])
    return [*plain, *odd, *ODD, ""]


@pytest.mark.parametrize("native", NATIVE.values(), ids=NATIVE)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "native"])
def test_an_output_is_split_as_the_prompt_splits_it_whole_and_at_every_length(variant: str, native: Any):
    prompt = SimpleNamespace(**vars(VARIANTS[variant]))
    ours = ThoughtPrompt(**{**vars(prompt), "native": native})
    parser, rng = loaded(parser_source(ours)), random.Random(f"{variant} {native}")
    for output in outputs(ours, rng):
        shown = ours.shown(output, finished=True)
        assert parser.split(output) == (shown.thought, shown.response), output
        text = ""
        for chunk in chunks_of(output, rng):
            text += chunk
            shown = ours.shown(text, finished=False)
            assert parser.split(text, finished=False) == (shown.thought, shown.response), text


def test_the_files_own_settings_are_replaced_for_any_markers():
    thought, response = '"quoted" \\n', "'''\\1\\g<0>\n# x"
    prompt = ThoughtPrompt("custom", "", None, thought, response, native=NATIVE["allowed and opened"])
    parser = loaded(parser_source(prompt))
    assert (thought, response) == (parser.THOUGHT_MARKER, parser.RESPONSE_MARKER)
    assert (parser.NATIVE_TAGS, parser.NATIVE_UNWANTED, parser.NATIVE_OPENED) == (THINK, False, True)


def test_it_knows_the_tags_that_we_know():
    assert published_parser.KNOWN_TAGS == TAGS
    assert loaded(PARSER.read_text(encoding="utf-8")).KNOWN_TAGS == TAGS


def test_it_runs_without_any_package(tmp_path: Path):
    (tmp_path / "thought_parser.py").write_text(parser_source(VARIANTS["specific"]))
    program = "import thought_parser as p; print(p.split('think <R> so'))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {program}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "('think', 'so')"


@pytest.mark.slow  # imports vLLM
def test_vllm_loads_it_and_streams_no_character_of_a_thought(tmp_path: Path):
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser import ParserManager
    from vllm.reasoning import ReasoningParserManager

    from tpo.config.base import SHIPPED_SEED_MODEL
    from tpo.models.chat import ChatEncoder

    file = tmp_path / "thought_parser.py"
    file.write_text(parser_source(VARIANTS["generic"]))
    ReasoningParserManager.import_reasoning_parser(str(file))
    kind: Any = ParserManager.get_parser(reasoning_parser_name="thought")
    encoder, rng = ChatEncoder(SHIPPED_SEED_MODEL), random.Random(0)
    request = ChatCompletionRequest(messages=[{"role": "user", "content": "Why?"}])
    prompt_ids = VARIANTS["generic"].encode(encoder, "Why?")
    for case in [any_output(VARIANTS["generic"], rng) for _ in range(100)]:
        _, response, _ = kind(encoder.tokenizer).parse(case.output, request)
        assert (response or "") == case.response
        parser, content = kind(encoder.tokenizer), ""
        chunks = chunks_of(case.output, rng)
        for i, chunk in enumerate(chunks):
            delta = parser.parse_delta(chunk, [i], request, prompt_ids, finished=i == len(chunks) - 1)
            content += (delta and delta.content) or ""
        assert content == case.response and not set(content) & set(GREEK)
    constrained = ChatCompletionRequest(
        messages=[{"role": "user", "content": "Why?"}], response_format={"type": "json_object"}
    )
    with pytest.raises(ValueError, match="not supported"):
        kind(encoder.tokenizer).adjust_request(constrained)
