"""Models from the Hugging Face hub: `hf:owner/repo/path/file.onnx[@revision]`, through `huggingface_hub` (extra `hub`).

The environment's HF_ENDPOINT and HF_TOKEN mean here what they mean to that library. The file is fetched at the commit
that the revision stands for, so that its name and its contents belong together, and checked by sha256: against the
caller's, and against the hub's where it states one (it does for large files).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from nearfar.errors import PullError, StoreError
from nearfar.models import blobs
from nearfar.models.adding import AddOptions, Inspect, add_file, name_of
from nearfar.models.manifest import Manifest
from nearfar.models.store import Store
from nearfar.types.units import show_bytes

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REFERENCE = re.compile(rf"hf:(?P<repo>{_WORD}/{_WORD})/(?P<path>[A-Za-z0-9._+/-]+?)(@(?P<revision>[A-Za-z0-9._/-]+))?")
_FORM = "Write hf:owner/repo/path/file.onnx, and @revision behind it for a commit, tag or branch."
SECONDS = 10.0
"""How long the hub may take to answer the first question, in seconds."""


class Reference(NamedTuple):
    repo: str
    path: str
    revision: str


def parse_reference(text: str) -> Reference:
    """Raises `PullError` with the right form.

    >>> parse_reference("hf:owner/repo/onnx/model.onnx@v1")
    Reference(repo='owner/repo', path='onnx/model.onnx', revision='v1')
    """
    if text.startswith(("http://", "https://")):
        raise PullError(
            f"{text!r} is a web address; models are pulled from the Hugging Face hub only.",
            f"{_FORM} Or fetch the file yourself and run: nearfar models add FILE",
        )
    found = _REFERENCE.fullmatch(text)
    path = found["path"] if found else ""
    if not found or ".." in text or "//" in path or path.startswith("/") or path.endswith("/"):
        raise PullError(f"{text!r} is no reference to a file on the hub.", _FORM)
    return Reference(found["repo"], path, found["revision"] or "main")


def pull(
    reference: str,
    store: Store,
    inspect: Inspect,
    expected_sha256: str | None = None,
    options: AddOptions = AddOptions(),  # noqa: B008 - frozen
) -> Manifest:
    """Fetch a file and add it as `add_file` does; where it came from is in `provenance`.

    Raises `PullError` (no extra, offline, not found, no access, checksum differs), and what `add_file` raises.
    """
    where = parse_reference(reference)
    wanted = expected_sha256.lower() if expected_sha256 else None
    if wanted is not None and not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise PullError(f"{expected_sha256!r} is no sha256.", "Give the 64 hexadecimal digits of sha256sum.")
    hub = _library()
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        # Beside the store, so that a full disk shows here, and gone whatever happens.
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=store.root) as folder:
            path, commit, stated = _fetch(hub, where, reference, Path(folder))
            sha256 = blobs.sha256_of(path)
            for name, want in (("You asked for", wanted), ("The hub says", stated)):
                if want is not None and want != sha256:
                    raise PullError(
                        f"{reference}: the file's sha256 is {sha256}. {name} {want}. It was not kept.",
                        "Pull it again; if it stays so, do not trust the file.",
                    )
            provenance = {**options.provenance, "source": reference, "commit": commit, "sha256": sha256}
            name = options.name or _name(where)
            return add_file(store, path, inspect, msgspec.structs.replace(options, provenance=provenance, name=name))
    except OSError as e:
        raise StoreError(
            f"{reference} cannot be kept in {store.root}: {e.strerror or e}.", "Free some space, or check permissions."
        ) from e


def _name(where: Reference) -> str:
    """The repository's name when the file is called like thousands of others; else none: it is made from the file's."""
    name = name_of(where.path.rpartition("/")[2])
    return name_of(where.repo.partition("/")[2] + ".") if name.startswith("model") else ""


def _library() -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub
    except ImportError:
        raise PullError(
            "Pulling needs the package huggingface_hub, which is not installed.",
            "Run: pip install 'nearfar[hub]' (or fetch the file and run: nearfar models add FILE).",
        ) from None
    return huggingface_hub


def _fetch(hub: Any, where: Reference, reference: str, folder: Path) -> tuple[Path, str, str | None]:
    """The file, the commit it is of, and the sha256 that the hub states, or None."""
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        url = hub.hf_hub_url(where.repo, where.path, revision=where.revision, endpoint=endpoint)
        meta = hub.get_hf_file_metadata(url, timeout=SECONDS, endpoint=endpoint)
        commit = meta.commit_hash or where.revision
        check_room(folder, meta.size or 0, reference)
        got = hub.hf_hub_download(
            where.repo, where.path, revision=commit, local_dir=folder, endpoint=endpoint, etag_timeout=SECONDS
        )
    except StoreError:
        raise
    except OSError as e:
        if _network(e) is None and e.errno is not None:
            raise  # the disk, not the hub
        raise _translated(hub, e, where, reference) from e
    except Exception as e:  # the hub's and httpx's exceptions share no base
        raise _translated(hub, e, where, reference) from e
    etag = (meta.etag or "").strip('"')
    return Path(got), str(commit), etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise `StoreError` unless the disk under `folder` has room for `needed` bytes twice: fetched, and stored."""
    free = shutil.disk_usage(folder).free
    if free < 2 * needed:
        raise StoreError(
            f"{what} needs {show_bytes(2 * needed)} ({2 * needed} bytes) while it is pulled, "
            f"{show_bytes(free)} are free.",
            "Free some space (`nearfar models remove NAME`), or set NEARFAR_HOME to a folder on another disk.",
        )


def _network(error: BaseException | None) -> BaseException | None:
    """The network's own error in a chain of causes, if there is one."""
    for _ in range(10):
        if error is None or isinstance(error, ConnectionError | TimeoutError):
            return error
        if type(error).__module__.partition(".")[0] in ("httpx", "httpcore", "requests", "urllib3"):
            return error
        error = error.__cause__ or error.__context__
    return None


def _translated(hub: Any, error: Exception, where: Reference, reference: str) -> PullError:
    errors = hub.errors
    by_hand = f"Or fetch {Path(where.path).name} elsewhere and run: nearfar models add FILE"
    match error:
        case errors.EntryNotFoundError() if not isinstance(error, errors.LocalEntryNotFoundError):
            return PullError(
                f"{reference}: {where.repo} has no file {where.path!r} at {where.revision!r}.",
                "Check the path on the hub's page of the model.",
            )
        case errors.RevisionNotFoundError():
            return PullError(
                f"{reference}: {where.repo} has no revision {where.revision!r}.", "Leave @... away for main."
            )
        case errors.RepositoryNotFoundError() | errors.GatedRepoError():
            return PullError(
                f"{reference}: there is no repository {where.repo!r}, or it is not open to you.",
                "Check the name; for a private one set HF_TOKEN.",
            )
        case errors.HfHubHTTPError():
            status = getattr(getattr(error, "response", None), "status_code", "an error")
            return PullError(f"{reference}: the hub answered {status}.", f"Try again later. {by_hand}")
        case _:
            cause = _network(error) or error
            endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
            why = f"{type(cause).__name__}: {cause}".rstrip(". ")
            return PullError(
                f"{reference}: the hub at {endpoint} cannot be reached ({why}). Is this machine offline?",
                f"Try again with a network. {by_hand}",
            )
