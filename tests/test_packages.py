"""The three packages are ours, import each other in one direction only, and run no code from input files."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from data.order import rank_share
from extract.heads.linear import LinearHead

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"data": {"data"}, "extract": {"data", "extract"}, "fusion": {"data", "extract", "fusion"}}
PYTHON_FILES = sorted(p for name in (*MAY_IMPORT, "scripts") for p in (ROOT / name).rglob("*.py"))
PYTHON_FILES += [ROOT / "extract.py", ROOT / "train_fusion.py"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(tree: ast.AST) -> set[str]:
    """First parts of the names of all imported modules."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_the_package_is_ours(name):
    package = importlib.import_module(name)
    assert package.__file__ is not None, f"{name} is a namespace package: a stray folder {package.__path__}"
    assert Path(package.__file__).parent == ROOT / name, f"another distribution installs {name}: uninstall it"


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_imports_follow_the_data(name):
    ours = {*MAY_IMPORT, "scripts", "tests", "train_fusion"}
    for path in (ROOT / name).rglob("*.py"):
        wrong = imported(ast.parse(path.read_text())) & ours - MAY_IMPORT[name]
        assert not wrong, f"{name_of(path)} imports {wrong}"


def test_data_needs_no_timm_and_no_accelerate():
    for path in (ROOT / "data").rglob("*.py"):
        assert not imported(ast.parse(path.read_text())) & {"timm", "accelerate"}, name_of(path)


@pytest.mark.parametrize("script", ["extract.py", "train_fusion.py"])
def test_root_scripts_start_from_any_folder_and_import_nothing_heavy_outside_the_guard(script, tmp_path):
    code = f"import runpy, sys; runpy.run_path({str(ROOT / script)!r}); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_a_wrong_shape_raises_here():
    """Without this, a mistyped plugin option would switch all shape checks off in silence."""
    head = LinearHead(dim=5, num_classes=3)
    assert head(torch.zeros(2, 4, 5)).shape == (2, 3)
    with pytest.raises(TypeCheckError):
        head(torch.zeros(4, 5))
    with pytest.raises(TypeCheckError):
        rank_share("not an array", 0, 1)  # ty: ignore[invalid-argument-type]


FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "input"}
FORBIDDEN_ENDINGS = (
    "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "os.system",
    "os.popen", "pd.read_pickle", "pandas.read_pickle", ".extractall", "hub.load", "wds.WebDataset",
)  # fmt: skip


def dangers(source: str) -> list[str]:
    """Calls in Python source that could run code from a file."""
    tree = ast.parse(source)
    found = sorted(imported(tree) & FORBIDDEN_IMPORTS)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).removeprefix("safetensors.torch.")  # no pickle in it
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in FORBIDDEN_NAMES or name.endswith(FORBIDDEN_ENDINGS) or keywords.get("shell", "False") != "False":
            found.append(name)
        if name in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
            found.append(f"{name} without allow_pickle=False")
        if keywords.get("trust_remote_code", "False") != "False" or keywords.get("weights_only", "True") != "True":
            found.append(name)
    return found


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_no_code_of_ours_runs_code_from_a_file(path):
    assert not dangers(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "torch.load(p)",
        "yaml.load(t, L)",
        "tar.extractall()",
        "subprocess.run(c, shell=True)",
        "f(weights_only=False)",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert dangers(source)
    assert not dangers("np.load(p, allow_pickle=False); yaml.safe_load(t); model.eval(); re.compile(p)")


def test_the_default_npz_reader_refuses_objects(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays, pytest.raises(ValueError, match="pickle"):
        arrays["x"]
