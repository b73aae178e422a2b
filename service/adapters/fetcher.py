"""Pictures from URLs that clients name, without being led to machines that only the service can reach.

Every connection, a redirect's too, is made to an address that was checked after its name was resolved; nothing resolves
the name again. Only public addresses pass. No cookies, credentials or proxies are involved.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import urljoin

import httpcore
import httpx

from service.domain import FetchError

MAX_REDIRECTS = 5
AT_ONCE = 16  # fetched at the same time by one process
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = [("Accept", "image/*"), ("Accept-Encoding", "identity"), ("User-Agent", "lacuna")]
_CONTENT_TYPES = ("image/", "application/octet-stream", "binary/octet-stream")
# A name as it goes to the resolver, international ones encoded (RFC 1035, RFC 5890), or an address.
_HOST = re.compile(rb"(?=.{1,254}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?|[0-9a-f:.]+", re.IGNORECASE)
# All of IPv4 that IANA's registry of special-purpose addresses names, whether it is routed or not, with multicast
# (224.0.0.0/4) and what is reserved (240.0.0.0/4): nobody's pictures are there.
_SPECIAL_IPV4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16"),
            *("192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        ),
    )
)
# IPv6 is public in the one block that IANA has given out as global unicast, without what its registry sets apart there:
# protocols (Teredo and benchmarking among them), documentation, 6to4, AS112, documentation again. NAT64 (64:ff9b::/96,
# 64:ff9b:1::/48), unique and link-local and the old site-local addresses (fec0::/10) lie outside of it.
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_IPV6 = tuple(
    map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"))
)
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})  # before an IPv4 address as the interface of any network (RFC 5214)

Resolve = Callable[[str, int], Awaitable[list[str]]]


class UrlFetcher:
    """`service.ports.Fetcher` over HTTP and HTTPS.

    Args:
        seconds: longest time that one picture may take, redirects included.
        max_bytes: largest picture.
        resolve: the addresses of a host name.
        is_public: whether an address may be connected to.
    """

    def __init__(
        self,
        *,
        seconds: float,
        max_bytes: int,
        resolve: Resolve | None = None,
        is_public: Callable[[str], bool] | None = None,
    ) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._backend = _CheckedBackend(resolve or _resolve, is_public or is_public_address)
        self._places = asyncio.Semaphore(AT_ONCE)

    async def fetch(self, url: str) -> bytes:
        async with self._places:
            try:
                async with asyncio.timeout(self._seconds), self._pool() as pool:
                    return await self._follow(pool, url)
            except TimeoutError:
                raise FetchError(f"The picture did not arrive within {self._seconds:g} s.") from None
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError):
                raise FetchError("The URL's host does not answer as it should.") from None

    def _pool(self) -> httpcore.AsyncConnectionPool:
        return httpcore.AsyncConnectionPool(network_backend=self._backend, max_keepalive_connections=0)

    async def _follow(self, pool: httpcore.AsyncConnectionPool, url: str) -> bytes:
        target = _checked(url)
        for _ in range(1 + MAX_REDIRECTS):
            async with pool.stream("GET", target, headers=_HEADERS) as response:
                headers = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
                if response.status not in _REDIRECTS:
                    return await self._read(response, headers)
            url = _joined(url, headers.get("location", ""))
            target = _checked(url)
        raise FetchError(f"The URL leads to more than {MAX_REDIRECTS} others.")

    async def _read(self, response: httpcore.Response, headers: dict[str, str]) -> bytes:
        if response.status != 200:
            raise FetchError(f"The URL's host answers {response.status}.")
        kind = headers.get("content-type", "application/octet-stream").strip().lower()
        if not kind.startswith(_CONTENT_TYPES):
            raise FetchError("The URL leads to something that its host does not call a picture.")
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise FetchError("The URL's host sends the picture packed, which was not asked for.")
        data = bytearray()
        async for chunk in response.aiter_stream():
            data += chunk
            if len(data) > self._max_bytes:
                raise FetchError(f"The picture is larger than the limit of {self._max_bytes} bytes.")
        return bytes(data)


def is_public_address(address: str) -> bool:
    """Whether an address is one of the public Internet, by the registries of IANA and not by what a library knows of
    them. Addresses that stand for IPv4 ones are none, as it cannot be told from outside where they lead."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv4Address):
        return not any(parsed in network for network in _SPECIAL_IPV4)
    is_special = any(parsed in network for network in _SPECIAL_IPV6)
    is_isatap = int(parsed) >> 32 & 0xFFFF_FFFF in _ISATAP
    return parsed in _GLOBAL_IPV6 and not (is_special or is_isatap or parsed.scope_id)


def _joined(url: str, location: str) -> str:
    """Where a redirect leads. Raises FetchError where that is no URL."""
    try:
        return urljoin(url, location)
    except ValueError:
        raise FetchError("The URL leads to something that is no URL.") from None


def _checked(url: str) -> httpcore.URL:
    """The URL as it is asked for. Raises FetchError where it is none that may be."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise FetchError("This is no URL.") from None
    # `parsed.host` would decode international names, which not all can be that are encoded.
    if parsed.scheme not in ("http", "https") or not parsed.raw_host:
        raise FetchError("A picture's URL starts with http:// or https:// and names a host.")
    if not (_HOST.fullmatch(parsed.raw_host) and 0 < (parsed.port or 80) < 1 << 16):
        raise FetchError("This is no URL.")
    if parsed.userinfo:
        raise FetchError("A picture's URL holds no user name or password.")
    return httpcore.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path)


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name, checks what it stands for, and connects to just that."""

    def __init__(self, resolve: Resolve, is_public: Callable[[str], bool]) -> None:
        self._resolve = resolve
        self._is_public = is_public
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            raise FetchError("The URL's host is not known.") from None
        if not addresses or not all(map(self._is_public, addresses)):
            raise FetchError("The URL leads to an address that is not public.")
        for address in addresses[:-1]:
            with contextlib.suppress(httpcore.ConnectError):
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
        return await self._network.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)


async def _resolve(host: str, port: int) -> list[str]:
    resolved = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in resolved))
