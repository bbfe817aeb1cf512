"""Files that try to run code, to be written elsewhere, or to fill the memory; each in the place of a good one.

A payload touches a canary file if anything runs it. A case is a function of an empty folder and the canary's path that
has the product read the file; it returns what was read, or lets the refusal out. With it stand the words with which it
must be refused: another refusal would be an accident.
"""

import contextlib
import io
import json
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import torch
import xxhash
import yaml

from data.cache import FeatureCache, load_index, record_digest
from data.cache_verify import verify
from data.config import parse_config, read_yaml
from data.errors import InputError
from data.files import sha256_file
from data.image_shards import find_member
from data.images import read_image
from data.manifest import read_manifest
from data.predictions import read_predictions
from data.shards import npy_header
from data.strict_json import read_json
from data.tables import read_table
from extract.backbone import BackboneConfig, create_timm_model
from extract.checkpoint import check_folder, load_tensors, newest_checkpoint, save_folder
from extract.config import ExtractConfig
from extract.teacher import load_teacher
from fusion.scoring import load_scores
from tests.bombs import deflated
from tests.faults.commands import tiny_manifest
from tests.make_data import make_cache

Case = Callable[[Path, Path], object]
PICTURE = imagecodecs.png_encode(np.arange(64, dtype=np.uint8).reshape(8, 8))
"""A good image: nothing but the place where it lies keeps it from being read."""


def refusal(case: Case, folder: Path) -> str:
    """The line with which a case is refused; nothing if it was read, left with another status than 2, or ran."""
    (folder / "in").mkdir()
    canary, printed = folder / "canary", io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            case(folder / "in", canary)
        line = ""
    except InputError as error:
        line = str(error)
    except SystemExit as stop:
        line = printed.getvalue().strip() if stop.code == 2 else ""
    return "" if canary.exists() else line


