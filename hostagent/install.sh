#!/bin/sh
# Installs spawn-host, the program that lends this machine, or another version of it.
#
#   curl -fsSL https://RELEASES/install.sh | sh                 the version that the releases call latest
#   curl -fsSL https://RELEASES/install.sh | sh -s -- --version 0.1.0     this one; forwards or back
#
# It downloads into a folder of its own, checks what it got, starts it once, and only then swaps one link: a failure at
# any point leaves what was installed before. It touches neither Docker nor drivers, nor a daemon that runs. All is in
# one function, called on the last line, so that half a download does nothing.
set -eu

spawn_host_install() {
  releases="${SPAWN_HOST_RELEASES:-@RELEASES@}"
  version=""
  manifest_sha256=""
  unit=/etc/systemd/system/spawn-host.service
  if [ "$(id -u)" -eq 0 ]; then
    prefix=/opt/spawn-host
    bin=/usr/local/bin
  else
    prefix="${HOME:?}/.local/share/spawn-host"
    bin="${HOME:?}/.local/bin"
    unit=""
  fi

  while [ "$#" -gt 0 ]; do
    case "$1" in
      --version | --releases | --prefix | --bin | --unit | --manifest-sha256)
        [ "$#" -ge 2 ] || usage "$1 needs a value"
        case "$1" in
          --version) version="$2" ;;
          --releases) releases="$2" ;;
          --prefix) prefix="$2" ;;
          --bin) bin="$2" ;;
          --unit) unit="$2" ;;
          --manifest-sha256) manifest_sha256="$2" ;;
        esac
        shift 2
        ;;
      --no-unit) unit="" && shift ;;
      *) usage "unknown option $1" ;;
    esac
  done

  case "$releases" in
    https://* | file:///* | http://127.0.0.1:* | http://localhost:*) ;;
    @*) usage "this copy does not know where releases are: say --releases https://…" ;;
    *) usage "$releases is not a safe address: it begins with https://" ;;
  esac
  releases="${releases%/}"

  work=$(mktemp -d "${TMPDIR:-/tmp}/spawn-host-install.XXXXXXXX")
  trap 'rm -rf "$work"' EXIT
  trap 'exit 130' HUP INT TERM

  if [ -z "$version" ]; then
    fetch "$releases/latest" "$work/latest"
    version=$(tr -d ' \r\n' <"$work/latest")
  fi
  case "$version" in
    "" | *[!0-9A-Za-z.+-]* | .* | -*) fail "\"$version\" is not a version" ;;
  esac

  mkdir -p "$prefix" "$bin" || fail "$prefix and $bin cannot be made: run this as root, or say --prefix and --bin"
  home="$prefix/$version"
  if [ -x "$home/spawn-host" ] && (cd "$home" && checksum SHA256SUMS >/dev/null 2>&1); then
    echo "spawn-host $version is here already"
  else
    download
  fi
  works "$home/spawn-host"

  before=$(readlink "$bin/spawn-host" 2>/dev/null || true)
  # A link is replaced as a whole, in one step: there is no moment without a program.
  ln -sf "$home/spawn-host" "$bin/.spawn-host.$$"
  mv -f "$bin/.spawn-host.$$" "$bin/spawn-host"
  put_unit
  echo "spawn-host $version is installed as $bin/spawn-host"
  case "$before" in
    "" | "$home/spawn-host") ;;
    *) echo "before it was $(basename "$(dirname "$before")"), which --version brings back" ;;
  esac
  case ":$PATH:" in
    *":$bin:"*) ;;
    *) echo "add $bin to your PATH" ;;
  esac
  if [ -z "$before" ]; then
    echo "next: spawn-host check, then spawn-host setup"
  else
    echo "next: restart the daemon when it suits you (systemctl restart spawn-host); rentals go on meanwhile"
  fi
}

