"""The page: its components, and what happens when they are used. Uses Gradio."""

import html
from pathlib import Path

import gradio as gr
from PIL import Image

import Constants
from deepcolor.data.image_io import Unreadable
from deepcolor.page import photographs
from deepcolor.page.photographs import Result
from deepcolor.page.sweep_table import SweepTable
from utils import UserError

_REFRESH_SECONDS = 3
_CACHE_SECONDS = 6 * 3600  # after which photographs and results are deleted
_FONT = ["system-ui", "sans-serif"]  # Gradio's own fonts are loaded from another server
Pair = tuple[Image.Image, Image.Image]


def launch(page: gr.Blocks, port: int) -> str:
    """Serves the page on 127.0.0.1 and returns its address."""
    _, url, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        quiet=True,
        show_error=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        run_history=False,
        footer_links=["api"],
        max_file_size=Constants.MAX_FILE_BYTES,
        theme=gr.themes.Default(font=_FONT, font_mono=["monospace"]),
    )
    return url


def build(output: Path, pretrained: Path, folder: Path) -> gr.Blocks:
    """Returns the page.

    Args:
        output: the output folder of a sweep.
        pretrained: a checkpoint that is offered if it exists.
        folder: where colored pictures are written.
    """
    sweep = SweepTable(output)
    with gr.Blocks(title="Colorize", analytics_enabled=False, delete_cache=(600, _CACHE_SECONDS)) as page:
        with gr.Tab("Colorize"):
            network = _colorize_tab(sweep, pretrained, folder)
        with gr.Tab("Sweep"):
            _sweep_tab(sweep, network, pretrained)
    return page


def _names(sweep: SweepTable, pretrained: Path) -> list[str]:
    return list(photographs.networks(sweep.output, pretrained, sweep.models()))


def _colorize_tab(sweep: SweepTable, pretrained: Path, folder: Path) -> gr.Dropdown:
    """Adds the components of the first tab, and returns the choice of the network."""

    def colorize(photos: list, network: str, saturation: float) -> tuple:
        """Colors photographs. Returns the first before and after, all in small, and all as PNG files in full size."""
        if not photos:
            return None, [], [], []
        checkpoint = photographs.networks(sweep.output, pretrained, sweep.models()).get(network)
        if checkpoint is None:
            raise gr.Error("There is no trained network yet: train one with python3 main.py.", print_exception=False)
        try:
            results, failures = photographs.color([Path(path) for path, _ in photos], checkpoint, saturation, folder)
        except UserError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        if not results:
            raise gr.Error("<br>".join(map(html.escape, failures)), print_exception=False)
        for failure in failures:
            gr.Warning(html.escape(failure))
        small = [photographs.preview(result.colored, 256) for result in results]
        files = [str(result.colored) for result in results]
        return _compare(results[0]), small, files, results

    with gr.Row():
        with gr.Column(scale=1):
            photos, network, saturation = _inputs(_names(sweep, pretrained))
        with gr.Column(scale=2):
            slider, gallery, files = _outputs()
    results = gr.State([])
    colored = gr.on(
        [photos.change, network.input, saturation.change],
        colorize,
        [photos, network, saturation],
        [slider, gallery, files, results],
        api_name="colorize",
        trigger_mode="always_last",
        show_progress_on=slider,
    )
    show_if_several = gr.Gallery(visible=False), gr.Gallery(visible=True)
    colored.then(lambda results: show_if_several[len(results) > 1], results, gallery, api_visibility="private")
    gallery.select(_select, results, slider, api_visibility="private")
    return network


def _compare(result: Result) -> Pair:
    return tuple(photographs.preview(path) for path in result)


def _select(results: list[Result], event: gr.SelectData) -> Pair:
    """Returns the picture that was clicked, before and after."""
    try:
        return _compare(results[event.index])
    except Unreadable as error:
        raise gr.Error("The picture is gone: drop the photograph again.", print_exception=False) from error


def _inputs(names: list[str]) -> tuple[gr.Gallery, gr.Dropdown, gr.Slider]:
    """Adds the photographs, the choice of the network and the saturation."""
    photos = gr.Gallery(
        label="Drop photographs here, or paste one",
        type="filepath",
        file_types=["image"],
        sources=["upload", "clipboard"],
        elem_id="photos",
        height=240,
        interactive=True,
    )
    network = gr.Dropdown(names, value=names[0] if names else None, label="Network", elem_id="network")
    saturation = gr.Slider(0, 2, value=1, step=0.05, label="Saturation", elem_id="saturation")
    return photos, network, saturation


def _outputs() -> tuple[gr.ImageSlider, gr.Gallery, gr.File]:
    """Adds the comparison, the gallery of the results and the downloads."""
    slider = gr.ImageSlider(
        label="Before and after", format="png", max_height=600, interactive=False, elem_id="compare"
    )
    gallery = gr.Gallery(
        label="All photographs: click one to compare it",
        format="png",
        columns=6,
        fit_columns=False,
        height=160,
        allow_preview=False,
        interactive=False,
        visible=False,
        elem_id="all",
    )
    files = gr.File(label="Download in full size", file_count="multiple", interactive=False, elem_id="download")
    return slider, gallery, files


def _sweep_tab(sweep: SweepTable, network: gr.Dropdown, pretrained: Path) -> None:
    """Adds the components of the second tab, and follows a sweep that is still running."""

    def select(event: gr.SelectData) -> tuple:
        return sweep.details(event.row_value[-1])

    def runs() -> tuple[dict, str]:
        """Returns the ranked table of the finished runs, and a line about it."""
        headers, rows = sweep.table()
        line = f"{len(rows)} finished runs, the best first. Click a row to see its pictures."
        if not rows:
            line = f"No finished run below `{sweep.output}`. Runs appear here as `python3 main.py` finishes them."
        return {"headers": headers, "data": rows}, line

    def refresh(shown: list, chosen: str | None) -> tuple:
        """Updates the page if there are other runs than those shown."""
        table, line = runs()
        if table["data"] == shown:
            return tuple(gr.skip() for _ in outputs)
        names = _names(sweep, pretrained)
        choice = gr.Dropdown(names, value=chosen if chosen in names else next(iter(names), None))
        return table, line, choice, table["data"]

    message = gr.Markdown()
    table = gr.Dataframe(interactive=False, show_search="filter", max_height=360, elem_id="runs", label="Finished runs")
    with gr.Row():
        triplets = gr.Image(label="Gray, original, colored", format="png", interactive=False, elem_id="triplets")
        with gr.Column():
            loss = gr.Image(label="Loss", format="png", interactive=False, elem_id="loss")
            settings = gr.Dataframe(
                headers=["setting or score", "value"], interactive=False, max_height=300, elem_id="settings"
            )
    shown = gr.State([])
    table.select(select, None, [triplets, loss, settings], api_visibility="private")
    outputs = [table, message, network, shown]
    gr.on(None, runs, None, [table, message], api_name="sweep", show_progress="hidden")
    timer = gr.Timer(_REFRESH_SECONDS)
    timer.tick(refresh, [shown, network], outputs, api_visibility="private", show_progress="hidden")
