"""Checks that a model's chat template and tokenizer do what sampling, training and judging rely on.

They load only the tokenizer, render a few plain chats, and return notes, or raise an `InputError` that names the file
to fix. Everything checked here would otherwise go wrong silently, and only after hours.

A note must be worth reading: it names something that can go wrong in this run, not something normal for the model's
family. An example of the latter is a template that removes `<think>` blocks from earlier turns: a model's own output is
never rendered again, since it is trained on the tokens that it sampled, and judges only see responses.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from tpo.errors import InputError
from tpo.models.chat import ChatEncoder
from tpo.models.thinking_template import ThinkingTemplate
from tpo.records import Message

ANSWER = "Forty-two, I would say."
"""An answer that no template has a reason to change."""
_THINKING = "<think>I add the two.</think>"
_THOUGHT_TAGS = ("<think>", "</think>")
_DATED = "the date of a day"


def check_asked(
    model: Path,
    chats: Sequence[Sequence[Message]],
    answers: Sequence[str],
    encoder: ChatEncoder | None = None,
    *,
    thinking: bool = False,
) -> list[str]:
    """Notes about a model that answers `chats`, encoded by `encoder` with native thinking on or off, with outputs like
    `answers`.

    Raises `InputError` if a plain chat's tokens aren't the tokenizer's own, a control token in a message doesn't stay
    text, BOS is missing or doubled, there is no generation prompt, or sampling would not stop at the end of a turn.
    """
    encoder = encoder or ChatEncoder(model)
    for chat in chats:
        _check_tokens(encoder, model, chat)
        if thinking:
            _check_tokens(encoder, model, chat, thinking=True)
    _check_letters(encoder, model, chats[0])
    reader = encoder.reading()
    try:
        reader.encode([*chats[0], _answer_turn(ANSWER)])
    except InputError as error:
        return [
            f"{_template_file(model)}: {error}; what the template writes after an answer is unknown, so make sure that "
            "sampling stops there"
        ]
    _check_end_of_turn(reader, model, chats[0])
    return [
        *(
            []
            if thinking or encoder.thinking.always_thinks
            else _about_generation_prompt(encoder, reader, model, chats[0])
        ),
        *_about_answers(reader, model, chats[0], answers),
        *_about_template(encoder, model, chats[0]),
    ]


def check_thinking(model: Path, encoder: ChatEncoder, *, natively: bool) -> list[str]:
    """Notes about a model's native thinking, which is used or, with prompted thoughts and for the direct baseline,
    unwanted.

    Raises `InputError` if it is used and the template doesn't support it, or if native thoughts can't be distinguished
    from responses.
    """
    thinking = encoder.thinking
    if thinking.heading is not None and not encoder.tag_ids(thinking.heading):
        raise InputError(
            f"{_template_file(model)} {_how_it_thinks(thinking)}, and the tokenizer has no tokens for the heading of "
            f"its responses ({thinking.heading}): they can't be distinguished from its thoughts"
        )
    if natively:
        if thinking.kind != "none":
            return []
        raise InputError(
            f'prompt.variant is "native", and {_template_file(model)} shows no native thoughts: take a variant that '
            'asks for thoughts in words, such as "generic", or name the kind of template in model.thinking if the '
            "model does think between <think> and </think>"
        )
    if thinking.switch is not None or thinking.kind == "none":
        return []
    if thinking.always_thinks:
        return [
            f"{_template_file(model)} {_how_it_thinks(thinking)} and has no variable such as enable_thinking that "
            "switches that off: native thoughts count as a part of the thought, and the direct baseline thinks, too; "
            'prompt.variant = "native" asks for no other thought'
        ]
    return [
        f"{_template_file(model)} knows thoughts between {thinking.opening} and {thinking.closing}, and no way to "
        "switch them off: if the model writes one, it counts as a part of the thought"
    ]


def check_labels_first(
    model: Path, setting: str = "judge.mode", instead: str = '"cot"', labels: Sequence[str] = ()
) -> None:
    """Raises `InputError` for a judge whose replies begin with a thought and so can't begin with a label, or whose
    tokens don't tell the `labels` apart. `setting` makes it reply so; with the value `instead` it doesn't."""
    encoder = ChatEncoder(model)
    if encoder.thinking.always_thinks:
        raise InputError(
            f"{_template_file(model)} {_how_it_thinks(encoder.thinking)}, where {setting} expects a label: set "
            f"{setting} to {instead}, in which a judge may think first"
        )
    tokens = [encoder.ids(label, as_text=True) for label in labels]
    shared = sum(1 for _ in itertools.takewhile(lambda column: len({*column}) == 1, zip(*tokens, strict=False)))
    if any(len(each) == shared for each in tokens) or len({each[shared] for each in tokens}) < len(tokens):
        raise InputError(
            f"{model}: its tokenizer doesn't tell {', '.join(labels)} apart by one token, and {setting} compares the "
            f"probabilities of these: set {setting} to {instead}, or take another model"
        )


def _how_it_thinks(thinking: ThinkingTemplate) -> str:
    if thinking.kind == "prefilled":
        return f"opens every answer with a thought ({thinking.opening})"
    return f"puts thoughts into separate messages ({thinking.opening})"


def check_read(model: Path, chats: Sequence[Sequence[Message]]) -> list[str]:
    """Notes about a model that scores `chats`, each ending with the assistant's turn.

    Raises `InputError` if a plain chat's tokens aren't the tokenizer's own, or BOS is missing or doubled.
    """
    reader = ChatEncoder(model, generation_prompt=False)
    for chat in chats:
        _check_tokens(reader, model, chat)
    _check_letters(reader, model, chats[0])
    lines = _about_template(reader, model, chats[0])
    try:
        reader.encode([*chats[0][:-1], _answer_turn(f"{_THINKING}\n{ANSWER}")])
    except InputError:
        lines.append(
            f"{_template_file(model)} changes a response that contains {_THINKING!r}: such responses are left unscored"
        )
    return lines


def _check_tokens(encoder: ChatEncoder, model: Path, chat: Sequence[Message], *, thinking: bool = False) -> None:
    """Checks that a plain chat's tokens are the tokenizer's own, with one BOS at the start."""
    try:
        ours = encoder.encode(chat, thinking=thinking)
    except InputError as error:
        raise InputError(
            f"{_template_file(model)}: {error}; a plain chat begins {chat[-1]['content'][:40]!r}"
        ) from None
    theirs = encoder.by_template(chat, thinking=thinking)
    if ours != theirs:
        held = sorted({token for token in encoder.control for turn in chat if token in turn["content"]})
        if held:
            raise InputError(
                f"the prompt's own wording has {', '.join(held)}, which are control tokens of {model} but plain text "
                "here: remove them from the prompt templates"
            )
        place = _shared(ours, theirs)
        raise InputError(
            f"{model / 'tokenizer.json'} reads a plain chat as {theirs[place : place + 3]} from token {place} on where "
            f"we read {ours[place : place + 3]}, expected the same: fix how its added_tokens are read"
        )
    _check_bos(encoder, model, chat, ours)


def _check_letters(encoder: ChatEncoder, model: Path, chat: Sequence[Message]) -> None:
    """Checks that every control token in a message stays text."""
    *before, last = chat
    hostile = Message(role=last["role"], content=f"a {' '.join(encoder.control)} b")
    try:
        encoder.encode([*before, hostile])
    except InputError as error:
        raise InputError(f"{model / 'tokenizer.json'}: {error}") from None


def _check_bos(encoder: ChatEncoder, model: Path, chat: Sequence[Message], ids: Sequence[int]) -> None:
    """Checks for one BOS at the start, if the tokenizer adds one, and no other unless BOS opens each turn."""
    bos, name = encoder.tokenizer.bos_token_id, encoder.tokenizer.bos_token
    if bos is None:
        return
    found = len(list(itertools.takewhile(lambda token: token == bos, ids)))
    wanted = list(encoder.tokenizer("a")["input_ids"])[:1] == [bos]
    if found > 1:
        raise InputError(
            f"{_template_file(model)} begins a chat with {found} BOS ({name}), expected one: it writes bos_token and "
            f"{name}, or writes it for more than one turn; leave one of them"
        )
    if wanted and found == 0:
        raise InputError(
            f"{_template_file(model)} begins a chat without BOS, which {model / 'tokenizer.json'} puts before every "
            f"other text ({name}), expected one: write {{{{ bos_token }}}} at its start"
        )
    if found and bos != encoder.tokenizer.eos_token_id and ids.count(bos) > 1 and not _opens_turns(encoder, name, chat):
        raise InputError(
            f"{_template_file(model)} writes BOS ({name}) {ids.count(bos)} times in a chat, expected once, at its "
            "start, or as the token that opens every turn: write {{ bos_token }} outside of the loop over messages"
        )


def _opens_turns(encoder: ChatEncoder, token: str, chat: Sequence[Message]) -> bool:
    """Whether a control token opens every turn, as SmolLM2's BOS does: once each, with the role's name after it.

    A BOS that is repeated by mistake is followed by the token that does open turns, or is missing from some turns.
    """
    first, *between, last = encoder.structure(tuple(message["role"] for message in chat))
    # The first piece may open the template's own system turn; the last one opens the answer, with a generation prompt.
    once = [*between, last] if encoder.asks_for_answer else between
    names = (piece.partition(token)[2] for piece in (first, *once))
    return (
        token in first
        and all(piece.count(token) == 1 for piece in once)
        and not any(name.startswith(tuple(encoder.control)) for name in names)
    )


def _check_end_of_turn(reader: ChatEncoder, model: Path, chat: Sequence[Message]) -> None:
    """Checks that the template writes a token after an answer at which vLLM stops."""
    after = reader.structure((*(message["role"] for message in chat), "assistant"))[-1]
    names = {index: str(token) for index, token in reader.tokenizer.added_tokens_decoder.items()}
    end = next((token for token in reader.ids(after, as_text=False) if token in names), None)
    stops, file = stop_tokens(reader, model)
    if end is None:
        raise InputError(
            f"{_template_file(model)} puts {after!r} after an assistant's turn, expected a control token at which "
            f"sampling stops: write {{{{ eos_token }}}} there ({reader.tokenizer.eos_token})"
        )
    if end not in stops:
        known = ", ".join(f"{names.get(token, '?')} ({token})" for token in sorted(stops)) or "none"
        raise InputError(
            f"{_template_file(model)} ends an assistant's turn with {names[end]} ({end}), at which sampling does not "
            f"stop (it stops at {known}): every output would run to sample.max_new_tokens; add {end} to eos_token_id "
            f"in {file}"
        )


def stop_tokens(reader: ChatEncoder, model: Path) -> tuple[set[int], Path]:
    """The tokens at which vLLM stops, and the file that names them: the tokenizer's and the generation config's EOS."""
    path = model / "generation_config.json"
    if not path.is_file():
        path = model / "config.json"
    eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    stops = {reader.tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])}
    return {token for token in stops if token is not None}, path


def _about_generation_prompt(
    encoder: ChatEncoder, reader: ChatEncoder, model: Path, chat: Sequence[Message]
) -> list[str]:
    """Notes on a prompt that doesn't end where an answer begins; raises `InputError` without a generation prompt."""
    prompt, whole = encoder.render(chat), reader.render([*chat, _answer_turn(ANSWER)])
    before = whole[: whole.rindex(ANSWER)]
    if before.rstrip() == prompt.rstrip():
        asked, answered = encoder.encode(chat), reader.encode([*chat, _answer_turn(ANSWER)])
        same = _shared(asked, answered)
        if same == len(asked):
            return []
        return [
            f"{_template_file(model)}: the last {len(asked) - same} tokens of a prompt ({prompt[-12:]!r}) merge "
            "with the first characters of an answer: the model was trained on other tokens there"
        ]
    part = _shared(prompt, before)
    if prompt == reader.render(chat):
        raise InputError(
            f"{_template_file(model)} ends a prompt with {prompt[-24:]!r}, expected {before[part:]!r} to follow, as it "
            "does before an existing answer: write it if add_generation_prompt is true"
        )
    return [
        f"{_template_file(model)} puts {prompt[part:]!r} at the end of a prompt, and {before[part:]!r} before an "
        "existing answer: outputs begin after the former"
    ]


