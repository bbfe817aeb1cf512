"""The app as a server: each user sees their own study, and nothing else gets out. Needs gradio (`.[app]`), which pins
Pillow below 13 and is no part of the core; skipped without."""

import importlib
import re
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusion.app import fragments
from fusion.app.command import private_gradio
from fusion.app.study import StudyReader
from fusion.app.uploads import MAX_FILE_MIB, Upload
from tests.faults.uploads import hostile_uploads
from tests.make_dicom import plain, ramp
from tests.make_model import make_predictor
from tests.test_app import CANARIES, ROOT, png, refuse_harm

USERS = 20


@pytest.fixture(scope="module")
def reader() -> StudyReader:
    return StudyReader(make_predictor(), frozenset({"Mass"}))


@pytest.fixture(scope="module")
def served(reader):
    """The app on a free port, and its temporary folder."""
    with private_gradio(local=True) as folder:
        pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[app]'")
        from fusion.app.page import build_page, launch_options

        page = build_page(reader, None, [], "A model made up for a test.")
        _, url, _ = page.launch(**launch_options(), prevent_thread_lock=True)
        yield url.rstrip("/"), folder, page
        page.close()
    assert not folder.exists(), "uploads go with the server"


def as_user(url: str, folder: Path, number: int) -> str:
    """Upload an own study of one or two views, and a broken file; everything that comes back, as text."""
    from gradio_client import Client, handle_file

    own = folder / f"user{number}"
    own.mkdir()
    names = [f"canary{number:03d}x{view}.png" for view in range(1 + number % 2)]
    for view, name in enumerate(names):
        (own / name).write_bytes(png(100 * number + view))
    (own / f"broken{number:03d}x.dcm").write_bytes(plain(ramp(), **CANARIES)[:900])
    files = [handle_file(own / name) for name in (*names, f"broken{number:03d}x.dcm")]
    client = Client(url, verbose=False, httpx_kwargs={"trust_env": False})
    return "\n".join(str(part) for part in client.predict(files, api_name="/read"))


def test_twenty_users_at_once_get_each_their_own_study(served, reader, tmp_path):
    url, temporary, _ = served
    with ThreadPoolExecutor(USERS) as users:
        pages = list(users.map(lambda number: as_user(url, tmp_path, number), range(USERS)))
    for number, page in enumerate(pages):
        assert set(re.findall(r"canary(\d+)x", page)) == {f"{number:03d}"}
        assert set(re.findall(r"broken(\d+)x", page)) == {f"{number:03d}"}
        own = sorted((tmp_path / f"user{number}").glob("*.png"))
        alone = reader.read([Upload(path, path.name) for path in own])
        assert fragments.findings(alone) in page
        assert str(temporary) not in page
        texts = re.sub(r"base64,[^\"]+", "", page)
        assert not [value for value in CANARIES.values() for part in value.split("^") if part in texts]
        assert "Traceback" not in page


def fetched(url: str) -> tuple[int, str]:
    request = urllib.request.Request(url)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_no_upload_and_no_file_of_the_server_can_be_fetched(served, tmp_path):
    url, temporary, _ = served
    as_user(url, tmp_path, 1)
    kept = [path for path in temporary.rglob("*") if path.is_file()]
    assert kept, "uploads wait in the private folder until they are deleted"
    assert temporary.stat().st_mode & 0o077 == 0
    for path in (*kept, "/etc/passwd", ROOT / "pyproject.toml"):
        assert fetched(f"{url}/gradio_api/file={path}")[0] == 404
    status, page = fetched(url)
    assert status == 200
    assert "googleapis" not in page
    assert str(temporary) not in page


def test_the_app_is_launched_for_this_machine_alone(served):
    _, _, page = served
    options = importlib.import_module("fusion.app.page").launch_options()
    assert options["server_name"] == page.server_name == "127.0.0.1"
    assert not page.share
    assert not page.analytics_enabled
    assert not page.run_history
    assert page.max_file_size == MAX_FILE_MIB * 2**20
    assert page.delete_cache == (10, 600)
    assert page._queue.max_size == 64


def test_fifty_hostile_uploads_get_an_answer_and_the_next_user_too(served, tmp_path):
    from gradio_client import Client, handle_file

    url, temporary, _ = served
    canary = tmp_path / "canary"
    hostile = list(hostile_uploads(canary).values())  # the client names files itself: names are the reader's test
    (tmp_path / "good.png").write_bytes(png(1))
    client = Client(url, verbose=False, httpx_kwargs={"trust_env": False})
    alone = client.predict([handle_file(tmp_path / "good.png")], api_name="/read")
    for number, data in enumerate(hostile):
        path = tmp_path / f"hostile{number}.bin"
        path.write_bytes(data)
        answer = client.predict([handle_file(path), handle_file(tmp_path / "good.png")], api_name="/read")
        page = "\n".join(str(part) for part in answer)
        assert f"hostile{number}.bin" in page
        refuse_harm(page, str(temporary))
        path.unlink()
    assert not canary.exists()
    assert client.predict([handle_file(tmp_path / "good.png")], api_name="/read") == alone
