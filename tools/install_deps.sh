#!/bin/sh
# Installs what a build needs and the machine lacks. Usage: tools/install_deps.sh build|test|lint|fuzz ...
# Debian and Ubuntu: apt, with sudo where the user is not root. Elsewhere it says what to install.
set -eu

packages_for() {
  case $1 in
    build) echo "build-essential cmake ninja-build pkg-config libdnnl-dev libsentencepiece-dev libavcodec-dev" \
                "libavformat-dev libavfilter-dev libavutil-dev libswscale-dev libjansson-dev libutf8proc-dev libpng-dev" \
                "libjpeg-dev libwebp-dev libexif-dev libcurl4-openssl-dev libpopt-dev" ;;
    test) echo "libcmocka-dev python3 python3-numpy ffmpeg openssl" ;;
    lint) echo "clang-format cppcheck python3" ;;
    fuzz) echo "clang" ;;
    *) echo "unknown group: $1 (build, test, lint, fuzz)" >&2; exit 2 ;;
  esac
}

wanted=
for group in "$@"; do wanted="$wanted $(packages_for "$group")"; done

if ! command -v dpkg-query >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1; then
  stamp=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/wan-deps-notice
  if [ ! -e "$stamp" ]; then
    echo "This is not a Debian or Ubuntu system. Install the equivalents of:$wanted" >&2
    mkdir -p "$(dirname "$stamp")" && : >"$stamp"
  fi
  exit 0
fi

missing=
for p in $wanted; do
  dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $p"
done
[ -z "$missing" ] && exit 0

run=
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null 2>&1; then
    echo "Missing packages, and neither root nor sudo to install them:$missing" >&2
    exit 1
  fi
  run=sudo
fi
echo "Installing:$missing"
$run apt-get update -qq
# shellcheck disable=SC2086
$run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
