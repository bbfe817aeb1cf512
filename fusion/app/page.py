"""The page: which part of it calls what. The only module that imports gradio.

A session's study lives in its `gr.State`, in memory; nothing of a session is kept anywhere else.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr  # ty: ignore[import-not-found]
from gradio.data_classes import FileData, ListFiles  # ty: ignore[import-not-found]

from data.errors import InputError
from fusion.app import fragments
from fusion.app.examples import Example, example_of
from fusion.app.similar import SimilarStudies
from fusion.app.study import Reading, StudyReader
from fusion.app.uploads import MAX_FILE_MIB, take

FOLDER = Path(__file__).parent
DELETE_EVERY_S, DELETE_AFTER_S = 10, 600
"""Uploads are deleted this long after they came: a queue may be waiting, and equal files of two users are one file."""
KEPT_S = 3600
"""A study is forgotten after this time without a click."""
MAX_WAITING = 64
MAX_SESSIONS = 128
Answer = tuple[Any, ...]
"""State, messages, viewer, findings and neighbours."""
FONTS = ("Source Sans 3", "Segoe UI", "Helvetica Neue", "Noto Sans", "Liberation Sans", "Arial", "sans-serif")


class Actions:
    """What the page asks for. Shared by all sessions, it holds nothing of theirs; see `Answer` for what comes back."""

    def __init__(self, reader: StudyReader, similar: SimilarStudies | None, examples: Sequence[Example]) -> None:
        self.reader, self.similar, self.examples = reader, similar, examples

    def read(self, uploaded: list[tuple[str, str]]) -> Answer:
        """Read what was dropped; the last value empties the drop zone for the next study."""
        try:
            return *self.shown(self.reader.read(take(uploaded))), None
        except InputError as error:
            return None, fragments.messages(None, str(error)), "", "", "", None

    def read_example(self, event: gr.EventData) -> Answer:
        """Read a simulated study."""
        one = said(lambda: example_of(self.examples, event._data.get("number")))
        return self.shown(self.reader.read(one.uploads, one.views, one.truth))

    def explain(self, reading: Reading | None, event: gr.EventData) -> str:
        """Lay the heat of a finding over the views."""
        study = present(reading)
        return said(lambda: fragments.views(study, self.reader.explain(study, event._data.get("number"))))

    def correct(self, reading: Reading | None, event: gr.EventData) -> Answer:
        """Predict again with another view type; the chosen finding stays."""
        study, told = present(reading), event._data
        corrected = said(lambda: self.reader.corrected(study, told.get("view"), told.get("type")))
        return said(lambda: self.shown(corrected, told.get("chosen")))

    def shown(self, reading: Reading, chosen: object = None) -> Answer:
        """A study, with the chosen finding explained."""
        if reading.prediction is None:
            return None, fragments.messages(reading), "", "", ""
        explained, near = None if chosen is None else self.reader.explain(reading, chosen), ""
        if self.similar is not None:
            nearest = self.similar.nearest(reading.prediction.maps)
            near = fragments.similar(nearest, reading, len(self.similar), self.similar.by)
        views, findings = fragments.views(reading, explained), fragments.findings(reading, chosen)
        return reading, fragments.messages(reading), views, findings, near


def build_page(
    reader: StudyReader, similar: SimilarStudies | None, examples: Sequence[Example], facts: str
) -> gr.Blocks:
    """The app's blocks, ready to launch."""
    actions, cleaning = Actions(reader, similar, examples), (DELETE_EVERY_S, DELETE_AFTER_S)
    with gr.Blocks(title="Chest X-ray fusion", analytics_enabled=False, delete_cache=cleaning) as page:
        state = gr.State(None, time_to_live=KEPT_S)
        part(fragments.header(facts))
        part(fragments.render("notice.html"), elem_id="notice")
        with gr.Row(elem_id="start"):
            with gr.Column(scale=11, min_width=320):
                files = gr.File(show_label=False, file_count="multiple", elem_id="drop")
                files.preprocess = with_names  # a subclass would make gradio write a .pyi file beside this one
            with gr.Column(scale=10, min_width=320, visible=bool(examples)):
                cards = part(fragments.examples(examples), js_on_load=script("examples.js"))
        messages = part(fragments.welcome(), elem_id="messages")
        with gr.Row(elem_id="result"):
            with gr.Column(scale=11, min_width=320):
                viewer = part("", elem_id="viewer", js_on_load=script("viewer.js"))
            with gr.Column(scale=10, min_width=320):
                findings = part("", elem_id="findings", js_on_load=script("findings.js"))
        outputs = [state, messages, viewer, findings, part("", elem_id="similar")]
        quiet: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}
        files.upload(actions.read, [files], [*outputs, files], api_name="read", show_progress="minimal")
        cards.select(actions.read_example, None, outputs, **quiet)
        findings.select(actions.explain, [state], [viewer], **quiet | {"show_progress": "hidden"})
        viewer.select(actions.correct, [state], outputs, **quiet)
    page.queue(max_size=MAX_WAITING, api_open=False)
    return page


def with_names(payload: ListFiles | FileData | None) -> list[tuple[str, str]]:
    """(path on the server, name on the user's machine) of each file; gradio's own input forgets the name."""
    files = [] if payload is None else [payload] if isinstance(payload, FileData) else list(payload)
    return [(file.path, file.orig_name or Path(file.path).name) for file in files]


def part(html: str, **options: Any) -> gr.HTML:
    """A piece of HTML that listens to nothing unless it brings a script."""
    return gr.HTML(html, **{"js_on_load": None, "apply_default_css": False, "elem_classes": ["page-part"]} | options)


def script(name: str) -> str:
    """A script beside this file."""
    return (FOLDER / name).read_text(encoding="utf-8")


def present(reading: Reading | None) -> Reading:
    """The session's study, or a toast where it was forgotten."""
    if reading is None:
        raise gr.Error("This study is no longer in memory. Please drop it again.", print_exception=False)
    return reading


def said(ask: Callable[[], Any]) -> Any:
    """An answer, or a toast where the question was wrong."""
    try:
        return ask()
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from None


def launch_options() -> dict[str, Any]:
    """How the page is served: to this machine alone, with nothing of gradio's that talks to others or keeps runs."""
    from starlette.middleware import Middleware  # ty: ignore[import-not-found]

    from fusion.app.guard import Guard

    return {
        "server_name": "127.0.0.1",
        "share": False,
        "show_error": False,
        "max_file_size": MAX_FILE_MIB * 2**20,
        "max_threads": 16,
        "state_session_capacity": MAX_SESSIONS,
        "enable_monitoring": False,
        "run_history": False,
        "mcp_server": False,
        "pwa": False,
        "ssr_mode": False,
        "allowed_paths": [],
        "footer_links": [],
        "css_paths": [FOLDER / "style.css"],
        "theme": gr.themes.Base(font=FONTS, font_mono=("ui-monospace", "monospace")),
        "app_kwargs": {"middleware": [Middleware(Guard)]},
        "quiet": True,
    }
