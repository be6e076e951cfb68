"""A page in the browser: colors photographs and shows the sweep.

    python3 app.py                                # http://127.0.0.1:7860, with the sweep of this folder
    python3 app.py --output my_run --port 8000

Needs the package gradio. Exit codes: 2 the page cannot be started; 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from deepcolor.common import signals

if __name__ == "__main__":
    signals.exit_on_signal()

import argparse
import os
import socket
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import Constants
from deepcolor.common import cli
from deepcolor.common.signals import Interrupted, StopFlag
from deepcolor.common.system import keep_freed_memory
from utils import UserError


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser("app.py", description="Shows a page that colors photographs, and the results of a sweep.")
    add = parser.add_argument
    add("--output", metavar="DIR", type=Path, default=Path("."), help="the output folder of a sweep (.)")
    add("--port", metavar="N", type=int, default=Constants.PORT, help=f"of the page on 127.0.0.1 ({Constants.PORT})")
    return parser


def check(options: argparse.Namespace) -> None:
    """Raises UserError if the page cannot be started."""
    if find_spec("gradio") is None:
        raise UserError("the page needs the package gradio: pip install -r requirements-extra.txt")
    if not options.output.is_dir():
        raise UserError(f"no folder at {options.output}: name the output folder of a sweep with --output")
    try:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name != "nt")  # of a page just closed
            server.bind(("127.0.0.1", options.port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot use port {options.port}: {reason}; choose another with --port") from error


def run(options: argparse.Namespace) -> int:
    """Shows the page until a stop signal. Raises UserError, Interrupted."""
    check(options)
    with StopFlag() as stop, tempfile.TemporaryDirectory(prefix="colorize-page-") as folder:
        # Read when gradio is imported. Photographs and results are in this folder, which is deleted at the end.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        from deepcolor.page.layout import build, launch

        page = build(options.output, Constants.PRETRAINED, Path(folder))
        try:
            url = launch(page, options.port)
            print(f"open {url} in a browser; Ctrl-C stops the page", flush=True)
            while not stop.signal:
                time.sleep(0.1)
        finally:
            page.close(verbose=False)
    raise Interrupted(stop.signal, "stopped")


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    keep_freed_memory()
    return cli.run("app.py", lambda: run(options), options.output)


if __name__ == "__main__":
    cli.exit_now(main())
