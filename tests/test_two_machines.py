"""Two machines, each with its own network, one shared run folder: the same result as one machine.

The machines are two network namespaces joined by a cable (veth), as in the README's commands.
"""

import contextlib
import os
import shutil
import subprocess
import sys

import pytest

from tests.launch import CONFIGS, ROOT, finish, launch
from tests.make_data import make_run
from tests.test_processes import largest_difference, weights

NETS = ("cxrA", "cxrB")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
pytestmark = pytest.mark.slow


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def machines():
    """Names of two network namespaces that reach each other and nothing else."""
    if shutil.which("ip") is None or os.geteuid() != 0 or ip("netns", "add", NETS[0]).returncode:
        pytest.skip("network namespaces need the ip command and root: the two-machine test was not run")
    try:
        ip("netns", "add", NETS[1])
        ip("link", "add", "cable0", "netns", NETS[0], "type", "veth", "peer", "name", "cable0", "netns", NETS[1])
        for net, address in zip(NETS, ADDRESSES, strict=True):
            for words in (["addr", "add", f"{address}/24", "dev", "cable0"], ["link", "set", "cable0", "up"]):
                ip("-n", net, *words)
            ip("-n", net, "link", "set", "lo", "up")
        yield NETS
    finally:
        for net in NETS:
            ip("netns", "del", net)


def launch_on_both(script, *options):
    """The README's commands, one per machine; whatever hangs is killed."""
    processes = []
    for rank, net in enumerate(NETS):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2"]
        command += ["--num_processes", "2", "--machine_rank", str(rank)]
        command += ["--main_process_ip", ADDRESSES[0], "--main_process_port", "29511", script, *map(str, options)]
        network = {"GLOO_SOCKET_IFNAME": "cable0", "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", net, *command],
                cwd=ROOT,
                env=os.environ | network,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
    outs = []
    try:
        for process in processes:
            status, out, err = finish(process)
            assert status == 0, err[-12000:]
            outs.append(out)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
    return outs


def test_two_machines_make_the_cache_and_the_model_of_one(machines, tmp_path):
    one, both = tmp_path / "one", tmp_path / "both"
    make_run(one)
    launch("extract.py", *CONFIGS["extract"], "--run_dir", one, num_processes=2)
    shutil.copytree(one, both, ignore=shutil.ignore_patterns("cache"))
    options = ["--model.dropout", "0", "--model.head.dropout", "0", "--retrain_single", "false"]
    first, second = launch_on_both("extract.py", *CONFIGS["extract"], "--run_dir", both)
    assert "stage one on 2 processes" in first
    assert not second, "the second machine writes no log"
    names = sorted(path.name for path in (one / "cache").iterdir())
    assert names == sorted(path.name for path in (both / "cache").iterdir())
    for name in names:
        assert (one / "cache" / name).read_bytes() == (both / "cache" / name).read_bytes(), name
    launch("train_fusion.py", *CONFIGS["fusion"], "--run_dir", one, *options, num_processes=1)
    launch_on_both("train_fusion.py", *CONFIGS["fusion"], "--run_dir", both, *options)
    assert largest_difference(weights(one / "fusion" / "last"), weights(both / "fusion" / "last")) < 2e-5
