"""The page in a real browser, as a person uses it."""

import json
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import picture, write

import colorize
import Constants

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("playwright") is None, reason="needs playwright (requirements-extra.txt)"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium (apt-get install chromium)"),
]
SECONDS = 60_000  # milliseconds to wait for something that should appear


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: object) -> Iterator[object]:
    """A new tab. No request may leave this computer, and nothing may fail in the page."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(SECONDS)
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("request", lambda request: errors.append(request.url) if is_elsewhere(request.url) else None)
    yield tab
    tab.close()
    assert errors == []


def is_elsewhere(url: str) -> bool:
    return url.startswith("http") and not url.startswith("http://127.0.0.1:")


def drop(tab: object, *photos: Path) -> None:
    """Drops files onto the page, as from a file manager."""
    contents = [[photo.name, list(photo.read_bytes())] for photo in photos]
    script = """contents => {
        const transfer = new DataTransfer();
        for (const [name, bytes] of JSON.parse(contents))
            transfer.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
        return transfer;
    }"""
    transfer = tab.evaluate_handle(script, json.dumps(contents))
    tab.locator("#photos button").first.dispatch_event("drop", {"dataTransfer": transfer})


def download(tab: object, number: int = 0) -> bytes:
    with tab.expect_download() as event:
        tab.locator("#download a[download]").nth(number).click()
    return Path(event.value.path()).read_bytes()


def test_color_compare_and_download(tab: object, page: str, tmp_path: Path) -> None:
    photos = [write(tmp_path / f"{name}.png", picture(seed, 240, 320)) for seed, name in enumerate(("cat", "cup"))]
    expected = []
    for photo in photos:
        command = [photo, "--output", tmp_path / "out", "--checkpoint", Constants.PRETRAINED]
        assert colorize.main([str(word) for word in command]) == 0
        expected.append((tmp_path / "out" / f"{photo.stem}_color.png").read_bytes())
    tab.goto(page)
    drop(tab, *photos)
    tab.locator("#download a[download]").nth(1).wait_for()
    assert [download(tab, number) for number in (0, 1)] == expected

    # The slider across the picture moves with the mouse.
    handle = tab.locator("#compare .outer").first
    tab.wait_for_function("document.querySelector('#compare img')?.getBoundingClientRect().width > 100")
    tab.wait_for_timeout(1000)  # the handle moves to its place
    tab.evaluate("scrollTo(0, 0)")  # the downloads are below
    box, before = tab.locator("#compare img").first.bounding_box(), handle.bounding_box()
    tab.mouse.move(before["x"] + before["width"] / 2, before["y"] + before["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2, steps=5)
    tab.mouse.up()
    assert handle.bounding_box()["x"] - before["x"] == pytest.approx(0.3 * box["width"], abs=20)

    # A click on the second picture compares it; the saturation changes the colors.
    first = tab.locator("#compare img").first.get_attribute("src")
    tab.locator("#all button img").nth(1).click()
    tab.wait_for_function(f"document.querySelector('#compare img').src != {json.dumps(first)}")
    old = tab.locator("#download a[download]").first.get_attribute("href")
    slider = tab.locator("#saturation input[type=range]")
    slider.focus()
    slider.press("Home")
    tab.wait_for_function(f"document.querySelector('#download a[download]').href != {json.dumps(old)}")
    assert download(tab) not in expected


def test_the_sweep_can_be_sorted_filtered_and_opened(tab: object, page: str) -> None:
    tab.goto(page)
    tab.get_by_role("tab", name="Sweep").click()
    rows = tab.locator("#runs .virtual-row")
    rows.nth(5).wait_for()
    assert rows.count() == 6
    rows.first.locator("[role=gridcell]").nth(3).click()
    tab.locator("#triplets img").wait_for()
    tab.locator("#loss img").wait_for()
    assert "learning" in tab.locator("#settings").inner_text() or "lr" in tab.locator("#settings").inner_text()
    tab.locator("#runs input.search-input").fill("regressor")
    tab.wait_for_function("document.querySelectorAll('#runs .virtual-row').length == 2")
    rows.first.locator("[role=gridcell]").nth(3).click()
    tab.wait_for_function("document.querySelector('#settings').innerText.includes('regressor')")


def test_a_broken_photograph_is_named(tab: object, page: str, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("not a picture")
    tab.goto(page)
    drop(tab, tmp_path / "broken.png")
    message = tab.get_by_text("broken.png: not an image")
    message.wait_for()
    assert message.is_visible()
    assert tab.locator("#download a[download]").count() == 0


def test_the_page_follows_a_running_sweep(
    tab: object, start_page: Callable[[Path], str], sweep: Path, tmp_path: Path
) -> None:
    """Runs appear in the table and among the networks, and can color."""
    page = start_page(tmp_path)
    tab.goto(page)
    tab.get_by_role("tab", name="Sweep").click()
    tab.get_by_text("No finished run").wait_for()
    for folder in ("Plots", "checkpoints"):
        shutil.copytree(sweep / folder, tmp_path / folder, dirs_exist_ok=True)
    tab.locator("#runs .virtual-row").nth(5).wait_for()
    tab.get_by_text("6 finished runs").wait_for()
    tab.get_by_role("tab", name="Colorize").click()
    drop(tab, write(tmp_path / "photo.png", picture(7)))
    tab.locator("#download a[download]").wait_for()
