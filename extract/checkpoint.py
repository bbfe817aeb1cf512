"""Folders of weights and state that are either complete or absent, and never hold a pickle.

A stage folder has three: ``best/`` (the model folder), ``last/`` and ``previous/`` (model and resume state). A save
writes ``.tmp-last/``, flushes it, writes ``digests.json`` last, renames ``last/`` to ``previous/`` and the temporary
folder to ``last/``. Whatever the moment of a crash, ``last/`` or ``previous/`` is whole.
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from data.errors import InputError
from data.files import name_file, sha256_file, sync_folder
from data.strict_json import read_json, read_texts

AGAIN = "copy the whole folder again, or train again"
Content = Mapping[str, Tensor] | dict[str, Any] | str


def save_folder(folder: Path, files: dict[str, Content], keep: Path | None = None) -> None:
    """Write a folder atomically: tensors as safetensors, dictionaries as JSON, text as it is.

    Args:
        folder: Final name. What was there is renamed to `keep`, or deleted once the new folder is in place.
        files: File name to content; the suffix must fit.
        keep: Where the former folder goes, replacing what `keep` held.
    """
    temporary = folder.with_name(f".tmp-{folder.name}")
    outgoing = keep if keep is not None else folder.with_name(f".old-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _fill(temporary, files)
        if folder.exists():
            shutil.rmtree(outgoing, ignore_errors=True)
            os.rename(folder, outgoing)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs the room
        name_file(error, folder)
        raise
    if keep is None:
        shutil.rmtree(outgoing, ignore_errors=True)


def _fill(folder: Path, files: dict[str, Content]) -> None:
    """Make a folder with its digests, on disk when this returns."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        _write(folder / name, content)
    digests = {name: sha256_file(folder / name) for name in sorted(files)}
    _write(folder / "digests.json", digests)
    sync_folder(folder)


def _write(path: Path, content: Content) -> None:
    if isinstance(content, str):
        data = content.encode()
    elif path.suffix == ".safetensors":
        data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in content.items()})
    else:
        data = json.dumps(content, indent=1, sort_keys=True).encode()
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def check_folder(folder: Path) -> None:
    """Compare every file of a saved folder with ``digests.json``.

    Raises:
        InputError: names the file and what is wrong with it.
    """
    digests_path = folder / "digests.json"
    if not digests_path.is_file():
        raise InputError(f"{folder}: not a complete model or checkpoint folder (digests.json is missing)")
    digests = read_json(digests_path, AGAIN)
    if not digests:
        raise InputError(f"{digests_path}: damaged, wanted a JSON object of file names and digests")
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if unlisted := sorted(name for name in present - set(digests) if name.endswith(".safetensors")):
        raise InputError(f"{folder / unlisted[0]}: digests.json does not list it, so nobody vouches for it; {AGAIN}")
    for name, wanted in digests.items():
        if name not in present:
            raise InputError(f"{folder / name}: missing, although digests.json lists it")
        found = sha256_file(folder / name)
        if found != wanted:
            raise InputError(f"{folder / name}: damaged (SHA-256 {found[:12]}, digests.json says {str(wanted)[:12]})")


def load_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read a safetensors file; never a pickle.

    Raises:
        InputError: not a safetensors file, or a damaged one.
    """
    try:
        return safetensors.torch.load_file(path, device=device)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not readable as safetensors ({error})") from None


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checked folder: the digests vouch for its bytes, not for who wrote them.

    Raises:
        InputError: It is missing or holds anything else.
    """
    return read_json(path, AGAIN)


def load_classes(folder: Path) -> tuple[str, ...]:
    """The classes of a checked model folder, in the order of its outputs.

    Raises:
        InputError: `classes.json` is missing or holds anything else.
    """
    return tuple(read_texts(folder / "classes.json", "classes", AGAIN))


def trained_patients(stage_dir: Path) -> set[str]:
    """Whom a stage has learned from, as its `data.json` says.

    Raises:
        InputError: The file is missing or damaged.
    """
    return set(read_texts(stage_dir / "data.json", "trained_patients", f"delete {stage_dir} and train it again"))


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict strictly.

    Raises:
        InputError: names the first missing, unexpected or differently shaped key.
    """
    own = model.state_dict()
    for key in own:
        if key not in tensors:
            raise InputError(f"{where}: weight {key!r} is missing; was it made with another configuration?")
        if own[key].shape != tensors[key].shape:
            wanted, found = tuple(own[key].shape), tuple(tensors[key].shape)
            raise InputError(f"{where}: weight {key!r} has shape {found}, the configured model wants {wanted}")
    unexpected = [key for key in tensors if key not in own]
    if unexpected:
        raise InputError(f"{where}: unexpected weight {unexpected[0]!r} ({len(unexpected)} in all)")
    model.load_state_dict(dict(tensors), strict=True)


def newest_checkpoint(stage_dir: Path) -> Path | None:
    """The newest undamaged resume folder: ``last/``, else, with a warning, ``previous/``, else None."""
    problems = []
    for name in ("last", "previous"):
        folder = stage_dir / name
        if not folder.exists():
            continue
        try:
            check_folder(folder)
        except InputError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{problems[0]}; going on from {folder} instead", stacklevel=2)
        return folder
    if problems:
        raise InputError(f"{'; '.join(problems)}; delete {stage_dir} to start anew")
    return None


def named_checkpoint(folder: Path) -> Path:
    """A resume folder that the user named, whole.

    Raises:
        InputError: it is damaged, or has no resume state (``best/`` has none).
    """
    check_folder(folder)
    if not (folder / "state.json").is_file():
        raise InputError(f"{folder}: a model without resume state; resume from a last/ or previous/ folder")
    return folder


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state under the parameters' names: ``exp_avg/head.weight`` and so on."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{kind}/{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for kind, value in state.items()
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took.

    Step counters lie with the parameters, as fused optimizers want them, otherwise on the CPU.

    Raises:
        InputError: state of a parameter that the model does not have, or of another shape.
    """
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name not in parameters or (kind != "step" and value.shape != parameters[name].shape):
            raise InputError(f"optimizer.safetensors: state {key!r} does not fit the model")
        with_parameters = kind != "step" or optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
        optimizer.state[parameters[name]][kind] = value.to(parameters[name].device if with_parameters else "cpu")
