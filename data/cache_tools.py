"""The command `scripts/cache.py`: what a feature cache holds, whether it is whole, and other caches made from it."""

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from data.cache import FeatureCache, read_cache_record
from data.cache_convert import coding_error, convert, convert_in_place
from data.cache_merge import merge
from data.cache_rewrite import MEBIBYTES
from data.cache_verify import verify
from data.errors import InputError
from data.runs import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    parser, commands = _parsers()
    arguments = parser.parse_args(argv)
    run_command(lambda: commands[arguments.subcommand](arguments[arguments.subcommand]))


def describe(folder: Path) -> list[str]:
    """Identity, provenance and sizes of a cache, a line each."""
    cache = FeatureCache(folder)
    record, identity = cache.record, cache.identity
    total, N = sum(shard["bytes"] for shard in record["shards"]), identity.num_images
    studies, patients = (len(set(getattr(cache.index, name).tolist())) for name in ("study_id", "patient_id"))
    H, W, D = identity.map_shape
    form = f"{identity.dtype}{', pooled 2 x 2' if identity.pool == 2 else ''}"
    form += f", {identity.compression}" if identity.compression != "none" else ""
    rows = {
        "cache": str(folder),
        "images": f"{N:,} of {studies:,} studies of {patients:,} patients",
        "maps": f"{H} x {W} x {D} {form}; {', '.join(identity.variants)}",
        "bytes": f"{total:,} in {len(record['shards'])} shards, {total / N:,.0f} per image",
        "backbone": f"{identity.backbone}, weights {', '.join(digest[:12] for digest in identity.weights)}",
        "trained on": f"{len(record['trained_patients']):,} patients, of whom hashes are kept",
        "digests": f"images {identity.images_sha256[:12]}, cache.json {record['digest'][:12]}",
    }
    if identity.fold_weights:
        counts = Counter(cache.index.fold.tolist())
        rows["out of fold"] = ", ".join(f"{counts[n]:,} images from backbone {n}" for n in range(len(identity.weights)))
    if "rewritten_from" in record:
        rows["made from"] = ", ".join(digest[:12] for digest in record["rewritten_from"])
    for key in ("preprocessing", "versions"):
        values = identity.preprocessing if key == "preprocessing" else record.get(key, {})
        rows[key] = ", ".join(f"{name} {value}" for name, value in values.items()) or "not recorded"
    rows["classes"] = ", ".join(identity.classes)
    return [f"{name:<14}{value}" for name, value in rows.items()]


def _parsers() -> tuple[ArgumentParser, dict]:
    parser = ArgumentParser(prog="cache.py", description="Look at, check, convert and merge feature caches.")
    subcommands = parser.add_subcommands(required=True)
    commands = {}
    for name, add_arguments, run, help_text in (
        ("info", _folder_argument, _info, "identity, provenance, shards and bytes of a cache"),
        ("verify", _folder_argument, _verify, "read all of a cache and name every fault; status 1 if there is one"),
        ("convert", _convert_arguments, _convert, "another storage form of the same maps; nothing is computed again"),
        ("merge", _merge_arguments, _merge, "join caches of one backbone, or make an out-of-fold cache of several"),
    ):
        part = ArgumentParser(description=help_text)
        add_arguments(part)
        subcommands.add_subcommand(name, part, help=help_text)
        commands[name] = run
    return parser, commands


def _folder_argument(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a cache, runs/<name>/cache")


def _info(options: Namespace) -> None:
    print("\n".join(describe(options.folder)))


def _verify(options: Namespace) -> None:
    faults = verify(options.folder)
    for fault in faults:
        print(f"fault: {fault}", file=sys.stderr)
    if faults:
        raise InputError(f"{options.folder}: {len(faults)} fault{'s' if len(faults) > 1 else ''}, listed above")
    print(f"{options.folder}: whole")


def _convert_arguments(parser: ArgumentParser) -> None:
    _folder_argument(parser)
    parser.add_argument("--target", type=Path, default=None, help="folder of the new cache")
    parser.add_argument("--replace", action="store_true", help="put the new cache in the place of the old one")
    parser.add_function_arguments(convert, skip={"source", "target"})


def _convert(options: Namespace) -> None:
    values = vars(options)
    folder, target, replace = (values.pop(name) for name in ("folder", "target", "replace"))
    if (target is None) != replace:
        raise InputError("convert: name either --target FOLDER or --replace")
    if options.dtype == "uint8" and read_cache_record(folder)[1].dtype == "float16":
        print(f"uint8 is off by {coding_error(folder, options.pool):.2%} (root mean square, on a sample of the maps)")
    if replace:
        convert_in_place(folder, **values)
    else:
        convert(folder, target, **values)
    print("\n".join(describe(target or folder)))
    if target is not None:
        print(f"next: accelerate launch train_fusion.py --cache_dir {shlex.quote(str(target))} --name <name>")


def _merge_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "sources", type=Path, nargs="+", help="caches; of several backbones, the first serves val, test"
    )
    parser.add_argument("--target", type=Path, required=True, help="folder of the new cache")
    parser.add_argument("--shard_megabytes", type=int, default=MEBIBYTES, help="size of a shard, at most")


def _merge(options: Namespace) -> None:
    for source, count in merge(options.sources, options.target, options.shard_megabytes).items():
        print(f"{count:,} images from {source}")
    print("\n".join(describe(options.target)))
