"""Model and resume folders: complete or absent, one whole copy at any moment, damage found and named."""

import os
import shutil

import pytest
import torch
from torch import nn

from data.errors import InputError
from extract.checkpoint import (
    check_folder,
    load_json,
    load_optimizer,
    load_tensors,
    load_weights,
    newest_checkpoint,
    optimizer_tensors,
    save_folder,
)


def files(value: float) -> dict:
    return {
        "model.safetensors": {"w": torch.full((3, 2), value), "count": torch.tensor(7)},
        "state.json": {"epoch": value},
        "config.yaml": f"value: {value}\n",
    }


def value_of(folder) -> float:
    """The one value that all files of a whole folder agree on."""
    check_folder(folder)
    value = load_json(folder / "state.json")["epoch"]
    assert load_tensors(folder / "model.safetensors")["w"].unique().tolist() == [value]
    assert (folder / "config.yaml").read_text() == f"value: {value}\n"
    return value


def save(stage, value):
    save_folder(stage / "last", files(value), keep=stage / "previous")


def test_a_folder_reads_back_and_the_former_one_is_kept(tmp_path):
    for value in (1.0, 2.0, 3.0):
        save(tmp_path, value)
    assert (value_of(tmp_path / "last"), value_of(tmp_path / "previous")) == (3.0, 2.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "previous"]
    assert sorted(p.name for p in (tmp_path / "last").iterdir()) == sorted([*files(0), "digests.json"])


def test_without_a_place_to_keep_it_the_former_folder_goes(tmp_path):
    for value in (1.0, 2.0):
        save_folder(tmp_path / "best", files(value))
    assert value_of(tmp_path / "best") == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def damages(path):
    content = path.read_bytes()
    middle = len(content) // 2
    yield "flipped", lambda: path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    yield "cut", lambda: path.write_bytes(content[:middle])
    yield "empty", lambda: path.write_bytes(b"")
    yield "gone", path.unlink


@pytest.mark.parametrize("name", [*files(0), "digests.json"])
def test_any_damaged_file_of_last_is_named_and_previous_is_used(tmp_path, name):
    for number in range(4):
        stage = tmp_path / str(number)
        save(stage, 1.0)
        save(stage, 2.0)
        list(damages(stage / "last" / name))[number][1]()
        with pytest.raises(InputError, match=name):
            check_folder(stage / "last")
        with pytest.warns(UserWarning, match=rf"{name}.*going on from .*previous"):
            assert newest_checkpoint(stage) == stage / "previous"


@pytest.mark.parametrize("digests", ["{}", "[]", "null", "3", "[" * 9999])
def test_digests_that_list_nothing_are_damage(tmp_path, digests):
    save(tmp_path, 1.0)
    (tmp_path / "last" / "digests.json").write_text(digests)
    with pytest.raises(InputError, match=r"digests\.json: damaged"):
        check_folder(tmp_path / "last")


def test_nothing_saved_is_no_error_and_nothing_whole_is_one(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    save(tmp_path, 1.0)
    assert newest_checkpoint(tmp_path) == tmp_path / "last"
    (tmp_path / "last" / "state.json").write_text("{}")
    with pytest.raises(InputError, match=rf"state\.json: damaged.*delete {tmp_path} to start anew"):
        newest_checkpoint(tmp_path)


class Crash(BaseException):
    """Nothing in the code may catch a power cut."""


def crash_at(monkeypatch, number):
    """Raise at the `number`-th call that changes the disk; returns the list of calls made."""
    calls = []

    def wrap(module, name):
        real = getattr(module, name)

        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) == number + 1:
                if name == "rmtree":  # half done
                    next(path for path in sorted(args[0].iterdir()) if path.is_file()).unlink()
                raise Crash
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for module, name in ((os, "rename"), (os, "replace"), (os, "fsync"), (shutil, "rmtree")):
        wrap(module, name)
    return calls


