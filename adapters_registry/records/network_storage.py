"""Finds out if a file is on network storage, where SQLite's write-ahead log is not safe.

The log needs memory that all processes share, and a network file system has none
(https://www.sqlite.org/wal.html). A rollback journal needs only locks.
"""

from __future__ import annotations

from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
"""The mounts that this process sees; see `man 5 proc_pid_mountinfo`."""
NETWORK_FILE_SYSTEMS = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.cephfs",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.juicefs",
        "fuse.mountpoint-s3",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
        "virtiofs",
    }
)


def network_file_system(file: Path, mounts: Path = MOUNTS) -> str | None:
    """Return the name of the network file system that a file is on, or None if it is local.

    Returns None also where the system has no table of mounts, as outside Linux.
    """
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return None
    kind, deepest = None, -1
    for line in lines:
        before, _, after = line.partition(" - ")
        if len(fields := before.split()) < 5 or not after:
            continue
        folder = Path(fields[4].encode().decode("unicode_escape"))  # a space is \040
        # Of two mounts on one folder, the later one hides the earlier one.
        if file.resolve().is_relative_to(folder) and len(folder.parts) >= deepest:
            kind, deepest = after.split()[0], len(folder.parts)
    return kind if kind in NETWORK_FILE_SYSTEMS else None
