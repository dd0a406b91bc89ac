"""What a tenant's server answers over HTTP by name, and what of it reaches the proxy in front."""

import pytest

from spawn.link.one_request import OneAnswer
from spawn.link.streams import NoStream

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Sink:
    def __init__(self) -> None:
        self.said = b""

    def write(self, data: bytes) -> None:
        self.said += data

    async def drain(self) -> None:
        return None

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.said += b"<end>"


def answered(*parts: bytes) -> bytes:
    sink = Sink()
    answer = OneAnswer(sink, upgrade=False)
    for part in parts:
        answer.write(part)
    return sink.said


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_proxy_is_told_that_nothing_follows(size: int) -> None:
    parts = [WHOLE[at : at + size] for at in range(0, len(WHOLE), size)]
    said = answered(*parts)
    assert said == b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"


def test_an_interim_answer_is_followed_by_the_one_that_closes() -> None:
    said = answered(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + WHOLE)
    assert said.count(b"Connection: close") == 1
    assert said.index(b"103") < said.index(b"Connection: close")


@pytest.mark.parametrize("end", [b"\n", b"\r"], ids=["line feed", "carriage return"])
def test_no_answer_hides_in_the_head_of_another(end: bytes) -> None:
    """A proxy that ends lines so would read a whole answer in it, and keep the connection for the next visitor."""
    hidden = (
        b"HTTP/1.1 103 E\r\nX: y"
        + end
        + end
        + b"HTTP/1.1 200 OK"
        + end
        + b"Content-Length: 5\r\n\r\nhello\r\n\r\n"
    )
    with pytest.raises(NoStream, match="line end"):
        answered(hidden)
