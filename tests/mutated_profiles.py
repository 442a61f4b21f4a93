"""Random damage to the shipped parameter files, as people and editors do it: for a property-based test."""

import copy
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import yaml

from tcore_lib import params, runs
from tcore_lib.errors import InputError
from tcore_lib.params import Params
from tcore_lib.reproduction import reproduce
from tcore_lib.training.loop import check_feasible
from tcore_lib.training.schedules import Schedules

PROFILES = sorted((Path(__file__).parents[1] / "params").glob("*.yaml"))
COMPLETE = Params().model_dump(mode="json")  # every key there is

SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**30, 10**400]),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1.0, 1.5, -0.1, math.inf, -math.inf, math.nan, 1e-320, 1e308]),
    st.text(max_size=8),
    st.sampled_from(["1e-4", "auto", "cuda:99", "../..", "~", "null", "yes", "synthetic", "\x00", "a" * 300, "1_000"]),
    st.dates(),
    st.binary(max_size=4),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.none()), SCALARS, max_size=2),
)


def _places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key of nested dictionaries, as its path."""
    if not isinstance(value, dict):
        return []
    found = [(*above, key) for key in value]
    return found + [place for key, below in value.items() for place in _places(below, (*above, key))]


def _at(content: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _nudged(value: Any, draw: st.DrawFn) -> Any:
    """A value of the same type that people might try: another switch, a number some times as large."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return type(value)(value * draw(st.sampled_from([0, 0.5, 2, 3, 10, 1000])))
    if isinstance(value, list):
        return [_nudged(item, draw) for item in value]
    return value


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """The text of a parameter file with one to four things changed; sometimes also a character of the text."""
    name = draw(st.sampled_from([*(path.name for path in PROFILES), "complete"]))
    content = copy.deepcopy(COMPLETE) if name == "complete" else params.read_yaml(PROFILES[0].with_name(name))
    for _ in range(draw(st.integers(1, 4))):
        # Any key there is, also one the profile does not set.
        *above, key = draw(st.sampled_from(_places(content) if draw(st.booleans()) else _places(COMPLETE)))
        place = content
        for part in above:
            below = place.get(part)
            place[part] = below if isinstance(below, dict) else {}
            place = place[part]
        match draw(st.sampled_from(["set", "set", "nudge", "nudge", "nudge", "delete", "rename", "move"])):
            case "set":
                place[key] = draw(VALUES)
            case "nudge":
                place[key] = _nudged(copy.deepcopy(place.get(key, _at(COMPLETE, (*above, key)))), draw)
            case "delete":
                place.pop(key, None)
            case "rename":
                place[draw(st.one_of(st.text(max_size=6), st.just(f"{key}s"), st.integers()))] = place.pop(key, None)
            case "move":
                content[key] = place.pop(key, None)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if draw(st.integers(0, 4)) == 0:
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 5)))
        inserted = draw(
            st.one_of(st.text(max_size=4), st.sampled_from(["&a ", "*a", "!!python/name:os.system ", "\t", ": "]))
        )
        text = text[:start] + inserted + text[end:]
    return text


def plan_or_sentence(text: str, path: Path) -> str:
    """ "planned" or "refused", for a parameter file with this text.

    Raises:
        AssertionError: the refusal is not one sentence about this file.
        Exception: whatever else; that is a bug.
    """
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        loaded = params.load(path)
        stages = reproduce.stages_to_run(loaded)
        assert all(runs.STAGES[stage].sections for stage in stages)
        if loaded.pretrain.enabled:
            check_feasible(loaded, 1)
            schedules = Schedules(loaded.pretrain)
            for step in (0, schedules.steps // 2, schedules.steps - 1):
                values = schedules.at(step)
                assert math.isfinite(values.lr), values
        assert len(loaded.digest()) == 64
        return "planned"
    except InputError as error:
        message = str(error)
        assert "Traceback" not in message, message
        assert all(len(line) < 700 for line in message.splitlines()), message
        assert all(line.startswith("  - ") for line in message.splitlines()[1:]), message
        return "refused"
