"""Builds our images from Debian packages, as OCI layouts: folders that any registry tool can push.

Invariant: what is built from the same packages has the same digest; host keys are never part of an image.

    python -m images.build base OUT     # then: skopeo copy oci:OUT:latest docker://registry/spawn/base
"""

import argparse
import gzip
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
SUITE: Final = "bookworm"
PACKAGES: Final = ("openssh-server", "ca-certificates", "curl", "iproute2", "procps")
EPOCH: Final = "1735689600"
"""What every file is dated, so that the same packages make the same bytes."""
UNWANTED: Final = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+gzip"


class BuildError(Exception):
    """The image was not built; the message has what the failing program said."""


class Layout:
    """An OCI image layout in one folder: blobs by digest, and an index that names the images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._blobs = folder / "blobs" / "sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, digest: str) -> Path:
        """Where the blob `sha256:…` lies, whether it is there or not."""
        return self._blobs / digest.removeprefix("sha256:")

    def add_blob(self, content: bytes) -> str:
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        self.blob(digest).write_bytes(content)
        return digest

    def add_layer(self, tar: Path) -> tuple[str, str]:
        """Compress a file system's tar into a blob; return its digest and the digest of what it unpacks to."""
        plain, packed = hashlib.sha256(), hashlib.sha256()
        unfinished = self._blobs / "unfinished"
        with (
            tar.open("rb") as source,
            unfinished.open("wb") as target,
            gzip.GzipFile(filename="", mode="wb", fileobj=target, compresslevel=1, mtime=0) as press,
        ):
            while chunk := source.read(1 << 20):
                plain.update(chunk)
                press.write(chunk)
        with unfinished.open("rb") as source:
            while chunk := source.read(1 << 20):
                packed.update(chunk)
        digest = "sha256:" + packed.hexdigest()
        unfinished.rename(self.blob(digest))
        return digest, "sha256:" + plain.hexdigest()

    def add_image(self, settings: dict[str, Any], layers: list[tuple[str, str]], name: str = "latest") -> str:
        """Describe an image of these layers; return the digest that it is pulled by."""
        config = {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(
                platform.machine(), platform.machine()
            ),
            "os": "linux",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [unpacked for _, unpacked in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self._described(CONFIG_TYPE, self.add_blob(_canonical(config))),
            "layers": [self._described(LAYER_TYPE, packed) for packed, _ in layers],
        }
        digest = self.add_blob(_canonical(manifest))
        entry = self._described(MANIFEST_TYPE, digest)
        entry["annotations"] = {"org.opencontainers.image.ref.name": name}
        index = {"schemaVersion": 2, "manifests": [entry]}
        (self.folder / "index.json").write_bytes(_canonical(index))
        return digest

    def _described(self, kind: str, digest: str) -> dict[str, Any]:
        return {"mediaType": kind, "digest": digest, "size": self.blob(digest).stat().st_size}


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def root_file_system(image: str, tar: Path) -> None:
    """Make the image's file system from packages, with the programs of its folder. Raises BuildError."""
    folder = HERE / image
    command = [
        *("mmdebstrap", "--variant=minbase", "--format=tar", f"--include={','.join(PACKAGES)}"),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in UNWANTED),
        f'--customize-hook=install -D -m 0755 "{folder}/spawn-entry" "$1/usr/local/sbin/spawn-entry"',
        f'--customize-hook=install -D -m 0644 "{folder}/sshd_config" "$1/etc/spawn/sshd_config"',
        f'--customize-hook=install -D -m 0644 "{folder}/profile.sh" "$1/etc/profile.d/spawn.sh"',
        # A key that is in an image is everybody's; ours come with the order.
        '--customize-hook=rm -rf "$1"/etc/ssh/ssh_host_* "$1"/var/cache/apt/* "$1"/var/log/*.log',
        *(SUITE, str(tar)),
    ]
    done = subprocess.run(  # noqa: S603 - every argument is ours
        command,
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"mmdebstrap could not build {image}:\n{done.stderr[-3000:]}")


def build(image: str, folder: Path) -> str:
    """Build `images/<image>` into a layout at `folder`; return the image's digest. Raises BuildError."""
    if shutil.which("mmdebstrap") is None:
        raise BuildError("mmdebstrap is not installed: apt-get install mmdebstrap")
    layout = Layout(folder)
    with tempfile.TemporaryDirectory(prefix="spawn-image-") as scratch:
        tar = Path(scratch) / "root.tar"
        root_file_system(image, tar)
        layer = layout.add_layer(tar)
    settings = json.loads((HERE / image / "image.json").read_text(encoding="utf-8"))
    return layout.add_image(settings, [layer])


def main() -> int:
    """Build what the command line names and print its digest."""
    parser = argparse.ArgumentParser(description="Build one of our images as an OCI layout.")
    parser.add_argument("image", choices=sorted(path.parent.name for path in HERE.glob("*/image.json")))
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    try:
        sys.stdout.write(build(asked.image, asked.folder) + "\n")
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
