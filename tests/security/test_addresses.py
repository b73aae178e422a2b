"""Where the fetcher of pictures goes, and where it does not: by the registries of IANA."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from threading import Thread

import pytest

from service.adapters.fetcher import UrlFetcher, is_public_address
from service.domain import FetchError
from tests.service.integration.test_fetcher import PICTURE, Pictures

# https://www.iana.org/assignments/iana-ipv4-special-registry and .../iana-ipv6-special-registry, with multicast, what
# was site-local (RFC 3879), the IPv4-compatible addresses, and those by which IPv4 is spoken through IPv6.
SPECIAL = [
    "0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32", "192.0.0.170/32",
    "192.0.0.171/32", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16",
    "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "255.255.255.255/32",
    "224.0.0.0/4", "::1/128", "::/128", "::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64",
    "100:0:0:1::/64", "2001::/23", "2001::/32", "2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:2::/48",
    "2001:3::/32", "2001:4:112::/48", "2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "2002::/16",
    "2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
]  # fmt: skip
ISATAP = ["2a00:1450::5efe:10.0.0.1", "2a00:1450::200:5efe:8.8.8.8", "2606:4700:1:2:0:5efe:7f00:1"]
PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "192.0.1.1", "192.88.98.255", "100.63.255.255", "100.128.0.1"]
PUBLIC += ["172.15.0.1", "172.32.0.1", "223.255.255.255", "2a00:1450:4001:82a::200e", "2606:4700:4700::1111"]
PUBLIC += ["2001:200::1", "2003::1", "3ffe::1", "2620:4f:8001::1"]


@pytest.mark.parametrize("network", SPECIAL)
def test_special_addresses_are_not_public(network: str) -> None:
    found = ipaddress.ip_network(network)
    middle = found.network_address + found.num_addresses // 2
    assert not any(is_public_address(str(one)) for one in (found[0], middle, found[-1]))


@pytest.mark.parametrize("address", [*ISATAP, "2001:4860:4860::8888%eth0", "no address", ""])
def test_nor_are_those_that_lead_elsewhere(address: str) -> None:
    assert not is_public_address(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_all_others_are(address: str) -> None:
    assert is_public_address(address)


ODD = [
    "http://xn--a/", "http://xn--/", "http://xn--ls8h.example/", "http://xn--999999999/",
    "http://" + "a" * 64 + ".example/",
    "http://a..b/", "http://.a/", "http://ex%61mple/", "http://ex ample/", "http://[fe80::1%25eth0]/", "http://\u2603.net/",
    "http://\u2025/", "http://\u3002/", "http://\u0660.example/", "http://[::1", "http://[v1.a]/", "http://a\u0301\u200d/",
    "http://" + "a." * 130 + "b/",
]  # fmt: skip


async def resolve(host: str, port: int) -> list[str]:
    """`here.example` is this machine; everything else is asked of nobody."""
    if host == "here.example":
        return ["127.0.0.1"]
    raise socket.gaierror(f"{host}:{port}")


@pytest.fixture
def fetcher() -> UrlFetcher:
    return UrlFetcher(seconds=5, max_bytes=100_000, resolve=resolve, is_public=lambda _: True)


@pytest.mark.parametrize("url", ODD)
async def test_an_odd_name_is_no_fault_of_the_service(fetcher: UrlFetcher, url: str) -> None:
    with pytest.raises(FetchError):
        await fetcher.fetch(url)


@pytest.fixture
def leading() -> Iterator[Callable[[str], str]]:
    """The URL of a host on this machine that leads to where it is told."""
    told: list[str] = []

    class Leading(Pictures):
        def answer_(self, _: str) -> None:
            self.answer(302, location=told[0])

        def send_header(self, keyword: str, value: str) -> None:
            if keyword == "location":  # as the bytes that they are
                self._headers_buffer.append(b"location: " + value.encode() + b"\r\n")  # type: ignore[attr-defined]
            else:
                super().send_header(keyword, value)

    with ThreadingHTTPServer(("127.0.0.1", 0), Leading) as server:
        Thread(target=server.serve_forever, daemon=True).start()

        def lead(where: str) -> str:
            told[:] = [where]
            return f"http://here.example:{server.server_address[1]}/"

        yield lead
        server.shutdown()


MALFORMED = ["http://[", "//[", "http://\u2100/", "//a\u2100b/", "http://[::1]:99999/", "http://:0/", "http:///"]


@pytest.mark.parametrize("where", [*ODD, *MALFORMED])
async def test_nor_is_one_that_a_redirect_leads_to(
    fetcher: UrlFetcher, leading: Callable[[str], str], where: str
) -> None:
    with pytest.raises(FetchError):
        await fetcher.fetch(leading(where))


async def test_a_redirect_leads_on(fetcher: UrlFetcher, leading: Callable[[str], str]) -> None:
    assert await fetcher.fetch(leading("/picture")) == PICTURE
