"""The hub client, a separate process: `python -m tpo.hub.client`, with a JSON request on standard input and events as
JSON lines on standard output.

A separate process, since `huggingface_hub` reads its settings once, when imported, and a run's processes are offline.
All downloads go through the user's cache (`HF_HOME`), where other tools find them. Complete files that match the hub's
hashes are linked into the folder of their address (`HubAddress.folder`), which contains nothing else.

Accepted cost: a killed download starts over, since the client keeps no partial files; broken connections are resumed.
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
from tpo.models.files import MAX_CONFIG_BYTES, some_of
from tpo.models.folder import without_code
from tpo.models.tensors import INDEX
from tpo.planning.machine import free_disk
from tpo.planning.needs import readable_size

Event = dict[str, Any]

_ANSWER_SECONDS = 10.0
_MOVE_SECONDS = 3.0
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@dataclass
class Repository:
    """One repository at one commit."""

    address: HubAddress
    """Its address, pinned."""
    files: dict[str, RepoFile]
    """Its files, by path."""
    listed: bool
    """Whether the list, with hashes, is from the hub and not from the cache."""

    @property
    def tree(self) -> dict[str, int]:
        """The sizes of its files."""
        return {path: file.size for path, file in self.files.items()}

    def cached(self, path: str) -> Path | None:
        """A file in the cache; None if it is missing or has another size."""
        repo, kind, commit = self.address.repo, self.address.kind, self.address.revision
        found = try_to_load_from_cache(repo, path, repo_type=kind, revision=commit)
        if not isinstance(found, str) or Path(found).stat().st_size != self.files[path].size:
            return None
        return Path(found)

    def missing(self, paths: Sequence[str]) -> list[str]:
        """The files that aren't in the cache."""
        return [path for path in paths if self.cached(path) is None]


