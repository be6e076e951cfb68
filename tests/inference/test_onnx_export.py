"""colorize.py --export: the ONNX file computes what PyTorch computes."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from helpers import ROOT, files_below, picture, without_privileges, write
from PIL import Image
from torch import Tensor, nn

import Constants
from colorize import load
from deepcolor.common.color import srgb_to_lightness
from deepcolor.inference import onnx_export
from deepcolor.inference.predictor import Predictor

Run = Callable[..., object]
needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in onnx_export.PACKAGES),
    reason="needs onnx and onnxruntime (requirements-extra.txt)",
)


@needs_onnx
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_the_file_computes_what_pytorch_computes(
    run_colorize: Run, sweep: Path, tmp_path: Path, activation: str
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    (checkpoint,) = (sweep / f"checkpoints/colorizer_{activation}").glob("epoch_3_*.pt")
    path = tmp_path / "new" / "model.onnx"
    for _ in range(2):  # the second time, the file exists
        result = run_colorize("--export", path, "--checkpoint", checkpoint)
        assert (result.code, result.lines) == (0, [])
    assert str(path) in result.out
    session = onnxruntime.InferenceSession(path)
    described = session.get_modelmeta().custom_metadata_map
    assert "L* in 0..100" in described["input"] and "Lab units" in described["output"]
    predictor = load(checkpoint)
    for batch in (1, 5):
        lightness = np.random.default_rng(batch).random((batch, 128, 128)).astype(np.float32)
        (ab,) = session.run(["ab"], {"L": lightness[:, None] * 100})
        assert np.abs(ab - predictor.predict(lightness)).max() < 0.01
        assert np.abs(ab).max() > 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.onnx"]


class Other(nn.Module):
    """Another architecture: skip connections, pooling and interpolation, and a size that depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.Conv2d(9, 2, 1)

    def forward(self, lightness: Tensor) -> Tensor:
        small = nn.functional.hardswish(self.norm(self.down(lightness)))
        large = nn.functional.interpolate(small, size=lightness.shape[-2:], mode="bilinear")
        return torch.tanh(self.up(torch.cat([large, lightness.expand(-1, 1, -1, -1)], dim=1)))


@needs_onnx
def test_any_architecture_is_exported(tmp_path: Path) -> None:
    predictor = Predictor(Other().eval(), torch.device("cpu"), (0, 128), Path("other.pt"), "other")
    assert onnx_export.export(predictor, tmp_path / "other.onnx") < 0.01


@needs_onnx
def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(Other().eval(), torch.device("cpu"), (0, 128), Path("other.pt"), "other")
    monkeypatch.setattr(onnx_export, "LARGEST_DIFFERENCE", 0.0)
    with pytest.raises(onnx_export.UserError, match="differs from PyTorch"):
        onnx_export.export(predictor, tmp_path / "other.onnx")
    assert list(tmp_path.iterdir()) == []


@needs_onnx
def test_a_file_that_cannot_be_written(run_colorize: Run, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    (tmp_path / "file").write_text("mine")
    before = files_below(tmp_path)
    with without_privileges():
        for name, word in {
            "closed/model.onnx": "ermission",
            "file/model.onnx": "file",
            "closed": ".onnx",
            "model.txt": ".onnx",
            "closed/model.pt": "ermission",
            "file/model.pt": "file",
        }.items():
            result = run_colorize("--export", tmp_path / name)
            (line,) = result.lines
            assert result.code == 2 and "--export" in line and word in line
    assert files_below(tmp_path) == before


def test_without_the_packages_one_line_names_them(
    run_colorize: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "PACKAGES", ("a_missing_package",))
    (line,) = run_colorize("--export", tmp_path / "model.onnx").lines
    assert "pip install a_missing_package" in line


def test_an_export_takes_no_photographs(run_colorize: Run, tmp_path: Path) -> None:
    result = run_colorize("a.jpg", "--export", tmp_path / "model.onnx")
    assert result.code == 2 and "not both" in result.lines[0]


@needs_onnx
def test_the_example_without_pytorch(run_colorize: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its colors are those that PyTorch predicts for the same 128x128 pixels."""
    gray = np.clip(picture(4).mean(axis=2), 80, 170).astype(np.uint8)  # where no color leaves sRGB
    write(tmp_path / "grandma.jpg", np.stack([gray] * 3, axis=-1), quality=100)
    assert run_colorize("--export", tmp_path / "model.onnx", "--checkpoint", Constants.PRETRAINED).code == 0
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/colorize.md").read_text().partition("## ONNX")[2]
    exec(re.search(r"```python\n(.*?)```", page, re.S)[1], {})
    found = oracles.lab(np.asarray(Image.open(tmp_path / "grandma_color.png")))[..., 1:]
    expected = load(Constants.PRETRAINED).for_clips().predict(srgb_to_lightness(gray))
    assert np.abs(found.mean(axis=(0, 1)) - expected.mean(axis=(1, 2))).max() < 1
    assert np.abs(expected).max() > 3
