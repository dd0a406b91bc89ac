"""Which filesystem a path is on, read from the kernel's list of mounts."""

from pathlib import PurePosixPath
from typing import Final

import pytest

from spawn.store.owner import filesystem_type

MOUNTINFO: Final = r"""21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 21 0:19 / /proc rw,nosuid shared:5 - proc proc rw
30 21 0:40 / /home rw,relatime - autofs systemd-1 rw,fd=42
31 30 0:41 / /home rw,relatime shared:9 - nfs4 server:/home rw,vers=4.2
32 31 0:42 / /home/me/local\040disk rw - btrfs /dev/vdb rw
33 21 0:43 / /mnt/ssh rw,nosuid shared:7 master:3 - fuse.sshfs me@far:/ rw
34 21 0:44 / /lent rw - 9p share rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/spawn.db", "ext4"),
        ("/home/me/spawn.db", "nfs4"),
        ("/home/me/local disk/spawn.db", "btrfs"),
        ("/home/me/local diskette/spawn.db", "nfs4"),
        ("/homework/spawn.db", "ext4"),
        ("/mnt/ssh/spawn.db", "fuse.sshfs"),
        ("/lent/spawn.db", "9p"),
        ("/", "ext4"),
    ],
)
def test_the_deepest_and_last_mount_holds_a_path(path: str, kind: str) -> None:
    assert filesystem_type(MOUNTINFO, PurePosixPath(path)) == kind


def test_without_mounts_nothing_is_known() -> None:
    assert filesystem_type("", PurePosixPath("/spawn.db")) is None
