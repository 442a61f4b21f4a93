"""The files that finished clips leave, so that a killed evaluation continues with the first unfinished clip."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tcore_lib.errors import InputError
from tcore_lib.evaluation.clips import Clip, prediction_path
from tcore_lib.files import read_json, write_json
from tcore_lib.params import Benchmark

PROTOCOL = 1  # raise it when a change of the code changes scores: finished clips are then evaluated again
NOT_A_RESULT = {"enabled", "root", "clips", "save_predictions", "split"}  # settings that do not change a clip's scores


def fingerprint(encoder: nn.Module) -> str:
    """Hex SHA-256 of an encoder's weights and patch size."""
    total = hashlib.sha256(f"{type(encoder).__name__} {encoder.patch_size} {encoder.width}".encode())
    total.update(str(type(getattr(encoder, "network", None)).__name__).encode())
    for name, value in sorted(encoder.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def folder_name(encoder: str) -> str:
    """An encoder's name as a folder name; names that would collide are told apart by a digest."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", encoder).strip("._")[-80:] or "encoder"
    return plain if plain == encoder else f"{plain}-{hashlib.sha256(encoder.encode()).hexdigest()[:8]}"


def _rows_digest(rows: Any) -> str:
    """Hex SHA-256 of rows as JSON: a digit that changed on disk is noticed."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class FinishedClips:
    """The files of finished clips under `output/clips/<encoder>/`, valid as long as nothing they depend on changed.

    Attributes:
        output: None = nothing is kept.
        settings: the benchmark's section.
        fingerprints: encoder name -> `fingerprint`.
    """

    output: Path | None
    settings: Benchmark
    fingerprints: Mapping[str, str]

    def key(self, encoder: str, digest: str) -> str:
        """Hex SHA-256 of all that the rows of a clip with this digest depend on."""
        settings = self.settings.model_dump(mode="json", exclude=NOT_A_RESULT)
        parts = [PROTOCOL, type(self.settings).__name__, settings, self.fingerprints[encoder], digest]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _path(self, encoder: str, clip: Clip) -> Path:
        assert self.output is not None
        return self.output / "clips" / folder_name(encoder) / f"{clip.name}.json"

    def predictions(self, encoder: str) -> Path | None:
        """Where predictions go, if they are wanted."""
        if self.output is None or not self.settings.save_predictions:
            return None
        return self.output / "predictions" / folder_name(encoder)

    def read(self, encoder: str, clip: Clip, digest: str) -> list[dict[str, Any]] | None:
        """The rows of a finished clip with this digest, None if it has to be evaluated (again): also if damaged."""
        if self.output is None or not self._path(encoder, clip).exists():
            return None
        try:
            saved = read_json(self._path(encoder, clip))
        except InputError:
            return None
        if not isinstance(saved, dict) or saved.get("key") != self.key(encoder, digest):
            return None
        if saved.get("rows_sha256") != _rows_digest(saved.get("rows")):
            return None
        folder = self.predictions(encoder)
        wanted = range(len(clip)) if folder is not None else ()
        if not all(prediction_path(folder, clip, frame).exists() for frame in wanted):  # type: ignore[arg-type]
            return None
        return [{name: math.nan if value is None else value for name, value in row.items()} for row in saved["rows"]]

    def write(self, encoder: str, clip: Clip, digest: str, rows: list[dict[str, Any]], seconds: float) -> None:
        """Keep the rows of a clip; everything else of it has been written before."""
        if self.output is None:
            return
        plain = [
            {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
            for row in rows
        ]
        key = self.key(encoder, digest)
        record = {"clip": clip.name, "frames": len(clip), "seconds": round(seconds, 3), "key": key, "rows": plain}
        record["rows_sha256"] = _rows_digest(plain)
        write_json(self._path(encoder, clip), record)
