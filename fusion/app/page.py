"""The page: which part of it calls what. The only module that imports gradio.

A session's study lives in its `gr.State`, in memory; nothing of a session is kept anywhere else.
"""

from collections.abc import Callable
from functools import partial
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
DELETE_EVERY_S, DELETE_AFTER_S = 10, 120
"""Uploads are deleted this long after they came: a queue may be waiting, and equal files of two users are one file."""
KEPT_S = 3600
"""A study is forgotten after this time without a click."""
MAX_WAITING = 64
MAX_SESSIONS = 128
FONTS = ("Source Sans 3", "Segoe UI", "Helvetica Neue", "Noto Sans", "Liberation Sans", "Arial", "sans-serif")


def build_page(reader: StudyReader, similar: SimilarStudies | None, examples: list[Example], facts: str) -> gr.Blocks:
    """The app's blocks, ready to launch."""
    show = partial(shown, reader, similar)
    with gr.Blocks(
        title="Chest X-ray fusion", analytics_enabled=False, delete_cache=(DELETE_EVERY_S, DELETE_AFTER_S)
    ) as page:
        state = gr.State(None, time_to_live=KEPT_S)
        part(fragments.header(facts))
        part(fragments.render("notice.html"), elem_id="notice")
        with gr.Row(elem_id="start"):
            with gr.Column(scale=11, min_width=320):
                files = gr.File(show_label=False, file_count="multiple", elem_id="drop")
                files.preprocess = with_names  # a subclass would make gradio write a .pyi file beside this one
            if examples:
                with gr.Column(scale=10, min_width=320):
                    cards = part(fragments.examples(examples), js_on_load=script("examples.js"))
        messages = part(fragments.welcome(), elem_id="messages")
        with gr.Row(elem_id="result"):
            with gr.Column(scale=11, min_width=320):
                viewer = part("", elem_id="viewer", js_on_load=script("viewer.js"))
            with gr.Column(scale=10, min_width=320):
                findings = part("", elem_id="findings", js_on_load=script("findings.js"))
        neighbours = part("", elem_id="similar")
        outputs = [state, messages, viewer, findings, neighbours]

        def read_upload(uploaded: list[tuple[str, str]]) -> tuple[Any, ...]:
            try:
                return *show(reader.read(take(uploaded))), None
            except InputError as error:
                return *show(None, error=str(error)), None

        def read_example(event: gr.EventData) -> tuple[Any, ...]:
            one = said(lambda: example_of(examples, event._data.get("number")))
            return show(reader.read(one.uploads, one.views, one.truth))

        def explain(reading: Reading | None, event: gr.EventData) -> str:
            study = present(reading)
            return said(lambda: fragments.views(study, reader.explain(study, event._data.get("number"))))

        def correct(reading: Reading | None, event: gr.EventData) -> tuple[Any, ...]:
            study, told = present(reading), event._data
            return said(
                lambda: show(reader.corrected(study, told.get("view"), told.get("type")), chosen=told.get("chosen"))
            )

        quiet: dict[str, Any] = {"show_progress": "minimal"}
        files.upload(read_upload, [files], [*outputs, files], api_name="read", **quiet)
        if examples:
            cards.select(read_example, None, outputs, api_visibility="private", **quiet)
        findings.select(explain, [state], [viewer], api_visibility="private", show_progress="hidden")
        viewer.select(correct, [state], outputs, api_visibility="private", **quiet)
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


def shown(
    reader: StudyReader, similar: SimilarStudies | None, reading: Reading | None, error: str = "", chosen: object = None
) -> tuple[Any, ...]:
    """State, messages, viewer, findings and neighbours of a study, with the chosen finding explained."""
    if reading is None or reading.prediction is None:
        return None, fragments.messages(reading, error), "", "", ""
    explained = None if chosen is None else reader.explain(reading, chosen)
    near = ""
    if similar is not None:
        nearest = similar.nearest(reading.prediction.maps)
        near = fragments.similar(nearest, reading, len(similar), similar.by)
    views, findings = fragments.views(reading, explained), fragments.findings(reading, chosen)
    return reading, fragments.messages(reading), views, findings, near


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
