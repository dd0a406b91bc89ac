"""What a rebuilt machine is told besides: who may log in, where Hetzner itself would not arrange it.

Invariant: pure. Hetzner gives a rebuilt machine the SSH keys it was created with, by its metadata, also those that were
deleted since; and it draws a password only for one without any. So cloud-init is told which keys count, before sshd
starts, and a password where none is left.
"""

from collections.abc import Sequence

from spawn_providers import cloud_init


def only_keys(public_keys: Sequence[str]) -> cloud_init.Part:
    """These keys in place of those of the metadata, and where those would be."""
    return cloud_init.config({"allow_public_ssh_keys": False, "ssh_authorized_keys": list(public_keys)})


def with_password(password: str) -> cloud_init.Part:
    """The password expires at the first login, as Hetzner's own do: anybody on the machine can read this text."""
    root = {"name": "root", "password": password, "type": "text"}
    return cloud_init.config({"ssh_pwauth": True, "chpasswd": {"expire": True, "users": [root]}})
