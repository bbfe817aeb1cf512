"""A teacher's word beside the labels: probabilities, masks, weights of the whole batch, and a student that hears it."""

import importlib
import json
import re
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from matplotlib.colors import to_hex
from sklearn.metrics import roc_auc_score

import extract.roi_pictures
import extract.train
import fusion.train
from data.errors import InputError
from data.manifest import Manifest, read_manifest, write_manifest
from data.runs import Log
from data.sources.table import read
from data.tables import write_table
from data.transforms import Preprocessing
from extract.backbone import BackboneConfig
from extract.config import ExtractConfig
from extract.distillation import Taught, ask_teacher, never_labelled
from extract.engine import make_accelerator, sigmoid
from extract.heads import HeadConfig
from extract.losses.distillation import DistillationConfig, Lesson, adapt, distillation_loss, label_weights
from extract.options import OptimizerConfig
from extract.resume import StopSignal
from extract.teacher import load_teacher, predict_probabilities
from tests.launch import ROOT, run
from tests.make_data import make_manifest, make_run

TEACHER = ("Nodule", "Support Devices", "No Finding", "Edema", "Mass")
STUDENT = ("Edema", "No Finding", "Hernia", "Mass", "Support Devices", "Nodule")
N, B, C = 7, 5, 3
CONFIGS = ROOT / "extract" / "configs"


def probabilities():
    values = np.random.default_rng(0).random((N, len(TEACHER)))
    values[0] = 0
    values[1] = 1
    return values


def test_targets_are_the_teachers_probabilities_from_0_to_1_by_name_and_unknown_elsewhere():
    values = probabilities()
    found = adapt(values, TEACHER, STUDENT)
    for name in ("Edema", "Mass", "Support Devices", "Nodule"):
        np.testing.assert_allclose(found[:, STUDENT.index(name)], values[:, TEACHER.index(name)], rtol=1e-6)
    assert np.isnan(found[:, STUDENT.index("Hernia")]).all(), "the teacher lacks it"
    known = np.delete(found, STUDENT.index("Hernia"), axis=1)
    assert (known.min(axis=0) == 0).all(), "sure that it is not there"
    assert (known.max(axis=0) == 1).all(), "sure that it is"


def test_no_finding_is_the_product_over_the_findings_that_the_teacher_knows():
    values = probabilities()
    for unchecked, findings in (((), (0, 3, 4)), (("Edema", "Support Devices"), (0, 4))):
        found = adapt(values, TEACHER, STUDENT, unchecked)
        for row in range(N):
            product = 1.0
            for k in findings:
                product *= 1 - values[row, k]
            assert found[row, 1] == pytest.approx(product, abs=1e-6)
    assert np.isnan(adapt(values, TEACHER, STUDENT, unchecked)[:, [0, 4]]).all()
    assert np.array_equal(adapt(values, TEACHER, ("Normal",))[:, 0], adapt(values, TEACHER, STUDENT)[:, 1])
    assert np.isnan(adapt(values[:, 1:3], TEACHER[1:3], STUDENT, ("No Finding",))[:, 1]).all(), "no findings at all"


def batch():
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(B, C, generator=generator, dtype=torch.float64)
    taught = torch.rand(B, C, generator=generator, dtype=torch.float64).numpy().astype(np.float32)
    taught[:, 1] = np.nan
    return logits, taught


def slow_loss(logits, taught, config):
    """The formula of the module, term by term."""
    total, number = 0.0, 0
    for j in range(C):
        if np.isnan(taught[:, j]).any():
            continue
        weight = 1 - sum(float(taught[i, j]) for i in range(B)) / B if config.label_weights else 1.0
        for i in range(B):
            p, x = float(taught[i, j]), float(logits[i, j])
            target = p if config.targets == "soft" else float(p > 0.5)
            q = 1 / (1 + np.exp(-x))
            total -= weight * (target * np.log(q) + (1 - target) * np.log(1 - q))
            number += 1
    return total / number


