"""A bundle goes where services look for bundles: a folder, or an fsspec URL."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from models.bundle import MANIFEST, Bundle, BundleError
from models.files import folder_beside, replace_folder

REMOTE = "://"


class PublishError(Exception):
    """A place that takes no bundle, in one sentence."""


def publish(folder: Path, place: str) -> str:
    """Copy a bundle below `place`, under its version; where it went. Nobody finds a part of it: a folder appears whole,
    and at a URL its manifest comes last.

    Raises:
        BundleError: the bundle is damaged. PublishError: the place cannot be written to.
    """
    bundle = Bundle.load(folder)
    try:
        if REMOTE in place:
            return _upload(bundle, place)
        target = Path(place) / bundle.version
        if not (target / MANIFEST).is_file():
            copy = folder_beside(target)
            shutil.copytree(folder, copy, dirs_exist_ok=True)
            replace_folder(copy, target)
        return os.fspath(target)
    except BundleError:
        raise
    except Exception as error:  # each file system has errors of its own
        sentence = " ".join(str(error).split()) or type(error).__name__
        raise PublishError(f"{place} cannot be written to: {sentence}") from error


def _upload(bundle: Bundle, place: str) -> str:
    import fsspec  # here, for a local folder needs none of it

    files, root = fsspec.core.url_to_fs(place)
    target = f"{root.rstrip('/')}/{bundle.version}"
    for name in (*bundle.manifest.files, MANIFEST):
        files.makedirs(f"{target}/{name}".rpartition("/")[0], exist_ok=True)
        files.put_file(os.fspath(bundle.path / name), f"{target}/{name}")
    return f"{place.rstrip('/')}/{bundle.version}"
