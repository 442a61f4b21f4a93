"""The tables of benchmarks/README.md, computed from results/benchmarks/*.json and the model in scaling.py.

python benchmarks/page.py        puts them between the page's markers; a test fails where page and results disagree
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaling import ASSUMED, project
from tabulate import tabulate

from tcore_lib import files, params

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "benchmarks"
ENCODERS = {"vit_small": "ViT-S/16", "vit_base": "ViT-B/16"}
NAMES = {
    "k400_vits16_400ep": "K400, ViT-S/16, 400 epochs",
    "k400_vitb16_200ep": "K400, ViT-B/16, 200 epochs",
    "imagenet_vits16_100ep": "ImageNet, ViT-S/16, 100 epochs",
}


def table_of(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; cells are shown as they are."""
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def result(name: str) -> dict[str, Any]:
    """One result file."""
    return files.read_json(RESULTS / f"{name}.json")


def machine(found: dict[str, Any]) -> str:
    """Processor and cores of a result, whichever of the two forms it has."""
    origin = found.get("provenance") or found.get("machine") or {}
    processor = origin.get("processor") or origin.get("cpu") or "?"
    return f"{processor}, {origin.get('cores', '?')} cores"


def measured_table() -> str:
    """What was reached, beside what the issue asks for."""
    views, step, evaluation = result("views"), result("step-cpu"), result("propagation")
    clip, long = evaluation["one clip, cpu"], evaluation["long clip, cpu"]
    ratios = views["ratios"]
    rows = [
        ["views: CPU work in the worker, GPU doing the rest", f"{ratios['a_over_d_cpu']} times less than the released loader",
         "20", "views", machine(views)],
        ["views: everything on one CPU core", f"{ratios['c_over_a_samples_per_second']} times its samples/s", "2.5", "views",
         machine(views)],
        [f"step: {step['what']}", f"{step['speed_up']} times the plain way", "1.5", "step-cpu", machine(step)],
    ]  # fmt: skip
    if "speed_up_in_bf16" in step:
        rows.append(["the same in bf16, the plain way in float32", f"{step['speed_up_in_bf16']} times", "", "step-cpu",
                     machine(step)])  # fmt: skip
    for precision, targets in (("fp32", ("2.5", "5")), ("bf16", ("6", ""))):
        way = clip.get(f"engine {precision}")
        if way is not None:
            quick, rest = way["speed_up"]["end_to_end_wall"], way["speed_up"]["without_encoder_wall"]
            points = f"J&F differs by {abs(way['J&F_difference_points']):.2f} points"
            where = machine(clip)
            rows.append([f"evaluation of one clip, {precision}, end to end", f"{quick} times brute force; {points}",
                         targets[0], "propagation", where])  # fmt: skip
            rows.append([f"evaluation of one clip, {precision}, without the encoder", f"{rest} times brute force",
                         targets[1], "propagation", where])  # fmt: skip
    memory = {name: found["peak_memory_gb"] for name, found in long.items() if name.isdigit()}
    shown = " and ".join(f"{memory[name]:.2f} GB of {int(name):,} frames" for name in sorted(memory, key=int))
    rows.append(["peak memory of the evaluation of a long clip, 480x880, encoder of one block", shown, "24 GB",
                 "propagation", machine(long)])  # fmt: skip
    return table_of(["what", "measured", "asked", "results/benchmarks/", "machine"], rows)


