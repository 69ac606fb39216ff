"""Uploads a published folder to a model hub: the model to one repository, its pairs to a dataset repository.

New repositories are private. Unchanged files aren't uploaded again; weights and parsers that the folder no longer has
are deleted, and all other files in the repository are kept.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.publication.publish import PAIRS, Published
from tpo.errors import InputError, shortened

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REPLACED = ["*.safetensors", "*.safetensors.index.json", "parsers/*"]


def check_push(repository: str) -> None:
    """Raises `InputError`, before any work, if a repository's name is invalid or there is no token."""
    if not _NAME.fullmatch(repository) or len(repository) > 96 or ".." in repository or "--" in repository:
        raise InputError(
            f"{shortened(repr(repository))} isn't a repository name: expected org/name, as in PUSH=my-org/my-model"
        )
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise InputError("PUSH is set, but so is HF_HUB_OFFLINE, which prevents uploads: unset it")
    if not get_token():
        raise InputError("there is no token for the hub: set HF_TOKEN to one with write access, or run hf auth login")


def push(published: Published, repository: str, message: str) -> list[str]:
    """Uploads a folder; returns the addresses of its repositories.

    Raises `InputError` if the hub rejects it or can't be reached.
    """
    from huggingface_hub import HfApi

    api, addresses = HfApi(endpoint=os.environ.get("HF_ENDPOINT")), list[str]()
    parts: list[tuple[str, str, Path]] = [("model", repository, published.folder)]
    if published.has_pairs:
        parts.append(("dataset", f"{repository}-pairs", published.folder / PAIRS))
    for kind, name, folder in parts:
        with _explained(name):
            addresses.append(str(api.create_repo(name, repo_type=kind, private=True, exist_ok=True)))
            api.upload_folder(
                repo_id=name,
                repo_type=kind,
                folder_path=folder,
                commit_message=message,
                ignore_patterns=[f"{PAIRS}/*"] if kind == "model" else None,
                delete_patterns=_REPLACED if kind == "model" else None,
            )
    return addresses


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turns exceptions of the hub's client into an `InputError` with a remedy."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except HfHubHTTPError as error:
        status, text = error.response.status_code, shortened(_message(error))
        remedy = {
            401: "set HF_TOKEN to a valid token with write access",
            403: "the token may not write there: give it write access to the organization, or name another in PUSH=",
            404: "check the name in PUSH= and HF_ENDPOINT",
        }
        how = remedy.get(status, "try again later; uploaded files aren't sent again")
        raise InputError(f"the hub rejects {repository} (status {status}: {text}): {how}") from error
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError, RuntimeError, ValueError) as error:
        # The client raises RuntimeError for an interrupted upload, and ValueError for an answer that isn't a hub's.
        cause: Any = error.__cause__ or error
        raise InputError(
            f"{repository} could not be uploaded ({type(cause).__name__}: {shortened(str(cause))}): check the "
            "network and HF_ENDPOINT and rerun; uploaded files aren't sent again"
        ) from error


def _message(error: Any) -> str:
    return str(getattr(error, "server_message", None) or error)
