"""User data is refused where a machine would ignore it in silence, and taken otherwise, whoever wrote it."""

import time
from contextlib import suppress
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spawn_schemas.errors import Code, SpawnError

from spawn.domain.user_data import check

CONFIG = "#cloud-config\npackages: [git]\n"
OWN_KEYS = "#cloud-config\nssh_keys:\n  rsa_private: x\n"


def message(*parts: tuple[str, str]) -> str:
    whole = MIMEMultipart()
    for type_, text in parts:
        whole.attach(MIMEText(text, type_, "utf-8"))
    return whole.as_string()


def refusal(text: str, *, host_key: bool = True) -> str:
    with pytest.raises(SpawnError) as refused:
        check(text, host_key=host_key)
    assert refused.value.code is Code.INVALID_REQUEST
    assert refused.value.next
    assert len(refused.value.message) < 300
    return refused.value.message


TAKEN = {
    "nothing": None,
    "empty": "",
    "blank": " \n",
    "script": "#!/bin/sh\ntrue\n",
    "script in another case": "\n #!/BIN/SH\n",
    "config": CONFIG,
    "config in another case": "#Cloud-Config\n{}\n",
    "config of nothing": "#cloud-config",
    "config of comments": "#cloud-config\n# nothing yet\n",
    "config with shared parts": "#cloud-config\na: &x [1, 2]\nb: [*x, *x]\n",
    "config with merges": "#cloud-config\na: &x {b: 1}\nc: {<<: *x}\n",
    "ssh_keys elsewhere": "#cloud-config\nwrite_files: [{path: /x, content: 'ssh_keys: 1'}]\nx: {ssh_keys: 1}\n",
    "archive": "#cloud-config-archive\n- {type: text/x-shellscript, content: nothing}\n- '#!/bin/sh'\n- 7\n",
    "archive of nothing": "#cloud-config-archive\n",
    "patch": "#cloud-config-jsonp\n[]",
    "include": "#include\nhttps://example.org/data\n",
    "include once": "#include-once\nhttps://example.org/data\n",
    "boothook": "#cloud-boothook\n#!/bin/sh\n",
    "handler": "#part-handler\n",
    "template": "## template: jinja\n#cloud-config\nx: {{ y }}\n",
    "message": message(("cloud-config", CONFIG), ("x-shellscript", "#!/bin/sh"), ("plain", "für Leute")),
    "message of one part": "MIME-Version: 1.0\nContent-Type: text/cloud-config\n\n" + CONFIG,
}


@pytest.mark.parametrize("text", TAKEN.values(), ids=TAKEN)
def test_what_a_machine_reads_is_taken(text: str | None) -> None:
    check(text, host_key=True)
    check(text, host_key=False)


REFUSED = {
    "prose": ("apt-get install git", "begins with none of #cloud-config-archive, "),
    "mark of byte order": ("\ufeff" + CONFIG, "begins with none of "),
    "headers and no version": ("Content-Type: text/cloud-config\n\n" + CONFIG, "begins with none of "),
    "version too far away": ("X: " + "x" * 5_000 + "\nMIME-Version: 1.0\n\n", "begins with none of "),
    "blank before headers": ("\n" + message(("cloud-config", CONFIG)), "begins with none of "),
    "no parts": ("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=x\n\n--y\n", "without parts"),
    "raw message": (
        "MIME-Version: 1.0\nContent-Type: text/x-shellscript\n\n#!/bin/sh\necho é",
        "not all ASCII",
    ),
    "tab": ("#cloud-config\na:\n\tb: 1\n", "in line 3: found character"),
    "list": ("#cloud-config\n- a\n", "is a YAML mapping"),
    "text": ("#cloud-config\nhello\n", "is a YAML mapping"),
    "unquoted template": ("#cloud-config\n\nname: {{ name }}\n", "in line 3: found unhashable key"),
    "tag": ("#cloud-config\na: !vault x\n", "in line 2: could not determine a constructor"),
    "code": ("#cloud-config\na: !!python/object/apply:os.system [x]\n", "could not determine a constructor"),
    "unknown alias": ("#cloud-config\na: *b\n", "in line 2: found undefined alias"),
    "two documents": ("#cloud-config\na: 1\n---\nb: 1\n", "in line 3: but found another document"),
    "no such day": ("#cloud-config\na: 2026-02-30\n", "day is out of range"),
    "control character": ("#cloud-config\na: \x07\n", "cannot read"),
    "surrogate": ("#cloud-config\na: \ud800\n", "cannot read"),
    "archive that is none": ("#cloud-config-archive\na: 1\n", "is a YAML list"),
    "bad config in archive": ("#cloud-config-archive\n- '- a'\n", "is a YAML mapping"),
    "bad config in message": (message(("cloud-config", "#cloud-config\na: *b\n")), "undefined alias"),
    "bad config in plain part": (message(("plain", "#cloud-config\na: *b\n")), "undefined alias"),
}


@pytest.mark.parametrize(("text", "why"), REFUSED.values(), ids=REFUSED)
def test_what_a_machine_would_ignore_is_refused(text: str, why: str) -> None:
    assert why in refusal(text)
    assert why in refusal(text, host_key=False)


@pytest.mark.parametrize(
    "text",
    [
        OWN_KEYS,
        "#cloud-config\nssh_keys: null\n",
        "#cloud-config\n'ssh_keys': {}\n",
        "#cloud-config\nx: &x {ssh_keys: {}}\n<<: *x\n",
        "#cloud-config-archive\n- content: 'ssh_keys: {}'\n",
        message(("cloud-config", OWN_KEYS)),
        message(("plain", CONFIG), ("plain", OWN_KEYS)),
    ],
)
def test_host_keys_of_the_buyer_stand_against_ours(text: str) -> None:
    assert "user_data sets ssh_keys" in refusal(text)
    check(text, host_key=False)


MANY = 32 * 1024
BOMBS = {
    "deep": "#cloud-config\n" + "[" * MANY,
    "deep blocks": "#cloud-config\n" + "\n".join(" " * depth + "a:" for depth in range(200)),
    "merges of merges": "#cloud-config\na0: &a0 {x: 1}\n"
    + "".join(f"a{n + 1}: &a{n + 1}\n  <<: [{', '.join([f'*a{n}'] * 40)}]\n" for n in range(100)),
    "shares of shares": "#cloud-config\na0: &a0 [x]\n"
    + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 40)}]\n" for n in range(100)),
    "messages in messages": "MIME-Version: 1.0\n"
    + "".join(f"Content-Type: multipart/mixed; boundary={n}\n\n--{n}\n" for n in range(700)),
    "a large number": "#cloud-config\na: " + "9" * 30_000,
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_bombs_go_off_nowhere(text: str) -> None:
    began = time.process_time()
    with suppress(SpawnError):
        check(text, host_key=True)
    assert time.process_time() - began < 2


@given(st.sampled_from(["", "#cloud-config\n", "#cloud-config-archive\n", "MIME-Version: 1.0\n"]), st.text())
def test_any_text_is_taken_or_refused(form: str, text: str) -> None:
    with suppress(SpawnError):
        check(form + text, host_key=True)
