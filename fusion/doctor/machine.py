"""The doctor's checks of cores and memory, against what a recipe needs."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from extract.config import ExtractConfig
from fusion.doctor.finding import Finding

SHM = Path("/dev/shm")
CGROUP, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
WORKER_GB, PROCESS_GB = 0.7, 2.0  # of an image-decoding worker, and of a training process without its data
PREFETCHED = 2  # torch's default: batches that each worker keeps ready


def group_files(controller: str, name: str) -> Iterator[str]:
    """What a control-group file says for this process's group and every one above it; the strictest holds."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):  # version 2 has an empty list
            continue
        top = CGROUP / controller if controllers else CGROUP
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top) and (folder / name).is_file():
                yield (folder / name).read_text().strip()


def memory_gb() -> tuple[float, float]:
    """Memory of the machine, and what this process's control groups leave of it."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    texts = [*group_files("memory", "memory.max"), *group_files("memory", "memory.limit_in_bytes")]
    limits = [int(text) for text in texts if text.isdigit()]
    return total / 1e9, min([total, *limits]) / 1e9


def usable_cores() -> float:
    """Cores that this process may keep busy: its affinity and its control groups' quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [text.split() for text in group_files("cpu", "cpu.max")]
    old = zip(group_files("cpu", "cpu.cfs_quota_us"), group_files("cpu", "cpu.cfs_period_us"), strict=False)
    shares = [int(quota) / int(period) for quota, period in [*quotas, *old] if quota.isdigit()]
    return min([float(affinity), *shares])


def check_cores(config: ExtractConfig, processes: int) -> Finding:
    """Threads and workers against the cores that they may use: too many wait for each other."""
    cores, threads = usable_cores(), torch.get_num_threads()
    found = f"{cores:g} of {os.cpu_count()} usable, torch computes on {threads} threads"
    if threads > max(1, cores):
        return Finding("warn", "CPU cores", found, f"export OMP_NUM_THREADS={max(1, int(cores))}")
    if processes * config.num_workers > max(1, cores):
        found += f", {processes * config.num_workers} image-decoding workers"
        return Finding("warn", "CPU cores", found, f"--num_workers {int(cores // processes)}")
    if cores >= 4 and not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        remedy = f"OMP_NUM_THREADS={int(cores)} accelerate launch extract.py"
        return Finding("warn", "CPU cores", f"{found}, but under accelerate launch on 1 unless told", remedy)
    return Finding("ok", "CPU cores", found)


def check_memory(config: ExtractConfig, processes: int) -> Finding:
    """Memory against training processes and their workers."""
    total, limit = memory_gb()
    wanted = processes * (PROCESS_GB + WORKER_GB * config.num_workers)
    limited = "" if limit == total else f" (this job is limited to {limit:.1f} GB)"
    found = f"{total:.1f} GB{limited}, about {wanted:.1f} GB wanted by {workers_text(config, processes)}"
    fitting = int((limit / processes - PROCESS_GB) / WORKER_GB)
    fewer = f"ask for more memory, or fewer workers: --num_workers {max(0, fitting)}"
    if wanted > limit:
        return Finding("fail", "memory", found, fewer)
    return Finding("warn", "memory", found, fewer) if wanted > 0.8 * limit else Finding("ok", "memory", found)


def workers_text(config: ExtractConfig, processes: int) -> str:
    """Who needs it."""
    return f"{processes} process{'es' if processes > 1 else ''} with {config.num_workers} workers each"


def batch_bytes(config: ExtractConfig, processes: int) -> int:
    """Bytes of the largest float32 batch that a worker hands over, in training or caching."""
    trained = -(-config.batch_size // processes)
    trained = min(trained, config.micro_batch_size or trained)
    return max(trained, config.cache.batch_size) * config.image.channels * config.image.size**2 * 4


def check_shared_memory(config: ExtractConfig, processes: int) -> Finding:
    """/dev/shm, through which workers hand over batches, against the batches kept ready; a container has 64 MB."""
    if not SHM.is_dir():
        return Finding("ok", "shared memory", "no /dev/shm on this system")
    usage, batch = shutil.disk_usage(SHM), batch_bytes(config, processes)
    per_worker = processes * PREFETCHED * batch
    wanted = config.num_workers * per_worker
    found = f"{usage.free / 1e6:,.0f} of {usage.total / 1e6:,.0f} MB free, {wanted / 1e6:,.0f} MB wanted by"
    found += f" {workers_text(config, processes)} and {PREFETCHED} batches of {batch / 1e6:,.1f} MB"
    if wanted <= 0.5 * usage.free:
        return Finding("ok", "shared memory", found)
    gigabytes, workers = int(2 * wanted / 1e9) + 1, int(0.5 * usage.free / per_worker)
    remedy = f"docker run --shm-size={gigabytes}g ..., or as root: mount -o remount,size={gigabytes}G /dev/shm, or"
    remedy += f" --num_workers {workers}"
    return Finding("fail" if wanted > usage.free else "warn", "shared memory", found, remedy)
