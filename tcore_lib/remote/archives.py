"""Unpack a tar or zip archive without trusting it: nothing leaves the target folder, only plain files come out."""

import errno
import shutil
import stat
import tarfile
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from tcore_lib.errors import InputError
from tcore_lib.files import writable

_JUNK = ("__MACOSX", ".DS_Store")


def unpack(archive: str | Path, target: str | Path, *, inner: str = "", limit_gb: float = 100.0) -> int:
    """Unpack an archive into `target`.

    The members go to a hidden folder inside `target` first and are moved in place when all of them are there and whole.

    Args:
        archive: .zip, .tar, .tar.gz, .tgz, .tar.bz2 or .tar.xz.
        target: folder; created.
        inner: a top folder of the archive that is left out of the paths, where it exists.
        limit_gb: refuse to write more than that: no archive named here is larger, so it would be an attack or a
            mistake.

    Returns:
        Number of files.

    Raises:
        InputError: a member's path leaves the target, is a link or a device; the archive is damaged, too large or has
            no `inner`; a file of that name exists; the disk is full.
    """
    archive, target = Path(archive), Path(target)
    scratch = target / f".unpack-{uuid.uuid4().hex[:8]}"
    scratch.mkdir(parents=True)
    count, room = 0, int(limit_gb * 1e9)
    try:
        for name, stream in _members(archive):
            place = scratch.joinpath(*_safe_parts(name, archive))
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(place, "xb") as written:
                while piece := stream.read(min(1 << 20, room + 1)):
                    room -= len(piece)
                    if room < 0:
                        raise InputError(f"{archive} holds more than {limit_gb:g} GB; it is not the expected archive.")
                    written.write(piece)
            count += 1
        if count == 0:
            raise InputError(f"{archive} holds no files; it is not the expected archive.")
        _move_in(scratch / inner if (scratch / inner).is_dir() else scratch, target)
        return count
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            with writable(target):
                raise
        raise InputError(
            f"{archive} cannot be unpacked ({' '.join(str(error).split())}); delete it and fetch it again."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _safe_parts(name: str, archive: Path) -> tuple[str, ...]:
    """The parts of a member's path, all of them below the target."""
    path = PurePosixPath(name)
    if path.is_absolute() or "\\" in name or "\0" in name or ":" in path.parts[0] or ".." in path.parts:
        raise InputError(f"{archive} holds the path {name!r}, which leaves the target folder; do not use this archive.")
    return path.parts


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """(path, content) of every file of an archive. Checksums inside the archive are verified while reading."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                mode = info.external_attr >> 16
                if info.is_dir() or _is_junk(info.filename):
                    continue
                if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                    raise InputError(
                        f"{archive} holds {info.filename!r}, which is no plain file; do not use this archive."
                    )
                with packed.open(info) as stream:
                    yield info.filename, stream
        return
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            if member.isdir() or _is_junk(member.name):
                continue
            content = tar.extractfile(member) if member.isfile() else None
            if content is None:
                raise InputError(f"{archive} holds {member.name!r}, which is no plain file; do not use this archive.")
            yield member.name, content


def _is_junk(name: str) -> bool:
    parts = name.split("/")
    return any(part in _JUNK or part.startswith("._") for part in parts)


def _move_in(source: Path, target: Path) -> None:
    """Move files into place, keeping the folders that are there already."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(source)
            inside = place.parent
            while inside != target:
                if inside.is_symlink():
                    raise InputError(f"{inside} is a link; archives are only unpacked into real folders.")
                inside = inside.parent
            same = place.is_file() and place.stat().st_size == path.stat().st_size  # an interrupted run put it there
            if (place.exists() and not same) or place.is_symlink():
                raise InputError(f"{place} exists already; move it away and try again.")
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
