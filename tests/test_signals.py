"""What a signal does to training: it is saved at once, the status says which signal, and the next start goes on."""

import json
import signal

import pytest

import extract.resume
import extract.train
from extract.resume import StopSignal
from tests.make_data import make_run
from tests.test_pipeline import same_weights, stage_one, weights

SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)]


@pytest.fixture(autouse=True)
def _former_handlers():
    """A run takes over the process's handlers; the next test gets them back."""
    former = {number: signal.getsignal(number) for number, _ in SIGNALS}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Stage one, never stopped."""
    run_dir = tmp_path_factory.mktemp("whole")
    make_run(run_dir)
    stage_one(run_dir)
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_it_saves_within_the_epoch_leaves_with_its_status_and_goes_on_to_the_same_bits(
    whole, tmp_path, monkeypatch, number, status
):
    make_run(tmp_path)
    real, calls = extract.train.take_step, []

    def struck(*arguments):
        real(*arguments)
        calls.append(0)
        if len(calls) == 2:
            signal.raise_signal(number)

    monkeypatch.setattr(extract.train, "take_step", struck)
    with pytest.raises(SystemExit) as left:
        stage_one(tmp_path)
    assert (left.value.code, len(calls)) == (status, 2), "no step more"
    assert "stopped on request" in (tmp_path / "log.txt").read_text().splitlines()[-1]
    progress = json.loads((tmp_path / "stage_one" / "last" / "state.json").read_text())["progress"]
    assert (progress["epoch"], progress["step"]) == (0, 2)
    stage_one(tmp_path)
    for folder in ("best", "last"):
        assert same_weights(*(weights(run / "stage_one" / folder) for run in (whole, tmp_path)))


def test_a_second_one_stops_at_once_unless_it_must_be_the_first_one_again(monkeypatch):
    stop = StopSignal()
    with stop.deferred():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # the launcher passes on what its group has got already
        assert stop.received == signal.SIGTERM
        monkeypatch.setattr(extract.resume, "SAME_SIGNAL_S", 0.0)
        with pytest.raises(SystemExit) as left:
            signal.raise_signal(signal.SIGINT)
    assert left.value.code == 130


def test_outside_training_it_stops_at_once():
    StopSignal()
    with pytest.raises(SystemExit) as left:
        signal.raise_signal(signal.SIGUSR1)
    assert left.value.code == 138
