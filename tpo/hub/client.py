"""The process that asks the hub: `python -m tpo.hub.client`, with a request on standard input and events on standard
output, a JSON object a line each.

It is a process of its own since `huggingface_hub` reads its settings once, when it is imported, and a run's processes
are closed to the hub. All downloads go through the user's cache (`HF_HOME`), where other tools find them. What is
complete and has the hashes that the hub gives is linked into the folder of its address (`HubAddress.folder`), which
holds nothing else, whatever other tools have put into the cache.

Accepted cost: a file whose download is killed starts over, since the client keeps no partial files; a connection that
breaks is resumed where it broke.
"""

import contextlib
import dataclasses
import errno
import glob
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpx2
from huggingface_hub import (
    HfApi,
    constants,
    get_cached_repo_tree,
    get_session,
    get_token,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import logging as client_logging
from huggingface_hub.utils.tqdm import disable_progress_bars

from tpo.config.hub import COMMIT, HubAddress, parse_address
from tpo.errors import InputError, TpoError, shortened
from tpo.hub.record import Fetched, write_record
from tpo.hub.selection import (
    CONVERTED,
    check_data,
    converted_folder,
    data_files,
    model_files,
    no_such_data,
    weight_files,
)
from tpo.models.files import MOST_CONFIG_BYTES, some_of
from tpo.models.folder import without_code
from tpo.models.tensors import INDEX
from tpo.planning.machine import free_disk
from tpo.planning.needs import readable_size

Event = dict[str, Any]

_SECONDS_TO_ANSWER = 10.0
_SECONDS_TO_TELL_MOVES = 3.0
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@dataclass
class Repository:
    """One repository at one commit."""

    address: HubAddress
    """Its address, pinned."""
    files: dict[str, RepoFile]
    """Its files, by path."""
    listed: bool
    """Whether the hub has just listed them, with their hashes, and not the cache."""

    @property
    def tree(self) -> dict[str, int]:
        """The sizes of its files."""
        return {path: file.size for path, file in self.files.items()}

    def cached(self, path: str) -> Path | None:
        """A file in the cache; None if it isn't there as long as it should be."""
        repo, kind, commit = self.address.repo, self.address.kind, self.address.revision
        found = try_to_load_from_cache(repo, path, repo_type=kind, revision=commit)
        if not isinstance(found, str) or Path(found).stat().st_size != self.files[path].size:
            return None
        return Path(found)

    def missing(self, paths: Sequence[str]) -> list[str]:
        """Those of some files that aren't in the cache."""
        return [path for path in paths if self.cached(path) is None]


class UnreachableError(InputError):
    """The hub isn't there to be asked; an address may be right."""

    def __init__(self, told: str, why: str) -> None:
        super().__init__(told)
        self.why = why


def answer(request: dict[str, Any]) -> Iterator[Event]:
    """The events that answer a request; a plan is told of every fault, and a fetch ends with the first."""
    hub = Hub()
    for want in request.get("wants", ()):
        try:
            yield from hub.fetch(parse_address(want), whole=bool(request["whole"]))
        except TpoError as error:
            if request["whole"]:
                raise
            yield {"fault": [want, str(error), error.why if isinstance(error, UnreachableError) else None]}
    for written, revision, commit in request.get("kept", ()):
        yield from hub.tell_move(parse_address(written), revision, commit)


class Hub:
    """The hub as the user has set it: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, proxies."""

    def __init__(self) -> None:
        self._api = HfApi(library_name="tpo")
        self._endpoint = _without_secrets(constants.ENDPOINT)
        get_session().timeout = httpx2.Timeout(_SECONDS_TO_ANSWER)

    def fetch(self, asked: HubAddress, *, whole: bool) -> Iterator[Event]:
        """Resolves an address and fetches what it means; if not `whole`, only the small files of a model.

        The last event has the pinned address and how many bytes the cache lacked.
        """
        with self._explaining(asked):
            found = yield from self._resolved(asked)
            branch = asked.revision or "main"
            if found.repo != asked.repo:
                yield {"say": f"{asked}: the hub calls this repository {found.repo}"}
            repository = self._opened(found)
            if asked.kind == "model":
                small = model_files(repository.tree, found.path, str(asked))
                yield from self._download(repository, small, asked)
                files = small + weight_files(repository.tree, found.path, self._index(repository), str(asked))
            else:
                repository, small, files = self._data(repository, asked)
                branch = branch if repository.address.revision == found.revision else CONVERTED
            lacking = sum(repository.files[path].size for path in repository.missing(files))
            if whole:
                yield from self._download(repository, files, asked)
            if changed := _link(repository, files if whole else small, asked, whole=whole):
                yield {
                    "say": f"{asked}: left out of {some_of(changed)} what asks for the repository's own code, which is "
                    "never fetched or run"
                }
            size = sum(repository.files[path].size for path in files)
            free = free_disk(Path(constants.HF_HUB_CACHE))
            yield {"got": dataclasses.asdict(Fetched(str(asked), str(repository.address), branch, lacking, size, free))}

    def _resolved(self, asked: HubAddress) -> Generator[Event, None, HubAddress]:
        """The address with the commit that its revision is now or, if the hub can't be reached, was."""
        if asked.pinned:
            return asked
        revision = asked.revision or "main"
        try:
            info = self._api.repo_info(asked.repo, repo_type=asked.kind, revision=revision, timeout=_SECONDS_TO_ANSWER)
            found = self._api.resolve_revision(info.id, repo_type=asked.kind, revision=revision)
            return HubAddress(asked.kind, info.id, found.resolved, asked.path)
        except (httpx2.TransportError, OfflineModeIsEnabled, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            known = self._api.resolve_revision(
                asked.repo, repo_type=asked.kind, revision=revision, local_files_only=True
            )
            why = "is not asked (HF_HUB_OFFLINE)" if isinstance(error, OfflineModeIsEnabled) else "does not answer"
            yield {
                "say": f"{asked}: the hub {why}; taking commit {known.resolved}, which the cache knows as {revision}"
            }
            return asked.at(known.resolved)

    def _opened(self, address: HubAddress) -> Repository:
        """A repository with its list of files, from the cache if that has all of them that could be needed."""
        listed = False
        try:
            found = get_cached_repo_tree(address.repo, repo_type=address.kind, revision=address.revision)
        except CachedRepoTreeNotFoundError:
            try:
                found, listed = self._list(address), True
            except (httpx2.TransportError, OfflineModeIsEnabled):
                found = _in_cache(address)  # filled by another tool, which kept no list
        return Repository(address, {file.path: file for file in found if _is_plain(file.path)}, listed)

    def _list(self, address: HubAddress) -> list[RepoFile]:
        found = self._api.list_repo_tree(
            address.repo, recursive=True, repo_type=address.kind, revision=address.revision
        )
        return [file for file in found if isinstance(file, RepoFile)]

    def _data(self, repository: Repository, asked: HubAddress) -> tuple[Repository, list[str], list[str]]:
        """The branch that a dataset's address is about, what a plan needs of it, and its files."""
        path = repository.address.path
        files = data_files(repository.tree, path)
        if not files and asked.revision in (None, "main"):
            try:
                commit = self._api.resolve_revision(asked.repo, repo_type="dataset", revision=CONVERTED).resolved
            except (RevisionNotFoundError, RevisionResolutionError):
                raise no_such_data(repository.tree, path, str(asked)) from None
            converted = self._opened(repository.address.at(commit))
            if (folder := converted_folder(converted.tree, path)) is None:
                raise no_such_data({**repository.tree, **converted.tree}, path, str(asked))
            converted.address = HubAddress("dataset", repository.address.repo, commit, folder)
            repository, files = converted, data_files(converted.tree, folder)
        if not files:
            raise no_such_data(repository.tree, path, str(asked))
        check_data(repository.tree, files, str(asked))
        return repository, [], files

    def _index(self, repository: Repository) -> bytes | None:
        folder = repository.address.path
        path = f"{folder}/{INDEX}" if folder else INDEX
        found = repository.cached(path) if path in repository.files else None
        return None if found is None else found.read_bytes()

    def _download(self, repository: Repository, files: Sequence[str], asked: HubAddress) -> Iterator[Event]:
        """Brings files into the cache."""
        missing = repository.missing(files)
        if not missing:
            return
        if not repository.listed:
            repository.files |= {file.path: file for file in self._list(repository.address) if _is_plain(file.path)}
            repository.listed = True
        address, size = repository.address, sum(repository.files[path].size for path in missing)
        _check_room(size, asked)
        if size > 2**24:
            yield {"say": f"fetching {address}: {readable_size(size)} into {constants.HF_HUB_CACHE}"}
        snapshot_download(
            address.repo,
            repo_type=address.kind,
            revision=address.revision,
            allow_patterns=[glob.escape(path) for path in missing],
        )
        for path in repository.missing(missing):
            _check_content(repository, path, asked)  # with another size

    def tell_move(self, written: HubAddress, revision: str, commit: str) -> Iterator[Event]:
        """An event if a branch is at another commit than the one that a run keeps; none if the hub doesn't answer."""
        with contextlib.suppress(httpx2.HTTPError, OSError, ValueError):
            info = self._api.repo_info(
                written.repo, repo_type=written.kind, revision=revision, timeout=_SECONDS_TO_TELL_MOVES
            )
            if info.sha and info.sha != commit:
                yield {"moved": [str(written), revision, info.sha]}

    @contextlib.contextmanager
    def _explaining(self, asked: HubAddress) -> Iterator[None]:
        """Raises `InputError`, one sentence with what to do, for whatever the client raises."""
        try:
            yield
        except TpoError:
            raise
        except Exception as error:  # the client's own, httpx2's and the system's
            raise self._explained(error, asked) from error

    def _explained(self, error: Exception, asked: HubAddress) -> InputError:
        page = f"{self._endpoint}/{'datasets/' if asked.kind == 'dataset' else ''}{asked.repo}"
        match error:
            case GatedRepoError():
                return InputError(f"{asked} is gated: {_how_to_enter(page)}")
            case RevisionNotFoundError():
                return InputError(f"{asked}: {page} has no revision {asked.revision or 'main'}{self._revisions(asked)}")
            case RepositoryNotFoundError():
                return InputError(
                    f"{asked}: there is no {page}, or it is private: check the name, also its upper and lower case, or "
                    "set HF_TOKEN or run `hf auth login` with an account that may read it"
                )
            case HfHubHTTPError() if error.response.status_code == 401 and get_token():
                return InputError(
                    f"{asked}: {self._endpoint} refuses the token ({_token_place()}): take a valid one from "
                    f"{self._endpoint}/settings/tokens, or none for a public repository"
                )
            case RemoteEntryNotFoundError():
                return InputError(
                    f"{asked}: {page} lists a file that it does not have: run again, or name another commit"
                )
            case HfHubHTTPError() if error.response.status_code == 429:
                return InputError(
                    f"{asked}: {self._endpoint} asks to wait, too many requests: run again later{_more()}"
                )
            case HfHubHTTPError() if error.response.status_code < 500:
                return InputError(
                    f"{asked}: {self._endpoint} refuses it ({error.response.status_code}, "
                    f"{shortened(_without_secrets(error.server_message or str(error)))}): check address and token"
                )
            case FileMetadataError() | json.JSONDecodeError() | KeyError() | AssertionError():
                return InputError(f"{asked}: {self._endpoint} does not answer as a model hub does: check HF_ENDPOINT")
            case OSError() if error.errno in _WRITING:
                return InputError(
                    f"{asked} could not be written to {error.filename or constants.HF_HOME} ({error.strerror}): make "
                    "room or give access there, or set HF_HOME to another folder"
                )
        return self._unreached(error, asked)

    def _unreached(self, error: Exception, asked: HubAddress) -> InputError:
        cause = error
        while isinstance(cause, IncompleteSnapshotError | LocalEntryNotFoundError | RevisionResolutionError):
            if not isinstance(below := cause.__cause__ or cause.__context__, Exception):
                break
            cause = below
        if isinstance(cause, HfHubHTTPError) and cause is not error and cause.response.status_code < 500:
            return self._explained(cause, asked)
        if isinstance(cause, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
            return UnreachableError(
                f"{asked} is not complete in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE keeps it from being fetched: "
                "fetch it where there is a network (make fetch PROFILE=…), or unset HF_HUB_OFFLINE",
                why="HF_HUB_OFFLINE is set",
            )
        told = f"{type(cause).__name__}: {shortened(_without_secrets(str(cause)))}"
        if "Consistency check failed" in str(cause):
            return InputError(f"{asked}: a file came with another size than {self._endpoint} gives: run again ({told})")
        if isinstance(cause, httpx2.HTTPError | HfHubHTTPError | LocalEntryNotFoundError | RevisionResolutionError):
            return UnreachableError(
                f"{asked}: {self._endpoint} can't be reached ({told}): check the network, HF_ENDPOINT and the proxy, "
                "then run again; what has come is kept",
                why=f"{self._endpoint} can't be reached, {told}",
            )
        return InputError(f"{asked} could not be fetched from {self._endpoint}: {told}")

    def _revisions(self, asked: HubAddress) -> str:
        """The revisions that there are, for the end of a message."""
        slash = "; a slash in a revision's name is written as %2F" if asked.path else ""
        short = "; a commit has 40 digits" if re.fullmatch("[0-9a-f]{7,39}", asked.revision or "") else ""
        try:
            refs = self._api.list_repo_refs(asked.repo, repo_type=asked.kind)
        except (httpx2.HTTPError, OSError, ValueError, KeyError):
            return f"{short}{slash}: check it"
        return (
            f"; it has {some_of([ref.name for ref in (*refs.branches, *refs.tags)])}{short}{slash}: name one of these"
        )


def _how_to_enter(page: str) -> str:
    """What to do about a gate."""
    if get_token() is None:
        return f"accept its conditions at {page}, then set HF_TOKEN or run `hf auth login`"
    return (
        f"accept its conditions at {page} with the account of your token ({_token_place()}); its owners may have to "
        "let you in, and a fine-grained token must allow gated repositories"
    )


def _token_place() -> str:
    set_by = [name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)]
    return set_by[0] if set_by else "from `hf auth login`"


def _more() -> str:
    return "" if get_token() else "; with a token (HF_TOKEN) more are allowed"


def _without_secrets(text: str) -> str:
    """A text without names and keys in its addresses, and without their queries, which may be signatures."""
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", re.sub(r"(https?://)[^/\s@]*@", r"\1", text))


def _is_plain(path: str) -> bool:
    """Whether a path stays where it is put; a server may list any."""
    return not path.startswith("/") and "\\" not in path and not {"", ".", ".."} & {*path.split("/")}


def _name_below(path: str, folder: str) -> str:
    """A file's path in the folder of its address: `.` for the address of a file, a bare name for a part of a split."""
    if path == folder:
        return "."
    prefix = f"{folder}/" if folder else ""
    return path.removeprefix(prefix) if path.startswith(prefix) else Path(path).name


def _check_room(size: int, asked: HubAddress) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    if size > (free := free_disk(cache)):
        raise InputError(
            f"{asked} needs {readable_size(size)} more in {cache}, and {readable_size(free)} is free: free some space, "
            "or set HF_HOME to a larger disk"
        )


def _in_cache(address: HubAddress) -> list[RepoFile]:
    """The files of a snapshot in the cache; raises `LocalEntryNotFoundError` if there is none."""
    root = Path(
        snapshot_download(address.repo, repo_type=address.kind, revision=address.revision, local_files_only=True)
    )
    paths = [path for path in root.rglob("*") if path.is_file()]
    return [_file(path.relative_to(root).as_posix(), path.stat().st_size) for path in paths]


def _file(path: str, size: int) -> RepoFile:
    return RepoFile(path=path, size=size, oid="")  # type: ignore[no-untyped-call]


def _check_content(repository: Repository, path: str, asked: HubAddress) -> None:
    """Compares a file in the cache with the size and the hash that the hub gives; removes it if they differ.

    The cache names a file by its hash: SHA-256 for large files and git's for others.
    """
    address, file = repository.address, repository.files[path]
    found = try_to_load_from_cache(address.repo, path, repo_type=address.kind, revision=address.revision)
    if not isinstance(found, str):
        raise InputError(f"{asked}: {path} has not come: run again")
    blob = Path(found).resolve()
    sha256 = file.lfs.sha256 if file.lfs is not None else blob.name if re.fullmatch("[0-9a-f]{64}", blob.name) else None
    if blob.stat().st_size != file.size:
        fault = f"has {blob.stat().st_size} bytes, and the hub says {file.size}"
    elif sha256 is not None and (content := _hash(blob, hashlib.sha256())) != sha256:
        fault = f"has the SHA-256 {content}, and the hub says {sha256}"
    elif sha256 is None and COMMIT.fullmatch(file.blob_id) and (content := _git_sha1(blob)) != file.blob_id:
        fault = f"has the git hash {content}, and the hub says {file.blob_id}"
    else:
        return
    blob.unlink(missing_ok=True)
    Path(found).unlink(missing_ok=True)
    raise InputError(f"{asked}: {path} {fault}: it was damaged on its way and has been removed, run again")


def _git_sha1(path: Path) -> str:
    return _hash(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False))


def _hash(path: Path, digest: "hashlib._Hash") -> str:
    with path.open("rb") as file:
        while piece := file.read(2**22):
            digest.update(piece)
    return digest.hexdigest()


def _link(repository: Repository, paths: Sequence[str], asked: HubAddress, *, whole: bool) -> list[str]:
    """Links files of the cache into the folder of an address, each after comparing its content with its hash, and notes
    it if they are all of them.

    A model's config that asks for code becomes a copy that doesn't; returns the names of those that were written now.
    """
    address, changed = repository.address, list[str]()
    names = {path: _name_below(path, address.path) for path in paths}
    for path, name in names.items():
        place, cached = address.folder / name, repository.cached(path)
        assert cached is not None
        if place.is_file() and place.resolve() == cached.resolve():
            continue
        _check_content(repository, path, asked)
        small = address.kind == "model" and repository.files[path].size <= MOST_CONFIG_BYTES
        content = without_code(place.name, cached.read_bytes()) if small else None
        if content is not None and place.is_file() and place.read_bytes() == content:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        link = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        link.unlink(missing_ok=True)
        if content is None:
            link.symlink_to(cached.resolve())
        else:
            link.write_bytes(content)
            changed.append(name)
        link.replace(place)
    if whole:
        write_record(address, {name: (address.folder / name).stat().st_size for name in names.values()})
    return changed


def main() -> None:
    """Answers the request on standard input."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What a library prints is no event.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: _leave(128 + number))
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    client_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        for event in answer(json.loads(sys.stdin.read())):
            print(json.dumps(event), file=events, flush=True)
    except TpoError as error:
        print(json.dumps({"refused": str(error)}), file=events, flush=True)


def _leave_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    _leave(1)


def _leave(status: int) -> NoReturn:
    """Ends at once, whatever the client's threads wait for, and leaves no partial file."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if (path := descriptor.readlink()).name.endswith(".incomplete"):
                path.unlink(missing_ok=True)
    os._exit(status)


if __name__ == "__main__":
    main()
