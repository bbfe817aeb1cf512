"""What surrounds the code is valid: workflow, hooks, citation, container, Slurm, picture; nothing private."""

import gzip
import json
import re
import runpy
import shutil
import subprocess
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
reason_to_refuse = runpy.run_path(str(ROOT / ".github/refuse_private.py"))["reason_to_refuse"]


def lines_run(job):
    """The commands of a workflow's job."""
    return "\n".join(step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step)


def test_the_workflow_checks_what_make_test_checks_and_more():
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(WORKFLOW["jobs"]) == {"lint", "tests", "two-processes", "without-extras", "extras", "demo", "newest"}
    for line in re.findall(r"\$\(BIN\)/((?:ruff|ty) .*)", make):
        assert line in lines_run("lint")
    assert lines_run("demo") == "make demo"
    schedule = WORKFLOW[True]["schedule"]  # YAML 1.1 reads the key `on` as true
    assert len(schedule) == 1
    assert schedule[0]["cron"].split()[2:4] == ["*", "*"]
    assert schedule[0]["cron"].split()[4] != "*", "once a week"


def test_the_workflow_tests_every_python_that_the_project_names():
    named = {line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
    assert set(WORKFLOW["jobs"]["tests"]["strategy"]["matrix"]["python"]) == named
    assert min(named, key=lambda version: int(version[2:])) == PROJECT["requires-python"].removeprefix(">=")


def test_the_oldest_torch_of_the_workflow_is_the_oldest_allowed():
    oldest = {
        f"{name}=={version}.*" for name, version in re.findall(r"(torch\w*)>=([\d.]+)", str(PROJECT["dependencies"]))
    }
    oldest = {pin for pin in oldest if pin.startswith(("torch==", "torchvision=="))}
    assert oldest == set(re.findall(r'"(torch[^"]*)"', lines_run("tests")))


def test_what_the_workflow_names_is_there():
    for job in WORKFLOW["jobs"]:
        for name in re.findall(r"(?:tests|scripts|extract/configs|fusion/configs)/\w+\.(?:py|yaml)", lines_run(job)):
            assert (ROOT / name).is_file(), f"{job}: {name}"
    for needed in ("test_two_processes", "test_processes", "test_two_machines"):
        assert f"tests/{needed}.py" in lines_run("two-processes")
    assert "[dev]" not in lines_run("without-extras")
    artefact = WORKFLOW["jobs"]["demo"]["steps"][-1]["with"]
    assert {"runs/demo/fusion*/table.txt", "runs/demo/fusion*/*.html"} <= set(artefact["path"].split())


def test_pre_commit_has_the_hooks_and_runs_ours():
    hooks = {hook["id"]: hook for repo in HOOKS["repos"] for hook in repo["hooks"]}
    wanted = {
        "ruff-check",
        "ruff-format",
        "check-added-large-files",
        "detect-private-key",
        "check-yaml",
        "refuse-private",
    }
    assert wanted <= set(hooks)
    assert (ROOT / hooks["refuse-private"]["entry"].split()[1]).is_file()


NOTEBOOK = {"cells": [{"cell_type": "markdown"}, {"cell_type": "code", "outputs": [], "execution_count": None}]}
RUN_NOTEBOOK = {"cells": [{"cell_type": "code", "outputs": [{"text": "p1"}], "execution_count": None}]}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.DCM", b"", "DICOM"),
        ("no_suffix", b"\0" * 128 + b"DICM", "DICOM"),
        ("DICOMDIR", b"x", "DICOM"),
        ("a.csv", b"path,subject_id\nx,1\n", "subject_id"),
        ("a.csv", b'\xef\xbb\xbf"PatientID";view\n', "PatientID"),
        ("a.tsv", b"view\tPatient ID\n", "Patient ID"),
        ("a.csv.gz", gzip.compress(b"dicom_id,view\n", mtime=0), "dicom_id"),
        ("a.csv.gz", b"\x1f\x8b broken", "unreadable"),
        ("a.xlsx", b"PK", "reviewed"),
        ("a.ipynb", json.dumps(RUN_NOTEBOOK).encode(), "outputs"),
        ("a.ipynb", b"{", "outputs"),
        ("a.csv", b"class,AP\nsubject_id,0.5\n", None),
        ("a.csv", b"", None),
        ("a.ipynb", json.dumps(NOTEBOOK).encode(), None),
        ("patient_id.py", b"subject_id, PatientID\n", None),
    ],
)
def test_private_files_are_refused_and_others_are_not(name, content, said, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    reason = reason_to_refuse(path)
    assert (reason is None) if said is None else (said in reason)


def test_the_repository_holds_nothing_private():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    refused = {str(path): reason for path in paths if path.is_file() and (reason := reason_to_refuse(path))}
    assert not refused


def test_the_citation_is_cff_and_agrees_with_pyproject():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)  # what the format requires
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["authors"] == [{"name": "The contributors"}]
    assert not {"doi", "identifiers", "url", "repository-code"} & set(citation), "none is known"
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)


