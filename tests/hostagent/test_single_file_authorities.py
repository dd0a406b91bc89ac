"""Whom the single-file program believes, on systems that keep their certificates elsewhere than its builder did."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import certifi

from tests.engines import ROOT

HOOK: Final = ROOT / "hostagent" / "single_file_authorities.py"
TELL: Final = """
import runpy, ssl, sys
runpy.run_path(sys.argv[1])
print(len(ssl.create_default_context().get_ca_certs()))
"""
SOME: Final = 50
"""Fewer than any list of public authorities has."""


def believed(**told: str) -> int:
    """How many authorities a TLS connection would go by, where OpenSSL is told no more than this."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SSL_CERT")}
    done = subprocess.run(
        [sys.executable, "-c", TELL, str(HOOK)],
        env={**clean, **told},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return int(done.stdout)


def test_where_the_system_has_none_the_list_that_came_along_is_used(tmp_path: Path) -> None:
    assert believed(SSL_CERT_FILE=str(tmp_path / "none.pem"), SSL_CERT_DIR=str(tmp_path / "none")) > SOME
    (tmp_path / "empty").mkdir()
    assert believed(SSL_CERT_FILE=str(tmp_path / "none.pem"), SSL_CERT_DIR=str(tmp_path / "empty")) > SOME


def test_what_the_owner_names_counts_alone(tmp_path: Path) -> None:
    text = Path(certifi.where()).read_text()
    end = "-----END CERTIFICATE-----\n"
    (tmp_path / "one.pem").write_text(text[: text.index(end) + len(end)])
    assert believed(SSL_CERT_FILE=str(tmp_path / "one.pem"), SSL_CERT_DIR=str(tmp_path / "none")) == 1


def test_the_program_is_built_with_it() -> None:
    assert f'runtime_hooks=[str(HERE / "{HOOK.name}")]' in (ROOT / "hostagent" / "agent.spec").read_text()