def _about_answers(reader: ChatEncoder, model: Path, chat: Sequence[Message], answers: Sequence[str]) -> list[str]:
    """A note if the template drops parts of an assistant's turn."""
    for answer in answers:
        shown = reader.render([*chat, _answer_turn(answer)])
        if answer.strip() not in shown:
            return [
                f"{_template_file(model)} changes an assistant's turn ({answer[:60]!r} becomes "
                f"{shown[-60:]!r}): training renders none, but served chats of several turns lose the dropped parts"
            ]
    return []


def _about_template(encoder: ChatEncoder, model: Path, chat: Sequence[Message]) -> list[str]:
    """Notes on structure that a user could write, too, and on text that changes daily."""
    lines = []
    own = "".join(encoder.structure(tuple(message["role"] for message in chat)))
    added = {str(token) for token in encoder.tokenizer.added_tokens_decoder.values()}
    if open_ := sorted(token for token in added - encoder.control.keys() if token in own and _is_structure(token)):
        lines.append(
            f"{_template_file(model)} writes {', '.join(open_)}, which also counts as structure if a user "
            f'writes it: to keep it text in messages, set "special": true for it under added_tokens in '
            f"{model / 'tokenizer.json'}"
        )
    elif not any(token in own for token in encoder.control):
        lines.append(f"{_template_file(model)} writes no control token: a user can imitate its structure")
    if _DATED in encoder.render(chat, strftime_now=lambda form: _DATED):
        lines.append(
            f"{_template_file(model)} writes today's date into every prompt: on another day the same prompts have "
            "other tokens; to keep them, write a fixed date in place of strftime_now(…) there"
        )
    return lines


def _is_structure(token: str) -> bool:
    """Whether a token that isn't special must be structure: not white space, a word, or a tag around a thought."""
    return not (token.isspace() or token.isalnum() or token in _THOUGHT_TAGS)


def _shared(first: Sequence[object], second: Sequence[object]) -> int:
    """Length of the common prefix of two sequences."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _answer_turn(text: str) -> Message:
    return Message(role="assistant", content=text)


def _template_file(model: Path) -> Path:
    """The file with the chat template."""
    separate = model / "chat_template.jinja"
    return separate if separate.is_file() else model / "tokenizer_config.json"