def gpu_table() -> str:
    """What one GPU reached, beside what the issue asks for."""
    steps, whole, clips = (result(f"h200/{name}") for name in ("step", "end_to_end", "propagation"))
    rows = []
    for arch, name in ENCODERS.items():
        step = steps[arch]
        rate = step["samples_per_second"]
        share = (
            f"{100 * step['share_of_measured_matrix_rate']:.0f} % of {step['measured_matrix_rate_tflops']:.0f} TFLOP/s"
        )
        rows += [
            [f"step, {name}, batch {step['what'].split('batch ')[1].split(',')[0]}",
             f"{rate['ours']:,.0f} samples/s, {step['speed_up']} times the plain way ({rate['plain']:,.0f}); "
             f"{rate['ours, not compiled']:,.0f} without compile", "1.5 times", "step"],
            ["the same, share of the bf16 matrix rate measured beside it", share, "40 %", "step"],
        ]  # fmt: skip
    for arch, name in ENCODERS.items():
        if arch in whole:
            rate = whole[arch]["samples_per_second"]
            rows.append([f"training from JPEG frames, loader included, {name}", f"{rate:,.0f} samples/s",
                         "1,200" if arch == "vit_small" else "", "end_to_end"])  # fmt: skip
    clip, many = clips["one clip, cuda"], clips["set of DAVIS size, cuda"]
    for precision, target in (("fp32", "2.5 and 5"), ("bf16", "6")):
        way = clip[f"engine {precision}"]
        quick, rest = way["speed_up"]["end_to_end_wall"], way["speed_up"]["without_encoder_wall"]
        points = abs(way["J&F_difference_points"])
        rows.append([f"evaluation of one clip, {precision}, both ways on the GPU",
                     f"{quick} times brute force, {rest} without the encoder; {way['pixels']['different']:,} pixels and "
                     f"{points:.2f} points differ", target, "propagation"])  # fmt: skip
    for precision in ("fp32", "bf16"):
        rows.append([f"{many['clips']} clips, {many['frames']:,} frames, 480x880, ViT-S/16, {precision}",
                     f"{many[precision]['seconds']} s", "60 s", "propagation"])  # fmt: skip
    table = table_of(["what", "measured", "asked", "results/benchmarks/h200/"], rows)
    origin = steps["provenance"]
    return f"{table}\n\n{origin['device']}, {origin['cores']} cores, torch {origin['versions']['torch']}."


def parts_table() -> str:
    """Where the time of a step goes, on the CPU and on the GPU."""
    columns = []
    for step in (result("step-cpu"), result("h200/step")["vit_small"]):
        parts = step["seconds_per_part"]
        whole = sum(parts.values())
        columns.append({name: (value, f"{100 * value / whole:.0f} %") for name, value in parts.items()})
    cpu, gpu = columns
    names = sorted(cpu | gpu, key=lambda name: -max(column.get(name, (0.0,))[0] / sum(v for v, _ in column.values())
                                                    for column in columns))  # fmt: skip
    rows = [
        [name, f"{cpu[name][0]:.3f}" if name in cpu else "", cpu[name][1] if name in cpu else "",
         f"{1e3 * gpu[name][0]:.1f}" if name in gpu else "", gpu[name][1] if name in gpu else ""]
        for name in names
    ]  # fmt: skip
    head = ["part", "CPU, batch 8, float32: seconds", "share", "H200, batch 256, bf16, compiled: ms", "share"]
    return table_of(head, rows)


def ranks_table() -> str:
    """One and two ranks on this machine."""
    found = result("scaling")
    rows = [
        [row["ranks"], f"{1e3 * row['seconds_per_step']:.0f} ms", f"{row['samples_per_second']:.1f}",
         f"{1e3 * row['seconds_of_exchange']:.1f} ms" if "seconds_of_exchange" in row else ""]
        for row in found["ranks"]
    ]  # fmt: skip
    table = table_of(
        ["ranks", "step", "samples/s", f"exchange of {found['ranks'][0]['gradient_bytes'] / 1e6:.1f} MB"], rows
    )
    efficiency = f"{100 * found['efficiency_of_two']:.0f} %"
    return f"{table}\n\n{found['what']}; {machine(found)}. Two ranks do {efficiency} of twice the work of one."


def assumed() -> dict[str, Any]:
    """The model's inputs, with the rate of ViT-S's step as it was measured."""
    return ASSUMED | {"utilisation": result("h200/step")["vit_small"]["share_of_nominal_matrix_rate"]}


