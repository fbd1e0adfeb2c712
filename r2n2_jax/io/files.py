"""Folders and JSON: what is written is there whole or not at all, and nothing is overwritten."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r2n2_jax.errors import InputError


def write_json(path: Path, content: Any) -> None:
    """Writes JSON whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        InputError: where the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error


def check_output(path: Path) -> None:
    """Refuses a folder that holds something already, or cannot be written to.

    Raises:
        InputError: where ``path`` is a file or a folder with content, or where nothing can be written.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(f"{path}: exists already; name a new or empty folder, nothing is overwritten")
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot be written, {there} is no folder that you may write to")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder whose content appears at ``path`` whole when the block ends, or not at all when it fails.

    One that is there already, empty, is filled and not replaced: a disk may be mounted there, or its parent be read-only.

    Raises:
        InputError: see ``check_output``.
    """
    check_output(path)
    made = not path.exists()
    if made:
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent if made else path))
    try:
        yield partial
        if made:
            # mkdtemp's folder is private; give it the rights that any new folder gets.
            umask = os.umask(0)
            os.umask(umask)
            partial.chmod(0o777 & ~umask)
            partial.replace(path)
        else:
            for entry in partial.iterdir():
                entry.replace(path / entry.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
