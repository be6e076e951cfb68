"""Compares the package (package.py) with the plain way to train (plain.py), side by side on this machine.

    python3 benchmarks/throughput.py [--images DIR] [--device cpu|cuda] [--repeats N] [--json FILE]

For networks with three maps and for `deep`: images/s end to end, the share of the machine's matrix-product peak, the
parts of an epoch, the share of the time for saving, and the time of the whole sweep of Table 1. The package runs as
many training runs at once as a sweep does, each in its process. The plain side runs one, with all threads. The two take
turns. After a warm-up, every number is the median and the range of the repeats. An epoch is a pass over the training
images and the mse on the validation images, on both sides.
"""

import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial

import common
import torch
from common import show, spread
from package import PackageProcess
from plain import PlainProcess
from sides import Side

import Constants
from deepcolor.common.system import available_cores
from deepcolor.sweep.sweep import Sweep
from deepcolor.training.config import TrainingRun, expand_grid
from utils import Utils, format_seconds, format_value

WIDTHS = (Constants.FEATURE_MAPS, Constants.NAMED_FEATURE_MAPS["deep"])
SECONDS = 4  # minimum length of a measurement of epochs
_PARTS = ("loader", "augmentation", "loader_and_augmentation", "step", "validation", "rest")
_BUSY = 0.2  # load average per core above which other programs disturb the measurement


# --- Measuring -------------------------------------------------------------------------------------


def measure_width(
    feature_maps: int | tuple[int, ...], images: common.Prepared, device: torch.device, repeats: int
) -> dict[str, object]:
    """Returns all numbers of networks of one width."""
    base = {"feature_maps": feature_maps, "precision": Utils.get_precision("auto", device)}
    runs = expand_grid(Utils.get_hyperparameters(), base, Constants.NETWORKS, Constants.ACTIVATIONS)
    sweep = Sweep(runs, images.data, images.output, device)
    jobs = sweep.choose_jobs(None, math.inf, runs)
    ours = Side("package", runs[0].config.precision, [partial(PackageProcess, sweep, n) for n in range(jobs)])
    theirs = Side("plain", "fp32", [partial(PlainProcess, feature_maps, images.paths, device)])
    with ours, theirs:
        count = len(images.data.train)
        networks = {name: measure_network(name, ours, theirs, count, repeats) for name in Constants.NETWORKS}
        return {
            "jobs": jobs,
            "threads_per_job": ours.ask("threads")[0],
            "precision": ours.precision,
            "networks": networks,
            "sweep": sweep_seconds(runs, networks, jobs, images.seconds),
        }


def measure_network(network: str, ours: Side, theirs: Side, images: int, repeats: int) -> dict[str, object]:
    """Returns the numbers of one network. `images`: in an epoch of one training run."""
    sides = (ours, theirs)
    epochs = {side: max(1, round(SECONDS / max(side.ask("warm_up", network, SECONDS)))) for side in sides}
    seconds: dict[Side, list[float]] = {side: [] for side in sides}
    parts: dict[Side, list[dict[str, float]]] = {side: [] for side in sides}
    peaks: dict[str, list[float]] = {side.precision: [] for side in sides}
    saving: list[float] = []
    for _ in range(repeats):
        for side in sides:
            seconds[side].append(side.epoch_seconds(epochs[side]))
        for side in sides:
            parts[side].append(side.parts(SECONDS / 8))
        for precision, measured in peaks.items():
            measured.append(sum(ours.ask("peak", precision)))
        saving.append(max(ours.ask("save_seconds")))
    (flops,) = theirs.ask("flops")
    results: dict[str, object] = {}
    for side in sides:
        trained, peak = len(side.connections) * images, peaks[side.precision]
        results[side.name] = {
            "epoch_seconds": spread(seconds[side]),
            "images_per_second": spread([trained / each for each in seconds[side]]),
            "peak_share": spread([flops * trained / each / p for each, p in zip(seconds[side], peak)]),
            "step_peak_share": spread([flops * trained / each["step"] / p for each, p in zip(parts[side], peak)]),
            "parts": _summarize_parts(parts[side], seconds[side]),
        }
    speeds = [results[side.name]["images_per_second"]["values"] for side in sides]
    return {
        **results,
        "ratio": spread([one / other for one, other in zip(*speeds)]),
        "flops_per_image": flops,
        "peak_flops": {precision: spread(measured) for precision, measured in peaks.items()},
        "plain_loader_workers_tried": theirs.ask("loader_workers")[0],
        "finish_seconds": max(ours.ask("finish_seconds")),
        "save_seconds": spread(saving),
        "save_share": spread([each / Constants.SAVE_SECONDS for each in saving]),
    }


def _summarize_parts(parts: list[dict[str, float]], epochs: list[float]) -> dict[str, object]:
    """Returns the seconds and the share of an epoch of each part, of loader and augmentation together, and of the rest.

    The rest is the time of an epoch beyond its parts measured alone. It is negative if they overlap.
    """
    complete = [
        {**each, "loader_and_augmentation": each["loader"] + each["augmentation"], "rest": epoch - sum(each.values())}
        for each, epoch in zip(parts, epochs)
    ]
    return {
        part: {
            "seconds": spread([each[part] for each in complete]),
            "share": spread([each[part] / epoch for each, epoch in zip(complete, epochs)]),
        }
        for part in complete[0]
    }


