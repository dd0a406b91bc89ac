"""A real Debian, with its own cloud-init, takes what we tell a machine: the host key, the buyer's data, the reports."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from spawn_providers import cloud_init
from spawn_providers.hetzner import rebuilding

from spawn.domain.boot import Boot, merged
from spawn.domain.host_keys import host_key, known_hosts
from tests.interop.machines import GATEWAY, Machine, Reports, listening, login_key, started

ADDRESS: Final = "203.0.113.7"
KEY: Final = host_key(bytes(range(32)))
KNOWN: Final = known_hosts(KEY.public, ipv4=ADDRESS, ipv6="2001:db8::1") or ""
BOOT: Final = Boot(host_key=KEY, callback_url=f"http://{GATEWAY}/report/one-time")
PATH: Final = "/report/one-time"

FAILING: Final = """\
Content-Type: multipart/mixed; boundary="x"
MIME-Version: 1.0

--x
Content-Type: text/cloud-config

#cloud-config
write_files:
- {path: /root/written, content: "by the config\\n"}
runcmd:
- touch /root/run
--x
Content-Type: text/x-shellscript

#!/bin/sh
echo what the script says before it fails
exit 3
--x--
"""
REBOOTING: Final = """\
#!/bin/sh
echo a dwarf said é
touch /root/before
reboot
"""


def run(machine: Machine, command: str) -> str:
    done = machine.ssh(KNOWN, ADDRESS, command)
    assert done.returncode == 0, f"{done.stderr}\n{machine.console[-3000:]}"
    return done.stdout


def told(user_data: str) -> str:
    text = merged(user_data, BOOT)
    assert text is not None
    return text


def test_a_script_that_fails_is_reported_and_its_machine_is_the_one_that_we_said(tmp_path: Path) -> None:
    reports = Reports()
    with (
        listening(reports) as port,
        started(tmp_path, told(FAILING), login_key(tmp_path), port=port) as machine,
    ):
        reports.wait(lambda: len(reports.got) == 2)
        facts = reports.facts
        assert {path for path, _ in reports.got} == {PATH}
        assert (facts["ssh"], facts["cloud_init"]) == (True, "failed"), facts["log"]
        assert "what the script says before it fails\n" in facts["log"]
        assert "error: ('scripts-user', " in facts["log"].splitlines()[-1]
        assert run(machine, "cat /root/written; ls /root/run").split() == ["by", "the", "config", "/root/run"]
        # Its key is the only one that it has, and another is not taken for it.
        assert run(machine, "cd /etc/ssh; ls ssh_host_*").split() == [
            "ssh_host_ed25519_key",
            "ssh_host_ed25519_key.pub",
        ]
        other = known_hosts(host_key(bytes(32)).public, ipv4=ADDRESS, ipv6=None) or ""
        impostor = machine.ssh(other, ADDRESS, "true")
        assert impostor.returncode == 255
        assert "Host key verification failed." in impostor.stderr


def test_a_restart_in_the_middle_of_it_loses_no_report(tmp_path: Path) -> None:
    """We refuse all that is reported until the machine has started a second time."""
    reports = Reports(status=503)
    with (
        listening(reports) as port,
        started(tmp_path, told(REBOOTING), login_key(tmp_path), port=port) as machine,
    ):
        reports.wait(lambda: machine.console.count("] Linux version") == 2)
        reports.status = 204
        reports.wait(lambda: len(reports.got) == 2)
        facts = reports.facts
        assert (facts["ssh"], facts["cloud_init"]) == (True, "done"), facts["log"]
        assert "a dwarf said é\n" in facts["log"]
        run(machine, "ls /root/before")


def test_a_key_that_was_deleted_before_a_rebuild_opens_it_no_more(tmp_path: Path) -> None:
    """The metadata names it all the same, as Hetzner's does."""
    (tmp_path / "kept").mkdir()
    deleted, kept = login_key(tmp_path), login_key(tmp_path / "kept")
    left = rebuilding.only_keys([kept.with_suffix(".pub").read_text().strip()])
    rebuilt = cloud_init.joined(told("#!/bin/sh\n"), left)
    assert rebuilt is not None
    reports = Reports()
    with listening(reports) as port, started(tmp_path, rebuilt, deleted, port=port) as machine:
        reports.wait(lambda: len(reports.got) == 2)
        assert reports.facts["cloud_init"] == "done", reports.facts["log"]
        assert run(replace(machine, key=kept), "whoami") == "root\n"
        refused = machine.ssh(KNOWN, ADDRESS, "true")
        assert refused.returncode == 255
        assert "Permission denied" in refused.stderr
