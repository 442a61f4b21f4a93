"""The full number of damaged profiles and damaged files; tests/ has a part of each."""

import collections
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from mutated_profiles import damaged, plan_or_sentence
from mutations import READERS, media_outcomes
from test_mutations import spoil_and_read

pytestmark = pytest.mark.soak
PROFILES, FILES, MEDIA = 2000, 150, 600


def shown(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())


def test_profiles(note: Any, tmp_path: Path) -> None:
    counts: collections.Counter[str] = collections.Counter()

    @settings(
        max_examples=PROFILES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
    )
    @given(damaged())
    def flood(text: str) -> None:
        counts[plan_or_sentence(text, tmp_path / "damaged.yaml")] += 1

    with note("profiles") as line:
        flood()
        assert counts.total() >= PROFILES
        line.count, line.outcome = f"{counts.total():,} profiles", shown(counts)


@pytest.mark.filterwarnings("default")
def test_files(note: Any, tmp_path: Path) -> None:
    with note("files") as line:
        counts: collections.Counter[str] = collections.Counter()
        for number, reader in enumerate(READERS):
            counts.update(spoil_and_read(reader, tmp_path / str(number), FILES, seed=100 + number))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        assert grown < 4, f"{grown:.1f} GB"
        line.count = f"{counts.total():,} files, {len(READERS)} readers"
        line.outcome = f"{shown(counts)}; peak {grown:.1f} GB"


def test_media(note: Any, tmp_path: Path) -> None:
    with note("media") as line:
        counts = media_outcomes(tmp_path, MEDIA, seed=7)
        assert sum(counts.values()) == MEDIA
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        assert peak < 2, f"{peak:.1f} GB"
        line.count, line.outcome = f"{MEDIA} files", f"{shown(counts)}; peak {peak:.1f} GB of a process"