def sweep_seconds(runs: Sequence[TrainingRun], networks: dict, jobs: int, decoding: float) -> dict[str, object]:
    """Returns the time of all 81 combinations, extrapolated from the measured epochs and evaluations.

    The package trains each training run once and scores it at its snapshots. The plain side trains every combination
    from epoch 0; the time of its scores and pictures is not counted.
    """

    def count(of: Callable[[Sequence[int]], int], network: str) -> int:
        """Returns the sum of a function of the snapshot epochs over the runs of a network."""
        return sum(of(run.snapshot_epochs) for run in runs if run.network == network)

    def total(side: str, of: Callable[[Sequence[int]], int]) -> list[float]:
        """Returns the seconds of all epochs on one side, for each repeat."""
        times = [[count(of, n) * each for each in networks[n][side]["epoch_seconds"]["values"]] for n in networks]
        return [sum(repeat) for repeat in zip(*times)]

    finish = sum(count(len, n) * networks[n]["finish_seconds"] for n in networks) / jobs
    package = [decoding + finish + seconds / jobs for seconds in total("package", max)]
    plain = total("plain", sum)
    return {
        "epochs": {"package": sum(count(max, n) for n in networks), "plain": sum(count(sum, n) for n in networks)},
        "package": {"seconds": spread(package), "of_which_evaluation": finish, "of_which_decoding": decoding},
        "plain": {"seconds": spread(plain), "extrapolated": "measured epochs times the number of epochs"},
        "ratio": spread([other / one for one, other in zip(package, plain)]),
    }


# --- Results ---------------------------------------------------------------------------------------


def comparison(results: dict[str, dict]) -> str:
    """Returns the table of package, plain side and ratio."""
    rows = []
    for width, numbers in results.items():
        for network, each in numbers["networks"].items():
            sides = each["package"], each["plain"]
            cells = {
                "images/s": [show(side["images_per_second"]) for side in sides],
                "share of the peak": [show(side["peak_share"], ".1%") for side in sides],
                "share of the peak, step alone": [show(side["step_peak_share"], ".1%") for side in sides],
                "saving, share of the time": [show(each["save_share"], ".3%"), ""],
            }
            ratios = {"images/s": show(each["ratio"], ".2f")}
            rows += [[f"`{width}` {network}, {what}", *row, ratios.get(what, "")] for what, row in cells.items()]
        sweep = numbers["sweep"]
        times = [format_seconds(sweep[side]["seconds"]["median"]) for side in ("package", "plain")]
        rows.append([f"`{width}` sweep of Table 1, extrapolated", *times, show(sweep["ratio"], ".2f")])
    return common.markdown(["median (range)", "package", "plain", "ratio"], rows)


def anatomy(results: dict[str, dict]) -> str:
    """Returns the table of the parts of an epoch."""
    rows = []
    for width, numbers in results.items():
        for network, each in numbers["networks"].items():
            for side in ("package", "plain"):
                parts = each[side]["parts"]
                milliseconds = {part: 1000 * parts[part]["seconds"]["median"] for part in _PARTS}
                cells = [f"{milliseconds[part]:,.1f} ({parts[part]['share']['median']:.1%})" for part in _PARTS]
                epoch = f"{1000 * each[side]['epoch_seconds']['median']:,.1f}"
                rows.append([f"`{width}` {network}, {side}", epoch, *cells])
    return common.markdown(["ms per epoch (share of it)", "epoch", *(part.replace("_", " ") for part in _PARTS)], rows)


def remarks(results: dict[str, dict], images: common.Prepared) -> str:
    """Returns how the numbers in the tables were obtained."""
    lines = [f"{len(images.paths['train'])} training and {len(images.paths['val'])} validation images."]
    for width, numbers in results.items():
        epochs, peaks = numbers["sweep"]["epochs"], numbers["networks"]["colorizer"]["peak_flops"]
        peak = " and ".join(f"{each['median'] / 1e9:,.0f} in {precision}" for precision, each in peaks.items())
        lines.append(
            f"`{width}`: {numbers['jobs']} training runs at once, {numbers['threads_per_job']} thread(s) each, in "
            f"{numbers['precision']}. Peak of a large matrix product, GFLOP/s: {peak}. Sweep: {epochs['package']:,} "
            f"epochs, scores and pictures of every model, and decoding; plain: {epochs['plain']:,} epochs alone."
        )
    return "\n".join([*lines, f"Saving: a training run saves its state every {Constants.SAVE_SECONDS} s."])


def main() -> None:
    flags = dict(images=None, device="cpu", repeats=5, json=None)
    options = common.parser("throughput.py", "Compares the package with the plain way to train.", **flags).parse_args()
    common.check_json(options.json)
    device = Utils.get_device(options.device)
    load = os.getloadavg()[0]
    if load > _BUSY * available_cores():
        print(f"throughput.py: the machine is busy (load average {load:.1f}): expect a wide range", file=sys.stderr)
    with common.prepared(options.images) as images:
        results = {format_value(width): measure_width(width, images, device, options.repeats) for width in WIDTHS}
        print(common.describe(device), comparison(results), anatomy(results), remarks(results, images), sep="\n\n")
        settings = {"repeats": options.repeats, "seconds": SECONDS, "load_average_before": load}
        settings["images"] = images.describe()
        common.write_json(options.json, {"settings": settings, "results": results}, device)


if __name__ == "__main__":
    sys.exit(common.run("throughput.py", main))
