"""The key is made here, kept where nobody else reads it, and changed so that a crash never locks the host out."""

import os
import stat
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from email.utils import formatdate
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from spawn_hostagent import files
from spawn_hostagent.failures import Failure
from spawn_hostagent.joining import identity, keystore
from spawn_hostagent.joining.identity import Identity
from spawn_hostagent.joining.service import Refused, Service, Unreachable, rotate
from spawn_schemas.hosts import (
    ChangeKey,
    HostRegistered,
    registration_text,
    request_text,
)
from spawn_schemas.ids import HostId

HOST = HostId("host_abcdefghijklmnopqrstuvwxyz")
NO_KEYRINGS: Callable[[], Iterable[Any]] = tuple
REGISTERED = HostRegistered(
    host_id=HOST, name="attic", link_url="wss://link.example.org/v1/hosts/link", heartbeat_interval_s=30
)


def registered(
    folder: Path,
    environment: Mapping[str, str] | None = None,
    keyrings: Callable[[], Iterable[Any]] = NO_KEYRINGS,
) -> Identity:
    """As setup leaves it."""
    files.make_private_folder(folder)
    key = identity.new_key(environment or {})
    store = identity.store_for_new(folder, environment or {}, keyrings)
    if store.kind != "credential":
        store.put(key.public_key, key.seed)
    return identity.keep(folder, "https://api.example.org", key, store, REGISTERED)


def verifies(public_key: str, signature: bytes, message: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(b64decode(public_key)).verify(signature, message)


class FakeKeyring:
    """As a backend of `keyring`, under the name that the tests give to its class."""

    priority = 5.0
    name = "Fake"

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, user: str) -> str | None:
        return self.held.get((service, user))

    def set_password(self, service: str, user: str, password: str) -> None:
        self.held[service, user] = password

    def delete_password(self, service: str, user: str) -> None:
        del self.held[service, user]


def backend(module: str, name: str, priority: float = 5.0) -> Any:
    return type(name, (FakeKeyring,), {"__module__": module, "priority": priority})()


# --- where the key is kept


def test_an_identity_is_found_again_and_signs_the_same(tmp_path: Path) -> None:
    made = registered(tmp_path / "state")
    found = identity.load(tmp_path / "state", {}, NO_KEYRINGS)
    assert (found.host_id, found.name, found.service) == (HOST, "attic", "https://api.example.org")
    assert found.link_url == REGISTERED.link_url
    verifies(made.public_key, found.sign(b"hello"), b"hello")


def test_files_are_for_the_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        registered(tmp_path / "state")
    finally:
        os.umask(before)
    modes = {
        path.relative_to(tmp_path).parts[-1][-5:]: stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / "state").rglob("*")
    }
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert sorted(modes.values()) == [0o600, 0o600, 0o700]


def test_the_private_key_is_in_no_other_file(tmp_path: Path) -> None:
    made = registered(tmp_path)
    (key_file,) = (tmp_path / "keys").iterdir()
    seed = key_file.read_text().strip()
    assert identity.public_key_of(b64decode(seed)) == made.public_key
    assert seed not in (tmp_path / identity.FILE_NAME).read_text()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    registered(tmp_path)
    (key_file,) = (tmp_path / "keys").iterdir()
    key_file.chmod(mode)
    with pytest.raises(Failure, match="chmod 600"):
        identity.load(tmp_path, {}, NO_KEYRINGS)


def test_without_an_identity_setup_is_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="run `spawn-host setup`"):
        identity.load(tmp_path, {}, NO_KEYRINGS)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host_id": "host_a"}', "\x00\xff"])
def test_a_damaged_identity_is_said(tmp_path: Path, text: str) -> None:
    registered(tmp_path)
    (tmp_path / identity.FILE_NAME).write_text(text)
    with pytest.raises(Failure, match="damaged"):
        identity.load(tmp_path, {}, NO_KEYRINGS)


def test_an_identity_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    registered(tmp_path)
    path = tmp_path / identity.FILE_NAME
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(Failure, match="version 2"):
        identity.load(tmp_path, {}, NO_KEYRINGS)


@pytest.mark.parametrize("content", [b"", b"c2hvcnQ=", b"not base64!", b64encode(bytes(33))])
def test_a_damaged_key_is_said(tmp_path: Path, content: bytes) -> None:
    registered(tmp_path)
    (key_file,) = (tmp_path / "keys").iterdir()
    key_file.write_bytes(content)
    with pytest.raises(Failure, match="does not hold a key"):
        identity.load(tmp_path, {}, NO_KEYRINGS)


def test_a_key_of_somebody_else_is_not_taken_for_ours(tmp_path: Path) -> None:
    registered(tmp_path)
    (key_file,) = (tmp_path / "keys").iterdir()
    key_file.write_bytes(b64encode(bytes(32)))
    with pytest.raises(Failure, match="not in files"):
        identity.load(tmp_path, {}, NO_KEYRINGS)


