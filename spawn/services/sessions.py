"""Sessions: a proof of the wallet exchanged for a bearer token that reads for a quarter of an hour.

Invariant: a token is handed out once; what is stored for a replay has none.
"""

from spawn_ledger.tx import Tx
from spawn_schemas import api
from spawn_schemas.ids import Entropy

from spawn.payments.sessions import ID_BYTES, SESSION_S, Sessions
from spawn.services import views
from spawn.services.calls import Acted, Context, UseCase
from spawn.services.moments import moment


class OpenSession(UseCase):
    """`POST /v1/sessions`. It changes nothing of the wallet's, so a sign-in is proof enough."""

    only_reads = True

    def __init__(self, sessions: Sessions, entropy: Entropy) -> None:
        self._sessions = sessions
        self._entropy = entropy

    def act(self, tx: Tx, context: Context) -> Acted:
        token = self._sessions.issue(context.wallet, entropy=self._entropy.bytes(ID_BYTES), now=context.now)
        return Acted(answer=_answer(context, token), stored=_answer(context, None))


def _answer(context: Context, token: str | None) -> bytes:
    return views.encode(
        api.SessionOpened(
            session=api.SessionView(
                token=token,
                wallet=context.wallet,
                expires_at=moment(context.now + SESSION_S),
                expires_in=SESSION_S,
            )
        )
    )
