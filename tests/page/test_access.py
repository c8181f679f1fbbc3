"""Tests who may see the live page."""

from __future__ import annotations

import pytest

from session_tracer.page.access import Access

TOKEN = "s3cret-token_9"
LOOPBACK = [("host", b"localhost:8000")]


def with_header(name: str, value: str) -> list[tuple[str, bytes]]:
    return [*LOOPBACK, (name, value.encode())]


@pytest.mark.parametrize("client", ["127.0.0.1", "127.9.8.7", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:80", "127.0.0.1", "127.3.2.1:8000", "[::1]", "[::1]:8000"],
)
def test_a_client_of_this_machine_sees_it(client: str, host: str) -> None:
    assert Access(None).is_granted(client, [("host", host.encode())])


@pytest.mark.parametrize(
    "client",
    [
        None,
        "",
        "10.0.0.7",
        "192.168.1.5",
        "::",
        "0.0.0.0",
        "::ffff:10.0.0.7",
        "2001:db8::1",
        "testclient",
        "localhost",
        "127.0.0.1, 10.0.0.7",
        "1270.0.0.1",
        "unix:",
        "127.1",
    ],
)
def test_any_other_client_does_not(client: str | None) -> None:
    assert not Access(None).is_granted(client, LOOPBACK)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:80",
        "",
        "0.0.0.0",
        "10.0.0.7:8000",
        "[2001:db8::1]",
        "[127.0.0.1]",
        "[::1",
        "::1",
        "localhost:80:1",
        "localhost:evil",
        "127.0.0.1@evil.example",
        "localhost,evil.example",
        "[::1]evil.example",
        "localhost:\u0664",
        "localhost evil",
        "127.1",
        "0x7f000001",
    ],
)
def test_a_name_that_another_site_has_pointed_here_does_not(host: str) -> None:
    assert not Access(None).is_granted("127.0.0.1", [("host", host.encode())])


@pytest.mark.parametrize("hosts", [[], ["localhost", "localhost"], ["localhost", "evil.example"]])
def test_a_request_names_exactly_one_host(hosts: list[str]) -> None:
    assert not Access(None).is_granted("127.0.0.1", [("host", host.encode()) for host in hosts])


@pytest.mark.parametrize(
    "name",
    ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "forwarded", "x-real-ip", "via"],
)
def test_a_proxy_on_this_machine_does_not(name: str) -> None:
    assert not Access(None).is_granted("127.0.0.1", with_header(name, "127.0.0.1"))
    assert not Access(None).is_granted("10.0.0.7", with_header(name, "127.0.0.1"))


def test_with_a_token_every_client_that_bears_it_sees_it() -> None:
    access = Access(TOKEN)
    for sent in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER   {TOKEN} "):
        assert access.is_granted("10.0.0.7", [("authorization", sent.encode())])
    assert access.is_granted(None, with_header("authorization", f"Bearer {TOKEN}"))


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN}, Bearer {TOKEN}",
        f"Bearer é{TOKEN}",
    ],
)
def test_with_a_token_a_loopback_client_needs_it_as_well(sent: str) -> None:
    assert not Access(TOKEN).is_granted("127.0.0.1", with_header("authorization", sent))
    assert not Access(TOKEN).is_granted("127.0.0.1", LOOPBACK)


def test_two_credentials_are_none() -> None:
    bearer = ("authorization", f"Bearer {TOKEN}".encode())
    assert not Access(TOKEN).is_granted("127.0.0.1", [bearer, bearer])


@pytest.mark.parametrize("token", ["", " ", "two words", "line\n", "tab\t", "schlüssel", "\x00"])
def test_a_token_that_no_client_could_send_is_refused(token: str) -> None:
    with pytest.raises(
        ValueError, match=r"^Invalid token: expected at least one character"
    ) as info:
        Access(token)
    assert not token.strip() or token not in str(info.value)


@pytest.mark.parametrize("token", [b"bytes", 7, ["a"], False])
def test_a_token_that_is_no_string_is_refused(token: object) -> None:
    with pytest.raises(TypeError, match=r"^Invalid token of type"):
        Access(token)  # type: ignore[arg-type] # the point


def test_the_token_is_in_no_representation() -> None:
    access = Access(TOKEN)
    assert TOKEN not in f"{access!r}{access}"
