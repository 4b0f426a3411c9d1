"""Memory of processes with their children, each shared page divided among those who share it (Linux)."""

from collections.abc import Iterable
from pathlib import Path


def proportional_mb(pids: Iterable[int]) -> float:
    """MiB of the processes and of all that they started; what ends meanwhile counts as nothing."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name, which may hold anything, come the state and the parent.
            parent = int(path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    waiting, total = list(pids), 0
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        total += _proportional_kb(pid)
    return total / 1024


def _proportional_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
