"""What is shipped: packages by their hashes, what each container is let do, and the database's role, made in a real
cluster."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis
import yaml

from service.adapters.sql.store import SqlStore
from tests.service.processes import REPOSITORY, free_port, within
from tests.service.servers import Postgres, UnavailableError

PASSWORD = "s3cretOfTheService"
SCRIPT = REPOSITORY / "deploy" / "database.sh"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text("utf-8"))
    return found


# --- packages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_package_has_its_hashes(name: str) -> None:
    pinned = re.split(r"^(?=[a-z0-9])", (REPOSITORY / name).read_text("utf-8"), flags=re.MULTILINE)[1:]
    assert len(pinned) > 20
    assert not [one.split()[0] for one in pinned if not re.search(r"--hash=sha256:[0-9a-f]{64}", one)]


def test_packages_are_installed_by_them() -> None:
    for name in ("Makefile", "Dockerfile"):
        text = (REPOSITORY / name).read_text("utf-8")
        installs = re.findall(r"install [^&\n]*-r (requirements[a-z.-]*)", text)
        hashed = re.findall(r"install [^&\n]*--require-hashes -r (requirements[a-z.-]*)", text)
        assert set(installs) - set(hashed) == {"requirements-torch.txt"}, name  # of which each index has other files
        assert "requirements.txt" in hashed


# --- containers -------------------------------------------------------------------------------------------------------


def test_no_secret_stands_in_a_command_line(compose: dict[str, Any]) -> None:
    for name, container in compose["services"].items():
        for part in ("command", "entrypoint", "healthcheck"):
            assert "PASSWORD}" not in str(container.get(part, "")), name


def test_redis_takes_no_one_without_the_password(compose: dict[str, Any], tmp_path: Path) -> None:
    """As its container starts it, here."""
    container = compose["services"]["redis"]
    assert container["user"] == "redis"
    script = container["command"][2].replace("$$", "$").replace("/tmp", str(tmp_path))
    port = free_port()
    script = script.replace("--bind 0.0.0.0", f"--bind 127.0.0.1 --port {port}")
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server")
    environment = os.environ | {"REDISCLI_AUTH": PASSWORD}
    with subprocess.Popen(["sh", "-ec", script], env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            with redis.Redis(port=port) as stranger, redis.Redis(port=port, password=PASSWORD) as service:
                within(10, lambda: _pings(service) or None)
                with pytest.raises(redis.AuthenticationError):
                    stranger.get("a")
            shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            assert b"redis-server" in shown
            assert PASSWORD.encode() not in shown
            assert (tmp_path / "redis.conf").stat().st_mode & 0o077 == 0
        finally:
            process.kill()


def _pings(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def test_the_service_has_the_password_that_redis_wants(compose: dict[str, Any]) -> None:
    wanted = compose["services"]["redis"]["environment"]["REDISCLI_AUTH"]
    assert compose["services"]["service"]["environment"]["LACUNA_REDIS_URL"] == f"redis://:{wanted}@redis:6379/0"


def test_base_images_can_be_had_by_digest() -> None:
    pinned = dict(re.findall(r"^(\w+)=(\S+)$", (REPOSITORY / "deploy" / "images.env").read_text(), re.MULTILINE))
    assert all(re.fullmatch(r"[a-z]+:[\w.-]+@sha256:[0-9a-f]{64}", image) for image in pinned.values())
    text = (REPOSITORY / "docker-compose.yml").read_text("utf-8")
    named = dict(re.findall(r"\$\{(\w+_IMAGE):-([^}]+)\}", text))
    assert named == {name: image.partition("@")[0] for name, image in pinned.items()}
    dockerfile = (REPOSITORY / "Dockerfile").read_text("utf-8")
    assert f"ARG PYTHON_IMAGE={named['PYTHON_IMAGE']}" in dockerfile
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"$PYTHON_IMAGE", "dependencies"}


# --- the database's role ----------------------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[Postgres]:
    try:
        server = Postgres()
    except UnavailableError as error:
        pytest.skip(str(error))
    yield server
    server.close()


def run(cluster: Postgres) -> None:
    environment = os.environ | {
        "POSTGRES_PASSWORD": PASSWORD,
        "PGHOST": str(cluster.folder),
        "PGPORT": str(cluster.port),
        "PATH": f"{cluster.programs}:{os.environ['PATH']}",
    }
    subprocess.run(["sh", SCRIPT], env=environment, check=True)


def ask(cluster: Postgres, user: str, *statements: str, database: str = "lacuna") -> Any:
    async def execute() -> Any:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=cluster.port, user=user, password=PASSWORD, database=database
        )
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(execute())


def check(cluster: Postgres) -> None:
    """The role has what the service needs, and nothing else."""
    flags = "rolsuper or rolcreatedb or rolcreaterole or rolreplication or rolbypassrls"
    assert ask(cluster, "postgres", f"SELECT {flags} FROM pg_roles WHERE rolname = 'lacuna'") is False
    assert ask(cluster, "postgres", "SELECT rolpassword IS NULL FROM pg_authid WHERE rolname = 'postgres'")
    assert ask(cluster, "postgres", "SELECT rolpassword IS NOT NULL FROM pg_authid WHERE rolname = 'lacuna'")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        ask(cluster, "lacuna", "SELECT pg_read_file('/etc/hostname')")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        ask(cluster, "lacuna", "COPY (SELECT 1) TO PROGRAM 'true'", "SELECT 1")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        ask(cluster, "lacuna", "SELECT 1", database="postgres")
    asyncio.run(serve(cluster))


async def serve(cluster: Postgres) -> None:
    store = await SqlStore.open(f"postgresql+asyncpg://lacuna:{PASSWORD}@127.0.0.1:{cluster.port}/lacuna")
    await store.set_meta("a", "b")
    assert await store.get_meta("a") == "b"
    await store.close()


def test_the_role_is_made_and_may_be_made_again(cluster: Postgres) -> None:
    ask(cluster, "postgres", "CREATE DATABASE lacuna", "SELECT 1", database="postgres")
    for _ in range(2):
        run(cluster)
        check(cluster)


def test_a_database_of_an_earlier_composition_is_brought_to_it(cluster: Postgres) -> None:
    ask(cluster, "postgres", "CREATE ROLE passing SUPERUSER LOGIN", "SELECT 1", database="postgres")
    ask(cluster, "passing", "ALTER ROLE postgres RENAME TO lacuna", "SELECT 1", database="postgres")
    ask(cluster, "lacuna", "DROP ROLE passing", "CREATE DATABASE lacuna", "SELECT 1", database="postgres")
    ask(cluster, "lacuna", f"ALTER ROLE lacuna PASSWORD '{PASSWORD}'", "SELECT 1")
    asyncio.run(serve(cluster))
    for _ in range(2):
        run(cluster)
        check(cluster)
    assert ask(cluster, "lacuna", "SELECT count(*) > 5 FROM pg_tables WHERE tableowner = 'lacuna'")
