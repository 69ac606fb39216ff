"""Addresses on the model hub: `hf://org/name[@revision][/folder]`, `hf://datasets/org/name[@revision]/file-or-split`.

A run resolves each address once to a commit (`tpo.hub`), and from then on its config holds the address with that
commit. Such a pinned address names one local folder or file, whatever process asks, so nothing else knows about the
hub. The grammar is that of `huggingface_hub`; a revision's slashes are written as `%2F`, except in `refs/pr/N` and
`refs/convert/NAME`.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import quote, unquote

from pydantic import AfterValidator, BaseModel, Discriminator, Tag

Kind = Literal["model", "dataset"]

SCHEME = "hf://"
COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
_REVISION = re.compile(r"[A-Za-z0-9_][\w.+-]*(?:/[\w.+-]+)*")
_REFS = re.compile(r"refs/(?:pr/\d+|convert/[\w.-]+)(?=/|$)")
_WEB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(.*)")
_OTHER_KINDS = ("spaces", "buckets", "kernels")
_FORMS = "hf://org/name@revision for a model, hf://datasets/org/name@revision/file-or-split for data"


@dataclass(frozen=True)
class HubAddress:
    """A repository on the hub, or a folder, file or split of it."""

    kind: Kind
    """What kind of repository it is."""
    repo: str
    """Its name, `org/name`."""
    revision: str | None = None
    """Branch, tag or commit; None for the branch `main`."""
    path: str = ""
    """A folder, a file or a split in it; empty for all of it."""

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, so that the address always means the same files."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None

    def at(self, revision: str) -> "HubAddress":
        """The same at another revision."""
        return replace(self, revision=revision)

    @property
    def folder(self) -> Path:
        """Where it is on this machine once it has been fetched; for data, this may be a file.

        The last part is the repository's name, by which models are known in plans and reports.
        """
        return hub_folder() / f"{self.kind}s" / quote(self.revision or "main", safe="") / self.repo / self.path

    def __str__(self) -> str:
        revision = self.revision
        if revision is not None and not _REFS.fullmatch(revision):
            revision = revision.replace("/", "%2F")
        kind = "" if self.kind == "model" else "datasets/"
        at = "" if revision is None else f"@{revision}"
        return f"{SCHEME}{kind}{self.repo}{at}{'/' if self.path else ''}{self.path}"


def hub_folder() -> Path:
    """The folder for what is fetched: ours among `huggingface_hub`'s, wherever the user has put those."""
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    assets = os.environ.get("HF_ASSETS_CACHE") or os.environ.get("HUGGINGFACE_ASSETS_CACHE") or f"{home}/assets"
    return Path(os.path.expandvars(assets)).expanduser().absolute() / "tpo"


def parse_address(text: str) -> HubAddress:
    """The address that a text is; raises `ValueError` with what is wrong with it."""
    if not text.startswith(SCHEME):
        raise ValueError(f"expected an address on the hub: {_FORMS}")
    _check_characters(text)
    kind, rest = _kind_and_rest(text)
    found = re.match(r"([^/@]*)/([^/@]*)(.*)", rest)
    if found is None:
        raise ValueError(f"expected an organization and a name, as in {_FORMS}")
    org, name, rest = found.groups()
    for part in (org, name):
        if not re.fullmatch(_NAME, part) or ".." in part or "--" in part or len(part) > 96:
            raise ValueError(f"{part!r} cannot be a name on the hub, expected letters, digits and - _ .")
    revision, path = _revision_and_path(rest)
    return HubAddress(kind, f"{org}/{name}", revision, path)


def _check_characters(text: str) -> None:
    if found := re.search(r"[\s\x00-\x1f\x7f\\?#*\"'<>|{}]", text):
        extra = "; `{iteration}` is for files of this machine" if "{iteration}" in text else ""
        raise ValueError(f"an address on the hub cannot hold {found.group()!r}{extra}")


def _kind_and_rest(text: str) -> tuple[Kind, str]:
    rest = text.removeprefix(SCHEME)
    first, _, after = rest.partition("/")
    if first in _OTHER_KINDS:
        raise ValueError(f"names one of the hub's {first}, expected a model or data: {_FORMS}")
    if first == "datasets":
        return "dataset", after
    return "model", after if first == "models" else rest


def _revision_and_path(rest: str) -> tuple[str | None, str]:
    """Revision and path of what follows a repository's name."""
    revision = None
    if rest.startswith("@"):
        refs = _REFS.match(rest[1:])
        revision = refs.group() if refs else rest[1:].partition("/")[0]
        rest = rest[1 + len(revision) :]
        revision = unquote(revision)
        if not _REVISION.fullmatch(revision) or ".." in revision or revision.endswith((".", "/", ".lock")):
            raise ValueError(f"{revision!r} cannot be a revision, expected a branch, a tag or a commit after @")
        if re.fullmatch("[0-9A-Fa-f]{40}", revision) and revision != revision.lower():
            raise ValueError(f"write the commit in lower case: {revision.lower()}")
    path = rest.removeprefix("/")
    if "@" in rest:
        raise ValueError("the revision follows the repository's name: hf://org/name@revision/path")
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"{path!r} cannot be a path in a repository: leave out empty parts, . and ..")
    return revision, path


