#!/usr/bin/env bash
# Makes a base image for drivers (Debian with Python) from Debian packages, where no image registry can be reached.
#   base-image.sh [SUITE] [TAG]      SUITE: trixie (Python 3.13, the default) or bookworm (3.11); TAG: onecontainer/python:SUITE
# Then: ONECONTAINER_DOCKER_BASE_IMAGE=onecontainer/python:trixie oca up
#
# Prints the tag, and makes nothing if the image is there. Needs root, debootstrap and a running dockerd. The image trusts the
# certificate authorities that were added to this machine, so that apt and pip work inside `docker build` behind a company's proxy.
set -euo pipefail
suite="${1:-trixie}"
tag="${2:-onecontainer/python:$suite}"
if docker image inspect "$tag" >/dev/null 2>&1; then
  echo "$tag"
  exit 0
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
packages=python3,python3-venv,ca-certificates
debootstrap --variant=minbase --include="$packages" "$suite" "$work/root" >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; exit 1; }
cp -L /usr/local/share/ca-certificates/*.crt "$work/root/usr/local/share/ca-certificates/" 2>/dev/null || true
chroot "$work/root" update-ca-certificates >/dev/null 2>&1
rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/* \
  "$work"/root/usr/share/doc/* "$work"/root/usr/share/man/* "$work"/root/usr/share/locale/*
tar -C "$work/root" -c . |
  docker import -c 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' -c 'CMD ["python3"]' - "$tag" >/dev/null
echo "$tag"
