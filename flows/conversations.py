"""Checks that the chat templates of a run's models accept the conversations in its prompt files.

Not every template has a system role, and some only accept one turn. Conversations that M_0's template rejects are
dropped from the prompts and counted, with a warning; if none are left, or another model would reject some, the run is
refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.prompt_counts import FileContent, content_of
from prompts.thought import load_prompt
from tpo.config.contexts import pair_writers
from tpo.config.data import FileSource, PromptConfig
from tpo.config.judges import GenerativeJudge
from tpo.config.run import RunConfig
from tpo.data.prompt_files import file_of
from tpo.errors import InputError
from tpo.models.chat import ChatEncoder, writer_encoder
from tpo.planning.needs import model_judges
from tpo.records import Message

_TURNS = {"system": "Answer in one word.", "user": "What is 12 + 30?", "assistant": "42."}
"""A turn for each role, with text that no template has a reason to change."""
_QUESTION, _ANSWER = "And 12 + 31?", "43."


@dataclass(frozen=True)
class _Reader:
    """A model that reads conversations."""

    model: Path
    encoder: ChatEncoder
    prompt: PromptConfig | None
    """Its thought prompt; None if it scores responses."""

    def refusal(self, roles: Sequence[str]) -> InputError | None:
        """Why its template rejects turns of these roles before an instruction, or None."""
        earlier = [Message(role=role, content=_TURNS[role]) for role in roles]
        try:
            if self.prompt is not None:
                load_prompt(self.prompt).encode(self.encoder, _QUESTION, earlier)
            else:
                asked, answer = Message(role="user", content=_QUESTION), Message(role="assistant", content=_ANSWER)
                self.encoder.encode([*earlier, asked, answer])
        except InputError as error:
            return error
        return None


def check_conversations(config: RunConfig) -> list[str]:
    """Warnings about conversations that M_0's template rejects.

    Raises `InputError` if it rejects all prompts of a file, or if a judge or another writer rejects any.
    """
    source = config.data.source
    if not isinstance(source, FileSource):
        return []
    sets = [("", 1), ("validation", 0), ("test", 0)]
    paths = dict.fromkeys(file_of(source, kind, iteration) for kind, iteration in sets)
    contents = {path: content_of(source, path) for path in paths if path.exists()}
    if not any(content.earlier_roles for content in contents.values()):
        return []
    lines = list[str]()
    for reader in _readers(config):
        for path, content in contents.items():
            if (refusal := _refusal(reader, path, content)) is None:
                continue
            message, rows = refusal
            if reader.model != config.model.folder:
                raise InputError(f"{message}: remove such conversations from the file, or use another model")
            if rows == content.usable:
                raise InputError(f"{message}, so no prompt is left: use another model or other prompts")
            lines.append(f"{message}: they are dropped, and counted as chat_template")
    return list(dict.fromkeys(lines))


def _readers(config: RunConfig) -> Iterator[_Reader]:
    """M_0, other writers, and judges that read chats; judges that write get a text without turns."""
    seed = writer_encoder(config.model.folder, config.model)
    for prompt in (config.prompt, config.data.also_fits):
        if prompt is not None:
            yield _Reader(config.model.folder, seed, prompt)
    for writer in pair_writers(config):
        if writer.folder is not None:
            yield _Reader(writer.folder, ChatEncoder(writer.folder), writer.prompt)
    for judge in model_judges(config):
        if not isinstance(judge, GenerativeJudge):
            yield _Reader(judge.folder, ChatEncoder(judge.folder, generation_prompt=False), None)


def _refusal(reader: _Reader, path: Path, content: FileContent) -> tuple[str, int] | None:
    """A message about the conversations in a file that a model's template rejects, and their number; None for none."""
    refused = {roles: error for roles in content.earlier_roles if (error := reader.refusal(roles)) is not None}
    if not refused:
        return None
    rows, fewest = sum(content.earlier_roles[roles] for roles in refused), min(refused, key=len)
    before = "turns" if len(fewest) > 1 else f"a {fewest[0]} turn"
    message = (
        f"{reader.model}: {refused[fewest]}; {rows} of {content.usable} prompts in {path} have {before} before the last"
    )
    return message, rows