@dataclass(frozen=True)
class Hosted:
    """Marks a field that may hold an address on the hub."""

    kind: Kind
    """What its repository is."""


def _is_address(value: object) -> bool:
    return re.match(r"hf:", str(value), re.IGNORECASE) is not None


def _check_web(text: str) -> None:
    """Refuses the address of a web page, with the one that is meant."""
    if found := _WEB.match(text):
        page = re.sub(r"/(?:tree|blob|resolve)/([^/]+)", r"@\1", found.group(1).partition("?")[0].strip("/"), count=1)
        raise ValueError(f"is the address of a web page: write hf://{page}")


def _check_model(text: str) -> str:
    _check_web(text)
    if not _is_address(text):
        return text
    address = parse_address(text)
    if address.kind != "model":
        raise ValueError("is an address of data, expected that of a model: hf://org/name@revision")
    if re.search(r"\.(safetensors|json|bin|gguf|pth?|py)$", address.path):
        raise ValueError(f"names the file {address.path}, expected the whole model: {replace(address, path='')}")
    return text


def _check_data(text: str) -> str:
    _check_web(text)
    address = parse_address(text)
    if address.kind != "dataset":
        raise ValueError(f"is an address of a model, expected that of data: hf://datasets/{text.removeprefix(SCHEME)}")
    if not address.path:
        raise ValueError(f"names neither a file nor a split: for example {text.rstrip('/')}/train")
    return text


def _kind_of_place(value: Any) -> str:
    return "url" if _is_address(value) or _WEB.match(str(value)) else "path"


ModelPlace = Annotated[str, AfterValidator(_check_model), Hosted("model")]
"""A folder with a model, an address on the hub, or one of the words that the field knows."""
DataPlace = Annotated[
    Annotated[Path, Tag("path")] | Annotated[str, AfterValidator(_check_data), Tag("url")],
    Discriminator(_kind_of_place),
    Hosted("dataset"),
]
"""A file or folder with data, or an address on the hub."""


def local_path(place: str | Path) -> Path:
    """Where a model or data is on this machine: a path as it is, a pinned address where it is fetched to."""
    return parse_address(place).folder if isinstance(place, str) and _is_address(place) else Path(place)


@dataclass(frozen=True)
class Pin:
    """What an address in a profile was resolved to."""

    address: str
    """The address with a commit; as it is written if that isn't known yet."""
    revision: str | None
    """The branch or tag that was at that commit; None if the address itself names the commit."""
    kept: bool = False
    """Whether the run folder has it from an earlier start."""


def addresses_in(section: BaseModel, above: str = "") -> Iterator[tuple[str, str]]:
    """Every address on the hub in a config, with its key; those of models behind a server's endpoint aren't ours."""
    for name, value in section:
        key = f"{above}{name}"
        if isinstance(value, BaseModel):
            yield from addresses_in(value, f"{key}.")
        elif isinstance(value, tuple):
            for i, part in enumerate(value):
                if isinstance(part, BaseModel):
                    yield from addresses_in(part, f"{key}[{i}].")
        elif _is_hosted(section, name) and isinstance(value, str) and _is_address(value):
            yield key, value


def with_addresses(section: Any, pinned: Mapping[str, str]) -> Any:
    """The same config with other addresses on the hub, by those that it has."""
    changes = dict[str, Any]()
    for name, value in section:
        if isinstance(value, BaseModel):
            changes[name] = with_addresses(value, pinned)
        elif isinstance(value, tuple):
            parts = (with_addresses(part, pinned) if isinstance(part, BaseModel) else part for part in value)
            changes[name] = tuple(parts)
        elif _is_hosted(section, name) and isinstance(value, str):
            changes[name] = pinned.get(value, value)
    changed = {name: value for name, value in changes.items() if value != getattr(section, name)}
    return section.model_copy(update=changed) if changed else section


def _is_hosted(section: BaseModel, name: str) -> bool:
    if getattr(section, "endpoint", None) is not None and name == "model":
        return False
    field = type(section).model_fields.get(name)
    return field is not None and (_is_mark(*field.metadata) or _marks_part_of(field.annotation))


def _is_mark(*marks: object) -> bool:
    return any(isinstance(mark, Hosted) for mark in marks)


def _marks_part_of(annotation: Any) -> bool:
    """Whether a part of a type is marked, as in `DataPlace | None`."""
    return _is_mark(*getattr(annotation, "__metadata__", ())) or any(map(_marks_part_of, get_args(annotation)))
