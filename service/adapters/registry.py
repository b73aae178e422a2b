"""Bundles by their versions: the folders of one place, which may be another machine's."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from models.bundle import MANIFEST, MANIFEST_BYTES, Bundle, BundleError, Manifest, read_manifest
from models.files import folder_beside, replace_folder
from service.domain import NotReadyError
from service.ports import Registered

log = logging.getLogger(__name__)

REMOTE = "://"


@dataclass
class BundleRegistry:
    """The bundles below a folder or an fsspec URL, and one folder beside them (`LACUNA_BUNDLE`).

    A local bundle counts once all its files have been verified; one of a URL is copied to `cache`, and verified there,
    when it is wanted. What is no bundle is passed over, and said once in the log. Reading is done in threads.
    """

    place: str | None
    single: Path | None
    cache: Path
    _verified: dict[tuple[str, int, int], Registered | None] = field(default_factory=dict)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def bundles(self) -> list[Registered]:
        """All bundles, the newest first, each version once."""
        async with self._lock:
            found = await asyncio.to_thread(self._scan)
        newest = sorted(found, key=lambda one: one.manifest.created_at, reverse=True)
        return list({one.identity: one for one in reversed(newest)}.values())[::-1]

    async def fetch(self, bundle: Registered) -> Path:
        """The folder of a bundle on this machine.

        Raises:
            BundleError: it is damaged, or gone. NotReadyError: the place does not answer.
        """
        if bundle.folder is not None:
            return bundle.folder
        async with self._lock:
            return await asyncio.to_thread(self._copy, bundle)

    def _scan(self) -> list[Registered]:
        folders = [self.single] if self.single is not None else []
        if self.place is None:
            return [one for folder in folders if (one := self._local(folder)) is not None]
        if REMOTE in self.place:
            return [one for folder in folders if (one := self._local(folder)) is not None] + list(self._remote())
        with suppress(OSError):
            folders += sorted(path.parent for path in Path(self.place).glob(f"*/{MANIFEST}"))
        return [one for folder in folders if (one := self._local(folder)) is not None]

    def _local(self, folder: Path) -> Registered | None:
        try:
            stat = (folder / MANIFEST).stat()
        except OSError:
            return None
        key = (str(folder), stat.st_mtime_ns, stat.st_size)
        if key not in self._verified:
            try:
                self._verified[key] = _registered(Bundle.load(folder).manifest, folder)
            except (BundleError, OSError) as error:
                log.warning("%s is passed over: %s", folder, error)
                self._verified[key] = None
        return self._verified[key]

    def _remote(self) -> Iterator[Registered]:
        files, root = _open(str(self.place))
        try:
            found = files.glob(f"{root}/*/{MANIFEST}", detail=True)
            for path, about in found.items():
                name = PurePosixPath(path).parent.name
                key = (path, hash(str(about.get("ETag") or about.get("mtime") or about.get("created"))), about["size"])
                if key not in self._verified:
                    self._verified[key] = self._read_remote(files, path, name)
                one = self._verified[key]
                if one is not None:
                    yield one
        except Exception as error:  # each file system has errors of its own
            raise _unreadable(error) from error

    def _read_remote(self, files: Any, path: str, name: str) -> Registered | None:
        with TemporaryDirectory() as folder:
            (Path(folder) / MANIFEST).write_bytes(files.cat_file(path, end=MANIFEST_BYTES + 1))
            try:
                return _registered(read_manifest(Path(folder)), None, name)
            except BundleError as error:
                log.warning("the bundle %s of LACUNA_BUNDLES is passed over: %s", name, error)
                return None

    def _copy(self, bundle: Registered) -> Path:
        target = self.cache / bundle.identity[:32]
        if target.is_dir():
            with suppress(BundleError):
                Bundle.load(target)
                return target
            shutil.rmtree(target)
        folder = folder_beside(target)
        try:
            self._download(bundle, folder)
            Bundle.load(folder)
            replace_folder(folder, target)
        except OSError:
            if not target.is_dir():  # which another process has made meanwhile
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return target

    def _download(self, bundle: Registered, folder: Path) -> None:
        files, root = _open(str(self.place))
        try:
            for name in (MANIFEST, *bundle.manifest.files):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                files.get_file(f"{root}/{bundle.name}/{name}", str(folder / name))
        except FileNotFoundError as error:
            raise BundleError(f"the bundle {bundle.version} is incomplete where LACUNA_BUNDLES has it") from error
        except Exception as error:
            raise _unreadable(error) from error


def _registered(manifest: Manifest, folder: Path | None, name: str = "") -> Registered:
    return Registered(manifest.version, manifest.identity, manifest, folder, name)


def _unreadable(error: Exception) -> NotReadyError:
    sentence = " ".join(str(error).split()) or type(error).__name__
    return NotReadyError(f"LACUNA_BUNDLES cannot be read: {sentence.rstrip('.')}.")


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there.

    Raises:
        NotReadyError: what reads such URLs is not installed.
    """
    import fsspec  # here, for a local folder needs none of it

    try:
        files, root = fsspec.core.url_to_fs(url)
        files.invalidate_cache()
    except Exception as error:
        raise _unreadable(error) from error
    return files, root.rstrip("/")