def saves_with_crashes(monkeypatch, stage, action):
    """Crash `action` at each of its calls in turn, from the same start; yields after each crash."""
    for number in range(100):
        shutil.rmtree(stage, ignore_errors=True)
        save(stage, 1.0)
        save(stage, 2.0)
        (stage / ".tmp-last").mkdir()  # left by a crash before
        (stage / ".tmp-last" / "model.safetensors").write_bytes(b"part")
        with monkeypatch.context() as patch:
            calls = crash_at(patch, number)
            try:
                action()
                assert number >= 8, calls
                return
            except Crash:
                pass
        yield calls[-1]
    raise AssertionError("never came through")


def test_a_crash_at_any_call_leaves_last_or_previous_whole_and_the_next_save_works(tmp_path, monkeypatch):
    stage, left = tmp_path / "stage", []
    for _ in saves_with_crashes(monkeypatch, stage, lambda: save(stage, 3.0)):
        folder = newest_checkpoint(stage)
        assert folder is not None
        left.append(value_of(folder))
        save(stage, 4.0)
        assert value_of(stage / "last") == 4.0
    assert left == sorted(left)
    assert set(left) == {2.0, 3.0}


def test_strict_weights_name_the_key(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = {name: torch.randn_like(t) if t.is_floating_point() else t + 5 for name, t in model.state_dict().items()}
    load_weights(model, state, "file")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    with pytest.raises(InputError, match=r"file: weight '1\.num_batches_tracked' is missing"):
        load_weights(model, {k: v for k, v in state.items() if "num_batches" not in k}, "file")
    with pytest.raises(InputError, match=r"file: unexpected weight 'x' \(2 in all\)"):
        load_weights(model, state | {"x": torch.zeros(1), "y": torch.zeros(1)}, "file")
    with pytest.raises(InputError, match=r"weight '0\.weight' has shape \(2, 4\), the configured model wants \(2, 3\)"):
        load_weights(model, state | {"0.weight": torch.zeros(2, 4)}, "file")


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04pickle", (2**63).to_bytes(8, "little"), b"\x02" + 7 * b"\0" + b"{]"]
)
def test_what_is_no_safetensors_file_is_one_line(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors: not readable as safetensors"):
        load_tensors(path)
    with pytest.raises(InputError, match="not readable as safetensors"):
        load_tensors(tmp_path / "nowhere.safetensors")


def test_non_contiguous_half_and_integer_tensors_survive(tmp_path):
    tensors = {"t": torch.arange(6.0).view(2, 3).T, "h": torch.ones(2, dtype=torch.bfloat16), "i": torch.tensor(2**40)}
    save_folder(tmp_path / "best", {"model.safetensors": tensors})
    read = load_tensors(tmp_path / "best" / "model.safetensors")
    assert all(torch.equal(read[name], t) and read[name].dtype == t.dtype for name, t in tensors.items())


def trained(fused: bool, steps: int = 3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.linspace(-1, 1, 15).view(5, 3)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
def test_the_optimizer_goes_on_bit_for_bit(tmp_path, fused):
    model, optimizer = trained(fused)
    save_folder(tmp_path / "a", {"o.safetensors": optimizer_tensors(model, optimizer)})
    other, fresh = trained(fused, steps=0)
    other.load_state_dict(model.state_dict())
    load_optimizer(other, fresh, load_tensors(tmp_path / "a" / "o.safetensors"))
    for m, o in ((model, optimizer), (other, fresh)):
        step(m, o)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert {key.split("/")[0] for key in optimizer_tensors(model, optimizer)} == {"step", "exp_avg", "exp_avg_sq"}


def test_optimizer_state_of_another_model_is_refused():
    model, optimizer = trained(False)
    tensors = optimizer_tensors(model, optimizer)
    for key, value in (
        ("exp_avg/9.weight", torch.zeros(4, 3)),
        ("exp_avg/0.weight", torch.zeros(3, 4)),
        ("step", torch.zeros(())),
    ):
        with pytest.raises(InputError, match=rf"state '{key}' does not fit the model"):
            load_optimizer(*trained(False, 0), tensors | {key: value})
