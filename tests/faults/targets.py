"""Everything that reads a file from elsewhere: made-up good files, and how each is read.

A target is made in a folder of its own and gives (good files, read). `read` takes the bytes of a file, puts them where
they belong and reads them; it returns whatever it likes, or raises `InputError`. Where a checksum vouches for what a
file says, what is read without an error must be what was written; of the others nobody can tell.
"""

import contextlib
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
import yaml

from data import calibration, thresholds
from data.cache import FeatureCache, record_digest
from data.cache_verify import verify
from data.config import default_values, parse_config, read_yaml
from data.dicom import decode_dicom
from data.dicom_header import read_study_header
from data.errors import InputError
from data.image_shards import RECORD, PreparedImages, find_member, read_prepared
from data.images import decode_image
from data.manifest import read_manifest, write_manifest
from data.predictions import read_predictions, write_predictions
from data.runs import keep_config, read_metrics
from data.strict_json import check_keys, read_json
from data.submission import write_submission
from data.submission_compare import compare_submissions
from data.tables import read_table
from data.transforms import Preprocessing
from extract.checkpoint import newest_checkpoint, save_folder
from extract.config import ExtractConfig
from fusion.folder_check import check_files, read_maps, read_no_view
from fusion.model_folder import write_config
from fusion.model_parts import read_classes
from tests.make_challenge import make_challenge
from tests.make_data import make_cache, make_manifest
from tests.make_model import make_predictor

Target = tuple[list[bytes], Callable[[bytes], object]]


def decoded_images(folder: Path) -> Target:
    """JPEG, PNG and DICOM of every transfer syntax, told apart by their first bytes."""
    from tests.test_dicom_damage import formats

    return list(formats().values()), lambda data: decode_image(data, "x")


def dicom_headers(folder: Path) -> Target:
    """What `prepare.py dicom` reads of a file, with a canary in every element."""
    from tests.test_dicom_folder import canaries, save
    from tests.test_dicom_private import planted

    path, key = folder / "x.dcm", bytes(32)
    corpus = [save(folder / name, dataset).read_bytes() for name, dataset in canaries().items()]

    def read(data: bytes) -> object:
        path.write_bytes(data)
        try:
            return refuse_canary(str(read_study_header(path, "x.dcm", key)))
        except InputError as error:
            refuse_canary(str(error))
            raise

    return [*corpus, planted()[:6000]], read


def dicom_pixels(folder: Path) -> Target:
    """The pixels of every transfer syntax that is read, behind an unchanged first kilobyte."""
    from tests.test_dicom_damage import formats

    return [data for name, data in formats().items() if name.startswith("DICOM")], lambda d: decode_dicom(d, "x")


def refuse_canary(text: str) -> str:
    """The text, which must hold nothing of a header."""
    assert "CANARY" not in text.upper(), text
    return text


def csv_tables(folder: Path) -> Target:
    """Any table."""
    path = folder / "t.csv"
    corpus = [b"id,a,b\n1,2,3\n", 'id,"a ""x"""\r\n"1\n2",é\r\n'.encode(), b"\xef\xbb\xbfid,b\n" + b"007,NA\n" * 40]
    return corpus, lambda data: (path.write_bytes(data), read_table(path, ("id",)))


def manifests(folder: Path) -> Target:
    """A manifest without its description."""
    made = make_manifest(folder / "images", 5)
    write_manifest(made, folder / "whole.csv")
    path = folder / "manifest.csv"
    return [(folder / "whole.csv").read_bytes()], lambda data: (path.write_bytes(data), read_manifest(path))


def descriptions(folder: Path) -> Target:
    """A manifest's description: whatever it says, rows come out only under the right digest."""
    made = make_manifest(folder / "images", 3)
    write_manifest(made, folder / "manifest.csv")
    path = folder / "manifest.json"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        found = read_manifest(folder / "manifest.csv")
        assert found.to_bytes() == made.to_bytes()
        return [found.image_path(0).exists(), found.rejected]

    return [path.read_bytes()], read


def predictions(folder: Path) -> Target:
    """A table of predictions."""
    made = make_manifest(folder, 3)
    values = np.random.default_rng(0).random((len(made), 3), dtype=np.float32)
    write_predictions(folder / "whole.csv", made.images, values, made.classes)
    path = folder / "predictions.csv"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        ids, found, _ = read_predictions(path)
        assert np.isfinite(found).all()
        return ids

    return [(folder / "whole.csv").read_bytes()], read


