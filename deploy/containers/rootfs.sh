#!/bin/sh
# Lays out /rootfs, all that an image holds: the program, what it loads, and their licences. Run by deploy/Containerfile.
#   rootfs.sh STAGE "MODEL…"
set -eu
stage=$1 models=$2
root=/rootfs

fail() {
    echo "cannot make the image: $*" >&2
    exit 1
}

case $stage in
causeway | nats-server) program=$stage ;;
*) program=causeway-$stage ;;
esac
[ -n "$stage" ] && [ -f "/out/$program" ] ||
    fail "--build-arg STAGE= is \`$stage\`; it can be $(ls /stages | xargs) (or causeway, nats-server: each with --target)"

# mode of everything: readable by all, written by nobody
umask 022
mkdir -p $root/usr/bin $root/usr/lib $root/etc/ssl/certs $root/usr/share/doc $root/models $root/tmp /data
chmod 1777 $root/tmp
cp "/out/$program" $root/usr/bin/
ln -s "$program" $root/usr/bin/stage
cp /LICENSE $root/usr/share/doc/causeway.LICENSE

# The model engine, for who is linked to the code that loads it.
if [ "$stage" = causeway ] || grep -qs '^causeway-inference' "/stages/$stage/Cargo.toml"; then
    cp /onnxruntime/libonnxruntime.so.* $root/usr/lib/
    cp /onnxruntime/LICENSE $root/usr/share/doc/onnxruntime.LICENSE
    cp /onnxruntime/ThirdPartyNotices.txt $root/usr/share/doc/onnxruntime.ThirdPartyNotices
fi
# What reads videos and cameras, for who starts it; it says itself under which licence it is, and how it was built.
if [ "$stage" = capture ]; then
    cp /ffmpeg/ffmpeg-* $root/usr/bin/ffmpeg
    $root/usr/bin/ffmpeg -hide_banner -L >$root/usr/share/doc/ffmpeg.LICENSE 2>&1
    $root/usr/bin/ffmpeg -hide_banner -buildconf >>$root/usr/share/doc/ffmpeg.LICENSE 2>&1
fi
for model in $models; do
    [ -f "/models/$model.toml" ] || fail "there is no /models/$model.toml; models are $(ls /models | xargs)"
    cp "/models/$model.toml" $root/models/
    # The model, and its labels where it has some.
    sed -n 's/^file *= *"\(.*\)"$/\1/p' "/models/$model.toml" | while read -r file; do
        cp "/models/$file" $root/models/
    done
done

# The system's libraries that these ask for, where they ask for them, with their licences.
libraries() {
    ldd "$@" 2>/dev/null | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (.*/\1/p' | sort -u
}
libraries $root/usr/bin/* $root/usr/lib/* | grep -v "^$root" | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
    package=$(dpkg -S "$(readlink -f "$library")" 2>/dev/null || dpkg -S "$library")
    package=${package%%:*}
    cp -L "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package.copyright"
done

# Whom to trust for tls://, who runs, how names are looked up.
cp -L /etc/ssl/certs/ca-certificates.crt $root/etc/ssl/certs/
printf 'causeway:x:65532:65532::/data:/nologin\n' >$root/etc/passwd
printf 'causeway:x:65532:\n' >$root/etc/group
printf 'hosts: files dns\n' >$root/etc/nsswitch.conf

# The same files give the same layer, whenever it is built.
find $root -exec touch -h -d @0 {} +
