"""What the pictures of the feature-map study and of a sweep show."""

from pathlib import Path

import pytest
from matplotlib.axes import Axes

import Constants
from deepcolor.reporting import plots


def study_row(network: str, activation: str, maps: int) -> dict:
    mean = maps / 10000
    scores = {"test_mse_mean": mean, "test_mse_min": mean / 2, "test_mse_max": mean * 3, "mean_color_mse": 0.0007}
    return {"network": network, "activation": activation, "feature_maps": maps, "seeds": 2, **scores}


STUDY = [study_row(*task, maps) for task in (("regressor", ""), ("colorizer", "tanh")) for maps in (3, 4, 9)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[Axes]]:
    """The axes of each picture that is written."""
    pictures: list[list[Axes]] = []
    monkeypatch.setattr(plots, "write_atomically", lambda path, write: pictures.append(write.__self__.get_axes()))
    return pictures


def result(lr: float) -> dict:
    settings = {"network": "regressor", "activation": "", "lr": lr, "epoch": 5, "weight_decay": 0}
    return {**settings, "status": "done", "val_mse": lr}


def curves(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    """Label of each line in the legend -> its points."""
    handles, labels = axes.get_legend_handles_labels()
    lines = [handle[0] if isinstance(handle, tuple) else handle for handle in handles]
    return {label: list(zip(*line.get_data())) for label, line in zip(labels, lines)}


def test_the_study_shows_each_network_its_mean_color_and_the_reports_regressor(drawn: list[list[Axes]]) -> None:
    plots.feature_maps_picture(Path("unused"), STUDY)
    regressor, colorizer = drawn[0]
    points = [(maps, pytest.approx(maps / 10000)) for maps in (3, 4, 9)]
    assert curves(regressor)["regressor"] == curves(colorizer)["tanh"] == points
    bars = regressor.containers[0].lines[2][0].get_segments()
    assert bars[2].tolist() == [[9, pytest.approx(0.00045)], [9, pytest.approx(0.0027)]]
    assert curves(regressor)["the report, on its own images"] == [Constants.REPORTED_BEST]
    assert not [label for label in curves(colorizer) if "report" in label]
    for axes in (regressor, colorizer):
        assert [y for _, y in curves(axes)["mean color"]] == [0.0007, 0.0007]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("feature maps per layer", f"Test {plots.MSE_LABEL}")


@pytest.mark.parametrize(("rates", "heat_maps"), [([0.1], 0), ([0.1, 0.2], 1)])
def test_the_summary_of_a_study_shows_it_below_the_combinations(
    drawn: list[list[Axes]], rates: list[float], heat_maps: int
) -> None:
    rows = [result(lr) for lr in rates]
    plots.summary_picture(Path("unused"), rows, {("regressor", ""): rows[0]}, STUDY)
    assert sum(len(axes.images) for axes in drawn[0] if axes.get_xlabel() == "epochs") == heat_maps
    assert sum("the report, on its own images" in curves(axes) for axes in drawn[0]) == 1
