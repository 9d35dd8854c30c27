"""The CPU time that a container or a service may use: the quota of its control group (Linux).

A quota is an amount of CPU time in each period. It does not name cores: a process with a quota of
one CPU may still run on all of them. A quota holds for a group of processes and for all groups
below it, so the least of them counts. The interface has two versions, and a machine may use both:
version 2 has one tree of groups (``cpu.max``), version 1 has a tree for each controller
(``cpu.cfs_quota_us``). See cgroups(7), and cgroup-v2 and sched-bwc of the kernel's documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

_Read = Callable[[str], str]


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def cpu_quota(read: _Read = _read) -> float | None:
    """Return the number of CPUs whose time this process may use; None if it has no quota.

    `read` returns the text of a file, or raises OSError. A file that cannot be read sets no quota.
    """
    try:
        quotas = [quota_of(folder, read) for quota_of, folder in _groups(read)]
    except (OSError, ValueError):  # it is not Linux, /proc is missing, or the format is unknown
        return None
    return min((quota for quota in quotas if quota is not None), default=None)


def _groups(read: _Read) -> Iterator[tuple[Callable[[str, _Read], float | None], str]]:
    """The folders of the groups of this process, each with the function that reads its quota."""
    paths = {}
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = path
    for line in read("/proc/self/mountinfo").splitlines():
        mount, _, source = line.partition(" - ")
        root, folder = mount.split()[3:5]
        kind, *_, options = source.split()
        if kind == "cgroup" and "cpu" not in options.split(","):
            continue  # the tree of another controller
        if kind in paths:
            quota_of = _quota_v2 if kind == "cgroup2" else _quota_v1
            yield from ((quota_of, each) for each in _upwards(folder, root, paths[kind]))


def _upwards(folder: str, root: str, path: str) -> Iterator[str]:
    """The folders of the group `path` and of the groups above it, up to `root`.

    `folder` is that of the group `root`. A container does not see the groups above `root`, and
    `path` may be outside of `root`.
    """
    inside = f"{path}/".startswith(f"{root.rstrip('/')}/") and ".." not in path
    names = path.removeprefix(root).strip("/").split("/") if inside else []
    for length in range(len(names), -1, -1):
        yield "/".join((folder, *names[:length])).rstrip("/")


def _quota_v2(folder: str, read: _Read) -> float | None:
    try:
        quota, period = read(f"{folder}/cpu.max").split()
    except OSError:  # the root has none, nor has a group without this controller
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: str, read: _Read) -> float | None:
    try:
        quota = int(read(f"{folder}/cpu.cfs_quota_us"))
        period = int(read(f"{folder}/cpu.cfs_period_us"))
    except OSError:
        return None
    return None if quota < 0 else quota / period
