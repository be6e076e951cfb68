"""app.py through its API: pictures, several people at once, bad input, and what can be read through it."""

import json
import os
import shutil
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import picture, write
from PIL import Image

import app
import colorize
from deepcolor.page import sweep_table
from deepcolor.page.photographs import networks
from deepcolor.training.checkpoint import find_models
from deepcolor.training.paths import RunPaths

BEST = "best of the sweep"


@pytest.fixture
def fails(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs app.py in this process, which must end with exit code 2 and one line; returns the line."""

    def call(*arguments: object) -> str:
        try:
            code = app.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code
        assert code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("app.py: ")
        return line

    return call


# --- The program -------------------------------------------------------------------------------------


def test_a_page_that_cannot_be_started(
    fails: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "find_spec", lambda name: True)
    assert "--output" in fails("--output", tmp_path / "missing")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        line = fails("--output", tmp_path, "--port", port)
        assert str(port) in line and "--port" in line
    assert "--port" in fails("--output", tmp_path, "--port", 70000)
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    assert "requirements-extra.txt" in fails("--output", tmp_path)


def test_the_networks(sweep: Path, tmp_path: Path) -> None:
    models, _ = find_models(RunPaths(sweep))
    pretrained = tmp_path / "photos.pt"
    found = networks(sweep, pretrained, models)
    assert next(iter(found)) == BEST
    assert len(found) == 5
    assert all(path.is_file() for path in found.values())
    pretrained.touch()
    assert next(iter(networks(sweep, pretrained, models).values())) == pretrained
    assert networks(tmp_path, tmp_path / "none.pt", []) == {}


def test_the_table_of_runs_follows_the_sweep(sweep: Path, tmp_path: Path) -> None:
    table = sweep_table.SweepTable(tmp_path)
    assert table.table()[1] == []
    shutil.copytree(sweep, tmp_path, dirs_exist_ok=True)
    headers, rows = table.table()
    assert len(rows) == 6
    errors = [row[headers.index("val mse")] for row in rows if row[headers.index("network")] == "colorizer"]
    assert errors == sorted(errors) and len(errors) == 4
    for row in rows:
        triplets, loss, settings = table.details(row[-1])
        assert (triplets is None) == (row[headers.index("network")] == "regressor")
        assert min(loss.size) > 100
        assert ["lr", "0.003"] in settings
    (tmp_path / rows[0][-1]).unlink()
    assert len(table.table()[1]) == 5
    assert table.details("../../etc/passwd") == (None, None, [])
    json.dumps(rows)


def test_pictures_outside_of_the_output_folder_are_not_shown(sweep: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(sweep, output)
    write(tmp_path / "secret.png", picture(1))
    table = sweep_table.SweepTable(output)
    checkpoint = table.table()[1][0][-1]
    for path in (output / "Plots/Colorizer").glob("*.png"):
        path.unlink()
        path.symlink_to(tmp_path / "secret.png")
    assert table.details(checkpoint)[:2] == (None, None)


# --- The API -----------------------------------------------------------------------------------------


def colored(page: str, photos: list[Path], network: str = BEST, saturation: float = 1.0) -> list[Path]:
    """Colors photographs through the page. Returns the files to download."""
    client = pytest.importorskip("gradio_client").Client(page, verbose=False)
    upload = [{"image": pytest.importorskip("gradio_client").handle_file(photo), "caption": None} for photo in photos]
    compared, _, files = client.predict(upload, network, saturation, api_name="/colorize")
    assert len(compared) == 2
    return list(map(Path, files))


def expected(photo: Path, sweep: Path, folder: Path) -> bytes:
    """Returns what colorize.py writes."""
    assert colorize.main([str(photo), "--output", str(folder), "--checkpoint", str(sweep)]) == 0
    return (folder / f"{photo.stem}_color.png").read_bytes()


@pytest.mark.slow
def test_ten_people_at_once_get_their_own_pictures(page: str, sweep: Path, tmp_path: Path) -> None:
    photos = [write(tmp_path / str(number) / "same.png", picture(number, 60, 80)) for number in range(10)]
    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(lambda photo: colored(page, [photo]), photos))
    for photo, (found,) in zip(photos, results):
        assert found.name == "same_color.png"
        assert found.read_bytes() == expected(photo, sweep, photo.parent / "out")


@pytest.mark.slow
def test_several_photographs_and_the_smallest(page: str, sweep: Path, tmp_path: Path) -> None:
    photos = [write(tmp_path / "dot.png", picture(1, 1, 1)), write(tmp_path / "b.jpg", picture(2, 300, 200))]
    found = colored(page, photos)
    assert [path.read_bytes() for path in found] == [expected(photo, sweep, tmp_path / "out") for photo in photos]


@pytest.mark.slow
def test_every_network_and_the_saturation(page: str, sweep: Path, tmp_path: Path) -> None:
    photo = write(tmp_path / "photo.png", picture(3))
    names = list(networks(sweep, Path("none"), find_models(RunPaths(sweep))[0]))
    pictures = [colored(page, [photo], name)[0].read_bytes() for name in names]
    assert len(set(pictures)) == 4  # the best of the sweep is one of the four runs
    (gray,) = colored(page, [photo], saturation=0)
    rgb = np.asarray(Image.open(gray)).astype(int)
    assert np.ptp(rgb, axis=2).max() <= 1


@pytest.mark.slow
def test_broken_photographs_are_named(page: str, sweep: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("not a picture")
    with pytest.raises(Exception, match=r"broken\.png: not an image"):
        colored(page, [broken])
    good = write(tmp_path / "good.png", picture(4))
    assert [path.name for path in colored(page, [broken, good])] == ["good_color.png"]
    with pytest.raises(Exception, match="not in the list of choices"):
        colored(page, [good], "/etc/passwd")


@pytest.mark.slow
def test_an_output_folder_without_runs(start_page: Callable[[Path], str], tmp_path: Path) -> None:
    page = start_page(tmp_path)
    table, line = pytest.importorskip("gradio_client").Client(page, verbose=False).predict(api_name="/sweep")
    assert table["data"] == [] and "No finished run" in line
    photo = write(tmp_path / "photo.png", picture(5))
    client = pytest.importorskip("gradio_client")
    upload = [{"image": client.handle_file(photo), "caption": None}]
    with pytest.raises(Exception, match="no trained network yet"):
        client.Client(page, verbose=False).predict(upload, None, 1.0, api_name="/colorize")


@pytest.mark.slow
def test_nothing_outside_can_be_read(page: str, sweep: Path, tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.png", picture(6))
    inside = next((sweep / "checkpoints").glob("*.pt"))
    for path in (secret, inside, "/etc/passwd", f"{sweep}/../secret.png", app.__file__):
        for prefix in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/"):
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(f"{page}/{prefix}{urllib.parse.quote(str(path))}")
            assert error.value.code in (403, 404)
    # A path on this computer instead of an uploaded file. Gradio's own client would upload it.
    data = {"path": os.fspath(secret), "meta": {"_type": "gradio.FileData"}}
    content = json.dumps({"data": [[{"image": data, "caption": None}], BEST, 1.0]}).encode()
    request = urllib.request.Request(f"{page}/gradio_api/call/colorize", content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{page}/gradio_api/call/colorize/{event}") as answer:
        assert "event: error" in answer.read().decode()
