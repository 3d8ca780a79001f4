#!/bin/sh
# Installs PyTorch and torchvision into an image, if they are not there: a large layer that no change of the driver touches.
# Where the image's Python is Debian's own, Debian's packages serve, without CUDA; a Python from elsewhere does not see them and gets PyPI's.
set -eu
has() { python3 -c 'import importlib.util, sys; sys.exit(any(importlib.util.find_spec(name) is None for name in ("torch", "torchvision")))'; }
has && exit 0
if [ "$(python3 -c 'import sys; print(sys.base_prefix)')" = /usr ]; then
  apt-get update -qq
  # With the reference BLAS, which is what PyTorch would get, a classifier takes five times as long as with OpenBLAS.
  apt-get install -y -qq --no-install-recommends python3-torch python3-torchvision libopenblas0-pthread >/dev/null
  rm -rf /var/lib/apt/lists/*
else
  pip install --quiet 'torch>=2.6' 'torchvision>=0.21'
fi
has
