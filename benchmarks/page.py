"""The tables of benchmarks/README.md, taken from results/benchmarks/*.json.

python benchmarks/page.py        puts them between the page's markers; a test fails where page and results disagree
"""

from functools import reduce
from pathlib import Path

import pandas as pd

from tcore_lib import files

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "benchmarks"
HOURS = "vit_small/hours_of_the_k400_row_at_that_rate"
CLIP, ONE = "one clip, cpu/engine {}/speed_up/{}", "one clip, cuda/engine {}/speed_up/{}"
# Table -> rows: what, file, path of the figure in it, how it is written, what is asked for.
TABLES = {
    "measured": [
        ("views: CPU work in the worker, released loader / ours", "views", "ratios/a_over_d_cpu", "{} times", "20"),
        ("views on one core: samples/s, ours / released loader", "views", "ratios/c_over_a_samples_per_second", "{} times", "2.5"),
        ("a step of ViT-S with full heads, plain way / ours", "step-cpu", "speed_up", "{} times", "1.5"),
        ("one clip evaluated, fp32, brute force / ours", "propagation", CLIP.format("fp32", "end_to_end_wall"), "{} times", "2.5"),
        ("the same without the encoder", "propagation", CLIP.format("fp32", "without_encoder_wall"), "{} times", "5"),
        ("the same in bf16, end to end", "propagation", CLIP.format("bf16", "end_to_end_wall"), "{} times", ""),
        ("two ranks against twice one, two cores", "scaling", "efficiency_of_two", "{:.0%}", ""),
        ("the default rendered sets, one core", "scenes", "default_sets/all", "{} s", "60 s"),
        ("explorer: pick to picture, 8 frames of 30x55, two encoders", "explorer", "cases/1/median_ms", "{} ms", "100 ms"),
        ("scores on real clips: largest difference to the original's, DAVIS (a fraction)", "evaluation_parity",
         "largest_difference/davis", "{:.0e}", "1e-4"),
    ],
    "gpu": [
        *((f"a step, {name}, plain way / ours", "h200/step", f"{arch}/speed_up", "{} times", "1.5")
          for arch, name in (("vit_small", "ViT-S/16"), ("vit_base", "ViT-B/16"))),
        ("a step, ViT-S/16, batch 256", "h200/step", "vit_small/samples_per_second/ours", "{:,.0f} samples/s", ""),
        ("training from JPEG frames, ViT-S/16", "h200/end_to_end", "vit_small/samples_per_second", "{:,.0f} samples/s", "1,200"),
        ("the K400 row (400 epochs) at that rate", "h200/end_to_end", HOURS, "{:.0f} h", ""),
        ("a clip evaluated, brute force / ours", "h200/propagation", ONE.format("fp32", "end_to_end_wall"), "{} times", "2.5"),
        ("30 clips, 1,999 frames, 480x880, fp32", "h200/propagation", "set of DAVIS size, cuda/fp32/seconds", "{} s", "60 s"),
    ],
}  # fmt: skip


def table(name: str) -> str:
    """One table as markdown."""
    rows = []
    for what, file, path, form, asked in TABLES[name]:
        step = lambda found, key: found[int(key)] if isinstance(found, list) else found[key]  # noqa: E731
        figure = reduce(step, path.split("/"), files.read_json(RESULTS / f"{file}.json"))
        rows.append({"what": what, "measured": form.format(figure), "asked": asked, "file": f"{file}.json"})
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def filled(text: str) -> str:
    """A page with its tables computed anew."""
    for name in TABLES:
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{table(name)}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    page = ROOT / "benchmarks" / "README.md"
    files.write_text(page, filled(page.read_text(encoding="utf-8")))
