"""Break each promise of the fusion model on purpose, in a copy, and see that its tests fail.

    python scripts/break_promises.py        # about five minutes; exit status 1 if a broken model passes its tests

The table in docs/promises.md is this script's output.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MODEL, GROUPING, TRAIN = "fusion/model.py", "fusion/grouping.py", "fusion/train.py"
DECODER, LOSSES = "extract/heads/ml_decoder.py", "extract/losses/__init__.py"
TESTS = ["tests/test_fusion_model.py", "tests/test_grouping.py"]
HEAD_TESTS = ["tests/test_heads.py", "tests/test_losses.py"]


class Break(NamedTuple):
    """One wrong line."""

    promise: int
    what: str
    path: str
    right: str
    wrong: str


BREAKS = [
    Break(
        1,
        "attention over the groups of a batch instead of the tokens (the published wiring)",
        MODEL,
        "1, 4)\n            heads = F.scaled_dot_product_attention(q, k, v)",
        "1, 4).transpose(1, 3)\n            heads = F.scaled_dot_product_attention(q, k, v).transpose(0, 2)",
    ),
    Break(
        1,
        "attention over all groups of a forward pass",
        MODEL,
        "x = x + self.drop(self.attend(self.norm_attention(x), buckets))",
        "x = x + self.drop(self.attend(self.norm_attention(x), [(1, len(x))]))",
    ),
    Break(
        1,
        "tokens normalised over the whole batch",
        MODEL,
        "x = self.project(self.norm_in(mean_pooled(maps, self.pool))) + self.position_code",
        "x = self.project((maps - maps.mean()) / maps.std()) + self.position_code",
    ),
    Break(
        2,
        "each view attends to itself only",
        MODEL,
        "x = block(x, buckets)",
        "x = block(x, [(len(x) // (H * W), H * W) for H, W, _ in [self.position_code.shape]])",
    ),
    Break(
        2,
        "position code blind to rows (as published)",
        MODEL,
        "return torch.cat([row_code, column_code], dim=2)",
        "return torch.cat([column_code, column_code], dim=2)",
    ),
    Break(
        3,
        "four views of a group at most",
        MODEL,
        "buckets = buckets or [(view_types.shape[0], view_types.shape[1])]",
        "if not buckets:\n            maps, view_types, slots = maps[:, :4], view_types[:, :4], slots[:, :4]\n"
        "        buckets = buckets or [(view_types.shape[0], view_types.shape[1])]",
    ),
    Break(
        3,
        "dropout left on at test time",
        MODEL,
        "heads = F.scaled_dot_product_attention(q, k, v)",
        "heads = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)",
    ),
    Break(
        4,
        "views taken in the order of the files at test time",
        GROUPING,
        "rows = [members[np.lexsort([content[members], types[members]])] for members in groups.rows]",
        "rows = list(groups.rows)",
    ),
    Break(
        4,
        "slots not shuffled in training",
        GROUPING,
        "rounds = [rng.permutation(num_slots)",
        "rounds = [np.arange(num_slots)",
    ),
    Break(
        5,
        "view type not an input",
        MODEL,
        "of_view = self.slot_embedding[slots] + self.view_embedding[view_types]",
        "of_view = self.slot_embedding[slots] + self.view_embedding[0 * view_types]",
    ),
    Break(
        5,
        "view dropout may leave a group empty",
        GROUPING,
        "keep[rng.integers(num_views)] |= not keep.any()",
        "pass",
    ),
    Break(
        6,
        "the decoder also reads a padding token",
        DECODER,
        "gathered = self.attention(queries, self.embed_tokens(tokens.flatten(0, -2)), buckets)",
        "tokens = F.pad(self.embed_tokens(tokens), (0, 0, 0, 1))\n"
        "        gathered = self.attention(queries, tokens.flatten(0, -2), [tuple(tokens.shape[:2])])",
    ),
    Break(
        6,
        "an embedding that nothing reads",
        MODEL,
        "x = (x + of_view[:, None, None]).flatten(1, 2)",
        "x = x.flatten(1, 2)",
    ),
    Break(
        6,
        "probabilities of the loss taken in half precision",
        LOSSES,
        "else logits.float()",
        "else -torch.log(1 / logits.sigmoid() - 1)",
    ),
]


def passes(copy: Path, tests: list[str]) -> tuple[bool, str]:
    """Whether the tests pass in the copy, and the name of the first that does not."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=no", "-rf", *tests],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    failed = [line.split("::")[1].split(" - ")[0] for line in run.stdout.splitlines() if line.startswith("FAILED")]
    return run.returncode == 0, failed[0].split("[")[0] if failed else f"status {run.returncode}"


def main() -> None:
    """Try every break; print a Markdown table."""
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "runs", "__pycache__"))
        good, name = passes(copy, TESTS + HEAD_TESTS)
        if not good:
            raise SystemExit(f"the unbroken code fails {name}")
        print("| promise | broken on purpose | first test that fails |\n|---|---|---|")
        for case in BREAKS:
            path = copy / case.path
            text = path.read_text()
            assert text.count(case.right) == 1, f"{case.path}: {case.right!r} occurs {text.count(case.right)} times"
            path.write_text(text.replace(case.right, case.wrong))
            good, name = passes(copy, HEAD_TESTS if case.path in (DECODER, LOSSES) else TESTS)
            path.write_text(text)
            survivors += good
            print(f"| {case.promise} | {case.what} | {'NONE' if good else f'`{name}`'} |", flush=True)
    raise SystemExit(1 if survivors else 0)


if __name__ == "__main__":
    main()
