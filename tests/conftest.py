"""Fixtures shared by all tests: the real PostgreSQL and Redis of the machine, where they answer."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator

import asyncpg
import pytest
import redis

POSTGRES = os.environ.get("LACUNA_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432")
REDIS = os.environ.get("LACUNA_TEST_REDIS", "redis://127.0.0.1:6379/15")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--form",
        choices=["lacuna", "paper"],
        default="lacuna",
        help="form of the models that the service is tested with",
    )


def skip_without(service: str) -> None:
    """Skip the test, or fail it where TEST_REQUIRE_SERVICES=1 says that the services must be there."""
    if os.environ.get("TEST_REQUIRE_SERVICES") == "1":
        pytest.fail(f"{service} does not answer, and TEST_REQUIRE_SERVICES=1")
    pytest.skip(f"{service} does not answer")


async def _execute(statement: str) -> None:
    connection = await asyncpg.connect(f"{POSTGRES}/postgres", timeout=3)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    """A database of its own for the test module, dropped at its end."""
    name = f"lacuna_test_{uuid.uuid4().hex[:12]}"
    try:
        asyncio.run(_execute(f'CREATE DATABASE "{name}"'))
    except (OSError, asyncpg.PostgresError):
        skip_without("PostgreSQL")
    yield f"{POSTGRES}/{name}".replace("postgresql://", "postgresql+asyncpg://")
    asyncio.run(_execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))


@pytest.fixture
def redis_url() -> str:
    """A Redis database that tests may write to; they use keys of their own."""
    try:
        with redis.Redis.from_url(REDIS, socket_connect_timeout=1) as client:
            client.ping()
    except (OSError, redis.RedisError):
        skip_without("Redis")
    return REDIS
