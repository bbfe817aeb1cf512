"""The command `scripts/app.py`: a page on this machine that reads one study at a time with a trained model."""

import os
import signal
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jsonargparse import ArgumentParser

from data.demo import DEMO_RUN
from data.errors import InputError
from data.runs import run_command

INSTALL = "pip install -e '.[app]'"
PORT = 7860


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    parser = ArgumentParser(prog="app.py", description="Read studies in the browser, on this machine alone.")
    parser.add_argument("--model", type=str, default=str(DEMO_RUN / "fusion"), help="a run's result folder, or a model")
    parser.add_argument(
        "--index", type=Path | None, default=None, help="the model's run: shows similar training studies and labels"
    )
    parser.add_argument("--port", type=int, default=PORT, help="the page is http://127.0.0.1:PORT")
    options = vars(parser.parse_args(argv))
    run_command(lambda: serve(**options))


def serve(model: str, index: Path | None = None, port: int = PORT) -> None:
    """Serve the page until interrupted.

    Raises:
        InputError: gradio is missing, no model or index there, or the port is taken.
    """
    with private_gradio(local=Path(model).exists()):
        page, options = make_page(model, index)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # uploads are deleted then, too
        print(f"http://127.0.0.1:{port}  (only on this machine; Ctrl-C ends it)", flush=True)
        try:
            page.launch(**options | {"server_port": port})
        except OSError:
            raise InputError(f"--port {port}: is taken; give another one, such as {port + 1}") from None


def make_page(model: str, index: Path | None = None):
    """The page and its launch options, for a model that is loaded now; inside `private_gradio`."""
    folder = Path(model)
    if folder == DEMO_RUN / "fusion" and not folder.exists():
        raise InputError(f"{folder}: no demo model yet; make it with: make demo (about 14 minutes)")
    try:
        from fusion.app.page import build_page, launch_options
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise InputError(f"the app needs gradio, which is not installed: {INSTALL}") from None
    from fusion.app.examples import example_studies
    from fusion.app.findings import untested_classes
    from fusion.app.similar import load_similar
    from fusion.app.study import StudyReader
    from fusion.predict import load_model

    loaded = load_model(model)
    similar = None if index is None else load_similar(index, loaded.parts)
    examples = example_studies(folder.parent)
    trained_on = "simulated X-rays" if examples else "X-rays"
    facts = f"Reads all views of a study together. Model {model}: {len(loaded.classes)} classes, {trained_on}."
    reader = StudyReader(loaded, untested_classes(folder))
    return build_page(reader, similar, examples, facts), launch_options()


@contextmanager
def private_gradio(local: bool) -> Generator[Path]:
    """An own temporary folder for uploads, and nothing sent anywhere; gradio reads all this when it is imported.

    Args:
        local: The model is on this disk, so that nothing needs a network at all.
    """
    settings = {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    if local:
        settings |= {"HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(prefix="cxr-fusion-app-") as folder:
        settings["GRADIO_TEMP_DIR"] = folder
        before = {name: os.environ[name] for name in settings if name in os.environ}
        os.environ |= settings
        try:
            yield Path(folder)
        finally:
            for name in settings:
                del os.environ[name]
            os.environ |= before