def submissions(folder: Path) -> Target:
    """A challenge's template or a former submission, read and filled in."""
    files = make_challenge(folder, "cxr-lt-2023")
    whole, former = files.template.read_bytes(), folder / "former.csv"
    classes = whole.decode().splitlines()[0].split(",")[1:]
    predicted = (files.images, files.values[classes].to_numpy(), tuple(classes))
    wanted = pd.read_csv(files.template, dtype=str).iloc[:, 0]
    values = pd.DataFrame(np.full((len(wanted), len(classes)), 0.5, np.float32), columns=classes)

    def read(data: bytes) -> object:
        former.write_bytes(data)
        try:
            return compare_submissions(wanted, values, former)
        except InputError:
            return write_submission(predicted, former, folder / "out.csv", folder / "out.zip")

    return [whole], read


def configurations(folder: Path) -> Target:
    """A configuration as YAML, up to where the stage would start with it."""
    corpus = [path.read_bytes() for path in sorted(Path("extract/configs").glob("*.yaml"))]
    path = folder / "c.yaml"
    return corpus, lambda data: (path.write_bytes(data), read_yaml(path))


def options(folder: Path) -> Target:
    """A configuration, parsed to its end: a result, or status 2."""
    path = folder / "c.yaml"
    corpus = [Path("extract/configs/tiny.yaml").read_bytes()]

    def read(data: bytes) -> object:
        path.write_bytes(data)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                return parse_config(ExtractConfig, path, [])
        except SystemExit as stop:
            if stop.code != 2:
                raise RuntimeError(f"left with status {stop.code}") from None
            raise InputError("refused") from None

    return corpus, read


def shards(folder: Path) -> Target:
    """A shard, with the index rebuilt from it: every change is found, and maps that come out are those that went in."""
    cache, path = _cache(folder), folder / "000000.tar"
    wanted, whole = cache.read(np.arange(5)), path.read_bytes()
    cache.close()

    def read(data: bytes) -> object:
        path.write_bytes(data)
        (folder / "index.npz").unlink(missing_ok=True)
        found = any(fault.startswith(f"{path}: ") for fault in verify(folder))
        assert found == (data != whole)
        return _same_maps(folder, wanted)

    return [whole], read


def indices(folder: Path) -> Target:
    """``index.npz``: derived, so damage to it changes nothing."""
    cache, path = _cache(folder), folder / "index.npz"
    wanted = cache.read(np.arange(5))
    cache.close()

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return _same_maps(folder, wanted)

    return [path.read_bytes()], read


def cache_records(folder: Path) -> Target:
    """``cache.json``, half of them with a digest made to fit: maps are equal where `verify` finds no fault."""
    cache, path = _cache(folder), folder / "cache.json"
    wanted = cache.read(np.arange(5))
    cache.close()

    def read(data: bytes) -> object:
        record = _as_json(data)
        if isinstance(record, dict) and len(data) % 2:
            data = json.dumps(record | {"digest": record_digest(record)}).encode()
        path.write_bytes(data)
        whole, maps = not verify(folder), _maps(folder)
        assert not whole or np.array_equal(maps, wanted)

    return [path.read_bytes()], read


def _cache(folder: Path) -> FeatureCache:
    made = make_manifest(folder, 3, max_views=2)
    made = made.select(np.arange(5) % len(made))
    made.images["image_id"] = [f"image {n}" for n in range(5)]
    return make_cache(folder, made, map_shape=(2, 1, 3), per_shard=5)


def _same_maps(folder: Path, wanted: np.ndarray) -> None:
    np.testing.assert_array_equal(_maps(folder), wanted)


def _maps(folder: Path) -> np.ndarray:
    cache = FeatureCache(folder)
    try:
        return cache.read(np.arange(len(cache.ordinal)))
    finally:
        cache.close()


def _as_json(data: bytes) -> object:
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError):
        return None


def prepared_records(folder: Path) -> Target:
    """``prepared.json`` and the names of images in shards."""
    made = PreparedImages(size=64, resize="fit", form="png", golden_decode="ab", images_per_shard=9)
    corpus = [made.to_json().encode(), b"images/000012.tar#1536+48213+9f86d081884c7d65"]

    def read(data: bytes) -> object:
        (folder / RECORD).write_bytes(data)
        return find_member(Path(data.decode("utf-8", "replace"))) or read_prepared(folder)

    return corpus, read


