"""Reading a header that carries a payment or a sign-in: JSON in base64.

Invariant: what is decoded was written in one way only: plain base64 of JSON that is exactly the form asked for.
"""

from binascii import a2b_base64, b2a_base64
from typing import Final, Generic, TypeVar

import msgspec
from spawn_schemas.errors import Code, SpawnError

MAX_HEADER_BYTES: Final = 8 * 1024
"""A stock client's payment header is about 1 KiB; extensions may add some."""

P = TypeVar("P", bound=msgspec.Struct)


class NotInForm(ValueError):
    """The JSON is whole and does not have the form asked for; the message is the decoder's."""


def read_header(header: str | bytes, decoder: msgspec.json.Decoder[P], *, max_bytes: int) -> P:
    """Return what the header holds. Raises ValueError with what is wrong with it, NotInForm for its content."""
    if len(header) > max_bytes:
        raise ValueError(f"is longer than {max_bytes} bytes")
    try:
        text = header.encode("ascii") if isinstance(header, str) else header
        raw = a2b_base64(text)
    except ValueError as error:
        raise ValueError("is not base64") from error
    # Decoders skip what they do not know; encoding again shows whether anything was skipped.
    if b2a_base64(raw, newline=False) != text:
        raise ValueError("is not plain base64 (standard alphabet, padded, nothing else in it)")
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise NotInForm(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("does not hold JSON in base64") from error


class PaymentHeader(Generic[P]):
    """One version's payment header: its name, the form of what it holds, and where a caller finds the offer."""

    def __init__(self, name: str, form: type[P], *, version: int, offer: str) -> None:
        self.name = name
        self._decoder = msgspec.json.Decoder(form)
        self._version = version
        self._offer = offer

    def decode(self, header: str | bytes) -> P:
        """Return what the header holds; raise SpawnError(INVALID_PAYMENT) unless it is well formed."""
        try:
            return read_header(header, self._decoder, max_bytes=MAX_HEADER_BYTES)
        except NotInForm as error:
            raise self.malformed(
                f"does not hold an x402 version {self._version} payment of scheme exact: {error}"
            ) from error
        except ValueError as error:
            raise self.malformed(str(error)) from error

    def malformed(self, what: str) -> SpawnError:
        """The refusal of a header that `what`."""
        return SpawnError(
            Code.INVALID_PAYMENT,
            f"The {self.name} header {what}.",
            next=f"Send the request without a payment, then pay what {self._offer} asks.",
        )