@pytest.mark.parametrize("targets", ["soft", "hard"])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_loss_equals_a_slow_loop_and_parts_of_a_batch_add_up(targets, weighted):
    config = DistillationConfig(alpha=0.3, targets=targets, label_weights=weighted)
    logits, taught = batch()
    table = np.vstack([np.full((2, C), 0.9, dtype=np.float32), taught])  # rows 2 to 6 of the training set
    lesson, rows = Lesson(table, np.arange(2, 2 + B), config), np.arange(2, 2 + B)
    of_labels = logits.square().mean()
    whole = lesson.mix(of_labels, logits, rows, True)
    assert float(whole) == pytest.approx(0.7 * float(of_labels) + 0.3 * slow_loss(logits, taught, config), rel=1e-6)
    nothing = torch.zeros((), dtype=torch.float64)
    parts = [lesson.mix(nothing, logits[i:j], rows[i:j], True) for i, j in ((0, 1), (1, 4), (4, 5))]
    torch.testing.assert_close(sum(parts), lesson.mix(nothing, logits, rows, True))
    assert float(lesson.mix(nothing, logits[:1], rows[:1], False)) == 0, "a process without a share"


def test_labels_that_the_teacher_lacks_get_no_gradient_and_often_called_ones_a_smaller_one():
    logits, taught = batch()
    logits.requires_grad_()
    weights = label_weights(taught)
    np.testing.assert_allclose(weights, [1 - taught[:, 0].mean(), 0, 1 - taught[:, 2].mean()], rtol=1e-6)
    distillation_loss(logits, torch.from_numpy(taught), torch.from_numpy(weights)).backward()
    assert torch.equal(logits.grad[:, 1], torch.zeros(B, dtype=torch.float64))
    by_hand = (logits.detach().sigmoid() - torch.from_numpy(taught)) * torch.from_numpy(weights)
    torch.testing.assert_close(logits.grad[:, [0, 2]], by_hand[:, [0, 2]])
    far = torch.tensor([[-100.0, 100.0]], requires_grad=True)
    distillation_loss(far, torch.tensor([[1.0, 0.0]]), torch.ones(2)).backward()
    torch.testing.assert_close(far.grad, torch.tensor([[-1.0, 1.0]]))  # towards the teacher, however far


def test_alpha_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"distillation\.alpha must be in \[0, 1\], got 1\.5"):
        DistillationConfig(alpha=1.5)


def probabilities_of_a_student(manifest, taught, alpha, folder):
    """What eight epochs make of a small model, on the images that it has learned from."""
    config = ExtractConfig(
        run_dir=folder,
        batch_size=8,
        num_workers=0,
        mixed_precision="no",
        backbone=BackboneConfig(name="test_convnext"),
        head=HeadConfig(kind="linear", dropout=0.0),
        image=Preprocessing(size=32, channels=1, mean=(0.5,), std=(0.25,)),
        optimizer=OptimizerConfig(lr=3e-3),
        epochs=8,
        distillation=DistillationConfig(alpha=alpha),
    )
    log, accelerator = Log(folder, speaks=False), make_accelerator(config)
    state = extract.train.build_state(config, len(manifest.classes), accelerator)
    for _ in range(config.epochs):
        extract.train.train_one_epoch(config, manifest, state, StopSignal(log), folder, {}, log, taught)
        state.end_epoch(config.average_from)
    return sigmoid(extract.train.predict_images(config, manifest, state.evaluated_model, accelerator))


def test_a_student_goes_to_its_teacher_with_alpha_1_and_to_the_labels_with_alpha_0(tmp_path):
    """The teacher says the opposite of the labels of two classes, image by image, and nothing of the third."""
    manifest = make_run(tmp_path, num_studies=25).of_split("train")
    opposite = 1 - manifest.labels
    opposite[:, 2] = np.nan
    far = {
        alpha: np.abs(probabilities_of_a_student(manifest, Taught(opposite, set()), alpha, tmp_path) - opposite)
        for alpha in (0.0, 1.0)
    }
    assert (far[1.0].mean(axis=0)[:2] < 0.4).all()
    assert (far[0.0].mean(axis=0)[:2] > 0.6).all()


