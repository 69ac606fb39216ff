"""Whether the models of a run can be shown the conversations in its prompt files, as their chat templates say.

Not every template has a system role, and some take one turn alone. What M_0's template refuses is left out of the
prompts and counted, so a line says it; with nothing left, or if another model would be asked in vain, the run is
refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.prompt_counts import FileContent, content_of
from prompts.thought import load_prompt
from tpo.config.contexts import pair_writers
from tpo.config.data import FileSource, PromptConfig
from tpo.config.judges import PairwiseJudge
from tpo.config.run import RunConfig
from tpo.data.prompt_files import file_of
from tpo.errors import InputError
from tpo.models.chat import ChatEncoder, writer_encoder
from tpo.planning.needs import model_judges
from tpo.records import Message

_SAID = {"system": "Answer in one word.", "user": "What is 12 + 30?", "assistant": "42."}
"""A turn of each role that no template has a reason to change."""
_ASKED, _ANSWER = "And 12 + 31?", "43."


@dataclass(frozen=True)
class _Reader:
    """A model that is shown conversations."""

    model: Path
    encoder: ChatEncoder
    prompt: PromptConfig | None
    """How it is asked to respond; None if it reads responses."""

    def refusal(self, roles: Sequence[str]) -> InputError | None:
        """Why its template doesn't take turns of these roles before an instruction, or None."""
        earlier = [Message(role=role, content=_SAID[role]) for role in roles]
        try:
            if self.prompt is not None:
                load_prompt(self.prompt).encode(self.encoder, _ASKED, earlier)
            else:
                asked, answer = Message(role="user", content=_ASKED), Message(role="assistant", content=_ANSWER)
                self.encoder.encode([*earlier, asked, answer])
        except InputError as error:
            return error
        return None


def check_conversations(config: RunConfig) -> list[str]:
    """What to know of conversations that M_0's template refuses.

    Raises `InputError` if it refuses all prompts of a file, or if a model that judges, or that writes besides M_0,
    refuses any.
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
            told, rows = refusal
            if reader.model != config.model.folder:
                raise InputError(f"{told}: leave such conversations out of the file, or take another model")
            if rows == content.usable:
                raise InputError(f"{told}, so no prompt is left: take another model, or other prompts")
            lines.append(f"{told}: they are passed over, and counted as chat_template")
    return list(dict.fromkeys(lines))


def _readers(config: RunConfig) -> Iterator[_Reader]:
    """M_0, other models that write, and judges that read chats; those that compare get a text of ours."""
    seed = writer_encoder(config.model.folder, config.model)
    for way in (config.prompt, config.data.also_fits):
        if way is not None:
            yield _Reader(config.model.folder, seed, way)
    for writer in pair_writers(config):
        if writer.folder is not None:
            yield _Reader(writer.folder, ChatEncoder(writer.folder), writer.prompt)
    for judge in model_judges(config):
        if not isinstance(judge, PairwiseJudge):
            yield _Reader(judge.folder, ChatEncoder(judge.folder, generation_prompt=False), None)


def _refusal(reader: _Reader, path: Path, content: FileContent) -> tuple[str, int] | None:
    """What a model's template refuses of a file, in words, and the number of such rows; None if it takes all."""
    refused = {roles: error for roles in content.earlier_roles if (error := reader.refusal(roles)) is not None}
    if not refused:
        return None
    rows, fewest = sum(content.earlier_roles[roles] for roles in refused), min(refused, key=len)
    before = "turns" if len(fewest) > 1 else f"a {fewest[0]} turn"
    told = (
        f"{reader.model}: {refused[fewest]}; {rows} of {content.usable} prompts in {path} have {before} before the last"
    )
    return told, rows