class UnreachableError(InputError):
    """The hub isn't there to be asked; an address may be right."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


def answer(request: dict[str, Any]) -> Iterator[Event]:
    """The events that answer a request; a plan reports every error, and a fetch ends with the first."""
    hub = Hub()
    for want in request.get("wants", ()):
        try:
            yield from hub.fetch(parse_address(want), whole=bool(request["whole"]))
        except TpoError as error:
            if request["whole"]:
                raise
            yield {"fault": [want, str(error), error.why if isinstance(error, UnreachableError) else None]}
    for written, revision, commit in request.get("kept", ()):
        yield from hub.branch_move(parse_address(written), revision, commit)


class Hub:
    """The hub with the user's settings: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, proxies."""

    def __init__(self) -> None:
        self._api = HfApi(library_name="tpo")
        self._endpoint = _without_secrets(constants.ENDPOINT)
        get_session().timeout = httpx2.Timeout(_ANSWER_SECONDS)

    def fetch(self, requested: HubAddress, *, whole: bool) -> Iterator[Event]:
        """Resolves an address and downloads its files; if not `whole`, only the small files of a model.

        The last event has the pinned address and the number of bytes that the cache lacked.
        """
        with self._explaining(requested):
            found = yield from self._resolved(requested)
            branch = requested.revision or "main"
            if found.repo != requested.repo:
                yield {"say": f"{requested}: this repository is now {found.repo}"}
            repository = self._opened(found)
            if requested.kind == "model":
                small = model_files(repository.tree, found.path, str(requested))
                yield from self._download(repository, small, requested)
                files = small + weight_files(repository.tree, found.path, self._index(repository), str(requested))
            else:
                repository, small, files = self._data(repository, requested)
                branch = branch if repository.address.revision == found.revision else CONVERTED
            lacking = sum(repository.files[path].size for path in repository.missing(files))
            if whole:
                yield from self._download(repository, files, requested)
            if changed := _link(repository, files if whole else small, requested, whole=whole):
                yield {
                    "say": f"{requested}: left out of {some_of(changed)} the settings that load the repository's own "
                    "code, which is never fetched or run"
                }
            size = sum(repository.files[path].size for path in files)
            free = free_disk(Path(constants.HF_HUB_CACHE))
            yield {
                "got": dataclasses.asdict(Fetched(str(requested), str(repository.address), branch, lacking, size, free))
            }

    def _resolved(self, requested: HubAddress) -> Generator[Event, None, HubAddress]:
        """The address with the current commit of its revision or, if the hub can't be reached, the cached one."""
        if requested.pinned:
            return requested
        revision = requested.revision or "main"
        try:
            info = self._api.repo_info(
                requested.repo, repo_type=requested.kind, revision=revision, timeout=_ANSWER_SECONDS
            )
            found = self._api.resolve_revision(info.id, repo_type=requested.kind, revision=revision)
            return HubAddress(requested.kind, info.id, found.resolved, requested.path)
        except (httpx2.TransportError, OfflineModeIsEnabled, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            known = self._api.resolve_revision(
                requested.repo, repo_type=requested.kind, revision=revision, local_files_only=True
            )
            why = "is not used (HF_HUB_OFFLINE)" if isinstance(error, OfflineModeIsEnabled) else "does not answer"
            yield {
                "say": f"{requested}: the hub {why}; using commit {known.resolved}, which is {revision} in the cache"
            }
            return requested.at(known.resolved)

    def _opened(self, address: HubAddress) -> Repository:
        """A repository with its list of files, from the cache if it is there."""
        listed = False
        try:
            found = get_cached_repo_tree(address.repo, repo_type=address.kind, revision=address.revision)
        except CachedRepoTreeNotFoundError:
            try:
                found, listed = self._list(address), True
            except (httpx2.TransportError, OfflineModeIsEnabled):
                found = _in_cache(address)  # Filled by another tool, which stored no list.
        return Repository(address, {file.path: file for file in found if _is_plain(file.path)}, listed)

    def _list(self, address: HubAddress) -> list[RepoFile]:
        found = self._api.list_repo_tree(
            address.repo, recursive=True, repo_type=address.kind, revision=address.revision
        )
        return [file for file in found if isinstance(file, RepoFile)]

    def _data(self, repository: Repository, requested: HubAddress) -> tuple[Repository, list[str], list[str]]:
        """The repository at the branch with a dataset's files, the files that a plan needs, and all files."""
        path = repository.address.path
        files = data_files(repository.tree, path)
        if not files and requested.revision in (None, "main"):
            try:
                commit = self._api.resolve_revision(requested.repo, repo_type="dataset", revision=CONVERTED).resolved
            except (RevisionNotFoundError, RevisionResolutionError):
                raise no_such_data(repository.tree, path, str(requested)) from None
            converted = self._opened(repository.address.at(commit))
            if (folder := converted_folder(converted.tree, path)) is None:
                raise no_such_data({**repository.tree, **converted.tree}, path, str(requested))
            converted.address = HubAddress("dataset", repository.address.repo, commit, folder)
            repository, files = converted, data_files(converted.tree, folder)
        if not files:
            raise no_such_data(repository.tree, path, str(requested))
        check_data(repository.tree, files, str(requested))
        return repository, [], files

    def _index(self, repository: Repository) -> bytes | None:
        folder = repository.address.path
        path = f"{folder}/{INDEX}" if folder else INDEX
        found = repository.cached(path) if path in repository.files else None
        return None if found is None else found.read_bytes()

    def _download(self, repository: Repository, files: Sequence[str], requested: HubAddress) -> Iterator[Event]:
        """Downloads files into the cache."""
        missing = repository.missing(files)
        if not missing:
            return
        if not repository.listed:
            repository.files |= {file.path: file for file in self._list(repository.address) if _is_plain(file.path)}
            repository.listed = True
        address, size = repository.address, sum(repository.files[path].size for path in missing)
        _check_room(size, requested)
        if size > 2**24:
            yield {"say": f"fetching {address}: {readable_size(size)} into {constants.HF_HUB_CACHE}"}
        snapshot_download(
            address.repo,
            repo_type=address.kind,
            revision=address.revision,
            allow_patterns=[glob.escape(path) for path in missing],
        )
        for path in repository.missing(missing):
            _check_content(repository, path, requested)  # It has another size.

    def branch_move(self, written: HubAddress, revision: str, commit: str) -> Iterator[Event]:
        """An event if a branch is no longer at the commit that a run uses; none if the hub doesn't answer."""
        with contextlib.suppress(httpx2.HTTPError, OSError, ValueError):
            info = self._api.repo_info(written.repo, repo_type=written.kind, revision=revision, timeout=_MOVE_SECONDS)
            if info.sha and info.sha != commit:
                yield {"moved": [str(written), revision, info.sha]}

    @contextlib.contextmanager
    def _explaining(self, requested: HubAddress) -> Iterator[None]:
        """Turns any exception of the client into an `InputError` with a remedy."""
        try:
            yield
        except TpoError:
            raise
        except Exception as error:  # The client's own, httpx2's and the operating system's.
            raise self._explained(error, requested) from error

    def _explained(self, error: Exception, requested: HubAddress) -> InputError:
        page = f"{self._endpoint}/{'datasets/' if requested.kind == 'dataset' else ''}{requested.repo}"
        match error:
            case GatedRepoError():
                return InputError(f"{requested} is gated: {_access_remedy(page)}")
            case RevisionNotFoundError():
                return InputError(
                    f"{requested}: {page} has no revision {requested.revision or 'main'}{self._revisions(requested)}"
                )
            case RepositoryNotFoundError():
                return InputError(
                    f"{requested}: there is no {page}, or it is private: check the name, also its upper and lower "
                    "case, or set HF_TOKEN or run `hf auth login` with an account that may read it"
                )
            case HfHubHTTPError() if error.response.status_code == 401 and get_token():
                return InputError(
                    f"{requested}: {self._endpoint} rejects the token ({_token_place()}): use a valid one from "
                    f"{self._endpoint}/settings/tokens, or none for a public repository"
                )
            case RemoteEntryNotFoundError():
                return InputError(
                    f"{requested}: {page} lists a file that it does not have: rerun, or name another commit"
                )
            case HfHubHTTPError() if error.response.status_code == 429:
                return InputError(f"{requested}: too many requests for {self._endpoint}: rerun later{_token_hint()}")
            case HfHubHTTPError() if error.response.status_code < 500:
                return InputError(
                    f"{requested}: rejected by {self._endpoint} ({error.response.status_code}, "
                    f"{shortened(_without_secrets(error.server_message or str(error)))}): check address and token"
                )
            case FileMetadataError() | json.JSONDecodeError() | KeyError() | AssertionError():
                return InputError(
                    f"{requested}: {self._endpoint} does not answer as a model hub does: check HF_ENDPOINT"
                )
            case OSError() if error.errno in _WRITING:
                return InputError(
                    f"{requested} could not be written to {error.filename or constants.HF_HOME} ({error.strerror}): "
                    "free space or grant access there, or set HF_HOME to another folder"
                )
        return self._unreached(error, requested)

    def _unreached(self, error: Exception, requested: HubAddress) -> InputError:
        cause = error
        while isinstance(cause, IncompleteSnapshotError | LocalEntryNotFoundError | RevisionResolutionError):
            if not isinstance(below := cause.__cause__ or cause.__context__, Exception):
                break
            cause = below
        if isinstance(cause, HfHubHTTPError) and cause is not error and cause.response.status_code < 500:
            return self._explained(cause, requested)
        if isinstance(cause, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
            return UnreachableError(
                f"{requested} is not complete in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE prevents downloads: "
                "fetch it on a machine with a network (make fetch PROFILE=…), or unset HF_HUB_OFFLINE",
                why="HF_HUB_OFFLINE is set",
            )
        cause_text = f"{type(cause).__name__}: {shortened(_without_secrets(str(cause)))}"
        if "Consistency check failed" in str(cause):
            return InputError(
                f"{requested}: a downloaded file has another size than on {self._endpoint}: rerun ({cause_text})"
            )
        if isinstance(cause, httpx2.HTTPError | HfHubHTTPError | LocalEntryNotFoundError | RevisionResolutionError):
            return UnreachableError(
                f"{requested}: {self._endpoint} can't be reached ({cause_text}): check the network, HF_ENDPOINT and "
                "the proxy, then rerun; downloaded files are kept",
                why=f"{self._endpoint} can't be reached, {cause_text}",
            )
        return InputError(f"{requested} could not be downloaded from {self._endpoint}: {cause_text}")

    def _revisions(self, requested: HubAddress) -> str:
        """The available revisions, for the end of a message."""
        slash = "; a slash in a revision's name is written as %2F" if requested.path else ""
        short = "; a commit has 40 digits" if re.fullmatch("[0-9a-f]{7,39}", requested.revision or "") else ""
        try:
            refs = self._api.list_repo_refs(requested.repo, repo_type=requested.kind)
        except (httpx2.HTTPError, OSError, ValueError, KeyError):
            return f"{short}{slash}: check it"
        return (
            f"; it has {some_of([ref.name for ref in (*refs.branches, *refs.tags)])}{short}{slash}: name one of these"
        )


def _access_remedy(page: str) -> str:
    """How to get access to a gated repository."""
    if get_token() is None:
        return f"accept its conditions at {page}, then set HF_TOKEN or run `hf auth login`"
    return (
        f"accept its conditions at {page} with the account of your token ({_token_place()}); its owners may have to "
        "approve your request, and a fine-grained token must allow gated repositories"
    )


def _token_place() -> str:
    set_by = [name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)]
    return set_by[0] if set_by else "from `hf auth login`"


def _token_hint() -> str:
    return "" if get_token() else "; with a token (HF_TOKEN), more are allowed"


def _without_secrets(text: str) -> str:
    """A text without credentials in its URLs, and without their queries, which may be signatures."""
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", re.sub(r"(https?://)[^/\s@]*@", r"\1", text))


def _is_plain(path: str) -> bool:
    """Whether a path stays within its folder; a server may list any."""
    return not path.startswith("/") and "\\" not in path and not {"", ".", ".."} & {*path.split("/")}


def _name_below(path: str, folder: str) -> str:
    """A file's path in the folder of its address: `.` for the address of a file, a bare name for a part of a split."""
    if path == folder:
        return "."
    prefix = f"{folder}/" if folder else ""
    return path.removeprefix(prefix) if path.startswith(prefix) else Path(path).name


def _check_room(size: int, requested: HubAddress) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    if size > (free := free_disk(cache)):
        raise InputError(
            f"{requested} needs {readable_size(size)} in {cache}, where {readable_size(free)} is free: free some "
            "space, or set HF_HOME to a larger disk"
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


def _check_content(repository: Repository, path: str, requested: HubAddress) -> None:
    """Compares a file in the cache with the hub's size and hash; removes it if they differ.

    The cache names a file by its hash: SHA-256 for large files and git's for others.
    """
    address, file = repository.address, repository.files[path]
    found = try_to_load_from_cache(address.repo, path, repo_type=address.kind, revision=address.revision)
    if not isinstance(found, str):
        raise InputError(f"{requested}: {path} was not downloaded: rerun")
    blob = Path(found).resolve()
    sha256 = file.lfs.sha256 if file.lfs is not None else blob.name if re.fullmatch("[0-9a-f]{64}", blob.name) else None
    if blob.stat().st_size != file.size:
        fault = f"has {blob.stat().st_size} bytes, expected {file.size}"
    elif sha256 is not None and (content := _hash(blob, hashlib.sha256())) != sha256:
        fault = f"has the SHA-256 {content}, expected {sha256}"
    elif sha256 is None and COMMIT.fullmatch(file.blob_id) and (content := _git_sha1(blob)) != file.blob_id:
        fault = f"has the git hash {content}, expected {file.blob_id}"
    else:
        return
    blob.unlink(missing_ok=True)
    Path(found).unlink(missing_ok=True)
    raise InputError(f"{requested}: {path} {fault}: it was damaged during download and has been removed; rerun")


def _git_sha1(path: Path) -> str:
    return _hash(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False))


def _hash(path: Path, digest: "hashlib._Hash") -> str:
    with path.open("rb") as file:
        while piece := file.read(2**22):
            digest.update(piece)
    return digest.hexdigest()


def _link(repository: Repository, paths: Sequence[str], requested: HubAddress, *, whole: bool) -> list[str]:
    """Links files of the cache into the folder of an address, after verifying their hashes; if these are all files,
    records that.

    A model's config that asks for code becomes a copy that doesn't; returns the names of those that were written now.
    """
    address, changed = repository.address, list[str]()
    names = {path: _name_below(path, address.path) for path in paths}
    for path, name in names.items():
        place, cached = address.folder / name, repository.cached(path)
        assert cached is not None
        if place.is_file() and place.resolve() == cached.resolve():
            continue
        _check_content(repository, path, requested)
        small = address.kind == "model" and repository.files[path].size <= MAX_CONFIG_BYTES
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
    os.dup2(2, 1)  # What libraries print must not mix with events.
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
    """Exits at once, without waiting for the client's threads, and removes partial files."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if (path := descriptor.readlink()).name.endswith(".incomplete"):
                path.unlink(missing_ok=True)
    os._exit(status)


if __name__ == "__main__":
    main()
