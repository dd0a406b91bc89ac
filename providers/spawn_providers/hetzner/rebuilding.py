"""The cloud-init data of a rebuild: who may log in afterwards, where Hetzner itself would not arrange it.

Invariant: pure. A rebuilt machine has the SSH keys it was created with, and Hetzner draws a password only for one
without any. So new keys, and a password where there are keys, are told to cloud-init, which reads JSON as YAML.
"""

import json
from collections.abc import Sequence


def with_keys(public_keys: Sequence[str]) -> str:
    return _config({"users": ["default", {"name": "root", "ssh_authorized_keys": list(public_keys)}]})


def with_password(password: str) -> str:
    """The password expires at the first login, as Hetzner's own do: anybody on the machine can read this text."""
    root = {"name": "root", "password": password, "type": "text"}
    return _config({"ssh_pwauth": True, "chpasswd": {"expire": True, "users": [root]}})


def _config(content: dict[str, object]) -> str:
    return "#cloud-config\n" + json.dumps(content) + "\n"