class Payload:
    """Touches the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple:
        return open, (self.canary, "w")


def pickled(canary: Path) -> bytes:
    """A pickle that runs."""
    return pickle.dumps(Payload(canary))


def torch_zip(canary: Path) -> bytes:
    """A .pt file of today."""
    buffer = io.BytesIO()
    torch.save({"w": Payload(canary)}, buffer)
    return buffer.getvalue()


def torch_legacy(canary: Path) -> bytes:
    """A .pt file as before torch 1.6."""
    buffer = io.BytesIO()
    torch.save({"w": Payload(canary)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def torch_tar(canary: Path) -> bytes:
    """A .pt file as before torch 0.1.10: a tar of pickles."""
    return tarred({name: pickled(canary) for name in ("sys_info", "pickle", "storages", "tensors")})


def tarred(members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar file; links lead to /etc/passwd."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(content) if kind == tarfile.REGTYPE else 0, kind
            member.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def as_weights(make: Callable[[Path], bytes]) -> Case:
    """In the place of model.safetensors, with digests that fit."""

    def case(folder: Path, canary: Path) -> object:
        save_folder(folder / "best", {"model.safetensors": {"w": torch.zeros(1)}})
        (folder / "best" / "model.safetensors").write_bytes(make(canary))
        digest = sha256_file(folder / "best" / "model.safetensors")
        (folder / "best" / "digests.json").write_text(json.dumps({"model.safetensors": digest}))
        check_folder(folder / "best")
        return load_tensors(folder / "best" / "model.safetensors")

    return case


def as_pretrained(name: str, make: Callable[[Path], bytes]) -> Case:
    """As `backbone.pretrained`, under a name."""

    def case(folder: Path, canary: Path) -> object:
        (folder / name).write_bytes(make(canary))
        return create_timm_model(BackboneConfig(name="test_convnext", pretrained=folder / name), 3)

    return case


def timm_checkpoint(folder: Path, canary: Path) -> object:
    """A pickle that timm itself would open."""
    (folder / "w.pth").write_bytes(torch_legacy(canary))
    arguments: dict = {"checkpoint_path": str(folder / "w.pth")}
    return create_timm_model(BackboneConfig(name="test_convnext", arguments=arguments), 3)


def made_cache(folder: Path) -> Path:
    """A whole cache of twelve images in two shards."""
    make_cache(folder / "cache", tiny_manifest(folder)).close()
    return folder / "cache"


def as_shard(change: Callable[[dict[str, bytes], Path], dict[str, bytes]], kind: bytes = tarfile.REGTYPE) -> Case:
    """A shard with other members, listed by its true digests."""

    def case(folder: Path, canary: Path) -> object:
        cache = made_cache(folder)
        path = cache / "000000.tar"
        with tarfile.open(path) as tar:
            members = {m.name: file.read() for m in tar if (file := tar.extractfile(m)) is not None}
        path.write_bytes(tarred(change(members, canary), kind))
        return reread(cache)

    return case


def object_array(canary: Path) -> bytes:
    """An .npy file of Python objects."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(canary)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def reread(cache: Path) -> object:
    """Read a cache whose shard was changed, with digests made to fit."""
    record = json.loads((cache / "cache.json").read_text())
    for shard in record["shards"]:
        path = cache / shard["name"]
        if path.is_file():
            shard |= {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    (cache / "cache.json").write_text(json.dumps(record | {"digest": record_digest(record)}))
    (cache / "index.npz").unlink(missing_ok=True)
    assert verify(cache), "nothing found"
    return FeatureCache(cache).read(np.arange(12))


def shard_name_in_record(name: str) -> Case:
    """A shard of another name in cache.json; under that name lies the shard, if a file can be called so."""

    def case(folder: Path, canary: Path) -> object:
        cache = made_cache(folder)
        record = json.loads((cache / "cache.json").read_text())
        record["shards"][0]["name"] = name.replace("CANARY", str(canary)).replace("OUTSIDE", str(folder.parent))
        with contextlib.suppress(OSError):
            shutil.copyfile(cache / "000000.tar", cache / record["shards"][0]["name"])
        (cache / "cache.json").write_text(json.dumps(record | {"digest": record_digest(record)}))
        return FeatureCache(cache).read(np.arange(12))

    return case


def index_of_objects(folder: Path, canary: Path) -> object:
    """index.npz of pickles: derived, so it is made anew from the shards."""
    cache = made_cache(folder)
    objects = np.array([Payload(canary)] * 12, dtype=object)
    np.savez(cache / "index.npz", allow_pickle=True, **dict.fromkeys(vars(load_index(cache)), objects))
    FeatureCache(cache).close()
    raise InputError("not used")


def scores_of_objects(folder: Path, canary: Path) -> object:
    """Kept scores of a run."""
    np.savez(folder / "scores_test.npz", allow_pickle=True, labels=np.array([Payload(canary)], dtype=object))
    return load_scores(folder / "scores_test.npz")


def as_yaml(text: str) -> Case:
    """A configuration file."""

    def case(folder: Path, canary: Path) -> object:
        (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass C: pass\n")
        (folder / "evil.yaml").write_text(f"head: {{class_path: evil.C}}\n# {canary}\n")
        (folder / "c.yaml").write_text(text.replace("CANARY", str(canary)).replace("FOLDER", str(folder)))
        return parse_config(ExtractConfig, folder / "c.yaml", [])

    return case


def model_folder_with_code(folder: Path, canary: Path) -> object:
    """Python files beside the weights, and a configuration that names them."""
    code = f"open({str(canary)!r}, 'w')\n"
    config = yaml.safe_dump({"backbone": {"name": "modelling.Net"}, "head": {"class_path": "modelling.Head"}})
    text: dict = {"modelling.py": code, "sitecustomize.py": code, "config.yaml": config, "preprocessing.json": {}}
    save_folder(folder / "best", {"model.safetensors": {"backbone.w": torch.zeros(1)}, "classes.json": {}} | text)
    return load_teacher(folder)


def as_path(text: str) -> Case:
    """The path of an image in a manifest, read to its picture; a good one lies outside, and where letters are odd."""

    def case(folder: Path, canary: Path) -> object:
        (folder / "a").mkdir()
        odd = [folder / text] if "\\" in text else []
        for place in (folder.parent / "secret.png", folder.parent / "x.tar", folder / "a" / "good.png", *odd):
            place.write_bytes(PICTURE)
        manifest = tiny_manifest(folder)
        frame = pd.concat([manifest.images, pd.DataFrame(manifest.labels, columns=manifest.classes)], axis=1)
        frame.loc[3, "path"] = text.replace("CANARY", str(canary)).replace("OUTSIDE", str(folder.parent))
        frame.to_csv(folder / "manifest.csv", index=False)
        read = read_manifest(folder / "manifest.csv")
        return read_image(read.image_path(3))

    return case


def digests_elsewhere(folder: Path, canary: Path) -> object:
    """digests.json that vouches for a file outside its folder."""
    (folder / "outside").write_text("x")
    save_folder(folder / "last", {"state.json": {}})
    (folder / "last" / "digests.json").write_text(json.dumps({"../outside": sha256_file(folder / "outside")}))
    return newest_checkpoint(folder)


NO_WEIGHTS = "model.safetensors: not readable as safetensors"
OTHER_SHARDS = "cache.json: damaged (it lists other shards than its images fill)"
NO_CLASSES = "a configuration does not choose classes; remove class_path"
NO_TAGS = "YAML anchors, aliases and tags are not accepted"
STAYS_INSIDE = "row 5: path '{}' must be relative and stay inside the image folder"

RUNS_CODE: dict[str, tuple[Case, str]] = {
    "pickle called model.safetensors": (as_weights(pickled), NO_WEIGHTS),
    "zip .pt called model.safetensors": (as_weights(torch_zip), NO_WEIGHTS),
    "legacy .pt called model.safetensors": (as_weights(torch_legacy), NO_WEIGHTS),
    "tar .pt called model.safetensors": (as_weights(torch_tar), NO_WEIGHTS),
    "pickle as backbone.pretrained w.pth": (
        as_pretrained("w.pth", torch_legacy),
        "w.pth is not a .safetensors file or a model folder",
    ),
    "zip .pt as backbone.pretrained w.pt": (
        as_pretrained("w.pt", torch_zip),
        "w.pt is not a .safetensors file or a model folder",
    ),
    "pickle as backbone.pretrained w.safetensors": (
        as_pretrained("w.safetensors", pickled),
        "w.safetensors: not readable as safetensors",
    ),
    "pickle as timm's checkpoint_path": (timm_checkpoint, "backbone.arguments: no checkpoint_path"),
    "npy of objects as a map": (
        as_shard(
            lambda members, canary: {n: object_array(canary) if n.endswith(".npy") else c for n, c in members.items()}
        ),
        "member 000000000.features.npy is not a float16 map",
    ),
    "member .pyd in a shard": (
        as_shard(lambda members, canary: {**members, "000000000.pyd": pickled(canary)}),
        "unexpected member '000000000.pyd'",
    ),
    "member .pth in a shard": (
        as_shard(lambda members, canary: {"000000000.pth": torch_zip(canary), **members}),
        "unexpected member '000000000.pth'",
    ),
    "pickle for the ids in a shard": (
        as_shard(
            lambda members, canary: {n: pickled(canary) if n.endswith(".json") else c for n, c in members.items()}
        ),
        "not a readable shard ('utf-8' codec can't decode",
    ),
    "index.npz of objects": (index_of_objects, "not used"),
    "scores_test.npz of objects": (scores_of_objects, "scores_test.npz: missing or damaged"),
    "shard called pipe: in cache.json": (shard_name_in_record("pipe:touch CANARY"), OTHER_SHARDS),
    "image called pipe: in a manifest": (as_path("pipe:touch CANARY"), "does not exist"),
    "image called | touch": (as_path("|touch CANARY;`touch CANARY`$(touch CANARY).png"), "does not exist"),
    "YAML !!python/object/apply": (as_yaml("head: !!python/object/apply:os.system ['touch CANARY']\n"), NO_TAGS),
    "YAML !!python/name": (as_yaml("epochs: !!python/name:evil.C\n"), NO_TAGS),
    "YAML class_path of a module here": (as_yaml("head: {class_path: evil.C}\n"), NO_CLASSES),
    "YAML class_path in backbone.arguments": (
        as_yaml("backbone: {arguments: {a: {class_path: evil.C}}}\n"),
        NO_CLASSES,
    ),
    "YAML section that names another file": (
        as_yaml("head: FOLDER/evil.yaml\n"),
        "head: wanted option names and their values",
    ),
    "YAML config that names another file": (
        as_yaml("config: FOLDER/evil.yaml\n"),
        "a configuration file cannot name another one",
    ),
    "Python files in a model folder": (model_folder_with_code, NO_CLASSES),
}
"""Nothing here may run, and nothing may be read as if it were good."""

LEAVES_FOLDER: dict[str, tuple[Case, str]] = {
    "image ../secret.png": (as_path("../secret.png"), STAYS_INSIDE.format("../secret.png")),
    "image a/../../secret.png": (as_path("a/../../secret.png"), STAYS_INSIDE.format("a/../../secret.png")),
    "image /.../secret.png": (as_path("OUTSIDE/secret.png"), "secret.png' must be relative and stay inside"),
    "image C:\\x.png": (as_path("C:\\x.png"), STAYS_INSIDE.format("C:\\x.png")),
    "image ..\\secret.png": (as_path("..\\secret.png"), STAYS_INSIDE.format("..\\secret.png")),
    "image %2e%2e/secret.png": (as_path("%2e%2e/secret.png"), "%2e%2e/secret.png: does not exist"),
    "image in ../x.tar#": (
        as_path(f"../x.tar#0+{len(PICTURE)}+{xxhash.xxh3_64_hexdigest(PICTURE)}"),
        "must be relative and stay inside",
    ),
    "shard ../x.tar": (shard_name_in_record("../x.tar"), OTHER_SHARDS),
    "shard /.../x.tar": (shard_name_in_record("OUTSIDE/x.tar"), OTHER_SHARDS),
    "shard with a link member": (as_shard(lambda members, _: members, tarfile.SYMTYPE), "unexpected member"),
    "shard with a hard link member": (as_shard(lambda members, _: members, tarfile.LNKTYPE), "unexpected member"),
    "shard with a device member": (as_shard(lambda members, _: members, tarfile.CHRTYPE), "unexpected member"),
    "shard with ../ members": (
        as_shard(lambda members, _: {f"../{n}": c for n, c in members.items()}),
        "000000.tar: not a readable shard (invalid literal for int()",
    ),
    "digests.json for ../outside": (digests_elsewhere, "../outside: missing, although digests.json lists it"),
}
"""Nothing here may read or write outside the folder that it lies in; what lies there is good, and would be read."""

STAYS: dict[str, Case] = {
    "image a/good.png": as_path("a/good.png"),
    "shard 000000.tar": shard_name_in_record("000000.tar"),
}
"""The same inside the folder, which is read: the names above are refused for what they are."""


def zeros_gz(folder: Path) -> object:
    """A table of 1 GiB in 1 MB."""
    header = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    (folder / "t.csv.gz").write_bytes(header + deflated(b"0," * (1 << 19), 1024))
    return read_table(folder / "t.csv.gz")


def yaml_text(text: str) -> Callable[[Path], object]:
    """A configuration file."""

    def case(folder: Path) -> object:
        (folder / "c.yaml").write_text(text)
        return read_yaml(folder / "c.yaml")

    return case


def json_text(text: str) -> Callable[[Path], object]:
    """Any JSON file that others may have written."""

    def case(folder: Path) -> object:
        (folder / "x.json").write_text(text)
        return read_json(folder / "x.json", "make it again")

    return case


def safetensors_header(header: bytes, length: int | None = None) -> Callable[[Path], object]:
    """A file of weights with that header."""

    def case(folder: Path) -> object:
        (folder / "w.safetensors").write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)
        return load_tensors(folder / "w.safetensors")

    return case


def deflated_index(folder: Path) -> object:
    """index.npz of 200 MB in 1 MB; derived, so it is made anew."""
    cache = made_cache(folder)
    names = list(vars(load_index(cache)))
    with zipfile.ZipFile(cache / "index.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(f"{names[0]}.npy", "w") as member:
            member.write(npy_header((200 << 20,), "uint8"))
            for _ in range(200):
                member.write(bytes(1 << 20))
        for name in names[1:]:
            archive.writestr(f"{name}.npy", b"")
    FeatureCache(cache).close()
    raise InputError("not used")


def record_of(**changes: object) -> Callable[[Path], object]:
    """cache.json with another identity, its digest made to fit."""

    def case(folder: Path) -> object:
        cache = made_cache(folder)
        record = json.loads((cache / "cache.json").read_text())
        record["identity"] |= changes
        (cache / "cache.json").write_text(json.dumps(record | {"digest": record_digest(record)}))
        return FeatureCache(cache).read(np.arange(3))

    return case


def member_of_8_gib(folder: Path) -> object:
    """A shard whose ids say that they have 8 GiB."""
    cache = made_cache(folder)
    content = bytearray((cache / "000000.tar").read_bytes())
    place = content.find(b"000000000.json")
    content[place + 124 : place + 136] = b"77777777777\0"
    header = content[place : place + 512]
    header[148:156] = b" " * 8
    content[place + 148 : place + 156] = b"%06o\0 " % sum(header)
    (cache / "000000.tar").write_bytes(content)
    return reread(cache)


def member_in_image_shard(folder: Path) -> object:
    """An image of 900 TB, says its name."""
    (folder / "x.tar").write_bytes(bytes(10240))
    found = find_member(folder / "x.tar#0+999999999999999+9f86d081884c7d65")
    assert found is not None
    return read_image(found.path)


def predictions_line(folder: Path) -> object:
    """A table of one line of 64 MB."""
    (folder / "p.csv").write_bytes(b"image_id,study_id,patient_id,A\n" + b"7" * (64 << 20))
    return read_predictions(folder / "p.csv")


FILLS_MEMORY: dict[str, Callable[[Path], object]] = {
    "gzip table, 1 GiB of one line": zeros_gz,
    "table, one line of 64 MB": predictions_line,
    "YAML, aliases of aliases": yaml_text(
        "a: &a [x,x]\n" + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in pairwise("abcdefghi"))
    ),
    "YAML, 30,000 brackets": yaml_text("a: " + "[" * 30_000),
    "YAML of 10 MB": yaml_text("a: " + "x" * 10_000_000),
    "JSON, 1,000,000 brackets": json_text("[" * 1_000_000),
    "JSON, a number of 5,000,000 digits": json_text('{"a": ' + "9" * 5_000_000 + "}"),
    "safetensors, header of 2^63 bytes": safetensors_header(b"{}", 2**63),
    "safetensors, header of 200 MB": safetensors_header(b"{}", 200_000_000),
    "safetensors, a tensor of 2^60 values": safetensors_header(
        b'{"w":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4611686018427387904]}}'
    ),
    "index.npz, 200 MB": deflated_index,
    "cache.json, 10^12 images": record_of(num_images=10**12, images_per_shard=1),
    "cache.json, 10^30 images": record_of(num_images=10**30),
    "cache.json, maps of 10^18 values": record_of(map_shape=[10**6, 10**6, 10**6]),
    "cache.json, a text 2^32 times": record_of(map_shape=[2] * 32 + ["nan"]),
    "shard, ids of 8 GiB": member_of_8_gib,
    "image of 900 TB in a shard": member_in_image_shard,
}
"""Small files that claim, or unpack to, far more than they should."""
