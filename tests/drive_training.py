"""What test_processes.py runs on 1, 2 and 3 processes."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from hypothesis import given, settings
from hypothesis import strategies as st

import extract.train
import fusion.inference
import fusion.train
from data.cache import FeatureCache
from data.manifest import read_manifest
from data.runs import Log
from extract.cache import keep_training_data, write_cache
from extract.checkpoint import save_folder
from extract.config import ExtractConfig
from extract.engine import make_accelerator
from extract.resume import StopSignal
from fusion.config import FusionConfig
from fusion.grouping import make_groups
from fusion.published import build_model
from fusion.results import write_split
from tests.launch import CONFIGS, run
from tests.make_data import make_manifest, write_images

NO_DROPOUT = ["--model.dropout", "0", "--model.head.dropout", "0"]  # its draws differ between processes


def train(run_dir: Path, dtype: torch.dtype) -> None:
    """Both stages, 20 optimizer steps each; no model here has BatchNorm."""
    torch.set_default_dtype(dtype)
    options = ["--run_dir", str(run_dir), "--epochs", "4"]
    extract.train.main([*CONFIGS["extract"], *options, "--batch_size", "9", "--head.dropout", "0"])
    fusion.train.main([*CONFIGS["fusion"], *options, "--batch_size", "4", *NO_DROPOUT, "--retrain_single", "false"])


def stage(run_dir: Path, name: str, *options: str) -> None:
    """A stage as a user starts it."""
    run(name, run_dir, *options)


def freeze(run_dir: Path) -> None:
    """Stage one in double precision, its backbone frozen in two of three epochs; with images left over."""
    torch.set_default_dtype(torch.float64)
    options = ["--epochs", "3", "--freeze_backbone_epochs", "2", "--backbone_lr", "0.1", "--batch_size", "5"]
    kept: list[dict] = []
    save = extract.train.finish_epoch

    def keeping(state, *arguments):
        kept.append({name: value.clone() for name, value in state.plain_model.state_dict().items()})
        save(state, *arguments)

    extract.train.finish_epoch = keeping
    extract.train.main([*CONFIGS["extract"], "--run_dir", str(run_dir), *options, "--head.dropout", "0"])
    body = [name for name in kept[0] if name.startswith("backbone.")]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in body)
    assert not any(torch.equal(kept[1][name], kept[2][name]) for name in body)
    rank = int(os.environ.get("RANK", "0"))
    save_folder(run_dir / f"end-{rank}", {"model.safetensors": kept[2]})
    print(f"frozen on {os.environ.get('WORLD_SIZE', '1')}")


def visits(run_dir: Path, stop_after: int) -> None:
    """Stage two, noting the groups that each process trained on in each step; stops after `stop_after` steps."""
    accelerator, plan_steps, taken = Accelerator(), fusion.train.plan_steps, []

    def noting(config, groups, batches, epoch, num_variants, accelerator):
        for (passes, counts), *maps in plan_steps(config, groups, batches, epoch, num_variants, accelerator):
            taken.append([epoch, [groups.ids[g] for one in passes for g in one.groups] if counts else []])
            yield (passes, counts), *maps

    class StopAfter(StopSignal):
        def agreed(self, accelerator):
            if self._deferring:  # after a step: plan_steps may be ahead of it, so its own note is taken by number
                with open(run_dir / f"visits-{accelerator.process_index}.jsonl", "a") as file:
                    file.write(json.dumps(taken[StopAfter.steps]) + "\n")
                StopAfter.steps += 1
                if StopAfter.steps == stop_after and accelerator.is_main_process:
                    self.received = 15
            return super().agreed(accelerator)

        steps = 0

        def leave_if_asked(self, accelerator, log):
            if super().agreed(accelerator):
                log("stopped")
                raise SystemExit(0)

    fusion.train.plan_steps, fusion.train.StopSignal = noting, StopAfter
    print(f"world {accelerator.num_processes}")
    options = ["--run_dir", str(run_dir), "--epochs", "3", "--batch_size", "7", "--retrain_single", "false"]
    fusion.train.main([*CONFIGS["fusion"], *options, *NO_DROPOUT])


def predict(run_dir: Path) -> None:
    """What stage two does after training, with weights that every process draws alike: predictions of val and test."""
    manifest, cache = read_manifest(run_dir / "manifest.csv"), FeatureCache(run_dir / "cache")
    config = fusion_config(run_dir, batch_size=4)
    accelerator = make_accelerator(config)
    torch.manual_seed(5)
    model = build_model(config.model, cache.identity.map_shape, len(manifest.classes)).to(accelerator.device)
    for split in ("val", "test"):
        part = manifest.of_split(split)
        groups = make_groups(part, cache, config.grouping)
        logits = fusion.inference.predict_groups(config, groups, cache, model, accelerator)
        if accelerator.is_main_process:
            write_split(config, config.result_dir, split, part, groups, logits, Log(run_dir, speaks=False))
    print(f"predicted on {accelerator.num_processes}")


def counts(folder: Path) -> None:
    """Both stages' training, prediction and cache writing with 0 to 7 images, shards and groups."""
    accelerator = make_accelerator(ExtractConfig())
    whole = make_manifest(folder / "images", num_studies=12, max_views=3)
    if accelerator.is_main_process:
        write_images(whole)
    accelerator.wait_for_everyone()

    @settings(max_examples=12, derandomize=True, deadline=None, database=None)  # the same examples on every process
    @given(st.integers(0, 7), st.integers(1, 3), st.integers(0, 7), st.integers(1, 5))
    def check(num_images: int, per_shard: int, num_groups: int, batch_size: int) -> None:
        run_dir = folder / "run"
        if accelerator.is_main_process:
            shutil.rmtree(run_dir, ignore_errors=True)
        accelerator.wait_for_everyone()
        stage_one(accelerator, whole.select(np.arange(num_images)), run_dir, batch_size)
        stage_two(accelerator, whole, run_dir, num_groups, per_shard, batch_size)

    check()
    print(f"counted on {accelerator.num_processes}")


