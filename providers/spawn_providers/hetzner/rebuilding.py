"""What a rebuilt machine is told besides: who may log in, where Hetzner itself would not arrange it.

Invariant: pure. A rebuilt machine has the SSH keys it was created with, and Hetzner draws a password only for one
without any. So new keys, and a password where there are keys, are told to cloud-init.
"""

from collections.abc import Sequence

from spawn_providers import cloud_init


def with_keys(public_keys: Sequence[str]) -> cloud_init.Part:
    root = {"name": "root", "ssh_authorized_keys": list(public_keys)}
    return cloud_init.config({"users": ["default", root]})


def with_password(password: str) -> cloud_init.Part:
    """The password expires at the first login, as Hetzner's own do: anybody on the machine can read this text."""
    root = {"name": "root", "password": password, "type": "text"}
    return cloud_init.config({"ssh_pwauth": True, "chpasswd": {"expire": True, "users": [root]}})
