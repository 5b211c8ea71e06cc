#!/usr/bin/env bash
# Build the Dockerfile and run its default command, where there is neither a container engine nor an image registry:
# Buildah executes every step in a chroot, over a Debian of the same release that debootstrap makes.
#
#   scripts/prove_dockerfile.sh [FLAG ...]     flags are added to the default command, e.g. --epochs 1
#
# Needs root and Debian (apt-get install buildah debootstrap). Packages come from where this machine's own apt and pip
# take them; the CPU build of torch must be among them.
set -euo pipefail
cd "$(dirname "$0")/.."
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs

for tool in buildah debootstrap; do
  command -v "$tool" >/dev/null || { echo "$tool is missing: run  apt-get install buildah debootstrap" >&2; exit 2; }
done
folder=$(mktemp -d)
base=metarl-proof-base image=metarl-proof container=
clean() {
  [ -z "$container" ] || buildah rm "$container" >/dev/null
  rm -rf "$folder"
}
trap clean EXIT

# What `python:<version>-slim-<release>` is: a minimal Debian of that release, with `python` on the path.
if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
  release=$(sed -n 's/^ARG BASE=.*-slim-//p' Dockerfile)
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -1)
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$release" "$folder/root" "$mirror"
  ln -s /usr/bin/python3 "$folder/root/usr/local/bin/python"
  container=$(buildah from scratch)
  buildah copy -q "$container" "$folder/root" / >/dev/null
  buildah commit -q "$container" "$base" >/dev/null
  buildah rm "$container" >/dev/null
  container=
fi

# pip's configuration of this machine, its environment included, as one file; the local folders it names come along.
python3 -m pip config list | sed -n "s/^\(global\|:env:\)\.\([a-z-]*\)='\(.*\)'$/\2 = \3/p" | sort -u -t= -k1,1 >"$folder/options"
{ echo "[global]"; cat "$folder/options"; } >"$folder/pip.conf"
mounts=()
for path in $(grep -oE '(file:/)?/[^/ ][^ ]*' "$folder/options" | sed 's|/simple/*$||; s|^file://||' | sort -u); do
  [ ! -e "$path" ] || mounts+=(--volume "$path:$path:ro")
done

buildah build --build-arg "BASE=localhost/$base" --build-arg VARIANT=cpu --secret "id=pip,src=$folder/pip.conf" \
  "${mounts[@]}" --tag "$image" .

container=$(buildah from "$image")
in_image() { buildah run "$container" -- "$@"; }
test "$(in_image id -u)" = 1000
in_image metarl doctor
mapfile -t command < <(buildah inspect --type image --format '{{range .OCIv1.Config.Cmd}}{{println .}}{{end}}' "$image" | sed '/^$/d')
in_image metarl "${command[@]}" "$@"
in_image sh -c 'ls runs/*/results.json'
echo "the image builds, its user is not root, and its default command ends in results"