def test_bash_accepts_the_slurm_script_and_both_stages_start_on_every_machine(tmp_path):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    script = ROOT / "docs/slurm.sbatch"
    subprocess.run([bash, "-n", str(script)], check=True)
    calls = pretended_job(bash, script, tmp_path)
    wanted = (
        "accelerate launch --multi_gpu --num_machines 2 --num_processes 16 --machine_rank {} --main_process_ip node7"
    )
    wanted += " --main_process_port 20042 {}"
    for machine in (0, 1):
        for stage in ("extract.py --config extract", "train_fusion.py --config fusion"):
            assert sum(call.startswith(wanted.format(machine, stage)) for call in calls) == 1, calls
    assert [call.split()[13] for call in calls] == ["extract.py"] * 2 + ["train_fusion.py"] * 2
    assert "--signal=USR1@60" in script.read_text(encoding="utf-8")


def pretended_job(bash, script, folder):
    """What accelerate is called with when the script runs as job 42 on two machines, node7 and node8."""
    programs = {
        "scontrol": "echo node7; echo node8",
        "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
        "accelerate": f'echo accelerate "$@" >> "{folder}/calls"',
    }
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").write_text("")
    for name, body in programs.items():
        (folder / name).write_text(f"#!{bash}\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_JOB_NODELIST": "node[7-8]",
    }
    environment |= {"SLURM_JOB_ID": "42", "SLURM_NNODES": "2"}
    subprocess.run([bash, str(script)], env=environment, check=True, timeout=60)
    return (folder / "calls").read_text().splitlines()


def test_the_container_runs_as_nobody_special_and_leaves_data_outside():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    user = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert len(user) == 1
    assert user != ["root"]
    assert not any(line.startswith("RUN") for line in lines[lines.index(f"USER {user[0]}") :])
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert "--gpus all --ipc=host" in header
    ignored = set((ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n"))
    assert {".git", ".venv", "runs", "**/*.dcm"} <= ignored


def test_the_picture_is_plain_svg_without_scripts_fonts_or_links():
    path = ROOT / "docs/architecture.svg"
    tree = ET.parse(path).getroot()
    names = {element.tag.rpartition("}")[2] for element in tree.iter()}
    assert tree.get("width") == "900"
    assert {"title", "desc"} <= names
    assert not names & {"script", "image", "foreignObject", "a"}
    assert "prefers-color-scheme: dark" in path.read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\"' )]+", path.read_text(encoding="utf-8"))) == {"http://www.w3.org/2000/svg"}


def test_pyproject_classifiers_and_extras():
    assert "Private :: Do Not Upload" in PROJECT["classifiers"], "the package names are too general for an index"
    assert not any(line.startswith("License ::") for line in PROJECT["classifiers"]), "license says it (PEP 639)"
    assert "dev" in PROJECT["optional-dependencies"]