# Download this version beside the others and put it in place as one folder, whole and checked, or not at all.
download() {
  # One at a time: of two in one word only the second one's failure would end this.
  os=$(system)
  processor=$(machine)
  program="spawn-host-$os-$processor"
  fresh="$work/$version"
  mkdir "$fresh"
  fetch "$releases/$version/SHA256SUMS" "$work/MANIFEST"
  if [ -n "$manifest_sha256" ]; then
    echo "$manifest_sha256  $work/MANIFEST" >"$work/MANIFEST.pin"
    checksum "$work/MANIFEST.pin" >/dev/null 2>&1 || fail "the manifest of $version is not the one that you named"
  fi
  for name in "$program" spawn-host.service agent.yaml.example; do
    grep -E "^[0-9a-f]{64} [ *]$name\$" "$work/MANIFEST" >"$work/line" || fail "version $version has no $name"
    fetch "$releases/$version/$name" "$work/$name"
    (cd "$work" && checksum line >/dev/null 2>&1) || fail "$name is not what its checksum says: nothing was installed"
    mv "$work/$name" "$fresh/$name"
  done
  mv "$fresh/$program" "$fresh/spawn-host"
  chmod 755 "$fresh/spawn-host"
  (cd "$fresh" && sums spawn-host spawn-host.service agent.yaml.example >SHA256SUMS)
  works "$fresh/spawn-host"
  # Another file system than the temporary folder's, perhaps: copy first, then rename, which is one step.
  rm -rf "$prefix/.$version.$$"
  cp -R "$fresh" "$prefix/.$version.$$"
  rm -rf "$home"
  mv "$prefix/.$version.$$" "$home"
}

# It starts here (the right processor, the right C library) and is what it says it is.
works() {
  told=$("$1" --version 2>&1) || fail "the program does not start on this machine: $told"
  [ "$told" = "spawn-host $version" ] || fail "the program says that it is \"$told\", not $version"
}

# A new unit is put where there is none. One that is there is not replaced: systemd would have to reload, and GPUs
# vanish from running containers when it does.
put_unit() {
  [ -n "$unit" ] && [ -d "$(dirname "$unit")" ] || return 0
  if [ ! -e "$unit" ]; then
    sed "s|/usr/local/bin/spawn-host|$bin/spawn-host|" "$home/spawn-host.service" >"$unit.$$"
    mv "$unit.$$" "$unit"
    echo "$unit is new: systemctl enable --now spawn-host, once setup is done"
  elif ! sed "s|/usr/local/bin/spawn-host|$bin/spawn-host|" "$home/spawn-host.service" | cmp -s - "$unit"; then
    echo "$unit is not this version's ($home/spawn-host.service): replace it while nothing is rented"
  fi
}

fetch() {
  if command -v curl >/dev/null 2>&1; then
    curl -fsSL --retry 3 --max-time 600 --max-filesize 500000000 -o "$2" "$1" || fail "$1 cannot be downloaded"
  elif command -v wget >/dev/null 2>&1; then
    wget -q --tries=3 --timeout=60 -O "$2" "$1" || fail "$1 cannot be downloaded"
  else
    fail "neither curl nor wget is installed"
  fi
}

checksum() {
  if command -v sha256sum >/dev/null 2>&1; then sha256sum -c "$1"; else shasum -a 256 -c "$1"; fi
}

sums() {
  if command -v sha256sum >/dev/null 2>&1; then sha256sum "$@"; else shasum -a 256 "$@"; fi
}

system() {
  case "$(uname -s)" in
    Linux) echo linux ;;
    Darwin) echo macos ;;
    *) fail "there is no spawn-host for $(uname -s)" ;;
  esac
}

machine() {
  case "$(uname -m)" in
    x86_64 | amd64) echo x86_64 ;;
    aarch64 | arm64) echo arm64 ;;
    *) fail "there is no spawn-host for $(uname -m)" ;;
  esac
}

usage() {
  echo "spawn-host install: $1" >&2
  echo "options: --version X, --releases URL, --prefix DIR, --bin DIR, --unit FILE or --no-unit, --manifest-sha256 HEX" >&2
  exit 2
}

fail() {
  echo "spawn-host install: $1" >&2
  exit 1
}

spawn_host_install "$@"
