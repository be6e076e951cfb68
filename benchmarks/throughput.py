"""Measures the package against the plain way (plain.py), side by side in one run on this machine.

    python3 benchmarks/throughput.py [--images DIR] [--device cpu|cuda] [--repeats N] [--json FILE]

For three maps and for `deep`: images/s end to end, the time of the whole sweep of Table 1, what an epoch consists
of, peak memory; for `deep` also the share of the machine's matrix-product peak. The package runs as many
training runs at once as it would choose, each in its worker; the plain way one, with all threads. The two take turns,
and after a warm-up every figure is the median, least and greatest of the repeats. An epoch is, on both sides, a pass
over the training images and the mse on the validation images.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import common
import torch
from common import spread
from package import Package
from plain import Plain

import Constants
from deepcolor.common import cli
from deepcolor.common.system import available_cores
from deepcolor.sweep.sweep import Sweep
from deepcolor.training.config import TrainingRun, expand_grid
from utils import Utils, format_seconds, format_value

WIDTHS = (Constants.FEATURE_MAPS, Constants.NAMED_FEATURE_MAPS["deep"])
LOADER_WORKERS = {"cpu": (0, 2), "cuda": (8,)}  # of the plain way; of several, the fastest is taken

_BUSY = 0.2  # load average per core from which on others are noticed


def arguments() -> argparse.Namespace:
    parser = cli.Parser("throughput.py", description="The package against the plain way.")
    add = parser.add_argument
    add("--images", metavar="DIR", type=Path, help="photographs to train on (the built-in ones)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (cpu)")
    add("--repeats", metavar="N", type=common.at_least_one, default=5, help="measurements of each figure (5)")
    add("--seconds", metavar="S", type=common.at_least_one, default=4, help="least length of a measurement (4)")
    add("--json", metavar="FILE", type=Path, help="where to write all figures")
    return parser.parse_args()


def table_1(feature_maps: int | tuple[int, ...], device: torch.device) -> list[TrainingRun]:
    """The whole sweep, as main.py plans it."""
    base = {"feature_maps": feature_maps, "precision": Utils.get_precision("auto", device)}
    return expand_grid(Utils.get_hyperparameters(), base, Constants.NETWORKS, Constants.ACTIVATIONS)


def measure_width(
    feature_maps: int | tuple[int, ...], images: common.Prepared, device: torch.device, options: argparse.Namespace
) -> dict[str, object]:
    """All figures of networks of one width."""
    sweep = Sweep(table_1(feature_maps, device), images.data, images.output, device)
    with Package(sweep) as package, Plain(feature_maps, images.paths, device, LOADER_WORKERS[device.type]) as plain:
        results: dict[str, object] = {
            "jobs": package.at_once,
            "threads_per_job": sweep.threads(sweep.training_runs[0]),
            "precision": sweep.training_runs[0].config.precision,
            "networks": {
                n: measure_network(n, package, plain, len(images.data.train), options) for n in Constants.NETWORKS
            },
        }
    results["sweep"] = sweep_seconds(sweep.training_runs, results, images.seconds)
    return results


def measure_network(
    network: str, package: Package, plain: Plain, count: int, options: argparse.Namespace
) -> dict[str, object]:
    """One network, the two sides taking turns; `count`: training images in an epoch of one training run."""
    sides = (package, plain)
    epochs = {side.name: max(1, round(options.seconds / side.warm_up(network, options.seconds))) for side in sides}
    # Before the parts are measured: that takes memory and loader workers of its own.
    memory = {side.name: _memory(side.memory()) for side in sides}
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    parts: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
    peaks: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(options.repeats):
        for side in sides:
            seconds[side.name].append(side.epoch_seconds(network, epochs[side.name]))
        for side in sides:
            parts[side.name].append(side.parts(network, options.seconds / 8))
        for precision, measured in peaks.items():
            measured.append(package.peak(precision))
    flops = plain.flops(network)
    results: dict[str, object] = {"flops_per_image": flops, "memory": memory}
    results["plain_loader_workers_tried"] = plain.workers(network)
    for side in sides:
        speeds = [side.at_once * count / each for each in seconds[side.name]]
        results[side.name] = {
            "epoch_seconds": spread(seconds[side.name]),
            "images_per_second": spread(speeds),
            "flops": spread([flops * speed for speed in speeds]),
            "parts": _parts(parts[side.name], seconds[side.name]),
        }
    results["ratio"] = spread(
        [p / q / plain.at_once * package.at_once for p, q in zip(seconds["plain"], seconds["package"])]
    )
    results["step_flops"] = spread([package.at_once * count * flops / each["step"] for each in parts["package"]])
    results["peak_flops"] = {precision: spread(measured) for precision, measured in peaks.items()}
    results["finish_seconds"] = package.finish_seconds(network)
    return results


def _parts(parts: list[dict[str, float]], epochs: list[float]) -> dict[str, object]:
    """Seconds per epoch and share of the epoch of each part, of loader and augmentation together, and of the rest.

    The rest is what an epoch takes beyond its parts measured alone; less than nothing where they overlap.
    """
    parts = [
        {**each, "loader_and_augmentation": each["loader"] + each["augmentation"], "rest": epoch - sum(each.values())}
        for each, epoch in zip(parts, epochs)
    ]
    return {
        part: {
            "seconds": spread([each[part] for each in parts]),
            "share": spread([each[part] / epoch for each, epoch in zip(parts, epochs)]),
        }
        for part in parts[0]
    }


def _memory(processes: list[dict[str, int]]) -> dict[str, int]:
    """Peak bytes, summed over the processes, and of the largest; pages that they share are counted in each."""
    return {
        "processes": len(processes),
        "rss_sum": sum(process["rss"] for process in processes),
        "rss_max": max(process["rss"] for process in processes),
        "gpu_sum": sum(process["gpu"] for process in processes),
    }


def sweep_seconds(training_runs: Sequence[TrainingRun], results: dict, decoding: float) -> dict[str, object]:
    """The time of all 81 combinations: measured epochs and evaluations times how many there are of each.

    The package trains each training run once and scores it at its snapshots; the plain way trains every combination
    from epoch 0, and in its favor its scores and pictures are not counted.
    """
    networks, jobs = results["networks"], results["jobs"]
    snapshot_epochs = {n: sum(len(t.snapshot_epochs) for t in training_runs if t.network == n) for n in networks}
    shared = {n: sum(t.snapshot_epochs[-1] for t in training_runs if t.network == n) for n in networks}
    apart = {n: sum(sum(t.snapshot_epochs) for t in training_runs if t.network == n) for n in networks}
    finish = sum(snapshot_epochs[n] * networks[n]["finish_seconds"] for n in networks) / jobs

    def total(side: str, epochs: dict[str, int]) -> list[float]:
        times = {n: networks[n][side]["epoch_seconds"]["values"] for n in networks}
        return [
            sum(epochs[n] * each[n] for n in networks)
            for each in (dict(zip(times, row)) for row in zip(*times.values()))
        ]

    package = [decoding + finish + seconds / jobs for seconds in total("package", shared)]
    plain = total("plain", apart)
    return {
        "epochs": {"package": sum(shared.values()), "plain": sum(apart.values())},
        "package": {"seconds": spread(package), "of_which_evaluation": finish, "of_which_decoding": decoding},
        "plain": {"seconds": spread(plain), "extrapolated": "epochs measured, times the number of epochs"},
        "ratio": spread([q / p for p, q in zip(package, plain)]),
    }


def comparison(results: dict[str, dict]) -> str:
    """The table of package, plain way and ratio."""
    rows = []
    for width, figures in results.items():
        for network, each in figures["networks"].items():
            speeds = [common.show(each[side]["images_per_second"]) for side in ("package", "plain")]
            rows.append([f"`{width}` {network}, images/s", *speeds, common.show(each["ratio"], ".2f")])
    for width, figures in results.items():
        sweep = figures["sweep"]
        times = [format_seconds(sweep[side]["seconds"]["median"]) for side in ("package", "plain")]
        rows.append([f"`{width}` sweep of Table 1", times[0], f"{times[1]} *", common.show(sweep["ratio"], ".2f")])
    for width, figures in results.items():
        for network, each in figures["networks"].items():
            shares = [_share(each[side]["parts"]["loader_and_augmentation"]) for side in ("package", "plain")]
            rows.append([f"`{width}` {network}, loader and augmentation, share of an epoch", *shares, ""])
    for width, figures in results.items():
        for key, what in (("rss_max", "largest process"), ("rss_sum", "all processes")):
            peaks = [figures["networks"]["colorizer"]["memory"][side][key] for side in ("package", "plain")]
            rows.append(
                [f"`{width}` colorizer, peak memory, {what}, MB", *(f"{peak / 1e6:,.0f}" for peak in peaks), ""]
            )
    rows += _shares_of_peak(results["deep"])
    return common.markdown(["median (least to greatest)", "package", "plain", "ratio"], rows)


def _share(part: dict) -> str:
    return f"{100 * part['share']['median']:.1f} %"


def _shares_of_peak(figures: dict) -> list[list[str]]:
    """What `deep` makes of the machine: GFLOP/s, end to end and in the step alone, and their share of the peak."""
    precision, each = figures["precision"], figures["networks"]["colorizer"]
    peaks = {name: peak["median"] for name, peak in each["peak_flops"].items()}

    def of_peak(flops: dict, precision: str) -> str:
        return f"{flops['median'] / 1e9:,.0f} ({100 * flops['median'] / peaks[precision]:.0f} %)"

    end_to_end = [of_peak(each["package"]["flops"], precision), of_peak(each["plain"]["flops"], "fp32")]
    return [
        ["`deep` colorizer, GFLOP/s (share of the peak)", *end_to_end, ""],
        ["`deep` colorizer, GFLOP/s in the step alone", of_peak(each["step_flops"], precision), "", ""],
    ]


def anatomy(results: dict[str, dict]) -> str:
    """The table of what an epoch consists of."""
    parts = ("loader", "augmentation", "step", "validation", "rest")
    rows = []
    for width, figures in results.items():
        for network, each in figures["networks"].items():
            for side in ("package", "plain"):
                seconds = each[side]["parts"]
                cells = [f"{1000 * seconds[p]['seconds']['median']:,.1f} ({_share(seconds[p])})" for p in parts]
                epoch = f"{1000 * each[side]['epoch_seconds']['median']:,.1f}"
                rows.append([f"`{width}` {network}, {side}", epoch, *cells])
    return common.markdown(["ms per epoch (share of it)", "epoch", *parts], rows)


def remarks(results: dict[str, dict], images: common.Prepared) -> str:
    """What one has to know to read the tables."""
    counts = {subset: len(paths) for subset, paths in images.paths.items()}
    jobs = "; ".join(
        f"{width}: {f['jobs']} at once, {f['threads_per_job']} thread(s) each, {f['precision']}"
        for width, f in results.items()
    )
    lines = [f"{counts['train']} training and {counts['val']} validation images. Package: {jobs}."]
    for width, figures in results.items():
        for network, each in figures["networks"].items():
            tried = each["plain_loader_workers_tried"]
            if len(tried) > 1:
                best = min(tried, key=tried.__getitem__)
                times = ", ".join(f"{seconds:.2f} s with {workers}" for workers, seconds in tried.items())
                lines.append(f"Plain, {width} {network}: {best} loader workers, the fastest ({times}).")
    epochs = results["deep"]["sweep"]["epochs"]
    lines.append(
        f"* extrapolated: measured epochs times {epochs['plain']:,}, without its scores and pictures. The package's: "
        f"measured epochs times {epochs['package']:,}, measured scores and pictures of every model, and decoding."
    )
    colorizer = results["deep"]["networks"]["colorizer"]
    peaks = {name: peak["median"] / 1e9 for name, peak in colorizer["peak_flops"].items()}
    lines.append(
        f"Peak of a large matrix product, GFLOP/s: {peaks['fp32']:,.0f} in fp32, which is the plain way's, and "
        f"{peaks['bf16']:,.0f} in bf16."
    )
    lines.append("Memory: resident pages at their peak; pages that processes share are counted in each.")
    return "\n".join(lines)


def main() -> None:
    options = arguments()
    common.check_json(options.json)
    device = Utils.get_device(options.device)
    load = os.getloadavg()[0]
    if load > _BUSY * available_cores():
        print(f"throughput.py: the machine is busy (load average {load:.1f}): expect a wide spread", file=sys.stderr)
    with common.prepared(options.images) as images:
        results = {format_value(width): measure_width(width, images, device, options) for width in WIDTHS}
        print(f"{common.describe(device)}\n\n{comparison(results)}\n\n{anatomy(results)}\n\n{remarks(results, images)}")
        settings = {"repeats": options.repeats, "seconds": options.seconds, "load_average_before": load}
        settings["images"] = images.describe()
        common.write_json(options.json, {"settings": settings, "results": results}, device)


if __name__ == "__main__":
    sys.exit(common.run("throughput.py", main))
