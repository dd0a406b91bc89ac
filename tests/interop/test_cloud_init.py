"""Debian's own cloud-init reads what we merge: the buyer's data is obeyed in every form of it, and ours beside it.

Invariant: nothing is replaced. What cloud-init would make of the buyer's data alone is what it makes of it here.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from spawn_providers import cloud_init
from spawn_providers.hetzner import rebuilding

from spawn.domain import user_data
from spawn.domain.boot import Boot, merged
from spawn.domain.host_keys import host_key
from tests.engines import ROOT
from tests.interop.machines import image

KEY: Final = host_key(bytes(range(32)))
OURS: Final = {"ssh_keys": {"ed25519_private": KEY.private, "ed25519_public": KEY.public}}
BOOT: Final = Boot(host_key=KEY, callback_url="https://spawn.example/v1/boots/" + "x" * 64)
SCRIPT: Final = "#!/bin/sh\necho 'für alle'\r\n"
SETTINGS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "runcmd": ["true", ["ls", "-l"]],
        "write_files": [{"path": "/etc/motd", "content": "grüß\n\n  dich"}],
        "users": ["default", {"name": "alice", "ssh_authorized_keys": ["ssh-ed25519 AAAA"]}],
        "ssh_pwauth": False,
        "chpasswd": {"expire": False},
    }
)
CONFIG: Final = "#cloud-config\n" + yaml.safe_dump(dict(SETTINGS), allow_unicode=True)


def read(text: str | None, folder: Path) -> Any:
    """What cloud-init makes of it. systemd is a program here that writes down how it was called."""
    assert text is not None
    modules = image().modules
    folder.mkdir(exist_ok=True)
    systemd = folder / "systemd-run"
    systemd.write_text(f'#!/bin/sh\necho "$@" >> {folder}/called\n')
    systemd.chmod(0o700)
    path = os.pathsep.join((str(folder), str(Path(sys.executable).parent), "/usr/bin", "/bin"))
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "interop" / "cloud_init_reading.py", folder],
        input=text,
        env={"PYTHONPATH": str(modules), "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["warnings"] == []
    return found | {"config": yaml.safe_load(found["config"])}


def message(*parts: tuple[str, str]) -> str:
    text = cloud_init.joined(None, *(cloud_init.Part(type=type_, text=text) for type_, text in parts))
    assert text is not None
    return text


FORMS: Final = {
    "nothing": None,
    "script": SCRIPT,
    "config": CONFIG,
    "archive": f"#cloud-config-archive\n{json.dumps([CONFIG, {'content': SCRIPT}])}\n",
    "patch": '#cloud-config-jsonp\n[{"op": "add", "path": "/runcmd", "value": ["true"]}]\n',
    "boothook": "#cloud-boothook\n#!/bin/sh\necho hook\n",
    "template": "## template: jinja\n#cloud-config\nfqdn: '{{ v1.instance_id }}'\n",
    "message": message(("text/x-shellscript", SCRIPT), ("text/cloud-config", CONFIG), ("text/plain", SCRIPT)),
    "merging message": message(
        ("text/cloud-config", CONFIG),
        (
            "text/cloud-config",
            "#cloud-config\nmerge_how: 'list(append)+dict(recurse_list)'\nruncmd: [second]\n",
        ),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_the_buyer_says_holds_and_ours_beside_it(form: str, tmp_path: Path) -> None:
    theirs = FORMS[form]
    user_data.check(theirs, host_key=True)
    alone = read(theirs or "#cloud-config\n{}\n", tmp_path / "alone")
    both = read(merged(theirs, BOOT), tmp_path / "both")
    assert both["config"] == {**(alone["config"] or {}), **OURS}
    assert list(both["scripts"].values()) == list(alone["scripts"].values())
    *before, ours = both["boothooks"].values()
    assert before == list(alone["boothooks"].values())
    assert BOOT.callback_url is not None
    assert BOOT.callback_url in ours
    (called,) = (tmp_path / "both" / "called").read_text().splitlines()
    assert called.endswith(" report")


def test_what_is_included_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text(CONFIG)
    for form in ("#include", "#include-once"):
        found = read(merged(f"{form}\n{(tmp_path / 'theirs').as_uri()}\n", BOOT), tmp_path / form)
        assert found["config"] == {**SETTINGS, **OURS}


def test_a_handler_of_the_buyer_handles(tmp_path: Path) -> None:
    handler = (
        "#part-handler\n"
        "def list_types(): return ['text/x-mine']\n"
        "def handle_part(data, ctype, name, payload):\n"
        f"    print(payload, file=open({str(tmp_path / 'handled')!r}, 'a'))\n"
    )
    theirs = message(("text/part-handler", handler), ("text/x-mine", "this"))
    found = read(merged(theirs, BOOT), tmp_path / "cloud")
    assert found["config"] == OURS
    assert (tmp_path / "handled").read_text() == "None\nthis\nNone\n"


def test_a_rebuild_adds_who_may_log_in(tmp_path: Path) -> None:
    told = merged(CONFIG, BOOT)
    keyed = read(cloud_init.joined(told, rebuilding.only_keys(["ssh-ed25519 BBBB"])), tmp_path / "keys")
    only = {"allow_public_ssh_keys": False, "ssh_authorized_keys": ["ssh-ed25519 BBBB"]}
    assert keyed["config"] == {**SETTINGS, **OURS, **only}
    alone = read(cloud_init.joined(merged(None, BOOT), rebuilding.with_password("x")), tmp_path / "password")
    password = {"name": "root", "password": "x", "type": "text"}
    assert alone["config"] == {
        **OURS,
        "ssh_pwauth": True,
        "chpasswd": {"expire": True, "users": [password]},
    }


def test_what_we_refuse_it_would_ignore(tmp_path: Path) -> None:
    """Or take only in part: a machine that was paid for would lack what its buyer asked for."""
    for number, theirs in enumerate(
        ("#cloud-config\na: *b\n", "#cloud-config\n- a\n", "#cloud-config\na: {{ b }}\n")
    ):
        with pytest.raises(AssertionError, match="Failed loading yaml blob"):
            read(merged(theirs, BOOT), tmp_path / str(number))
