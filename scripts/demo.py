"""The embedded default from nothing to submission and report: phantom, both stages, study and patient level, times.

python scripts/demo.py
"""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]
STEPS = {
    "phantom": [sys.executable, "scripts/prepare.py", "phantom", "--out", "runs/demo/manifest.csv"],
    "stage one and cache": [*LAUNCH, "extract.py"],
    "stage two, by study": [*LAUNCH, "train_fusion.py"],
    "stage two, by patient": [*LAUNCH, "train_fusion.py", "--config", "fusion/configs/demo_patient.yaml"],
    "report": [sys.executable, "scripts/report.py", "runs/demo", "runs/demo/fusion_patient"],
}


def main() -> None:
    """Run the steps; stop at the first that fails, with its status."""
    seconds = {}
    for name, command in STEPS.items():
        print(f"\n== {name}", flush=True)
        started = time.monotonic()
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        seconds[name] = time.monotonic() - started
        if status:
            raise SystemExit(status)
    print("\n== times")
    for name, spent in [*seconds.items(), ("all", sum(seconds.values()))]:
        print(f"{name:<24}{spent:7.0f} s")
    print("\nnext: open runs/demo/fusion/report.html in a browser")


if __name__ == "__main__":
    main()