def test_the_credential_of_systemd_comes_first(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    seed = bytes(range(32))
    (credentials / keystore.CREDENTIAL_NAME).write_bytes(b64encode(seed))
    environment = {keystore.CREDENTIALS_VARIABLE: str(credentials)}
    ring = backend("keyring.backends.libsecret", "Keyring")
    made = registered(tmp_path / "state", environment, lambda: [ring])
    assert made.public_key == identity.public_key_of(seed)
    assert "systemd credential" in made.kept_in
    assert not (tmp_path / "state" / "keys").exists()
    assert ring.held == {}
    with pytest.raises(Failure, match="this is not its unit"):
        identity.load(tmp_path / "state", {}, NO_KEYRINGS)
    with pytest.raises(Failure, match="only its owner changes"):
        made.begin_rotation()


def test_a_unit_with_other_credentials_keeps_the_key_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "credentials").mkdir()
    made = registered(tmp_path / "state", {keystore.CREDENTIALS_VARIABLE: str(tmp_path / "credentials")})
    assert "0600" in made.kept_in


def test_a_keyring_comes_before_a_file(tmp_path: Path) -> None:
    ring = backend("keyring.backends.SecretService", "Keyring")
    made = registered(tmp_path, {}, lambda: [ring])
    assert list(ring.held) == [(keystore.KEYRING_SERVICE, made.public_key)]
    assert not (tmp_path / "keys").exists()
    found = identity.load(tmp_path, {}, lambda: [ring])
    verifies(made.public_key, found.sign(b"x"), b"x")
    with pytest.raises(Failure, match="in a keyring, and this session has none"):
        identity.load(tmp_path, {}, NO_KEYRINGS)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("keyrings.alt.file", "PlaintextKeyring"),
        ("keyrings.alt.file", "EncryptedKeyring"),
        ("keyring.backends.fail", "Keyring"),
        ("keyring.backends.null", "Keyring"),
        ("keyring.backends.chainer", "ChainerBackend"),
        ("somebody.elses", "Keyring"),
    ],
)
def test_no_other_keyring_is_ever_used(tmp_path: Path, module: str, name: str) -> None:
    bad = backend(module, name, priority=99.0)
    good = backend("keyring.backends.kwallet", "DBusKeyring")
    assert keystore.allowed([bad]) == ()
    assert keystore.allowed([bad, good]) == (good,)
    made = registered(tmp_path, {}, lambda: keystore.allowed([bad]))
    assert bad.held == {}
    assert "0600" in made.kept_in


def test_the_listed_keyrings_are_those_of_the_library() -> None:
    """A renamed class would silently turn every desktop to files."""
    for module, name in keystore.REAL_KEYRINGS:
        found = find_spec(module)
        assert found is not None
        assert found.origin is not None
        source = Path(found.origin).read_text(encoding="utf-8")
        assert f"class {name}(" in source, module


# --- signatures


def test_a_call_is_signed_as_the_service_reads_it(tmp_path: Path) -> None:
    made = registered(tmp_path)
    headers = made.headers("POST", "/v1/hosts/key", b"body", now_s=1_700_000_000, nonce="n1")
    text = request_text(
        method="POST",
        path="/v1/hosts/key",
        body_sha256=sha256(b"body").hexdigest(),
        timestamp_s=1_700_000_000,
        nonce="n1",
        host_id=HOST,
    )
    assert headers["Spawn-Host"] == HOST
    assert (headers["Spawn-Timestamp"], headers["Spawn-Nonce"]) == ("1700000000", "n1")
    verifies(made.public_key, b64decode(headers["Spawn-Signature"]), text)


def test_a_new_key_proves_itself_with_the_token() -> None:
    key = identity.new_key({})
    verifies(
        key.public_key, b64decode(key.proof("spwn_reg_x")), registration_text("spwn_reg_x", key.public_key)
    )


# --- another key


