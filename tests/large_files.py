"""Refuse large files: `python tests/large_files.py FILE...` (pre-commit gives the staged ones; without any, all tracked ones)."""

import subprocess
import sys
from pathlib import Path

LIMIT = 500_000  # bytes
LARGER = {
    "results/encoders/": 12_000_000,
    "tests/golden/": 7_000_000,
}  # shipped weights; recorded steps of the original


def too_large(names: list[str]) -> list[str]:
    """One line per file that is larger than it may be."""
    lines = []
    for name in names:
        limit = next((size for folder, size in LARGER.items() if name.startswith(folder)), LIMIT)
        size = Path(name).stat().st_size if Path(name).is_file() else 0
        if size > limit:
            lines.append(f"{name} has {size / 1e6:.1f} MB, more than {limit / 1e6:.1f}; keep it out of git.")
    return lines


def tracked() -> list[str]:
    """All files git knows."""
    return subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()


if __name__ == "__main__":
    found = too_large(sys.argv[1:] or tracked())
    print("\n".join(found))
    sys.exit(1 if found else 0)
