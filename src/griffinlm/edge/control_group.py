"""The control groups that a process is in: where Linux, and every container on it, keeps its limits."""

from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def group_folders(controller: str) -> list[Path]:
    """Folders of this process's group and of all above it, which limit it too, of both versions.

    In version 1 every controller (`memory`, `cpu`) has groups of its own. Inside a container the system may name a
    group as it is called outside, where there is no such folder; the root then is the container's own.
    """
    folders = []
    for line in read_lines(MEMBERSHIP):
        number, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if number == "0" and not controllers:
            root = GROUPS
        elif controller in controllers.split(","):
            root = GROUPS / controller
        else:
            continue
        folder = root / place.strip().lstrip("/")
        folders += [group for group in (folder, *folder.parents) if group.is_relative_to(root)]
    return folders


def read_lines(path: Path) -> list[str]:
    """The lines of a file of the system; none where there is no such file."""
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def read_number(path: Path) -> int | None:
    """The number that a file of the system begins with; None where it says `max`, -1 or nothing."""
    first = (" ".join(read_lines(path)[:1]).split() or [""])[0]
    return int(first) if first.isascii() and first.isdigit() else None
