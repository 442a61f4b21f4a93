"""Does the evaluation give the original's figures? Real samples, weightless encoder, measured beside golden.

    python benchmarks/evaluation_parity.py [--shared FOLDER] [--clips car-shadow libby]

Golden: the original implementation's results in `shared/golden/evaluation.json` (six DAVIS clips: J and F mean, recall,
decay; one JHMDB clip: PCK at five thresholds), with each patch's own 768 normalised pixels as its feature. Data and
algorithm alone decide. Allowed: 1e-4 on J and F (fractions), 0.01 on PCK (percent). Ends with exit code 1 if any figure is
off. About 4 minutes on two free cores. Results go to results/benchmarks/evaluation_parity.json.
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


def davis_figures(data: Path, names: list[str] | None) -> dict[str, dict[str, float]]:
    settings = params.Davis(clips=names, save_predictions=False)
    table = evaluate(load_encoder("pixels"), load_clips(settings, data / "davis-sample"), settings)
    return {
        row["clip"]: {f"{m}-{s.capitalize()}": row[f"{m}_{s}"] for m in "JF" for s in ("mean", "recall", "decay")}
        for row in table.to_dict("records")
    }


def jhmdb_figures(data: Path) -> dict[str, dict[str, float]]:
    settings = params.Jhmdb(save_predictions=False)
    clips = load_clips(settings, data / "jhmdb-sample")
    scores = summarise(evaluate(load_encoder("pixels"), clips, settings), "jhmdb")
    return {"PCK": dict(zip(scores["score"], scores["value"], strict=True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder with data/ and golden/")
    parser.add_argument("--clips", nargs="+", help="DAVIS clips; default: all six")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmarks" / "evaluation_parity.json")
    args = parser.parse_args()
    golden = read_json(args.shared / "golden" / "evaluation.json")
    measured = {
        "jhmdb": jhmdb_figures(args.shared / "data"),
        "davis": davis_figures(args.shared / "data", args.clips),
    }
    record, worst = {}, {"davis": 0.0, "jhmdb": 0.0}
    for kind, clips in measured.items():
        for clip, figures in clips.items():
            for name, value in figures.items():
                expected = golden[f"{kind}-sample"][clip][name]
                worst[kind] = max(worst[kind], abs(value - expected))
                record[f"{kind} {clip} {name}"] = [round(value, 6), expected]
                print(f"{kind:6}{clip:16}{name:10}{value:12.6f}{expected:12.6f}{value - expected:12.6f}")
    write_json(args.output, {"largest_difference": worst, "allowed": ALLOWED, "[measured, golden]": record})
    off = [kind for kind in worst if worst[kind] > ALLOWED[kind]]
    print("largest difference", worst, "OFF" if off else "within what is allowed")
    sys.exit(bool(off))


if __name__ == "__main__":
    main()
