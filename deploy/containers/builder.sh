#!/bin/sh
# Makes the image that deploy/Containerfile compiles in, on a machine that reaches Debian's packages but no image registry:
# Debian by debootstrap, with this machine's Rust in it. Needs root, podman and debootstrap.
#   deploy/containers/builder.sh localhost/causeway-builder && ./dev images --rust-image localhost/causeway-builder
# Proxies, keys and mirrors are this machine's own and stay here: CAUSEWAY_DEBIAN names another mirror, $https_proxy and its
# like are debootstrap's.
set -eu
name=${1:?"usage: builder.sh NAME"}
mirror=${CAUSEWAY_DEBIAN:-http://deb.debian.org/debian}

for program in debootstrap podman cargo rustc; do
    command -v $program >/dev/null || {
        echo "cannot make $name: $program is missing" >&2
        exit 1
    }
done
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

# gcc links, and compiles the one dependency that holds C (ring).
debootstrap --variant=minbase --include=gcc,libc6-dev,ca-certificates bookworm "$root" "$mirror" >&2
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
toolchain=$(rustc --print sysroot)
mkdir -p "$root/usr/local/bin" "$root/usr/local/lib"
cp "$toolchain/bin/cargo" "$toolchain/bin/rustc" "$root/usr/local/bin/"
cp "$toolchain"/lib/lib* "$root/usr/local/lib/"
host=$(rustc -vV | sed -n 's/^host: //p')
mkdir -p "$root/usr/local/lib/rustlib"
cp -r "$toolchain/lib/rustlib/$host" "$root/usr/local/lib/rustlib/"
tar -C "$root" -c . | podman import --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin' - "$name" >&2
