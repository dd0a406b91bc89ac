"""What a machine that we made tells of its first start, on the wire: `/v1/boots/{token}`."""

from typing import Annotated, Literal

import msgspec


class BootReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a machine tells of its own boot: that its sshd answers, or how its cloud-init ended."""

    ssh: bool = False
    cloud_init: Literal["done", "failed"] | None = None
    log: Annotated[str, msgspec.Meta(max_length=16384, description="The end of its output.")] | None = None


class BootReported(msgspec.Struct, frozen=True, kw_only=True):
    status: Literal["recorded"]
