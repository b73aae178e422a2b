"""A PostgreSQL and a Redis of a test's own, which can be stopped, and a small disk, which can be filled."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.service.processes import free_port, within

MIB = 1 << 20


class Redis:
    """A Redis server."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Start it, empty."""
        options = ["--port", str(self.port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
        self.process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)

    def pause(self, seconds: float) -> None:
        """Let it answer nothing for a while."""
        os.kill(self.process.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self.process.pid, signal.SIGCONT)

    def flush(self) -> None:
        """Take everything out of it."""
        subprocess.run(["redis-cli", "-p", str(self.port), "flushall"], stdout=subprocess.DEVNULL, check=False)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()


class UnavailableError(Exception):
    """Why this machine cannot give what a test needs."""


class Postgres:
    """A cluster of PostgreSQL. PostgreSQL refuses to run as root, so root lends it the user `postgres`.

    Raises:
        UnavailableError: PostgreSQL's programs, or its user, are not here.
    """

    def __init__(self) -> None:
        programs = [Path(found).parent for found in [shutil.which("initdb")] if found]
        programs += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not programs:
            raise UnavailableError("PostgreSQL's programs are not installed")
        self.programs = programs[-1]
        self._user = _postgres_user() if os.getuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="lacuna-postgres-"))
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self.port = free_port()
        self.url = f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/postgres"
        self._run("initdb", "--no-sync", "--auth=trust", "--username=postgres", "--pgdata", self.folder / "data")
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c max_connections=300"
        self._run("pg_ctl", "-D", self.folder / "data", "-o", options, "-l", self.folder / "log", "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it: `immediate` is as good as a crash, `fast` ends connections in an orderly way."""
        self._run("pg_ctl", "-D", self.folder / "data", "-m", mode, "-w", "stop")

    def admit(self, rule: str) -> None:
        """Let in whom this rule of pg_hba.conf lets in, and nobody else."""
        (self.folder / "data" / "pg_hba.conf").write_text(f"{rule}\n")
        self._run("pg_ctl", "-D", self.folder / "data", "reload")

    def encrypt(self) -> Path:
        """Offer TLS, with a certificate of its own for localhost; the certificate."""
        if shutil.which("openssl") is None:
            raise UnavailableError("openssl is not installed")
        data = self.folder / "data"
        key, certificate = data / "server.key", data / "server.crt"
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        made = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(certificate)]
        self._run(Path(shutil.which("openssl") or ""), "req", "-x509", *names, *made)
        with (data / "postgresql.conf").open("a") as settings:
            settings.write("ssl = on\n")
        self._run("pg_ctl", "-D", data, "reload")
        return certificate

    def close(self) -> None:
        """Stop it where it runs, and remove all of it."""
        if (self.folder / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder)

    def _run(self, program: str | Path, *arguments: str | Path) -> None:
        command = [self.programs / program, *arguments]
        done = subprocess.run(
            command, user=self._user, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
        )
        assert done.returncode == 0, done.stderr.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _postgres_user() -> str:
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        raise UnavailableError("there is no user postgres") from None


class SmallDisk:
    """A file system in memory. Its owner can fill it with ballast, and throw that off again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, left: int = 0) -> None:
        """Leave so many bytes free."""
        free = shutil.disk_usage(self.folder).free
        with self._ballast.open("ab") as file:
            file.write(b"\0" * max(free - left, 0))

    def relieve(self) -> None:
        """Give the room back."""
        self._ballast.unlink()


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[SmallDisk]:
    """Mount one.

    Raises:
        UnavailableError: this process may not mount.
    """
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "lacuna-test", str(folder)],
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise UnavailableError(f"this process may not mount ({done.stderr.decode().strip()})")
    try:
        yield SmallDisk(folder)
    finally:
        within(10, lambda: subprocess.run(["umount", str(folder)], check=False).returncode == 0 or None)
