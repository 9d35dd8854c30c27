"""The quota of CPU time of a container: both versions of control groups, and a real one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

from netkit.core import quota
from netkit.core.cores import MAX_WORKERS, check_workers, has_gil
from netkit.core.quota import cpu_quota

V2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "31 23 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
OTHER_V1 = "32 23 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"
ROOT_FS = "23 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"


def quota_in(
    groups: str, mounts: list[str], files: dict[str, str], root: str = "/"
) -> float | None:
    """The quota of a process with these groups, where these files exist under /sys/fs/cgroup."""
    every = {f"/sys/fs/cgroup/{path}": text for path, text in files.items()}
    every["/proc/self/cgroup"] = groups
    every["/proc/self/mountinfo"] = "\n".join([ROOT_FS, *mounts]).format(root=root)

    def read(path: str) -> str:
        if path not in every:
            raise FileNotFoundError(path)
        return every[path]

    return cpu_quota(read)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        ({"a/b/cpu.max": "100000 50000\n", "a/cpu.max": "300000 100000\n"}, 2),
        ({"a/b/c/cpu.max": "1000 100000\n"}, None),  # a group below
    ],
)
def test_the_least_quota_of_a_group_and_those_above_counts(
    files: dict[str, str], expected: float | None
) -> None:
    assert quota_in("0::/a/b\n", [V2], files) == expected


def test_a_container_sees_its_own_group_as_the_root() -> None:
    files = {"cpu.max": "200000 100000\n"}
    assert quota_in("0::/\n", [V2], files) == 2
    assert quota_in("0::/../else/where\n", [V2], files) == 2  # entered from outside
    assert quota_in("0::/docker/1\n", [V2], files, root="/docker/1") == 2
    assert quota_in("0::/docker/1/a\n", [V2], {"a/cpu.max": "1 2\n"}, root="/docker/1") == 0.5
    assert quota_in("0::/docker/12\n", [V2], files, root="/docker/1") == 2


def test_version_1_has_a_tree_for_the_cpu_alone() -> None:
    groups = "4:cpuset:/x\n3:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n0::/y\n"
    folder = "cpu,cpuacct"
    files = {f"{folder}/cpu.cfs_quota_us": "-1\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
    mounts = [OTHER_V1, V1, V2]
    assert quota_in(groups, mounts, files) is None
    files[f"{folder}/docker/1/cpu.cfs_quota_us"] = "75000\n"
    files[f"{folder}/docker/1/cpu.cfs_period_us"] = "50000\n"
    assert quota_in(groups, mounts, files) == 1.5
    files["y/cpu.max"] = "100000 100000\n"  # both versions are in use
    assert quota_in(groups, mounts, files) == 1


@pytest.mark.parametrize("groups", ["", "nonsense\n", "0::/a\n"])
def test_what_cannot_be_read_sets_no_quota(groups: str) -> None:
    assert quota_in(groups, [V2], {"a/cpu.max": "a new format"}) is None
    assert cpu_quota(lambda path: Path("/nowhere", path[1:]).read_text()) is None


@pytest.mark.skipif(not has_gil(), reason="one process uses all cores")
@pytest.mark.parametrize(
    ("cores", "cpus", "workers"),
    [(2, None, 4), (2, 64, 4), (64, 1, 2), (64, 0.9, 2), (64, 0.5, 1), (64, 0.01, 1), (64, 1.2, 3)],
)
def test_the_number_of_workers_is_that_for_the_cores_or_for_the_quota(
    cores: int, cpus: float | None, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "cpu_quota", lambda: cpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    assert check_workers("auto") == workers
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    assert check_workers("auto") == 1


@pytest.mark.skipif(not has_gil(), reason="one process uses all cores")
def test_the_number_of_workers_has_a_limit_on_the_largest_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quota, "cpu_quota", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(5000), raising=False)
    assert check_workers("auto") == MAX_WORKERS


@contextlib.contextmanager
def group_with_half_a_cpu() -> Iterator[Path]:
    """A real group. The test is skipped where this user cannot make one."""
    name = f"netkit-test-{os.getpid()}"
    v1, v2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    folder, settings = v2 / name, {"cpu.max": "50000 100000"}
    if (v1 / "cpu.cfs_quota_us").exists():
        folder, settings = v1 / name, {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        for setting, value in settings.items():
            if not (folder / setting).exists():
                pytest.skip("the groups here have no controller of the CPU")
            (folder / setting).write_text(value)
        yield folder
    finally:
        folder.rmdir()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has control groups")
def test_the_quota_of_a_real_group_is_found() -> None:
    program = "import os, netkit.core.quota as q; input(); print(q.cpu_quota())"
    with group_with_half_a_cpu() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            (folder / "cgroup.procs").write_text(str(process.pid))
            output, _ = process.communicate("\n")
        finally:
            process.kill()
            process.wait()
        assert float(output) <= 0.5
