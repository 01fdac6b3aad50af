"""A real systemd as process 1 of namespaces of its own, on a copy-on-write view of this machine's file system.

Nothing it does reaches the machine: its writes go to a tmpfs, its /proc/sys is read-only, its network is its own, and its
control groups are below one that is removed with it.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from support.users import I_AM_ROOT
from support.waiting import until

PROGRAM = Path("/lib/systemd/systemd")
TOOLS = ("unshare", "nsenter", "pivot_root", "systemctl", "systemd-analyze", "systemd-sysusers")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Units that are for a whole machine, or would look at its devices.
NOT_HERE = """
    dev-hugepages.mount dev-mqueue.mount sys-fs-fuse-connections.mount sys-kernel-config.mount sys-kernel-debug.mount
    sys-kernel-tracing.mount proc-sys-fs-binfmt_misc.automount swap.target systemd-boot-system-token.service
    systemd-firstboot.service systemd-journal-flush.service systemd-modules-load.service systemd-random-seed.service
    systemd-remount-fs.service systemd-sysctl.service systemd-udev-trigger.service systemd-udevd.service
    systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-update-utmp.service
"""
BECOME_SYSTEMD = """
set -eu
here=$1 root=$1/root
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs $here
mkdir $here/upper $here/work $root
mount -t overlay overlay -o lowerdir=/,upperdir=$here/upper,workdir=$here/work $root
mount -t proc proc $root/proc
mount --bind $root/proc/sys $root/proc/sys
mount -o remount,bind,ro $root/proc/sys
mount -t sysfs -o ro sysfs $root/sys
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs $root/dev
for device in null zero full random urandom tty; do touch $root/dev/$device; mount --bind /dev/$device $root/dev/$device; done
ln -s /proc/self/fd $root/dev/fd
ln -s pts/ptmx $root/dev/ptmx
mkdir $root/dev/shm $root/dev/pts
mount -t devpts -o newinstance,ptmxmode=0666 devpts $root/dev/pts
mount -t tmpfs -o mode=1777 tmpfs $root/dev/shm
mount -t tmpfs -o mode=755 tmpfs $root/run
mount -t tmpfs -o mode=1777 tmpfs $root/tmp
rm -rf $root/etc/systemd/system
mkdir $root/etc/systemd/system $root/.before
: >$root/etc/fstab
: >$root/etc/machine-id
for unit in $NOT_HERE; do ln -s /dev/null $root/etc/systemd/system/$unit; done
printf '[Unit]\\nRequires=basic.target\\nAfter=basic.target\\n' >$root/etc/systemd/system/test.target
cd $root
pivot_root . .before
exec chroot . /bin/sh -c 'umount -l /.before; exec env -i PATH=$PATH container=test /lib/systemd/systemd --unit=test.target'
"""


def why_not() -> str:
    """Return why there can be no systemd here, "" where it may be tried."""
    if not I_AM_ROOT:
        return "needs root, to make namespaces"
    missing = [tool for tool in TOOLS if not shutil.which(tool, path=PATH)]
    if missing or not PROGRAM.exists():
        return f"needs {', '.join([*missing, *([] if PROGRAM.exists() else ['systemd'])])}"
    return "" if _groups() else "needs a mounted cgroup2 file system"


def _groups() -> Path | None:
    """Return this process's control group in the unified hierarchy."""
    mounted = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    folder = next((Path(words[1]) for words in mounted if words[2] == "cgroup2"), None)
    ours = next((line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), None)
    return folder / ours[3:].strip("/") if folder and ours else None


class Systemd:
    """A running systemd, to be closed."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ea-systemd-", dir="/tmp"))
        self._group = _groups() / self._folder.name
        self._group.mkdir()
        join = (
            'echo $$ >"$0/cgroup.procs"; exec unshare --fork --kill-child --pid --mount --uts --ipc --net --cgroup "$@"'
        )
        with (self._folder.with_suffix(".log")).open("wb") as log:
            self._outer = subprocess.Popen(
                ["sh", "-c", join, self._group, "sh", "-c", BECOME_SYSTEMD, "sh", self._folder],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": PATH, "NOT_HERE": " ".join(NOT_HERE.split())},
                start_new_session=True,
            )

    def wait(self) -> "Systemd":
        """Return when it has started."""
        until(lambda: self._outer.poll() is not None or self._is_up(), "systemd has started")
        assert self._outer.poll() is None, self.console()
        return self

    def console(self) -> str:
        return self._folder.with_suffix(".log").read_text()

    def _is_up(self) -> bool:
        return (
            bool(self._first()) and self.run("systemctl", "is-active", "test.target", check=False).strip() == "active"
        )

    def _first(self) -> str:
        return Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split(" ")[0]

    def run(self, *command: str, check: bool = True, content: bytes = b"", user: str = "") -> str:
        """Run a command beside it, as root or with a user's groups; return what it printed."""
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
        done = subprocess.run(
            ["nsenter", "--target", self._first(), "--all", "--wdns=/", *become, *command],
            input=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": PATH},
            timeout=120,
            check=False,
        )
        told = done.stdout.decode(errors="replace")
        assert not check or done.returncode == 0, f"{' '.join(command)}: {told}"
        return told

    def write(self, path: str, content: bytes, mode: str = "644") -> None:
        """Write a file, and the folders above it."""
        self.run("install", "-D", "-m", mode, "/dev/stdin", path, content=content)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._outer.pid, signal.SIGKILL)  # and with it, by --kill-child, all that is in the namespaces
        self._outer.wait()
        folders = [*(path for path in self._group.rglob("*") if path.is_dir()), self._group]
        for folder in sorted(folders, reverse=True):
            until(lambda folder=folder: _removed(folder), f"{folder} is empty")
        self._folder.rmdir()
        self._folder.with_suffix(".log").unlink()


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
