"""One file over HTTP: resumed where it broke off, verified, and only given its name when it is whole."""

import hashlib
import http.client
import ssl
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tcore_lib.errors import InputError
from tcore_lib.files import read_json, write_json

TRIES = 5  # attempts without any progress before giving up
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Remote:
    """A file to fetch.

    Attributes:
        url: http or https.
        bytes: its size, None where unknown.
        checksum: "sha256:<hex>" or "md5:<hex>", None where nobody published one.
    """

    url: str
    bytes: int | None = None
    checksum: str | None = None

    @property
    def name(self) -> str:
        """File name."""
        return self.url.rsplit("/", 1)[-1]


def download(remote: Remote, folder: str | Path, *, progress: bool = True, patience_s: float = 2.0) -> Path:
    """Fetch a file into `folder`. What is there already is kept; what broke off is continued (HTTP Range).

    Args:
        remote: what to fetch.
        folder: where to; created.
        progress: show a progress bar.
        patience_s: wait after a failed attempt, doubled each time.

    Returns:
        `<folder>/<name>`, verified against size and checksum where they are known.

    Raises:
        InputError: the server cannot be reached or has no such file; the content is not what was expected; the disk is
            full.
    """
    target = Path(folder) / remote.name
    if target.exists():
        return target
    if not remote.url.startswith(("https://", "http://")):
        raise InputError(f"{remote.url} is not an http address.")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    failures, reason = 0, ""
    while failures < TRIES:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _receive(remote, part, progress):
                break
            reason = "the connection broke off"
        except urllib.error.HTTPError as error:
            if error.code in (408, 429) or error.code >= 500:
                reason = f"{error.code} {error.reason}"
            else:
                raise InputError(
                    f"{remote.url} cannot be fetched ({error.code} {error.reason}); get it by hand into {folder}."
                ) from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())
        except OSError as error:
            raise InputError(
                f"{part} cannot be written ({error.strerror}); make room and run the same command again."
            ) from error
        failures = 0 if part.exists() and part.stat().st_size > before else failures + 1
        if failures < TRIES:
            time.sleep(patience_s * 2 ** max(failures - 1, 0))
    else:
        raise InputError(
            f"{remote.url} cannot be fetched ({reason}); run the same command again, it continues, or get it by hand."
        )
    _verify(remote, part)
    part.replace(target)
    _note(part).unlink(missing_ok=True)
    return target


def _note(part: Path) -> Path:
    """Beside a partial file: which version of the remote file it is part of."""
    return part.with_name(part.name + ".json")


def _receive(remote: Remote, part: Path, progress: bool) -> bool:
    """Continue a partial file; True when it is whole."""
    have = part.stat().st_size if part.exists() else 0
    note: dict[str, Any] = read_json(_note(part)) if have and _note(part).exists() else {}
    request = urllib.request.Request(remote.url, headers={"User-Agent": "tcore_lib"})  # noqa: S310 (http only, see above)
    if have and note.get("version"):
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", note["version"])  # the whole file, should it have changed meanwhile
    try:
        answer = urllib.request.urlopen(request, timeout=60)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == 416 and note.get("bytes") == have:  # nothing is missing
            return True
        part.unlink(missing_ok=True) if error.code == 416 else None
        raise
    with answer:
        resumed = answer.status == 206
        have = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        write_json(
            _note(part), {"url": remote.url, "version": "" if version.startswith("W/") else version, "bytes": total}
        )
        with (
            open(part, "ab" if resumed else "wb") as stream,
            tqdm(
                total=total,
                initial=have,
                unit="B",
                unit_scale=True,
                desc=remote.name,
                file=sys.stdout,
                disable=not progress,
            ) as bar,
        ):
            while piece := answer.read(_CHUNK):
                stream.write(piece)
                bar.update(len(piece))
                have += len(piece)
    return total is None or have >= total


def _verify(remote: Remote, part: Path) -> None:
    size = part.stat().st_size
    problem = ""
    if remote.bytes is not None and size != remote.bytes:
        problem = f"{size} bytes instead of {remote.bytes}"
    elif remote.checksum is not None:
        algorithm, _, expected = remote.checksum.partition(":")
        with open(part, "rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
        if found != expected.lower():
            problem = f"{algorithm} {found} instead of {expected.lower()}"
    if problem:
        part.unlink()
        _note(part).unlink(missing_ok=True)
        raise InputError(
            f"{remote.url} is not the expected file ({problem}) and was deleted; fetch it again or by hand."
        )
