"""Chat templates that ask as a thought prompt does, for software that knows chat templates and not this project.

`asking_template` wraps a model's own chat template, which stays in it unchanged. The last user turn becomes the thought
prompt and the prompt's system turn comes first; native thinking and the template's options are set as in training
unless a chat sets them; the answer begins with the prefill. `check_asking` proves that of a folder, token by token.

What a user writes is inserted as it is and never read as a template. A template can't do one thing: to the libraries
that render it, `<|im_end|>` in a message is a control token, while it is text to `ThoughtPrompt.encode`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import nodes

from prompts.template import compiled, parsed
from prompts.thought import ThoughtPrompt
from tpo.errors import InputError
from tpo.models.chat import ASKS_ALREADY, ChatEncoder
from tpo.records import Message

MARK = "{#- Asks as this model was trained to be asked (tpo publish), "
"""How a wrapped template begins."""
PROBES = (
    "Why?",
    "  white\tspace \n\n kept  ",
    "naïve 日本語 👩\u200d👩\u200d👧 \u2028 'single' \"double\" \\n \\u0041 \\",
    "{{ 7 * 7 }} {% raw %} {# gone? #} {%- endraw -%} {{ messages }} %} }} #} {{ ''.__class__ }}",
    "Here is my thought process: a Here is my response: b <R> c <response> d <internal thought>",
)
"""Instructions that a published template is tried with."""
_SLOT = "\N{OBJECT REPLACEMENT CHARACTER}instruction\N{OBJECT REPLACEMENT CHARACTER}"
_CAPTURES = (nodes.FilterBlock, nodes.CallBlock, nodes.AssignBlock, nodes.Macro)
"""Blocks that do something with what is written in them."""
_WORDING = """\
{%- set thought_prompt = namespace(last=-1, content='', asked='', text='', messages=[]) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set thought_prompt.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if thought_prompt.last >= 0 -%}
{%- set thought_prompt.content = messages[thought_prompt.last].content -%}
{%- if thought_prompt.content is string -%}
{%- set thought_prompt.asked = thought_prompt.content -%}
{%- elif thought_prompt.content | rejectattr('type', 'equalto', 'text') | list -%}
{{- raise_exception('this model reads text alone') -}}
{%- else -%}
{%- set thought_prompt.asked = thought_prompt.content | map(attribute='text') | join('\\n') -%}
{%- endif -%}
{%- for message in messages -%}
{%- if loop.index0 == thought_prompt.last -%}
{%- set text = USER -%}
{%- set content = text if message.content is string else [{'type': 'text', 'text': text}] -%}
{%- set thought_prompt.messages = thought_prompt.messages + [{'role': 'user', 'content': content}] -%}
{%- else -%}
{%- set thought_prompt.messages = thought_prompt.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
SYSTEM{%- set messages = thought_prompt.messages -%}
{%- endif -%}
"""
"""What comes before the model's own template. Only `messages` is another afterwards; nothing else keeps a name that the
template may use."""
_SYSTEM = """\
{%- set thought_prompt.text = SYSTEM -%}
{%- if messages[0].role == 'system' -%}
{%- set thought_prompt.content = messages[0].content -%}
{%- if thought_prompt.content is not string -%}
{%- set thought_prompt.content = thought_prompt.content | map(attribute='text') | join('\\n') -%}
{%- endif -%}
{%- set thought_prompt.text = thought_prompt.text ~ '\\n\\n' ~ thought_prompt.content -%}
{%- set thought_prompt.messages = thought_prompt.messages[1:] -%}
{%- endif -%}
{%- set thought_prompt.messages = [{'role': 'system', 'content': thought_prompt.text}] + thought_prompt.messages -%}
"""


def asking_template(prompt: ThoughtPrompt, own: str, variables: Mapping[str, bool | int | str]) -> str:
    """A model's `own` chat template, asking as `prompt` does, with `variables` for it unless a chat sets them.

    Raises `InputError` if a template of the prompt computes with the instruction instead of writing it out.
    """
    head = "".join(
        f"{{%- if {name} is not defined -%}}{{%- set {name} = {_literal(value)} -%}}{{%- endif -%}}\n"
        for name, value in variables.items()
    )
    asks = any(turn != {"role": "user", "content": _SLOT} for turn in prompt.render(_SLOT))
    if asks:
        head += _wording(prompt)
    if not head and not prompt.prefill:
        return own
    # At the seams nothing may change: what begins a template may be white space, which `-#}` would cut, and the newline
    # that ends one is no part of it.
    seam = "#}\n" if own[:1].isspace() else "-#}"
    tail = f"{{{{ {_literal(prompt.prefill)} if add_generation_prompt else '' }}}}" if prompt.prefill else ""
    body = own.removesuffix("\n").removesuffix("\r") + tail if tail else own
    note = f" {ASKS_ALREADY}" if asks or prompt.prefill else ""
    return f"{MARK}{prompt.variant}.{note} -#}}\n{head}{{#- The model's own chat template follows. {seam}{body}"


def is_asking(template: object) -> bool:
    """Whether a chat template is one of `asking_template`."""
    return isinstance(template, str) and template.startswith(MARK)


def check_asking(folder: Path, tokenizer: Any, prompt: ThoughtPrompt, encoder: ChatEncoder) -> None:
    """Proves that the chat template of a published folder asks as `prompt` does of the model of `encoder`.

    Raises `InputError`, with the first chat in which a token differs.
    """
    earlier: tuple[list[Message], ...] = (
        [],
        [Message(role="user", content="Say hello."), Message(role="assistant", content="Hello.")],
        [Message(role="system", content="Be brief.")],
    )
    for turns in earlier:
        for probe in PROBES:
            chat = [*turns, Message(role="user", content=probe)]
            try:
                wanted = prompt.encode(encoder, probe, turns)
            except InputError:
                if turns:
                    continue  # the model's template doesn't support such turns
                raise
            found = list(
                tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=False)
            )
            # A template may show the date, which may have changed since.
            if found not in (wanted, prompt.encode(encoder, probe, turns)):
                raise InputError(
                    f"{folder} would not be asked as in training: its chat template makes {tokenizer.decode(found)!r} "
                    f"of {chat!r}, expected {tokenizer.decode(wanted)!r}; please report this with the model's template"
                )


def _wording(prompt: ThoughtPrompt) -> str:
    """The part of a template that turns `messages` into what the prompt asks."""
    system = ""
    if prompt.system_template is not None:
        head, _, tail = _SYSTEM.partition("SYSTEM")
        system = f"{head}{_expression(prompt, prompt.system_template)}{tail}"
    before, _, rest = _WORDING.partition("USER")
    middle, _, after = rest.partition("SYSTEM")
    return f"{before}{_expression(prompt, prompt.user_template)}{middle}{system}{after}"


def _expression(prompt: ThoughtPrompt, source: str) -> str:
    """A turn of the prompt as an expression of Jinja: constants around the instruction."""
    if _computes(parsed(source)):
        raise InputError(
            f"a template of prompt {prompt.variant!r} transforms the instruction, but a chat template can only "
            "insert it: use {{ instruction }} without filters and conditions, or publish by hand"
        )
    markers = {"thought_marker": prompt.thought_marker, "response_marker": prompt.response_marker}
    pieces = compiled(source).render(instruction=_SLOT, **markers).split(_SLOT)
    return " ~ thought_prompt.asked ~ ".join(map(_literal, pieces))


def _computes(tree: nodes.Template) -> bool:
    """Whether a template does anything with the instruction but write it out."""
    written = [part for output in tree.find_all(nodes.Output) for part in output.nodes if _is_instruction(part)]
    named = [name for name in tree.find_all(nodes.Name) if _is_instruction(name)]
    held = [name for block in tree.find_all(_CAPTURES) for name in block.find_all(nodes.Name) if _is_instruction(name)]
    return len(named) > len(written) or bool(held)


def _is_instruction(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "instruction"


def _literal(value: bool | int | str) -> str:
    """A value as Jinja writes it. JSON's escapes are Jinja's; letters beyond ASCII must stay as they are."""
    return json.dumps(value, ensure_ascii=False)
