"""What is shown of a server on a lent machine only: where it is reached, and how its container is.

Invariant: as of `spawn_schemas.api`; how the container is, is its host's word.
"""

from typing import Literal

import msgspec

StoppedBy = Literal["exit", "out_of_memory", "disk_full", "lease", "owner", "command", "host"]
"""Why it is stopped: it ended by itself, the kernel ended it for want of memory, its disk was full, its host did not
hear us for as long as its lease, the hours of the host's owner are over, it was told to, or the host went down.
"""


class SshView(msgspec.Struct, frozen=True, kw_only=True):
    """Where sshd is reached: `ssh -p PORT root@HOST`."""

    host: str
    port: int


class PortView(msgspec.Struct, frozen=True, kw_only=True):
    """Where a port of the server is reached: `public_port` of `host` leads to `port`. `http` is told apart by name."""

    port: int
    kind: Literal["tcp", "http"]
    host: str
    public_port: int


class ContainerView(msgspec.Struct, frozen=True, kw_only=True):
    """`stopped_by` is why it does not run, null while it does; `exit_code` is its own, where it ended by one.

    `out_of_memory_kills` is how many of its processes the kernel has ended for want of memory, since it was started.
    """

    stopped_by: StoppedBy | None
    exit_code: int | None
    out_of_memory_kills: int
