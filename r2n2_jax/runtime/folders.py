"""Folders that nobody but their user can write to: what lies in them may be run."""

import os
import stat
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_own(folder: Path) -> bool:
    """Makes the folder for this user alone where it is missing.

    Returns:
        whether it is there and this user's, closed to the writing of others. A system that has no users' numbers is trusted.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A link counts as well: who owns it can let it lead elsewhere tomorrow.
        name, place = folder.lstat(), folder.stat()
    except OSError:
        return False
    if not hasattr(os, "getuid"):
        return True
    return name.st_uid == place.st_uid == os.getuid() and not place.st_mode & _OTHERS_WRITE