def train_student(run_dir, *options):
    """The recipe, shrunk: its own model at 96 px."""
    small = ["--backbone.name", "efficientvit_m0", "--backbone.mxa", "true", "--image.size", "96"]
    small += ["--backbone.arguments", '{"img_size": 96}', "--ema_decay", "0"]
    configs = ["--config", str(CONFIGS / "mxa.yaml"), "--config", str(CONFIGS / "tiny.yaml")]
    extract.train.main([*configs, *small, "--run_dir", str(run_dir), *options])
    return [json.loads(line) for line in (run_dir / "stage_one" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run whose model has never seen a label of its last class."""
    run_dir = tmp_path_factory.mktemp("teacher") / "run"
    whole = make_run(run_dir, num_studies=25)
    labels = whole.labels.copy()
    labels[:, 2] = np.nan
    write_manifest(Manifest(whole.images, labels, whole.classes, whole.root), run_dir / "manifest.csv")
    run("extract", run_dir)
    return run_dir


def test_a_teacher_is_asked_for_what_it_knows_and_refused_if_it_knows_a_patient_of_val_or_test(teacher, tmp_path):
    folder, manifest = teacher / "stage_one", read_manifest(teacher / "manifest.csv")
    assert never_labelled(folder) == {"Hernia"}
    config, log = load_teacher(folder).config, Log(tmp_path, speaks=False)
    train_set = manifest.of_split("train")
    taught = ask_teacher(config, folder, manifest, train_set, Accelerator(), log)
    assert np.isnan(taught.probabilities[:, 2]).all()
    options = {"flip": False, "batch_size": 8, "num_workers": 0, "log": log}
    alone = predict_probabilities(load_teacher(folder), train_set, Accelerator(), **options)
    np.testing.assert_allclose(taught.probabilities[:, :2], alone[:, :2], atol=1e-6)
    assert taught.patients == set(train_set.images["patient_id"])
    moved = manifest.images.assign(split=manifest.images["split"].replace({"train": "val", "val": "train"}))
    other = Manifest(moved, manifest.labels, manifest.classes, manifest.root)
    with pytest.raises(
        InputError, match=r"patients of val or test were trained on by distillation\.teacher, first p000"
    ):
        ask_teacher(config, folder, other, other.of_split("train"), Accelerator(), log)
    strange = Manifest(manifest.images, manifest.labels, ("Hernia", "x", "y"), manifest.root)
    with pytest.raises(InputError, match=r"has no class of manifest\.csv, Hernia, x, y"):
        ask_teacher(config, folder, strange, train_set, Accelerator(), log)


@pytest.fixture
def figures(monkeypatch):
    """Figures that roi_pictures has written."""
    drawn, save = [], extract.roi_pictures.save_figure
    monkeypatch.setattr(extract.roi_pictures, "save_figure", lambda f, path, dpi: (drawn.append(f), save(f, path, dpi)))
    return drawn


def rectangles(axis):
    """Left, top, right, bottom and colour of each."""
    return [(*np.ravel(part.get_bbox().get_points()), to_hex(part.get_edgecolor())) for part in axis.patches]


def test_a_picture_has_each_images_own_boxes_at_their_places_in_their_stages_colour(tmp_path, figures):
    rng, side = np.random.default_rng(3), 40
    shown = make_manifest(tmp_path, num_studies=4).select(np.arange(5))
    names = {f"stages.{stage}.blocks.{block}.mixer.m.mxa": stage for stage, block in ((0, 0), (1, 1), (2, 0))}
    boxes = {name: np.sort(rng.random((5, 2, 2)), axis=1).reshape(5, 4).astype(np.float32) for name in names}
    images = rng.random((5, side, side)).astype(np.float32)
    extract.roi_pictures.plot_boxes(images, boxes, shown, tmp_path / "boxes.png")
    axes = figures[0].axes
    assert len(axes) == 8, "two rows of four"
    for place in range(5):
        wanted = [(*(boxes[name][place] * side), extract.roi_pictures.COLOURS[stage]) for name, stage in names.items()]
        for found, each in zip(rectangles(axes[place]), wanted, strict=True):
            np.testing.assert_allclose(found[:4], each[:4], atol=1e-4)
            assert found[4] == each[4]
        assert np.array_equal(axes[place].images[0].get_array(), images[place])
    assert not any(axis.patches for axis in axes[5:])


@pytest.mark.slow
def test_the_recipe_hears_its_teacher_and_feeds_stage_two(teacher, tmp_path, capsys, monkeypatch, figures):
    heard, mix = [], Lesson.mix
    monkeypatch.setattr(Lesson, "mix", lambda own, *parts: heard.append((own.taught, parts[2])) or mix(own, *parts))
    manifest = make_run(tmp_path / "taught", num_studies=25)
    (epoch,) = train_student(tmp_path / "taught", "--distillation.teacher", str(teacher / "stage_one"))
    assert 0.05 < epoch["train_loss"] < 3
    assert "knows 2 of 3 classes" in capsys.readouterr().out
    assert sorted(np.concatenate([rows for _, rows in heard])) == list(range(len(manifest.of_split("train"))))
    assert all(np.isnan(taught).all(axis=0).tolist() == [False, False, True] for taught, _ in heard)
    monkeypatch.setattr(extract.train, "ask_teacher", None)  # finished: nobody is asked again
    train_student(tmp_path / "taught", "--distillation.teacher", str(teacher / "stage_one"))
    train_student(tmp_path / "taught", "--dry_run", "true", "--distillation.teacher", str(teacher / "stage_one"))
    words = [
        "--config",
        str(ROOT / "fusion/configs/cxr_lt_2023.yaml"),
        "--config",
        str(ROOT / "fusion/configs/tiny.yaml"),
    ]
    fusion.train.main([*words, "--run_dir", str(tmp_path / "taught"), "--retrain_single", "false"])
    assert (tmp_path / "taught/fusion/metrics.json").exists()
    capsys.readouterr()
    extract.roi_pictures.main(["--run_dir", str(tmp_path / "taught"), "--count", "3"])
    assert (tmp_path / "taught/stage_one/roi_boxes.png").exists()
    boxes = np.array([[box[:4] for box in rectangles(axis)] for axis in figures[0].axes[:3]]) / 96  # images, blocks
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 + 1, "a block each, then what they are"
    for line, means in zip(lines[:-1], boxes.mean(axis=0), strict=True):
        printed = re.findall(r"(?:left|top|right|bottom) (\S+)", line)
        np.testing.assert_allclose(np.array(printed, dtype=float), means, atol=6e-4, err_msg=line)


@pytest.mark.parametrize(("policy", "wanted"), [("ones", 1.0), ("zeros", 0.0), ("ignore", np.nan)])
def test_uncertain_labels_become_what_the_policy_says_and_never_minus_one(tmp_path, policy, wanted):
    manifest = make_manifest(tmp_path, num_studies=6, max_views=1)
    frame = manifest.images.assign(Edema=["1", "-1", "0", "", "-1.0", "0"], Nodule=["0", "1", "1", "0", "1", "0"])
    write_table(tmp_path / "t.csv", frame)
    with pytest.raises(InputError, match=r"column 'Edema'.*got '-1'"):
        read(tmp_path / "t.csv", tmp_path, ["Edema", "Nodule"], split="split")
    for classes in (["Edema", "Nodule"], "auto"):
        found = read(tmp_path / "t.csv", tmp_path, classes, split="split", uncertain=policy)
        assert found.classes == ("Edema", "Nodule")
        np.testing.assert_array_equal(found.labels[:, 0], [1, wanted, 0, np.nan, wanted, 0])


@pytest.fixture
def ablate_mxa(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    return importlib.import_module("ablate_mxa")


def test_the_ablation_scores_macro_and_micro_auroc_of_known_labels_as_scikit_learn_does(ablate_mxa, tmp_path):
    manifest, rng = make_manifest(tmp_path, num_studies=20), np.random.default_rng(2)
    values, labels = rng.random((len(manifest), 3)), manifest.labels.copy()
    labels[::4, 0] = np.nan
    known = ~np.isnan(labels)
    macro, micro = ablate_mxa.scores(values, labels, np.ones(len(labels)))
    each = [roc_auc_score(labels[known[:, c], c], values[known[:, c], c]) for c in range(3)]
    assert macro == pytest.approx(np.mean(each))
    assert micro == pytest.approx(roc_auc_score(labels[known], values[known]))
    table = ablate_mxa.compare({"U1": [values], "U1 + MXA": [manifest.labels + values]}, manifest, 20)
    assert table["U1 + MXA"]["macro"]["mean"] == [1, 1, 1]
    low, high = table["U1 + MXA"]["micro"]["added"][1:]
    assert 0 < low <= table["U1 + MXA"]["micro"]["added"][0] <= high
    assert len(ablate_mxa.lines(table)) == 8


def test_the_ablation_makes_training_labels_uncertain_and_no_others(ablate_mxa, tmp_path):
    manifest = make_manifest(tmp_path / "images", num_studies=60)
    manifest.root.mkdir()
    write_manifest(manifest, tmp_path / "manifest.csv")
    assert ablate_mxa.write_uncertain_table(tmp_path / "manifest.csv", tmp_path / "u.csv") == manifest.root
    found = read(tmp_path / "u.csv", manifest.root, manifest.classes, split="split", uncertain="ignore")
    hidden = np.isnan(found.labels)
    train = (manifest.images["split"] == "train").to_numpy(dtype=bool)
    assert hidden[train].any(axis=0).all()
    assert not hidden[~train].any()
    assert np.array_equal(found.labels[~hidden], manifest.labels[~hidden])