def stage_one(accelerator, images, run_dir, batch_size):
    """Train on the images, predict them, cache them: each id once, the same weights everywhere."""
    config = extract_config(run_dir, batch_size)
    state, log = extract.train.build_state(config, 3, accelerator), Log(run_dir, speaks=False)
    stop = StopSignal()
    extract.train.train_one_epoch(config, images, state, stop, run_dir / "stage_one", {}, log)
    same_everywhere(state)
    logits = extract.train.predict_images(config, images, state.plain_model, accelerator)
    assert logits.shape == (len(images), 3)
    if len(images):
        if accelerator.is_main_process:
            weights = {"model.safetensors": state.plain_model.state_dict()}
            save_folder(run_dir / "stage_one" / "best", weights)
            keep_training_data(run_dir / "stage_one", images.of_split("train"), images.of_split("val"), finished=False)
        accelerator.wait_for_everyone()
        write_cache(config, images, [f"{n:016x}" for n in range(len(images))], accelerator, log)
        assert sorted(FeatureCache(run_dir / "cache").ordinal) == sorted(images.images["image_id"])
    accelerator.wait_for_everyone()


def stage_two(accelerator, whole, run_dir, num_groups, per_shard, batch_size):
    """Train on the groups and predict them."""
    from tests.make_data import make_cache

    folder = run_dir / "made"
    if accelerator.is_main_process:
        make_cache(folder, whole, per_shard=per_shard)
    accelerator.wait_for_everyone()
    cache, config = FeatureCache(folder), fusion_config(run_dir, batch_size)
    studies = whole.images["study_id"].unique()[:num_groups]
    chosen = whole.select(whole.images["study_id"].isin(studies).to_numpy(dtype=bool))
    groups = make_groups(chosen, cache, config.grouping)
    assert len(groups) == num_groups
    state = fusion.train.build_state(config, cache, 3, accelerator)
    fusion.train.train_one_epoch(
        config, groups, cache, state, StopSignal(), run_dir / "fusion", {}, Log(run_dir, speaks=False)
    )
    same_everywhere(state)
    logits = fusion.inference.predict_groups(config, groups, cache, state.plain_model, accelerator)
    assert logits.shape == (num_groups, 3)


def same_everywhere(state) -> None:
    """All processes hold the same weights."""
    ours = [float(weight.detach().double().sum()) for weight in state.plain_model.parameters()]
    assert all(theirs == ours for theirs in gather_object([ours]))


def extract_config(run_dir: Path, batch_size: int) -> ExtractConfig:
    """A few thousand weights; 64 pixels make a map of 2x2, for BatchNorm wants more than one value."""
    from data.transforms import Preprocessing
    from extract.backbone import BackboneConfig
    from extract.config import CacheConfig
    from extract.heads import HeadConfig

    return ExtractConfig(
        run_dir=run_dir,
        batch_size=batch_size,
        num_workers=0,
        image=Preprocessing(size=64),
        backbone=BackboneConfig(name="test_resnet"),  # has BatchNorm
        head=HeadConfig(kind="linear"),
        cache=CacheConfig(shard_megabytes=1, batch_size=2),
    )


def fusion_config(run_dir: Path, batch_size: int) -> FusionConfig:
    """A few thousand weights."""
    from extract.heads import HeadConfig
    from fusion.model import ModelConfig

    head = HeadConfig(width=8, num_heads=2)
    return FusionConfig(run_dir=run_dir, batch_size=batch_size, model=ModelConfig(width=8, num_heads=2, head=head))


def child(rank, num_processes, port, output, job, folder, *arguments) -> None:
    """One of the processes: the environment that a launcher gives, the job, and all it prints in a file."""
    os.environ |= {"ACCELERATE_USE_CPU": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
    if num_processes == 1:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            del os.environ[name]
    file = os.open(output, os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    assert Accelerator().num_processes == num_processes
    jobs = {"train": train, "stage": stage, "freeze": freeze, "visits": visits, "predict": predict, "counts": counts}
    jobs[job](Path(folder), *arguments)
    sys.stdout.flush()
