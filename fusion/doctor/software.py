"""The doctor's checks of what is installed: Python, packages, GPU, and what `accelerate launch` would start."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from fusion.doctor.finding import Finding

DISTRIBUTION = "cxr-fusion"
PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
PYTHON = (3, 11)  # as in pyproject.toml, which an older Python has no reader for
SHOWN = ("torch", "torchvision", "timm", "accelerate", "numpy", "pandas", "pydicom", "imagecodecs")
DRIVER_SIGNS = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"))
TWO_ON_CPU = "ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 --main_process_port 0 extract.py"


def check_python() -> Finding:
    """Python's version against the oldest one that the project runs on."""
    if sys.version_info < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        remedy = f"python{wanted} -m venv .venv && .venv/bin/pip install -e ."
        return Finding("fail", "python", f"{platform.python_version()}, wanted {wanted} or newer", remedy)
    machine = f"{platform.system()} {platform.machine()}"
    return Finding("ok", "python", f"{platform.python_version()} on {machine}")


def requirements() -> list[tuple[str, str]]:
    """What the project declares, as names and bounds: in its pyproject.toml, or where there is none, its metadata."""
    import tomllib

    if PYPROJECT.is_file():
        return applying(tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"])
    return applying(importlib.metadata.requires(DISTRIBUTION) or [])


def applying(texts: list[str]) -> list[tuple[str, str]]:
    """Names and bounds of those requirements that hold here: not the extras, not those of other systems."""
    from packaging.requirements import Requirement

    wanted = map(Requirement, texts)
    return [(one.name, str(one.specifier)) for one in wanted if not one.marker or one.marker.evaluate({"extra": ""})]


def installed(name: str) -> str | None:
    """Version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def suits(bounds: str, found: str | None) -> bool:
    """Whether an installed version lies within bounds such as ``>=2.11``."""
    from packaging.specifiers import SpecifierSet

    return found is not None and SpecifierSet(bounds).contains(found, prereleases=True)


def check_packages() -> Finding:
    """Every declared package is there and at or above its lower bound."""
    wanted = requirements()
    wrong = [(name, bounds) for name, bounds in wanted if not suits(bounds, installed(name))]
    if wrong:
        found = [f"{name} {installed(name) or 'missing'} (wanted {bounds or 'any'})" for name, bounds in wrong]
        arguments = " ".join(f'"{name}{bounds}"' for name, bounds in wrong)
        return Finding("fail", "packages", ", ".join(found), f"pip install -U {arguments}")
    shown = ", ".join(f"{name} {installed(name)}" for name in SHOWN)
    return Finding("ok", "packages", f"all {len(wanted)} new enough: {shown}")


def check_pairs() -> Finding:
    """What our packages demand of each other, above all torchvision of torch: a later install may have broken it."""
    ours = {name.lower() for name, _ in requirements() if installed(name)}
    broken, names = [], set()
    for name in sorted(ours):
        for other, bounds in applying(importlib.metadata.requires(name) or []):
            if other.lower() in ours and not suits(bounds, installed(other)):
                broken.append(f"{name} {installed(name)} wants {other}{bounds}, found {installed(other)}")
                names |= {name, other}
    if broken:
        remedy = f"pip install -U --force-reinstall {' '.join(sorted(names))}"
        return Finding("fail", "package pairs", "; ".join(broken), remedy)
    return Finding("ok", "package pairs", f"{len(ours)} packages agree on each other's versions")


def check_torchvision() -> Finding:
    """torchvision's compiled operators load: built for another torch, `nms` does not exist."""
    try:
        import torch
        from torchvision.ops import nms

        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.1]])
        if nms(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist() != [0]:
            raise RuntimeError
    except (RuntimeError, OSError, ImportError, AttributeError):
        remedy = "pip install -U --force-reinstall torch torchvision"
        return Finding("fail", "torchvision", "its operators do not load: built for another torch", remedy)
    return Finding("ok", "torchvision", "its compiled operators work with this torch")


def driver_present() -> bool:
    """Whether an NVIDIA driver is installed, whatever torch thinks of it."""
    return any(path.exists() for path in DRIVER_SIGNS) or shutil.which("nvidia-smi") is not None


def check_gpu() -> Finding:
    """GPUs that torch can use, and whether there is one that it cannot."""
    import torch

    if torch.cuda.is_available():
        return _usable_gpus()
    if not driver_present():
        return Finding("ok", "GPU", "none: computes on the CPU")
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return Finding("ok", "GPU", "hidden by CUDA_VISIBLE_DEVICES: computes on the CPU")
    if torch.version.cuda is None:
        remedy = "pip install -U --force-reinstall torch torchvision   (on Linux the plain wheels are built with CUDA)"
        return Finding("fail", "GPU", "an NVIDIA driver is here, but this torch was built without CUDA", remedy)
    found = f"an NVIDIA driver is here, but torch (CUDA {torch.version.cuda}) cannot use it"
    remedy = "nvidia-smi shows the newest CUDA of the driver: update the driver, or install a torch for that CUDA; "
    return Finding("fail", "GPU", found, remedy + "to stay on the CPU: export CUDA_VISIBLE_DEVICES=-1")


def _usable_gpus() -> Finding:
    import torch

    names = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        names.append(f"{torch.cuda.get_device_name(number)} ({total / 1e9:.0f} GB, {free / 1e9:.0f} free)")
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    found = f"{', '.join(names)}; CUDA {torch.version.cuda or 'by ROCm'}; bf16 {'yes' if bf16 else 'no'}"
    if not bf16:
        return Finding("warn", "GPU", found, "add --mixed_precision fp16 behind a recipe that says bf16")
    return Finding("ok", "GPU", found)


@dataclass(frozen=True)
class LaunchPlan:
    """What `accelerate launch` does without options of its own."""

    configured: bool  # whether `accelerate config` has left a default file
    kind: str  # distributed_type, as accelerate writes it
    asked: int  # processes that the file asks for, on all machines
    started: int  # processes that really start, on all machines
    machines: int = 1
    on_cpu: bool = False  # whether the file says so


def launch_plan() -> LaunchPlan:
    """Read accelerate's default file as its launcher does (accelerate 1.15: only MULTI_GPU starts several here)."""
    import torch
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    if not Path(default_config_file).is_file():
        started = max(1, torch.cuda.device_count())
        return LaunchPlan(False, "MULTI_GPU" if started > 1 else "NO", started, started)
    config = load_config_from_file(None)
    kind = str(getattr(config.distributed_type, "value", config.distributed_type) or "NO")  # YAML reads NO as False
    asked = max(1, int(config.num_processes))
    machines = max(1, int(getattr(config, "num_machines", 1) or 1))
    started = asked if kind == "MULTI_GPU" else 1
    return LaunchPlan(True, kind, asked, started, machines, bool(getattr(config, "use_cpu", False)))


def processes_here() -> int:
    """Processes that a launch starts on this machine; 1 where accelerate cannot say."""
    try:
        plan = launch_plan()
    except Exception:  # check_launch reports it
        return 1
    return -(-plan.started // plan.machines)


def check_launch() -> Finding:
    """Accelerate's defaults: are there any, and do they start what they seem to?"""
    import torch

    try:
        plan = launch_plan()
    except Exception as error:  # a file written by hand or by another version raises anything
        found = f"the default configuration cannot be read ({type(error).__name__})"
        return Finding("fail", "accelerate launch", found, "accelerate config   (once, answer its questions)")
    name, gpus = "accelerate launch", 0 if plan.on_cpu else torch.cuda.device_count()
    where = "the CPU" if not gpus else f"{min(gpus, plan.started)} of {gpus} GPU{'s' if gpus > 1 else ''}"
    source = "default configuration" if plan.configured else "no default configuration (none needed)"
    found = f"{source}: starts {plan.started} process{'es' if plan.started > 1 else ''} on {where}"
    if plan.kind not in ("NO", "MULTI_GPU", "MULTI_CPU"):
        kind = plan.kind if re.fullmatch("[A-Z_]{1,20}", plan.kind) else "something else"
        remedy = "accelerate config   (choose multi-GPU, without DeepSpeed, FSDP or Megatron-LM)"
        return Finding("warn", name, f"configured for {kind}; the stages know plain data parallel", remedy)
    if plan.started < plan.asked:
        remedy = "accelerate config   (choose multi-GPU)" if gpus else f"for two processes on the CPU: {TWO_ON_CPU}"
        return Finding("warn", name, f"{found}, though {plan.asked} are configured", remedy)
    if plan.configured and not plan.on_cpu and plan.started > max(1, gpus) * plan.machines:
        remedy = f"accelerate config, or: accelerate launch --num_processes {max(1, gpus)} extract.py"
        return Finding("fail", name, f"{found}: more processes than GPUs", remedy)
    if plan.configured and gpus > plan.started:
        remedy = f"accelerate config, or: accelerate launch --multi_gpu --num_processes {gpus} extract.py"
        return Finding("warn", name, found, remedy)
    return Finding("ok", name, found)
