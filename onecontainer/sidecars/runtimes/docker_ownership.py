"""Gives files to a container's user. Only root can, and only root has to: elsewhere containers have the gateway's own user."""

from __future__ import annotations

import os
from pathlib import Path


def give(path: Path, uid: int, gid: int) -> None:
    """Makes them the owner of a file, or of a folder and all in it.

    A sidecar may be at work in the folder meanwhile: it is walked by descriptors, and no link in it is followed.
    """
    if os.getuid() != 0:
        return
    _give_one(path, None, uid, gid)
    if not path.is_dir():
        return
    for _, folders, files, descriptor in os.fwalk(path, follow_symlinks=False):
        for name in (*folders, *files):
            _give_one(name, descriptor, uid, gid)


def _give_one(name: Path | str, descriptor: int | None, uid: int, gid: int) -> None:
    try:
        found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        if (found.st_uid, found.st_gid) != (uid, gid):
            os.chown(name, uid, gid, dir_fd=descriptor, follow_symlinks=False)
    except FileNotFoundError:
        pass  # whoever works there has removed it