def fitted_curves(folder: Path) -> Target:
    """The bodies of calibration.json and thresholds.json."""
    fitted = {
        "method": "platt",
        "min_positives": 10,
        "shared": {"slope": 1.5, "bias": -0.2},
        "classes": {"Edema": {"positives": 12, "curve": "own", "slope": 0.5, "bias": 0.0}},
    }
    steps = fitted | {
        "method": "isotonic",
        "classes": {"Mass": {"positives": 3, "curve": "own", "knots": [-1.0, 2.0], "probabilities": [0.1, 0.9]}},
    }
    chosen = {"criterion": "F1", "shared": 0.25, "classes": {"Edema": {"threshold": 0.5, "chosen": "own"}}}

    def read(data: bytes) -> object:
        record = _as_json(data)
        kind = thresholds if isinstance(record, dict) and "criterion" in record else calibration
        return kind.from_json(record, "x.json")

    return [json.dumps(record).encode() for record in (fitted, steps, chosen)], read


def preprocessings(folder: Path) -> Target:
    """``preprocessing.json`` of a model folder, and what it then does with an image."""
    picture = np.random.default_rng(0).random((9, 7), dtype=np.float32)

    def read(data: bytes) -> object:
        record = _as_json(data)
        if not isinstance(record, dict):
            raise InputError("no object")
        transform = Preprocessing.from_dict(record)
        return transform(picture).shape if transform.size < 512 else None

    return [json.dumps(Preprocessing(size=8).to_dict()).encode()], read


def weights(folder: Path) -> Target:
    """``model.safetensors`` by itself: without a digest, other weights are weights too."""
    from extract.checkpoint import load_tensors

    tensors = {"w": torch.arange(6.0).view(2, 3), "count": torch.tensor(7), "h": torch.ones(2, dtype=torch.bfloat16)}
    path = folder / "model.safetensors"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        found = load_tensors(path)
        return {name: tensor.sum() for name, tensor in found.items()}

    return [safetensors.torch.save(tensors)], read


def checkpoints(folder: Path) -> Target:
    """``digests.json``: the newer checkpoint is taken if it vouches for the weights, and for nothing that is not so."""
    for value in (1, 2):
        content = {"state.json": {"epoch": value}, "model.safetensors": {"w": torch.ones(value)}}
        save_folder(folder / "last", content, keep=folder / "previous")
    path = folder / "last" / "digests.json"
    true = json.loads(path.read_text())

    def read(data: bytes) -> object:
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = newest_checkpoint(folder)
        said = _as_json(data)
        vouches = isinstance(said, dict) and "model.safetensors" in said and said.items() <= true.items()
        assert found == folder / ("last" if vouches else "previous")
        return found

    return [path.read_bytes()], read


def model_records(folder: Path) -> Target:
    """The JSON files of a published model folder, told apart by their keys, each by its own reader."""
    parts = make_predictor().parts
    write_config(parts, folder)
    path, classes = folder / "config.json", parts.classes
    (folder / "preprocessing.json").write_text(json.dumps(parts.preprocessing.to_dict()))
    listed = {name: "ab" * 32 for name in ("model.safetensors", "config.json")}
    corpus = [path.read_bytes(), *(json.dumps(record).encode() for record in ({"classes": classes}, listed))]

    def read(data: bytes) -> object:
        record = _as_json(data)
        if isinstance(record, dict) and "classes" in record:
            (folder / "classes.json").write_bytes(data)
            return read_classes(folder)
        if isinstance(record, dict) and "model.safetensors" in record:
            (folder / "digests.json").write_bytes(data)
            return check_files(folder)
        path.write_bytes(data)
        record = read_json(path, "")
        check_keys(record, {"format": int, "model_type": str, "maps": dict, "no_view": dict}, "x")
        return read_maps(record["maps"], folder, classes), read_no_view(record["no_view"], classes, "x")

    return corpus, read


def run_records(folder: Path) -> Target:
    """``config.yaml`` and ``metrics.jsonl`` that a run finds in its folder."""
    defaults = default_values(ExtractConfig)
    text = yaml.safe_dump({"epochs": 2, "image": {"size": 64}})
    metrics = b'{"epoch": 1, "mAP": 0.5}\n{"epoch": 2, "mAP": null}\n'

    def read(data: bytes) -> object:
        (folder / "config.yaml").write_bytes(data)
        (folder / "metrics.jsonl").write_bytes(data)
        try:
            return read_metrics(folder)
        except InputError:
            return keep_config(folder, text, defaults)

    return [metrics, text.encode()], read


TARGETS: dict[str, Callable[[Path], Target]] = {
    make.__name__: make
    for make in (
        *(decoded_images, dicom_headers, dicom_pixels, csv_tables, manifests, descriptions, predictions, submissions),
        *(configurations, options, shards, indices, cache_records, prepared_records, fitted_curves, preprocessings),
        *(weights, checkpoints, model_records, run_records),
    )
}