def projected_table() -> str:
    """The recipe's batch, and 256 samples per GPU, on 1 to 512 GPUs."""
    found = result("scaling")["rows"]["k400_vits16_400ep"]
    rows = []
    for gpus in (1, 8, 64, 512):
        for label, samples in (("256 in all", 256), ("256 per GPU", 256 * gpus)):
            if gpus == 1 and label != "256 in all":
                continue
            if samples < 2 * gpus:
                rows.append([gpus, label, "", "", "not possible: KoLeo needs two samples per rank", ""])
                continue
            got = project(gpus, samples, found["flops_per_sample"], found["gradient_bytes"], assumed())
            shown = f"{got.best:,.0f} to {got.worst:,.0f}" if gpus > 1 else f"{got.best:,.0f}"
            hours = f"{found['samples'] / got.best / 3600:.2g} to {found['samples'] / got.worst / 3600:.2g}"
            hours = hours if gpus > 1 else hours.split(" ")[0]
            rows.append([gpus, label, f"{1e3 * got.compute:.1f} ms", f"{1e3 * got.exchange:.1f} ms", shown, hours])
    head = [
        "GPUs",
        "samples per step",
        "compute",
        "exchange",
        "samples/s (all hidden to nothing hidden)",
        "hours of 400 epochs",
    ]
    return table_of(head, rows)


def cost_table() -> str:
    """The paper's three rows on one GPU, at the measured rates, and on this machine's CPU."""
    found, step, whole = result("scaling")["rows"], result("step-cpu"), result("h200/end_to_end")
    cpu_rate = step["samples_per_second"]["ours"]
    small = found["k400_vits16_400ep"]["flops_per_sample"]
    steps = result("h200/step")
    rows = []
    for name, row in found.items():
        settings = params.load(name).pretrain
        arch = settings.encoder.arch
        rate, how = steps[arch]["samples_per_second"]["ours"], "step alone"
        if arch in whole:
            rate, how = whole[arch]["samples_per_second"], "loader included"
        seconds = row["samples"] / rate
        years = row["samples"] / (cpu_rate * small / row["flops_per_sample"]) / 86400 / 365
        rows.append([
            NAMES[name], f"{row['samples'] / 1e6:.1f} million", settings.loop.batch_size,
            f"{row['flops_per_sample'] / 1e12:.3f}", f"{rate:,.0f} ({how})", f"{seconds / 3600:.0f} h",
            f"{ASSUMED['dollars_per_gpu_hour'] * seconds / 3600:,.0f}", f"{years:.1f} years",
        ])  # fmt: skip
    head = [
        "row",
        "samples",
        "batch",
        "TFLOP per sample",
        "samples/s on one H200",
        "at that rate",
        "dollars",
        "these CPU cores, projected",
    ]
    return table_of(head, rows)


def loading_table() -> str:
    """What the loaders have to deliver at the projected rate."""
    views = result("views")["figures"]["d_ours_worker_for_gpu"]
    row = result("scaling")["rows"]["k400_vits16_400ep"]
    inputs = assumed()
    rate = inputs["peak_flops"] * inputs["utilisation"] / row["flops_per_sample"]
    bytes_ = 3 * ASSUMED["jpeg_bytes_per_frame"]
    rows = [
        [gpus, f"{gpus * rate:,.0f}", f"{gpus * rate * views['cpu_ms_per_sample'] / 1e3:,.0f}",
         f"{gpus * rate * bytes_ / 1e9:,.2f}"]
        for gpus in (1, 8, 64, 512)
    ]  # fmt: skip
    return table_of(["GPUs", "samples/s", "cores that decode", "GB/s read"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "measured": measured_table,
    "gpu": gpu_table,
    "parts": parts_table,
    "ranks": ranks_table,
    "projected": projected_table,
    "cost": cost_table,
    "loading": loading_table,
}


def filled(text: str) -> str:
    """A page with its tables computed anew."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.S)
        if not pattern.search(text):
            raise SystemExit(f"the page has no place for {name}: {begin} ... {end}")
        text = pattern.sub(lambda _, t=table, b=begin, e=end: f"{b}\n{t()}\n{e}", text)
    return text


def main() -> None:
    path = ROOT / "benchmarks" / "README.md"
    files.write_text(path, filled(path.read_text()))
    print(path)


if __name__ == "__main__":
    main()
