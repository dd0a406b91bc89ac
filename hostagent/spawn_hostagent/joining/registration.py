"""Makes this machine a host: a key, the token swapped for an id, and both written down so that a crash costs nothing.

Invariant: the token is never written anywhere. A key is kept before the service hears of it, and asked for again with
the same token after an answer that was lost.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec
from spawn_schemas.hosts import TOKEN_PREFIX, RegisterHost
from spawn_schemas.inventory import Inventory

from spawn_hostagent.config import Config
from spawn_hostagent.failures import Failure
from spawn_hostagent.files import make_private_folder, read_private, write_private
from spawn_hostagent.joining import identity
from spawn_hostagent.joining.endpoints import link_address
from spawn_hostagent.joining.identity import Identity, Keyrings, NewKey
from spawn_hostagent.joining.keystore import KeyStore, real_keyrings
from spawn_hostagent.joining.service import Service

FILE_NAME: Final = "setup.json"


class Underway(msgspec.Struct, frozen=True, kw_only=True):
    """A registration that was begun: the token's hash, and the key that goes with it."""

    token_sha256: str
    public_key: str


def check_token(text: str) -> str:
    """The token without what was pasted around it. Raises Failure."""
    token = text.strip()
    if not token.startswith(TOKEN_PREFIX) or not token.isprintable() or len(token) > 128:
        raise Failure(
            f"this is not a registration token: they begin with {TOKEN_PREFIX}. The service gives you one for each "
            "machine, good once and for 24 hours."
        )
    return token


async def register(
    config: Config,
    token: str,
    inventory: Inventory,
    version: str,
    service: Service,
    environment: Mapping[str, str],
    keyrings: Keyrings = real_keyrings,
) -> Identity:
    """Swap the token. Raises Failure; what was not refused may be tried again with the same token."""
    folder = config.state
    make_private_folder(folder)
    store = identity.store_for_new(folder, environment, keyrings)
    key = _key(folder, token, store, environment)
    registered = await service.register(
        RegisterHost(
            token=token,
            public_key=key.public_key,
            proof=key.proof(token),
            inventory=inventory,
            agent_version=version,
        )
    )
    link_address(registered.link_url)
    made = identity.keep(folder, config.service, key, store, registered)
    (folder / FILE_NAME).unlink(missing_ok=True)
    return made


def _key(folder: Path, token: str, store: KeyStore, environment: Mapping[str, str]) -> NewKey:
    """The key of this token: a new one, or that of the attempt before."""
    hashed = sha256(token.encode()).hexdigest()
    text = read_private(folder / FILE_NAME)
    underway = None if text is None else _decoded(text)
    if underway is not None and underway.token_sha256 == hashed:
        seed = store.get(underway.public_key)
        if seed is not None:
            return NewKey(seed)
    key = identity.new_key(environment)
    if store.get(key.public_key) is None:
        store.put(key.public_key, key.seed)
    record = Underway(token_sha256=hashed, public_key=key.public_key)
    write_private(folder / FILE_NAME, msgspec.json.encode(record))
    return key


def _decoded(text: bytes) -> Underway | None:
    """None for what is damaged: then the attempt counts as a new one."""
    try:
        return msgspec.json.decode(text, type=Underway)
    except msgspec.DecodeError:
        return None
