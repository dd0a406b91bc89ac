"""Runs first in the single-file program: whom it believes that a server is the service, where the system does not say.

OpenSSL comes along in the file, with the paths of the system that built it; other distributions and macOS keep their
certificates elsewhere, and every link would be refused. There the list is used that the HTTP client has anyway.

Invariant: what the system or its owner names is what counts.
"""

import os
from _ssl import get_default_verify_paths
from pathlib import Path

import certifi


def is_told() -> bool:
    """Whether OpenSSL finds somebody to believe: a file, or a folder with something in it."""
    file_variable, file, folder_variable, folder = get_default_verify_paths()
    file, folder = os.environ.get(file_variable, file), os.environ.get(folder_variable, folder)
    return Path(file).is_file() or (Path(folder).is_dir() and any(Path(folder).iterdir()))


if not is_told():
    os.environ["SSL_CERT_FILE"] = certifi.where()
