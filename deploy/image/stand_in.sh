#!/usr/bin/env bash
# Makes an image with Debian's Python 3.11, in place of python:3.11-slim-bookworm where no registry
# can be reached: deploy/image/stand_in.sh NAME. It needs root, debootstrap and buildah.
set -euo pipefail

name=$1
for program in debootstrap buildah; do
    command -v $program > /dev/null || {
        echo "$program isn't installed (on Debian: apt-get install $program)" >&2
        exit 1
    }
done
[ "$(id -u)" = 0 ] || { echo "debootstrap needs root" >&2; exit 1; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=ca-certificates,python3,python3-venv,python-is-python3
debootstrap --variant=minbase --include=$packages bookworm "$folder/root" > "$folder/log" 2>&1 \
    || { tail -20 "$folder/log" >&2; exit 1; }
# As in Debian's slim images.
printf 'path-exclude /usr/share/%s/*\n' doc info locale man \
    > "$folder/root/etc/dpkg/dpkg.cfg.d/slim"
cd "$folder/root"
rm -rf usr/share/{doc,info,locale,man}/* var/cache/apt/* var/lib/apt/lists/* var/log/*
find . -name __pycache__ -type d -prune -exec rm -rf {} +
tar -cf "$folder/root.tar" .
container=$(buildah from scratch)
buildah add --quiet "$container" "$folder/root.tar" / > /dev/null
buildah config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin \
    --cmd python3 "$container"
buildah commit --quiet --rm "$container" "$name" > /dev/null
echo "made $name"
