#!/bin/sh
# Installs edge: the Debian package where there is apt, else the static programs and the systemd unit. First verifies
# the downloaded file against the release's SHA256SUMS. Run it again to upgrade.
#
#   sh install.sh                      as root
#   sh install.sh --archive            the static programs, on Debian too
#   EDGE_URL=https://… sh install.sh   another place with the files of a release
#   EDGE_ROOT=/mnt sh install.sh --archive   into another root: nothing is started there
#
# Everything is in functions, and the last line calls `main`: a script that was only half downloaded does nothing.
set -eu

URL=${EDGE_URL:-@URL@}
ROOT=${EDGE_ROOT:-}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

# The name of this machine's processor, as the archives and as the packages have it.
architecture() {
    case $(uname -m) in
    x86_64 | amd64) echo x86_64 amd64 ;;
    aarch64 | arm64) echo aarch64 arm64 ;;
    *) fail "there are no programs for $(uname -m), only for x86_64 and aarch64: build them with cargo" ;;
    esac
}

# Downloads a file of the release; cut and failed downloads leave with a message.
download() {
    if command -v curl >/dev/null; then
        curl --fail --silent --show-error --location --retry 2 --output "$FOLDER/$1" "$URL/$1"
    elif command -v wget >/dev/null; then
        wget --quiet --tries=3 --output-document="$FOLDER/$1" "$URL/$1"
    else
        fail "neither curl nor wget is installed"
    fi || fail "downloading $URL/$1 failed; nothing was changed"
}

# The name of the release's file that ends with this regular expression, from SHA256SUMS.
name_of() {
    names=$(sed -n "s/^[0-9a-f]\{64\}  \([A-Za-z0-9._+~-]*$1\)\$/\1/p" "$FOLDER/SHA256SUMS")
    case $names in
    '') fail "$URL/SHA256SUMS names no file *$1" ;;
    *"
"*) fail "$URL/SHA256SUMS names several files *$1" ;;
    *) echo "$names" ;;
    esac
}

verify() {
    wanted=$(sed -n "s/^\([0-9a-f]\{64\}\)  $1\$/\1/p" "$FOLDER/SHA256SUMS")
    found=$(sha256sum "$FOLDER/$1" | cut -d ' ' -f 1)
    test "$wanted" = "$found" ||
        fail "the checksum of $1 is $found, and should be $wanted: the file is damaged or not the release's; nothing was changed"
}

# apt keeps a configuration that is there, and the package restarts a running edged.
install_package() {
    # apt reads packages as a user of its own.
    chmod 755 "$FOLDER"
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --allow-downgrades --reinstall \
        -o Dpkg::Options::=--force-confold "$FOLDER/$1" || fail "apt could not install $1"
}

install_archive() {
    tar -xzf "$FOLDER/$1" -C "$FOLDER" --no-same-owner || fail "$1 cannot be unpacked; nothing was changed"
    tree=$FOLDER/${1%.tar.gz}
    # `install` writes a new file: a program that runs keeps its old one.
    install -D -m 755 "$tree/edged" "$ROOT/usr/local/bin/edged"
    install -D -m 755 "$tree/edgectl" "$ROOT/usr/local/bin/edgectl"
    for page in "$tree"/man/*; do
        install -D -m 644 "$page" "$ROOT/usr/local/share/man/man${page##*.}/${page##*/}"
    done
    install -D -m 644 "$tree/completions/edgectl.bash" "$ROOT/usr/local/share/bash-completion/completions/edgectl"
    if ! test -e "$ROOT/etc/edge/edge.toml"; then
        install -D -m 644 "$tree/packaging/edge.toml" "$ROOT/etc/edge/edge.toml"
        echo "run \`edgectl init\`, or write a route to /etc/edge/edge.toml and run \`systemctl enable --now edged\`"
    fi
    install -D -m 644 "$tree/packaging/edge.sysusers" "$ROOT/etc/sysusers.d/edge.conf"
    install -D -m 644 "$tree/packaging/edge.sysctl.conf" "$ROOT/etc/sysctl.d/edge.conf"
    install -D -m 644 "$tree/packaging/edged.service" "$ROOT/etc/systemd/system/edged.service"
    if test -z "$ROOT" && test -d /run/systemd/system; then
        systemd-sysusers edge.conf
        sysctl -q -p /etc/sysctl.d/edge.conf || true
        systemctl daemon-reload
        # A file that this version does not understand must not end an edge that works.
        if systemctl --quiet is-active edged; then
            "$ROOT/usr/local/bin/edged" --check || fail "the previous version keeps running: fix /etc/edge/edge.toml, then run \`systemctl restart edged\`"
            systemctl restart edged
        fi
    fi
}

main() {
    kind=package
    case ${1:-} in
    '') ;;
    --archive) kind=archive ;;
    *) fail "unknown argument $1: see the first lines of the script" ;;
    esac
    case $URL in
    @*) fail "this copy names no release: set EDGE_URL to the address of a directory with SHA256SUMS" ;;
    esac
    test -n "$ROOT" || test "$(id -u)" = 0 || fail "run this as root, for example with sudo"
    names=$(architecture)
    if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null || test -n "$ROOT"; then
        kind=archive
    fi
    FOLDER=$(mktemp -d)
    trap 'rm -rf "$FOLDER"' EXIT
    trap 'exit 1' HUP INT TERM
    download SHA256SUMS
    case $kind in
    package) file=$(name_of "_${names#* }\.deb") ;;
    archive) file=$(name_of "-${names% *}-unknown-linux-musl\.tar\.gz") ;;
    esac
    download "$file"
    verify "$file"
    "install_$kind" "$file"
    echo "installed $file"
}

main "$@"
