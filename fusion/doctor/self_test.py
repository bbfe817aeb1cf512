"""The doctor's self-test: a tiny phantom through both stages to a submission, and a GPU against the CPU.

It runs in a process of its own (`python -m fusion.doctor.self_test FOLDER`), which writes one JSON line per step, so
that a codec or driver that crashes or hangs ends in a line of the report, too.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusion.doctor.finding import Finding

ROOT = Path(__file__).resolve().parents[2]
STUDIES = "16,8,8"
TIMEOUT_S = 180
TOLERANCE = 0.02  # of logits around 1: convolutions on a GPU may round to 10 bits (TF32)
BY_HAND = "runs/self_test"
COMMANDS = {  # the same by hand, for the message that the report must not hold
    "phantom": f"python scripts/prepare.py phantom --studies {STUDIES} --size 64 --out {BY_HAND}/manifest.csv",
    "stage one": "python extract.py --config extract/configs/demo.yaml --config extract/configs/tiny.yaml"
    f" --run_dir {BY_HAND}",
    "stage two": "python train_fusion.py --config fusion/configs/demo.yaml --config fusion/configs/tiny.yaml"
    f" --run_dir {BY_HAND}",
    "GPU against CPU": "nvidia-smi, then restart the machine or update its driver; to go on without: "
    "export CUDA_VISIBLE_DEVICES=-1",
}


def check_self_test() -> Finding:
    """Run the steps in a child process; what it says is turned into a line, its own output is not shown."""
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        lines, timed_out = run_child(folder)
    done = {line["step"]: line for line in lines if "seconds" in line}
    step = next((name for name in COMMANDS if name not in done), None)
    if step is None:
        return summary(done)
    error = next((line["error"] for line in lines if "error" in line), "the process died")
    found = f"{step}: " + (f"not finished after {TIMEOUT_S} s" if timed_out else f"stopped ({error})")
    remedy = COMMANDS[step] if step != "stage two" else f"{COMMANDS['stage one']} && {COMMANDS[step]}"
    if step.startswith("stage"):
        remedy = f"{COMMANDS['phantom']} && {remedy}"
    return Finding("fail", "self-test", found, remedy if step.startswith("GPU") else f"see its message: {remedy}")


def summary(done: dict[str, dict[str, Any]]) -> Finding:
    """The line of a run that came to its end."""
    times = ", ".join(
        f"{name} {line['seconds']:.0f} s"
        for name, line in done.items()
        if name in ("phantom", "stage one", "stage two")
    )
    found = f"{times}; submission of {done['stage two']['rows']} rows"
    if not (differences := done["GPU against CPU"]["differences"]):
        return Finding("ok", "self-test", found)
    found += f"; logits of GPU and CPU differ by {max(differences):.1g}"
    if max(differences) < TOLERANCE:
        return Finding("ok", "self-test", found)
    return Finding("fail", "self-test", f"{found} ({TOLERANCE} expected at most)", COMMANDS["GPU against CPU"])


def run_child(folder: str) -> tuple[list[dict[str, Any]], bool]:
    """The JSON lines of the child process, and whether it had to be ended."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(
        [sys.executable, "-m", "fusion.doctor.self_test", folder],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # so that its workers can be ended with it
    )
    timed_out = False
    try:
        out, _ = child.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        timed_out = True
        os.killpg(child.pid, signal.SIGKILL)
        out, _ = child.communicate()
    finally:  # also after an interrupt
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return [json.loads(line) for line in out.splitlines() if line.startswith('{"step"')], timed_out


def phantom(run_dir: Path) -> dict[str, Any]:
    """Simulate and prepare."""
    from data import prepare

    prepare.main(["phantom", "--studies", STUDIES, "--size", "64", "--out", str(run_dir / "manifest.csv")])
    return {}


def stage_one(run_dir: Path) -> dict[str, Any]:
    """Train and cache, with a worker, so that shared memory is used."""
    from extract.train import main

    main([*layers("extract"), "--run_dir", str(run_dir), "--num_workers", "1"])
    return {}


def stage_two(run_dir: Path) -> dict[str, Any]:
    """Fuse and submit."""
    from fusion.train import main

    main([*layers("fusion"), "--run_dir", str(run_dir)])
    return {"rows": len((run_dir / "fusion" / "submission.csv").read_text().splitlines()) - 1}


def layers(stage: str) -> list[str]:
    """The demo's recipe, shrunk."""
    return [word for name in ("demo", "tiny") for word in ("--config", str(ROOT / stage / "configs" / f"{name}.yaml"))]


def gpu_against_cpu(_: Path) -> dict[str, Any]:
    """Largest difference of the logits of one batch, for each GPU."""
    import torch

    from extract.backbone import BackboneConfig, ImageClassifier
    from extract.heads import HeadConfig

    torch.manual_seed(0)
    head = HeadConfig(kind="ml_decoder", width=48, num_heads=4)
    model = ImageClassifier(BackboneConfig(name="test_convnext"), head, channels=1, num_classes=5).eval()
    images, differences = torch.randn(3, 1, 64, 64), []
    with torch.inference_mode():
        wanted = model(images)
        for number in range(torch.cuda.device_count()):
            found = model.to(f"cuda:{number}")(images.to(f"cuda:{number}")).cpu()
            error = (found - wanted).abs().max() / wanted.abs().max().clamp(min=1)
            differences.append(float(error.nan_to_num(torch.inf)))
    return {"differences": [min(difference, 1e9) for difference in differences]}


STEPS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "phantom": phantom,
    "stage one": stage_one,
    "stage two": stage_two,
    "GPU against CPU": gpu_against_cpu,
}


def main() -> None:
    """The child process."""
    run_dir = Path(sys.argv[1]) / "run"
    for name, step in STEPS.items():
        started = time.monotonic()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                more = step(run_dir)
        except (Exception, SystemExit) as error:
            print(json.dumps({"step": name, "error": type(error).__name__}), flush=True)
            raise SystemExit(1) from None
        print(json.dumps({"step": name, "seconds": time.monotonic() - started, **more}), flush=True)


if __name__ == "__main__":
    main()
