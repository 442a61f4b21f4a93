"""Does the evaluation give the original's figures? Real samples, weightless encoder, measured beside golden.

    python benchmarks/evaluation_parity.py [--shared FOLDER]

Golden: the original implementation's results in `shared/golden/evaluation.json` (six DAVIS clips: J and F mean, recall,
decay; one JHMDB clip: PCK at five thresholds), with each patch's own 768 normalised pixels as its feature. Allowed: 1e-4 on J
and F (fractions), 0.01 on PCK (percent); ends with exit code 1 if any figure is off. About 4 minutes on two free cores, into
results/benchmarks/evaluation_parity.json.
"""

import argparse
import sys
from pathlib import Path

from tcore_lib import params
from tcore_lib.evaluation.benchmarks import load_clips
from tcore_lib.evaluation.evaluate import evaluate
from tcore_lib.evaluation.scores import summarise
from tcore_lib.files import read_json, write_json
from tcore_lib.model.encoders import load_encoder

ROOT = Path(__file__).parents[1]
ALLOWED = {"davis": 1e-4, "jhmdb": 0.01}


def measured(data: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Benchmark -> clip (`PCK` for JHMDB) -> name of a figure -> its value."""
    encoder, found = load_encoder("pixels"), {}
    for settings in (params.Jhmdb(), params.Davis()):
        kind = type(settings).__name__.lower()
        found[kind] = evaluate(encoder, load_clips(settings, data / f"{kind}-sample"), settings)
    pck = summarise(found["jhmdb"], "jhmdb")
    names = {f"{m}-{s.capitalize()}": f"{m}_{s}" for m in "JF" for s in ("mean", "recall", "decay")}
    rows = found["davis"].to_dict("records")
    return {
        "jhmdb": {"PCK": dict(zip(pck["score"], pck["value"], strict=True))},
        "davis": {row["clip"]: {name: row[column] for name, column in names.items()} for row in rows},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder with data/ and golden/")
    shared = parser.parse_args().shared
    golden = read_json(shared / "golden" / "evaluation.json")
    record, worst = {}, {"davis": 0.0, "jhmdb": 0.0}
    for kind, clips in measured(shared / "data").items():
        for clip, figures in clips.items():
            for name, value in figures.items():
                expected = golden[f"{kind}-sample"][clip][name]
                worst[kind] = max(worst[kind], abs(value - expected))
                record[f"{kind} {clip} {name}"] = [round(value, 6), expected]
                print(f"{kind:6}{clip:16}{name:10}{value:12.6f}{expected:12.6f}{value - expected:12.6f}")
    result = {"largest_difference": worst, "allowed": ALLOWED, "[measured, golden]": record}
    write_json(ROOT / "results/benchmarks/evaluation_parity.json", result)
    off = [kind for kind in worst if worst[kind] > ALLOWED[kind]]
    print("largest difference", worst, "OFF" if off else "within what is allowed")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