class KeyDesk:
    """The service's end of a change of key: it believes one key, and may lose its answer or ours."""

    def __init__(self, public_key: str, *, ahead_s: float = 0.0) -> None:
        self.believes = public_key
        self.calls = 0
        self.ahead_s = ahead_s
        self.lose: str | None = None

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        assert (request.method, request.url.path) == ("POST", "/v1/hosts/key")
        now = 1_800_000_000 + self.ahead_s
        date = {"Date": formatdate(now, usegmt=True)}
        if self.lose == "request":
            raise httpx.ConnectError("no route")
        if not self._believed(request, now):
            refusal = {"error": {"code": "unauthorized", "message": "This signature is not the host's."}}
            return httpx.Response(401, json=refusal, headers=date)
        change = msgspec.json.decode(request.content, type=ChangeKey)
        verifies(change.public_key, b64decode(change.proof), registration_text(HOST, change.public_key))
        self.believes = change.public_key
        if self.lose == "answer":
            raise httpx.ReadTimeout("no answer")
        return httpx.Response(200, json={"status": "changed"}, headers=date)

    def _believed(self, request: httpx.Request, now: float) -> bool:
        timestamp = int(request.headers["Spawn-Timestamp"])
        text = request_text(
            method="POST",
            path="/v1/hosts/key",
            body_sha256=sha256(request.content).hexdigest(),
            timestamp_s=timestamp,
            nonce=request.headers["Spawn-Nonce"],
            host_id=HostId(request.headers["Spawn-Host"]),
        )
        try:
            verifies(self.believes, b64decode(request.headers["Spawn-Signature"]), text)
        except Exception:  # noqa: BLE001 - cryptography's InvalidSignature, or a malformed one: not believed
            return False
        return abs(timestamp - now) <= 60

    def service(self) -> Service:
        return Service(
            "https://api.example.org",
            client=lambda: httpx.AsyncClient(transport=httpx.MockTransport(self)),
            now=lambda: 1_800_000_000.0,
        )


def reloaded(folder: Path) -> Identity:
    """After a crash."""
    return identity.load(folder, {}, NO_KEYRINGS)


async def test_a_key_is_changed_and_the_old_one_forgotten(tmp_path: Path) -> None:
    made = registered(tmp_path)
    desk = KeyDesk(made.public_key)
    old = made.public_key
    await rotate(made, desk.service())
    assert desk.believes == made.public_key == reloaded(tmp_path).public_key != old
    assert made.pending is None
    assert len(list((tmp_path / "keys").iterdir())) == 1


@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_a_rotation_that_broke_off_is_finished_whatever_the_service_heard(
    tmp_path: Path, lost: str
) -> None:
    made = registered(tmp_path)
    desk = KeyDesk(made.public_key)
    desk.lose = lost
    with pytest.raises(Unreachable, match="does not answer"):
        await rotate(made, desk.service())
    after = reloaded(tmp_path)
    assert after.pending is not None
    assert {after.public_key, after.pending} >= {desk.believes}
    desk.lose = None
    await rotate(after, desk.service())
    assert desk.believes == after.public_key == reloaded(tmp_path).public_key
    assert reloaded(tmp_path).pending is None


@pytest.mark.parametrize("write", range(4))
async def test_a_crash_at_any_write_leaves_a_key_that_the_service_believes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    made = registered(tmp_path)
    desk = KeyDesk(made.public_key)
    done = 0

    def crashing(real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            nonlocal done
            if done == write:
                raise KeyboardInterrupt
            done += 1
            real(*arguments)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(identity, "write_private", crashing(files.write_private))
        patched.setattr(keystore, "write_private", crashing(files.write_private))
        patched.setattr(keystore.FileStore, "drop", crashing(keystore.FileStore.drop))
        with pytest.raises(KeyboardInterrupt):
            await rotate(made, desk.service())
    after = reloaded(tmp_path)
    assert desk.believes in {after.public_key, after.pending}
    await rotate(after, desk.service())
    assert desk.believes == reloaded(tmp_path).public_key
    assert reloaded(tmp_path).pending is None


async def test_the_link_may_try_the_other_key(tmp_path: Path) -> None:
    made = registered(tmp_path)
    assert made.switch() is False
    desk = KeyDesk(made.public_key)
    desk.lose = "answer"
    with pytest.raises(Unreachable):
        await rotate(made, desk.service())
    after = reloaded(tmp_path)
    assert after.switch() is True
    verifies(desk.believes, after.sign(b"x"), b"x")
    assert after.switch() is True
    assert after.switch() is True
    after.finish_rotation(after.public_key)
    assert reloaded(tmp_path).public_key == desk.believes


async def test_a_refused_rotation_keeps_the_key(tmp_path: Path) -> None:
    made = registered(tmp_path)
    desk = KeyDesk(identity.new_key({}).public_key)
    with pytest.raises(Refused, match="This signature is not the host's"):
        await rotate(made, desk.service())
    assert reloaded(tmp_path).public_key == made.public_key


@pytest.mark.parametrize("ahead_s", [-3600.0, 3600.0])
async def test_a_clock_that_is_off_by_an_hour_costs_one_more_try(tmp_path: Path, ahead_s: float) -> None:
    made = registered(tmp_path)
    desk = KeyDesk(made.public_key, ahead_s=ahead_s)
    await rotate(made, desk.service())
    assert desk.calls == 2
    assert desk.believes == made.public_key


async def test_a_call_that_is_refused_by_a_right_clock_is_not_repeated(tmp_path: Path) -> None:
    made = registered(tmp_path)
    desk = KeyDesk(identity.new_key({}).public_key)
    with pytest.raises(Refused):
        await rotate(made, desk.service())
    assert desk.calls == 1
