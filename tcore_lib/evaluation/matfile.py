"""One numeric array out of a MATLAB file (.mat, version 5 to 7.2), read without trust.

scipy reads these too, but a damaged file ends its process (a wrong type code is a segmentation fault), and evaluation
reads hundreds from strangers. Here every length is compared with what is there before it is believed.

Format: "MAT-File Format" (MathWorks), chapter 1. A file is 128 bytes of header and elements; an element is a tag (type,
bytes) and data; a matrix is an element of elements: flags, dimensions, name, values.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tcore_lib.errors import InputError

LARGEST = 64 << 20  # bytes of a file or of a matrix unpacked from it
HEADER = 128
INT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 5, 6, 14, 15
VALUES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
NUMERIC = range(6, 16)  # classes of a matrix: double, single, int8 ... uint64
COMPLEX = 0x0800


class _Damaged(Exception):
    """The bytes are not what they say. The message is the reason."""


def read_array(path: Path, name: str) -> NDArray[np.float64] | None:
    """The numeric array called `name`, None where the file has no variable of that name.

    Raises:
        InputError: the file is missing, larger than 64 MB, damaged or of another format, or the variable is not an array of
            real numbers.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise _Damaged(f"it is larger than {LARGEST >> 20} MB")
        data = path.read_bytes()
        order = {b"IM": "<", b"MI": ">"}.get(data[126:HEADER])
        if order is None or len(data) < HEADER:
            raise _Damaged("it is not of version 5 to 7.2; save it with -v7")
        for kind, content in _elements(data[HEADER:], order):
            found = _array(content, name, order) if kind == MATRIX else None
            if found is not None:
                return found
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read as a .mat file ({error.strerror}); check the path.") from error
    except _Damaged as error:
        raise InputError(f"{path} cannot be read as a .mat file ({error}); fetch this file again.") from error


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(type, data) of one element after the other; compressed ones are unpacked."""
    place = 0
    while place < len(data):
        if len(data) - place < 8:
            raise _Damaged("it is cut off inside a tag")
        kind, size = struct.unpack_from(f"{order}II", data, place)
        if kind >> 16:  # up to four bytes stand in the tag itself
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise _Damaged("a short element is too long")
            content, step = data[place + 4 : place + 4 + size], 8
        else:
            content = data[place + 8 : place + 8 + size]
            step = 8 + size + (-size % 8 if kind != COMPRESSED else 0)
        if len(content) < size:
            raise _Damaged(f"it is cut off: an element has {size} bytes and {len(content)} are there")
        place += step
        if kind == COMPRESSED:
            yield from _elements(_unpacked(content), order)
        else:
            yield kind, content


def _unpacked(content: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(content, LARGEST)
    except zlib.error as error:
        raise _Damaged(f"a compressed element is damaged: {error}") from error
    if not unpacker.eof:
        raise _Damaged(f"a compressed element is cut off, or larger than {LARGEST >> 20} MB")
    if data[:4] in (struct.pack("<I", COMPRESSED), struct.pack(">I", COMPRESSED)):
        raise _Damaged("compressed elements lie inside each other")
    return data


def _array(matrix: bytes, name: str, order: str) -> NDArray[np.float64] | None:
    """The values of a matrix element, None where it has another name."""
    parts = _elements(matrix, order)
    try:
        flags, shape, called = next(parts), next(parts), next(parts)
        if (flags[0], shape[0], called[0]) != (UINT32, INT32, INT8) or len(flags[1]) != 8:
            raise _Damaged("a matrix does not begin with flags, dimensions and name")
        if called[1] != name.encode():
            return None
        kind, content = next(parts)
    except StopIteration:
        if not matrix:
            return None
        raise _Damaged("a matrix is not complete") from None
    bits = struct.unpack_from(f"{order}I", flags[1])[0]
    if bits & 0xFF not in NUMERIC or bits & COMPLEX or kind not in VALUES:
        raise _Damaged(f"{name} is not an array of real numbers")
    dimensions = np.frombuffer(shape[1], f"{order}i4").tolist() if len(shape[1]) % 4 == 0 else []
    values = np.frombuffer(content, order + VALUES[kind]) if len(content) % int(VALUES[kind][1]) == 0 else np.empty(0)
    count = 1
    for side in dimensions:
        count *= side
    if len(dimensions) < 2 or min(dimensions) < 0 or count != len(values):
        raise _Damaged(f"{name} declares {' x '.join(map(str, dimensions[:9]))} numbers and holds {len(values)}")
    return values.astype(np.float64).reshape(dimensions, order="F")
