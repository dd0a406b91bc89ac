"""What the provider `hetzner` decides without asking anybody: names, labels, errors, states and handles."""

import re
from typing import Any

import msgspec
import pytest
from hcloud.helpers.labels import LabelValidator
from hypothesis import given
from hypothesis import strategies as st
from spawn_providers.base import (
    Instance,
    InstanceStatus,
    OpStatus,
    OutcomeUnknown,
    Refused,
    RefusedCode,
    Spec,
    Traffic,
    Unavailable,
)
from spawn_providers.conformance_steps import OWNER, PUBLIC_KEY
from spawn_providers.hetzner import names, wire
from spawn_providers.hetzner.errors import Problem, error_of, op_error, redacted
from spawn_schemas.ids import ServerId

TOKEN = "qV7mJx" * 10 + "abcd"
KEYS = st.from_regex(r"srv_[a-z0-9]{1,60}", fullmatch=True).map(ServerId)
HOSTNAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", fullmatch=True)
LABELS = st.text("abcXYZ019._-", max_size=63)
RFC_1123 = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"


def spec(**changed: Any) -> Spec:
    ordered = Spec(hostname="web-1", provider_type="cx23", image="debian-12", location="nbg1", owner=OWNER)
    return msgspec.structs.replace(ordered, **changed)


# --- names and labels -----------------------------------------------------------------------------------------


@given(KEYS, KEYS)
def test_a_name_is_a_host_name_of_one_key_alone(one: ServerId, two: ServerId) -> None:

    assert re.fullmatch(RFC_1123, names.server_name(one))
    assert (names.server_name(one) == names.server_name(two)) == (one == two)


@pytest.mark.parametrize(
    "key", ["", "srv_", "srv_A", "srv_a_b", "srv_a b", "web", "srv_" + "a" * 61, "srv_ä"]
)
def test_what_is_no_id_of_ours_has_no_name(key: str) -> None:
    with pytest.raises(Refused) as refused:
        names.server_name(ServerId(key))
    assert refused.value.code is RefusedCode.INVALID


@given(KEYS, HOSTNAMES)
def test_labels_are_valid_and_tell_whose_it_is(key: ServerId, hostname: str) -> None:
    labels = names.server_labels(key, spec(hostname=hostname, public_keys=(PUBLIC_KEY,)))
    assert LabelValidator.validate(labels)
    assert names.owner_of(labels) == (key, OWNER, hostname)
    assert names.used_keys(labels) == names.key_names([PUBLIC_KEY])


@given(LABELS)
def test_a_label_that_hetzner_would_refuse_is_refused_before(hostname: str) -> None:
    def label() -> dict[str, str]:
        return names.server_labels(ServerId("srv_a"), spec(hostname=hostname))

    if LabelValidator.validate({"name": hostname}):
        assert label()[names.HOSTNAME_LABEL] == hostname
    else:
        with pytest.raises(Refused) as refused:
            label()
        assert refused.value.code is RefusedCode.INVALID


def test_a_foreign_machines_labels_tell_nothing() -> None:
    assert names.owner_of({}) == (None, None, None)
    assert names.owner_of({"spawn-id": "prod db", "spawn-wallet": "me"}) == (None, None, None)


def test_a_fingerprint_is_the_one_that_ssh_keygen_shows() -> None:
    assert names.fingerprint_of(PUBLIC_KEY) == "a9:17:38:5c:60:9d:cc:6b:bb:b7:a1:fb:53:55:5b:00"
    assert names.fingerprint_of(PUBLIC_KEY.rsplit(" ", 1)[0]) == names.fingerprint_of(PUBLIC_KEY)


@pytest.mark.parametrize("text", ["", "ssh-ed25519", "ssh-ed25519 !!!", "ssh-ed25519 AAA"])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        names.fingerprint_of(text)
    assert refused.value.code is RefusedCode.INVALID


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        ("resource_unavailable", RefusedCode.OUT_OF_CAPACITY),
        ("placement_error", RefusedCode.OUT_OF_CAPACITY),
        ("resource_limit_exceeded", RefusedCode.QUOTA),
        ("invalid_input", RefusedCode.INVALID),
        ("invalid_server_type", RefusedCode.INVALID),
        ("not_found", RefusedCode.NOT_FOUND),
        ("locked", RefusedCode.CONFLICT),
        ("conflict", RefusedCode.CONFLICT),
        ("protected", RefusedCode.CONFLICT),
        ("server_not_stopped", RefusedCode.CONFLICT),
        ("uniqueness_error", RefusedCode.CONFLICT),
    ],
)
@pytest.mark.parametrize("changes", [True, False])
def test_a_refusal_is_told_by_its_code(code: str, meaning: RefusedCode, changes: bool) -> None:
    error = error_of(Problem(code=code, message="no"), changes=changes)
    assert isinstance(error, Refused)
    assert error.code is meaning


@pytest.mark.parametrize("code", ["rate_limit_exceeded", "maintenance", "unauthorized", "token_readonly"])
def test_what_was_not_taken_changed_nothing(code: str) -> None:
    assert isinstance(error_of(Problem(code=code, message="no"), changes=True), Unavailable)


@given(st.one_of(st.none(), st.integers(100, 599), st.text(max_size=30)))
def test_whatever_is_not_understood_may_have_changed_something(code: str | int | None) -> None:
    written = error_of(Problem(code=code, message="?"), changes=True)
    read = error_of(Problem(code=code, message="?"), changes=False)
    if isinstance(written, OutcomeUnknown):
        assert isinstance(read, Unavailable)
    else:
        assert type(written) is type(read)
        assert isinstance(code, str)


