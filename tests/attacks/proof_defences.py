"""What keeps callers out who are not the wallet that they name: signatures, sign-ins, sessions."""

from typing import Final

from tests.attacks.defence import Defence

SIGNED: Final = "spawn/payments/signed.py"
SIGN_IN: Final = "spawn/payments/sign_in.py"
SESSIONS: Final = "spawn/payments/sessions.py"
CALLERS: Final = "spawn/api/callers.py"
GATE: Final = "spawn/api/gate.py"
PAID_CALLS: Final = "spawn/services/paid_calls.py"

OF_PROOFS: Final = (
    Defence(
        name="what a signature must cover",
        file=SIGNED,
        before="    if missing:\n",
        after="    if not needed:\n",
        attacks=(
            "signature: @method not covered",
            "signature: GET turned into DELETE, without @method",
            "signature: a query where none was signed",
            "signature: content-digest not covered",
        ),
    ),
    Defence(
        name="the digest of the body",
        file=SIGNED,
        before='if _members(headers, "content-digest").get("sha-256") != f":{digest}:":',
        after='if not _members(headers, "content-digest") or not digest:',
        attacks=("signature: another body", "signature: body swapped for another good one"),
    ),
    Defence(
        name="a signature lives a minute",
        file=SIGNED,
        before="if not 0 < expires - created <= MAX_LIFE_S:",
        after="if not 0 < expires - created:",
        attacks=("signature: lives 61 seconds",),
    ),
    Defence(
        name="a signature ends",
        file=SIGNED,
        before="if expires < now:",
        after="if expires < 0:",
        attacks=("signature: expired a second ago",),
    ),
    Defence(
        name="a signature is not of tomorrow",
        file=SIGNED,
        before="if created > now + CLOCK_SKEW_S:",
        after="if created < 0:",
        attacks=("signature: created 6 seconds ahead",),
    ),
    Defence(
        name="the key signed",
        file=SIGNED,
        before="if signer != signed.wallet:",
        after="if not signer:",
        attacks=(
            "signature: keyid of somebody else",
            "signature: of the owner's address by the thief's key",
            "signature: server swapped in the path",
            "signature: for another host, alone",
            "key: known, with a forged signature of its owner",
        ),
    ),
    Defence(
        name="no algorithm of the caller's choice",
        file=SIGNED,
        before='if "alg" in parameters:',
        after='if "alg" in components:',
        attacks=("signature: algorithm named",),
    ),
    Defence(
        name="our host, not the caller's",
        file=SIGNED,
        before='"@authority": authority,',
        after='"@authority": headers.get("host", authority),',
        attacks=("signature: for another host, and Host says so",),
    ),
    Defence(
        name="labels tie input and signature",
        file=SIGNED,
        before="if match is None or match[1] in members or len(members) == MAX_MEMBERS:",
        after="if match is None:",
        attacks=("header: two lines of signature", "header: two digests", "signature: four labels"),
    ),
    Defence(
        name="a text for our chain",
        file=SIGN_IN,
        before="if claim.chain_id != party.network:",
        after="if not claim.chain_id:",
        attacks=(
            "sign-in: another chain",
            "sign-in: chain without its family",
        ),
    ),
    Defence(
        name="a text for our host",
        file=SIGN_IN,
        before="if claim.domain != party.domain:",
        after="if not claim.domain:",
        attacks=(
            "sign-in: another domain",
            "sign-in: for another host that proxies to us",
        ),
    ),
    Defence(
        name="a text for our origin",
        file=SIGN_IN,
        before="if claim.uri != party.origin and not",
        after="if not claim.uri and not",
        attacks=(
            "sign-in: uri elsewhere",
            "sign-in: uri of a longer host",
            "sign-in: uri with a user",
        ),
    ),
    Defence(
        name="a text of these five minutes",
        file=SIGN_IN,
        before="    if now > expires:\n",
        after="    if now < 0:\n",
        attacks=(
            "sign-in: issued 301 seconds ago",
            "sign-in: that is stale, where a read costs money",
        ),
    ),
    Defence(
        name="a text ends when it says",
        file=SIGN_IN,
        before="if now >= expiration:",
        after="if now < 0:",
        attacks=("sign-in: expires now",),
    ),
    Defence(
        name="a text is not of tomorrow",
        file=SIGN_IN,
        before="if issued_at > now + CLOCK_SKEW_S:",
        after="if issued_at < 0:",
        attacks=("sign-in: issued 6 seconds ahead",),
    ),
    Defence(
        name="a text is not for later",
        file=SIGN_IN,
        before="if claim.not_before is not None and now <",
        after="if claim.not_before is not None and 0 >",
        attacks=("sign-in: valid in a second",),
    ),
    Defence(
        name="the signer of the text",
        file=SIGN_IN,
        before="if _signer(claim, claim.address, signature) == wallet:",
        after="if _signer(claim, claim.address, signature):",
        attacks=(
            "sign-in: signed by somebody else",
            "sign-in: of the owner's address by the thief's key",
        ),
    ),
    Defence(
        name="a text in one line each",
        file="schemas/spawn_schemas/sign_in.py",
        before="{{{NONCE_MIN},{NONCE_MAX}}}\\Z",
        after="{{{NONCE_MIN},{NONCE_MAX}}}$",
        attacks=("sign-in: nonce with a line end",),
    ),
    Defence(
        name="a sign-in counts once",
        file=PAID_CALLS,
        before="if call.identity.proof is Proof.SIGN_IN and",
        after="if not call.identity.wallet and",
        attacks=(
            "sign-in: used again for the same read",
            "sign-in: used for a second session",
            "sign-in: fifty copies at once",
        ),
    ),
    Defence(
        name="a token is ours",
        file=SESSIONS,
        before="if not hmac.compare_digest(mac, self._mac(signed)):",
        after="if not mac:",
        attacks=(
            "session: of a service with another key",
            "session: with the owner's address in the thief's",
        ),
    ),
    Defence(
        name="a token has a key",
        file=SESSIONS,
        before='hmac.digest(key, _KEY_LABEL, "sha256")',
        after='hmac.digest(b"", _KEY_LABEL, "sha256")',
        attacks=("session: of a service with no key",),
    ),
    Defence(
        name="a session ends",
        file=SESSIONS,
        before="if now >= session.expires:",
        after="if now < 0:",
        attacks=("session: that expired",),
    ),
    Defence(
        name="a token has one spelling",
        file=SESSIONS,
        before='return raw if _text(raw) == text else b""',
        after="return raw",
        attacks=("session: padded",),
    ),
    Defence(
        name="a token is told once",
        file="spawn/services/sessions.py",
        before="stored=_answer(context, None)",
        after="stored=_answer(context, token)",
        attacks=("session: opened again by whoever saw it opened",),
    ),
    Defence(
        name="sessions and sign-ins only read",
        file=GATE,
        before="    return route.takes_sign_in and not",
        after="    return not",
        attacks=(
            "session: on every write",
            "session: with a key that holds a stored order",
        ),
    ),
    Defence(
        name="a session opens no session",
        file=GATE,
        before="and not (route.opens_session and identity.proof is Proof.SESSION)",
        after="",
        attacks=("session: for another session",),
    ),
    Defence(
        name="one payment in a request",
        file=CALLERS,
        before="if v2 is not None and v1 is not None:",
        after='if v2 is not None and v1 == "":',
        attacks=("version 1: both headers in one request",),
    ),
    Defence(
        name="one key in a request",
        file=CALLERS,
        before="if header is not None and extension is not None and header != extension:",
        after='if header == extension == "":',
        attacks=("key: in the header beside another payment-identifier",),
    ),
    Defence(
        name="who pays is who calls",
        file=CALLERS,
        before="if _V2 in headers or _V1 in headers:",
        after="if (_V2 in headers or _V1 in headers) and not signed.present(headers):",
        attacks=("header: the thief's payment beside the owner's signature",),
    ),
    Defence(
        name="who signs is who calls",
        file=CALLERS,
        before="elif signed.present(headers):",
        after="elif signed.present(headers) and _AUTHORIZATION not in headers:",
        attacks=("session: of the owner beside the thief's signed request",),
    ),
)
