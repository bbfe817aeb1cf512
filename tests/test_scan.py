"""A scan reads every image once, names what it cannot read, and the next scan reads only what changed."""

import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xxhash
from PIL import Image

from data import scan
from data.errors import InputError
from data.manifest import Manifest
from data.scan import scan_images
from data.tables import read_table


def manifest(root: Path, paths: list[str]) -> Manifest:
    count = len(paths)
    images = pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in range(count)],
            "study_id": [f"s{n}" for n in range(count)],
            "patient_id": [f"p{n}" for n in range(count)],
            "view": ["PA"] * count,
            "path": paths,
            "split": ["train"] * count,
            "source": ["made-up"] * count,
        },
        dtype="str",
    )
    return Manifest(images=images, labels=np.zeros((count, 1), np.float32), classes=("Nodule",), root=root)


def picture(seed: int, height: int = 21, width: int = 34, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven readable images in two folders."""
    folder = tmp_path / "images"
    (folder / "a b").mkdir(parents=True)
    for number in range(7):
        kind = "JPEG" if number % 2 else "PNG"
        (folder / "a b" / f"{number}.img").write_bytes(picture(number, 300 + number, 400, kind))
    return folder


PATHS = [f"a b/{number}.img" for number in range(7)]


def test_a_clean_folder_gives_contents_and_full_sizes(root, tmp_path):
    result = scan_images(manifest(root, PATHS), tmp_path / "out", workers=2, progress=False)
    assert result.readable.all()
    assert result.rejected == []
    data = [(root / path).read_bytes() for path in PATHS]
    assert result.content == [xxhash.xxh3_64_hexdigest(each) for each in data]
    table = read_table(tmp_path / "out/images.csv")
    assert list(table.columns) == ["path", "bytes", "mtime_ns", "content", "height", "width"]
    assert list(table["path"]) == PATHS
    assert list(table["height"]) == [str(300 + number) for number in range(7)]  # JPEGs too, whatever scale was decoded
    assert list(table["width"]) == ["400"] * 7
    assert list(table["bytes"]) == [str(len(each)) for each in data]
    assert (tmp_path / "out/rejected.csv").read_text() == "path,reason\n"


def test_everything_unreadable_is_rejected_by_name(root, tmp_path):
    outside = tmp_path / "outside.png"
    outside.write_bytes(picture(50))
    (root / "link.png").symlink_to(outside)
    (root / "inner.png").symlink_to(root / "a b/2.img")
    (root / "loop.png").symlink_to("loop.png")
    (root / "cut.png").write_bytes(picture(51)[:-40])
    (root / "empty.png").write_bytes(b"")
    os.mkfifo(root / "pipe.png")
    wanted = {
        "absent.png": "does not exist",
        "a b": "is a folder",
        "pipe.png": "pipe",
        "link.png": "out of the image folder",
        "../outside.png": "out of the image folder",
        "loop.png": "cannot be read",
        "cut.png": "cut PNG",
        "empty.png": "empty",
    }
    paths = [*PATHS, *wanted, "inner.png"]
    result = scan_images(manifest(root, paths), tmp_path / "out", workers=3, max_rejected=0.9, progress=False)
    assert list(result.readable) == [path not in wanted for path in paths]
    assert [bool(content) for content in result.content] == list(result.readable)
    assert result.content[-1] == result.content[2]
    table = read_table(tmp_path / "out/rejected.csv")
    assert list(table.columns) == ["path", "reason"]
    assert list(table.itertuples(index=False, name=None)) == result.rejected
    for path, reason in result.rejected:
        assert wanted[path] in reason
        assert str(tmp_path) not in reason


def test_too_many_rejected_images_stop_naming_the_first_and_the_table(root, tmp_path):
    paths = [*PATHS, "w.png", "x.png", "y.png", "z.png"]
    with pytest.raises(InputError) as caught:
        scan_images(manifest(root, paths), tmp_path / "out", workers=2, max_rejected=0.36, progress=False)
    text = str(caught.value)
    assert "4 of 11 images (36.4%)" in text
    assert "36.00% allowed" in text
    assert all(name in text for name in ("w.png", "x.png", "y.png", str(tmp_path / "out/rejected.csv")))
    assert "z.png" not in text
    assert len(read_table(tmp_path / "out/rejected.csv")) == 4
    assert len(read_table(tmp_path / "out/images.csv")) == 7
    scan_images(manifest(root, paths), tmp_path / "out", workers=2, max_rejected=0.37, progress=False)


def test_a_folder_without_any_image_is_one_clear_error_every_time(tmp_path):
    for _ in range(2):
        with pytest.raises(InputError, match=r"2 of 2 images \(100.0%\)"):
            scan_images(manifest(tmp_path / "nowhere", ["a.png", "b.png"]), tmp_path / "out", workers=1, progress=False)


def test_a_second_scan_reads_only_what_changed(root, tmp_path, monkeypatch):
    paths = [*PATHS, "late.png"]
    first = scan_images(manifest(root, paths), tmp_path / "out", workers=2, max_rejected=0.2, progress=False)
    read: list[str] = []
    original = scan.read_bytes
    monkeypatch.setattr(scan, "read_bytes", lambda path: read.append(path.name) or original(path))

    again = scan_images(manifest(root, paths), tmp_path / "out", workers=2, max_rejected=0.2, progress=False)
    assert read == []
    assert again.content == first.content

    (root / "late.png").write_bytes(picture(60))
    (root / PATHS[3]).write_bytes(picture(61))  # another size
    broken = bytearray((root / PATHS[4]).read_bytes())
    broken[len(broken) // 2] ^= 1
    (root / PATHS[4]).write_bytes(broken)  # same size, another time
    os.utime(root / PATHS[4], ns=(1, 1))
    os.utime(root / PATHS[5], ns=(2, 2))  # only touched
    changed = scan_images(manifest(root, paths), tmp_path / "out", workers=2, max_rejected=0.2, progress=False)
    assert sorted(read) == ["3.img", "4.img", "5.img", "late.png"]
    assert list(changed.readable) == [True, True, True, True, False, True, True, True]
    assert changed.content[5] == first.content[5]  # the time enters no digest
    assert changed.content[3] != first.content[3]


def test_images_that_left_the_manifest_leave_the_table(root, tmp_path):
    scan_images(manifest(root, PATHS), tmp_path / "out", workers=2, progress=False)
    result = scan_images(manifest(root, [PATHS[5], PATHS[1]]), tmp_path / "out", workers=2, progress=False)
    assert len(result.content) == 2
    assert list(read_table(tmp_path / "out/images.csv")["path"]) == [PATHS[5], PATHS[1]]


def test_results_do_not_depend_on_workers_or_chunks(root, tmp_path, monkeypatch):
    (root / "cut.png").write_bytes(picture(51)[:-40])
    rows = manifest(root, [PATHS[6], "cut.png", *PATHS[:6], PATHS[6]])  # one file twice
    outputs = []
    for workers, chunk in ((1, 512), (4, 2), (3, 1)):
        monkeypatch.setattr(scan, "CHUNK", chunk)
        out = tmp_path / f"out{workers}"
        result = scan_images(rows, out, workers=workers, max_rejected=0.5, progress=False)
        outputs.append(((out / "images.csv").read_bytes(), (out / "rejected.csv").read_bytes(), result.content))
    assert outputs[0] == outputs[1] == outputs[2]
    assert outputs[0][2][0] == outputs[0][2][-1]


def test_a_killed_scan_keeps_what_it_had(root, tmp_path, monkeypatch):
    scan_images(manifest(root, PATHS[:2]), tmp_path / "out", workers=1, progress=False)
    monkeypatch.setattr(scan, "SAVE_EVERY_S", -1)
    original = scan.verify_image

    def killed_at_five(data, name):
        if name == PATHS[5]:
            raise KeyboardInterrupt
        return original(data, name)

    monkeypatch.setattr(scan, "verify_image", killed_at_five)
    with pytest.raises(KeyboardInterrupt):
        scan_images(manifest(root, PATHS), tmp_path / "out", workers=1, progress=False)
    assert list(read_table(tmp_path / "out/images.csv")["path"]) == PATHS[:5]


def test_progress_goes_to_stderr_only_when_wanted(root, tmp_path, capsys):
    scan_images(manifest(root, PATHS), tmp_path / "out", workers=1, progress=False)
    assert capsys.readouterr() == ("", "")
    scan_images(manifest(root, PATHS), tmp_path / "out", workers=1, progress=True)
    assert "7/7" in capsys.readouterr().err


def test_a_wrong_number_of_workers_is_refused(root, tmp_path):
    with pytest.raises(InputError, match="workers"):
        scan_images(manifest(root, PATHS), tmp_path / "out", workers=0)