@pytest.mark.parametrize(
    "code", ["server_error", "service_error", "unavailable", "timeout", "bad_gateway", 502, None]
)
def test_a_servers_error_leaves_a_change_unknown(code: str | int | None) -> None:
    assert isinstance(error_of(Problem(code=code, message="?"), changes=True), OutcomeUnknown)
    assert isinstance(
        error_of(Problem(code=code, message="?", sent=False), changes=True), (OutcomeUnknown, Unavailable)
    )


def test_what_was_never_sent_changed_nothing() -> None:
    assert isinstance(error_of(Problem(code=None, message="refused", sent=False), changes=True), Unavailable)


@given(st.text(max_size=60), st.integers(4, len(TOKEN)), st.text(max_size=60))
def test_no_message_has_the_tokens_beginning(before: str, length: int, after: str) -> None:
    shown = redacted(f"{before}{TOKEN[:length]}{after}", TOKEN)
    assert TOKEN[:4] not in shown
    assert shown.count("[token]") >= 1


@given(st.text("abc [].:", max_size=80))
def test_what_has_no_token_in_it_stays_as_it_is(text: str) -> None:
    assert redacted(text, TOKEN) == text


@given(st.text(max_size=20))
def test_a_failed_action_is_never_one_that_nobody_knows(code: str) -> None:
    assert op_error(code) is not RefusedCode.NOT_FOUND
    assert op_error("not_found") is RefusedCode.CONFLICT
    assert op_error("resource_unavailable") is RefusedCode.OUT_OF_CAPACITY


# --- states and handles ---------------------------------------------------------------------------------------


def server(**changed: Any) -> wire.Server:
    described = {
        "id": 7,
        "name": "sp-a",
        "status": "running",
        "created": "2026-09-21T14:13:20Z",
        "labels": names.server_labels(ServerId("srv_a"), spec()),
        "server_type": {"name": "cx23", "cores": 2, "memory": 4, "disk": 40, "architecture": "x86"},
        "location": {"name": "nbg1"},
        "image": {"name": "debian-12"},
        "public_net": {"ipv4": {"ip": "198.51.100.7"}, "ipv6": {"ip": "2001:db8:7::/64"}},
        "primary_disk_size": 40,
        "ingoing_traffic": None,
        "outgoing_traffic": None,
        "included_traffic": None,
    }
    return msgspec.convert(described | changed, wire.Server)


def test_a_server_is_an_instance() -> None:
    assert wire.instance_of(server()) == Instance(
        ref="7",
        key=ServerId("srv_a"),
        owner=OWNER,
        hostname="web-1",
        created_at=1_790_000_000,
        status=InstanceStatus.RUNNING,
        provider_type="cx23",
        image="debian-12",
        location="nbg1",
        ipv4="198.51.100.7",
        ipv6="2001:db8:7::1",
        cores=2,
        memory_gb=4,
        disk_gb=40,
        type="small",
    )


def test_its_traffic_is_known_once_it_was_counted() -> None:
    counted = {"ingoing_traffic": 5, "outgoing_traffic": 7, "included_traffic": 9}
    assert wire.instance_of(server(**counted)).traffic == Traffic(
        ingoing_bytes=5, outgoing_bytes=7, included_bytes=9
    )
    assert wire.instance_of(server(**counted | {"outgoing_traffic": None})).traffic is None
    nothing_free = wire.instance_of(server(**counted | {"included_traffic": None})).traffic
    assert nothing_free == Traffic(ingoing_bytes=5, outgoing_bytes=7, included_bytes=0)


def test_what_a_server_lacks_is_none() -> None:
    bare = wire.instance_of(server(labels={}, image=None, public_net={"ipv4": None, "ipv6": None}))
    assert (bare.key, bare.owner, bare.hostname, bare.image, bare.ipv4, bare.ipv6) == (
        None,
        None,
        None,
        "",
        None,
        None,
    )


@given(st.text(max_size=20))
def test_a_status_is_ours_or_unknown(status: str) -> None:
    known = {one.value for one in InstanceStatus}
    assert wire.status_of(status).value == (status if status in known else "unknown")


def action(id_: int, status: str, code: str | None = None) -> wire.Action:
    error = None if code is None else wire.ActionError(code=code, message="it broke")
    return wire.Action(id=id_, command="create_server", status=OpStatus(status), error=error)


@given(st.lists(st.sampled_from(["running", "success", "error", "unknown"]), max_size=4))
def test_an_op_is_as_far_as_its_actions(statuses: list[str]) -> None:
    known = {
        at: None if status == "unknown" else action(at, status, "locked" if status == "error" else None)
        for at, status in enumerate(statuses)
    }
    op = wire.promised("7", *(action(at, "running") for at in known))
    state = wire.op_state(op.handle, known)
    if "unknown" in statuses:
        assert (state.status, state.error_code) == (OpStatus.ERROR, "not_found")
    elif "error" in statuses:
        assert (state.status, state.error_code) == (OpStatus.ERROR, "conflict")
    else:
        assert state.status is (OpStatus.RUNNING if "running" in statuses else OpStatus.SUCCESS)


@given(st.text(max_size=40))
def test_no_text_breaks_a_handle(text: str) -> None:
    handle = wire.handle_from(text)
    if handle is None:
        assert wire.op_state(text, {}).error_code == "not_found"
    else:
        assert msgspec.json.decode(text)["server"] == handle.server
