#!/usr/bin/env bash
# Builds one of the images with docker, or with buildah where no docker daemon answers.
#
#   deploy/image/build.sh cpu|gpu
#
# BASE=IMAGE        another image with Python 3.11, such as a mirror's. BASE=debootstrap makes a
#                   stand-in from Debian's packages (buildah only, as root)
# PIP_CONF=FILE     pip's configuration for the build, with an index of your own; not kept
# TORCH_INDEX=URL   where PyTorch's CPU build is
# IMAGE_FLAGS=...   more flags of docker build, or of buildah build
set -euo pipefail
cd "$(dirname "$0")/../.."

target=${1:-cpu}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
tag=loraplex:$version-$target
flags=(--target "$target" --tag "$tag")
[ -z "${PIP_CONF:-}" ] || flags+=(--secret "id=pip,src=$PIP_CONF")
[ -z "${TORCH_INDEX:-}" ] || flags+=(--build-arg "TORCH_INDEX=$TORCH_INDEX")
read -ra more <<< "${IMAGE_FLAGS:-}"

if docker info > /dev/null 2>&1; then
    build=(docker build)
    if [ "${BASE:-}" = debootstrap ]; then
        echo "BASE=debootstrap needs buildah; docker is used where its daemon answers" >&2
        exit 1
    fi
elif command -v buildah > /dev/null; then
    # The health check is lost in OCI's format. `chroot` works inside containers, too.
    export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}
    build=(buildah build --format docker --layers)
    if [ "${BASE:-}" = debootstrap ]; then
        BASE=localhost/loraplex-python:3.11-bookworm
        buildah inspect --type image "$BASE" > /dev/null 2>&1 || deploy/image/stand_in.sh "$BASE"
    fi
else
    echo "no docker daemon answers, and buildah isn't installed: install one of them" \
        "(on Debian: apt-get install buildah)" >&2
    exit 1
fi
[ -z "${BASE:-}" ] || flags+=(--build-arg "BASE=$BASE")

echo "building $tag: ${build[*]}"
if ! "${build[@]}" "${flags[@]}" "${more[@]}" .; then
    echo "the image wasn't built. If its base couldn't be pulled: BASE=IMAGE names a mirror's," \
        "and BASE=debootstrap makes one. If packages weren't found: PIP_CONF and TORCH_INDEX" \
        "(deploy/image/build.sh says more)" >&2
    exit 1
fi
echo "built $tag; test it: make image-test"
