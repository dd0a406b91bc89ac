"""`setup` and `check`: what the owner is shown and asked, what leaves the machine, and what is left on it."""

import json
import stat

import msgspec
import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from spawn_hostagent.preflight.checks import Check, DockerFacts

from tests.hostagent.cli_stage import TOKEN, DeskServer, Owner, setting_up
from tests.hostagent.test_identity import HOST

# --- setup


def test_setup_registers_and_leaves_what_start_needs(
    owner: Owner, desk: DeskServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "spawn_hostagent.preflight.gather.docker_facts", lambda *_: DockerFacts(version="28.3.0")
    )
    told = owner.says(*setting_up(owner, desk, "--cpus", "1", "--memory-gb", "2", "--gpus", "none"))
    assert f"This machine is attic ({HOST})" in told
    assert "kept in" in told
    config = yaml.safe_load(owner.config.read_text())
    assert config == {
        "service": desk.address,
        "state_dir": str(owner.state),
        "limits": {"cpus": 1.0, "memory_gb": 2.0, "gpus": "none"},
    }
    (order,) = desk.orders
    assert (order.inventory.cpus, order.inventory.memory_mib) == (1.0, 2048)
    assert order.inventory.isolation.tier == "runc"
    assert order.inventory.docker_version == "28.3.0"
    assert stat.S_IMODE(owner.state.stat().st_mode) == 0o700


def test_the_owner_sees_what_is_shared_and_what_never_is(owner: Owner, desk: DeskServer) -> None:
    told = owner.says(*setting_up(owner, desk, "--memory-gb", "2"))
    for words in ("Lent to tenants", "2.0 of", "Told to the service", "serial numbers", "Never: your files"):
        assert words in told
    assert told.index("Lent to tenants") < told.index("This machine is attic")


def test_the_token_is_kept_nowhere_and_shown_nowhere(owner: Owner, desk: DeskServer) -> None:
    told = owner.says(*setting_up(owner, desk))
    assert TOKEN not in told
    files = [path for path in [owner.config, *owner.state.rglob("*")] if path.is_file()]
    assert len(files) >= 3
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_an_answer_that_was_lost_is_asked_for_again_with_the_same_key(owner: Owner, desk: DeskServer) -> None:
    desk.loses_answers = 1
    assert "does not answer" in owner.says(*setting_up(owner, desk), status=1)
    assert not (owner.state / "identity.json").exists()
    owner.says(*setting_up(owner, desk))
    assert len(desk.keys) == 1
    assert len(list((owner.state / "keys").iterdir())) == 1


def test_a_token_that_is_not_good_is_said_in_the_services_words(owner: Owner, desk: DeskServer) -> None:
    told = owner.says(*setting_up(owner, desk, token="spwn_reg_other"), status=1)
    assert "the service refuses to register this machine: This registration token is not good" in told
    assert not owner.config.exists()


def test_what_is_no_token_is_not_sent(owner: Owner, desk: DeskServer) -> None:
    assert "begin with spwn_reg_" in owner.says(*setting_up(owner, desk, token="hunter2"), status=1)
    assert desk.orders == []


def test_without_consent_nothing_leaves_the_machine(owner: Owner, desk: DeskServer) -> None:
    words = [word for word in setting_up(owner, desk) if word != "--yes"]
    assert "--yes" in owner.says(*words, status=2)
    assert desk.orders == []
    assert not owner.state.exists()


def test_an_unfit_machine_is_not_registered(owner: Owner, desk: DeskServer) -> None:
    owner.write_config(desk.address, docker_socket=f"unix://{owner.state}/none.sock")
    told = owner.says("setup", "--yes", "--token", TOKEN, status=1)
    assert "nothing was registered: repair what is marked error" in told
    assert desk.orders == []


def test_a_second_setup_says_what_there_is_and_how_to_go_on(owner: Owner, desk: DeskServer) -> None:
    owner.says(*setting_up(owner, desk))
    told = owner.says("setup", "--yes", "--token", TOKEN, status=1)
    for words in (f"attic ({HOST})", "setup --rotate", "setup --force", "spawn-host start"):
        assert words in told


def test_force_registers_anew_with_another_key(owner: Owner, desk: DeskServer) -> None:
    owner.says(*setting_up(owner, desk))
    before = json.loads((owner.state / "identity.json").read_text())["public_key"]
    desk.keys.clear()
    owner.says("setup", "--yes", "--force", "--despite-checks", "--token", TOKEN)
    after = json.loads((owner.state / "identity.json").read_text())["public_key"]
    assert before != after
    assert desk.keys == {after}


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["setup", "--yes"], 2, "--service"),
        (["setup", "--service", "http://api.example.org", "--yes"], 1, "not encrypted"),
        (["setup", "--service", "https://127.0.0.1:1", "--yes"], 2, "registration token"),
        (["setup", "--service", "https://127.0.0.1:1", "--cpus", "-1", "--yes"], 1, "limits.cpus"),
        (
            ["setup", "--service", "https://127.0.0.1:1", "--token-file", "/none", "--yes"],
            1,
            "/none cannot be read",
        ),
        (["setup", "--frob"], 2, "--frob"),
        (["setup", "--cpus", "many"], 2, "--cpus"),
        (["setup", "--rotate"], 1, "spawn-host setup"),
    ],
)
def test_a_call_that_cannot_be_meant_says_why(owner: Owner, words: list[str], status: int, said: str) -> None:
    assert said in owner.says(*words, status=status)


def test_options_beside_a_configuration_are_refused(owner: Owner, desk: DeskServer) -> None:
    owner.write_config(desk.address)
    assert "write your limits into it" in owner.says("setup", "--cpus", "2", status=2)
    assert "names" in owner.says("setup", "--service", "https://other.example.org", status=2)


# --- check


def test_check_says_what_is_wrong_and_exits_with_1(owner: Owner, desk: DeskServer) -> None:
    owner.write_config(desk.address, docker_socket=f"unix://{owner.state}/none.sock")
    told = owner.says("check", status=1)
    assert "nothing listens at" in told
    assert "Install Docker" in told
    assert "not yet: `spawn-host setup`" in told


def test_check_as_json_is_for_programs(
    owner: Owner, desk: DeskServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner.write_config(desk.address, docker_socket=f"unix://{owner.state}/none.sock")
    told = json.loads(owner.says("check", "--json", status=1))
    assert told["fit"] is False
    checks = msgspec.convert(told["checks"], list[Check])
    assert {"docker", "system", "kernel", "disk", "service", "clock"} <= {check.name for check in checks}


def test_check_of_a_machine_that_is_not_set_up_uses_defaults(owner: Owner) -> None:
    told = json.loads(owner.says("check", "--json", status=1))
    assert "is not written yet" in told["checks"][0]["message"]


def test_check_of_a_wrong_configuration_goes_on_and_says_it(owner: Owner) -> None:
    owner.config.parent.mkdir()
    owner.config.write_text("service: https://api.example.org\ncpus: 4\n")
    told = json.loads(owner.says("check", "--json", status=1))
    assert "unknown field `cpus`" in told["checks"][0]["message"]
    assert len(told["checks"]) > 5
