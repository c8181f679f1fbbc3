"""Who may see the live page."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Access"]

# A proxy adds them. What it asks for, it asks for another client.
_OF_PROXIES: Final = frozenset({"forwarded", "via", "x-forwarded", "x-real-ip"})
_OF_PROXIES_TOO: Final = "x-forwarded-"


class Access:
    """Grants access to loopback clients, or to clients that send a token.

    Without a token, a request must come from a loopback address, ask for a loopback `Host`
    (a page of another site could otherwise have its name resolved to this machine), and bear no
    header of a proxy. With a token, it must bear that, wherever it comes from.

    Args:
        token: The token that clients send as `Authorization: Bearer`.

    Raises:
        TypeError: the token is no string.
        ValueError: a client could not send it. The message does not contain it.
    """

    def __init__(self, token: str | None) -> None:
        if token is not None and not isinstance(token, str):
            raise TypeError(f"Invalid token of type {type(token).__name__}: expected a string.")
        if token is not None and not (token and all("!" <= sign <= "~" for sign in token)):
            raise ValueError(
                "Invalid token: expected at least one character, all of them printable ASCII and "
                "none a space."
            )
        self._token = None if token is None else token.encode()

    def is_granted(self, client: str | None, headers: Iterable[tuple[str, bytes]]) -> bool:
        """Whether a request may see the page.

        Args:
            client: The address from which the server has the request, or None if it has none.
            headers: The request's headers with their names in lower case.
        """
        headers = list(headers)
        if self._token is not None:
            return _bears(headers, self._token)
        hosts = [value for name, value in headers if name == "host"]
        return (
            _is_loopback(client or "")
            and len(hosts) == 1
            and _is_loopback_host(hosts[0].decode("latin-1"))
            and not any(_is_of_proxy(name) for name, _ in headers)
        )


def _bears(headers: list[tuple[str, bytes]], token: bytes) -> bool:
    sent = [value for name, value in headers if name == "authorization"]
    if len(sent) != 1:
        return False
    from hmac import compare_digest  # with the first request: every application has this module

    scheme, _, credentials = sent[0].strip().partition(b" ")
    return scheme.lower() == b"bearer" and compare_digest(credentials.strip(), token)


def _is_of_proxy(name: str) -> bool:
    return name in _OF_PROXIES or name.startswith(_OF_PROXIES_TOO)


def _is_loopback(address: str) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (parsed if mapped is None else mapped).is_loopback


def _is_loopback_host(host: str) -> bool:
    """Whether the value of a `Host` header names this machine, with or without a port."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        return bool(bracket) and _is_port(port) and ":" in name and _is_loopback(name)
    name, colon, port = host.partition(":")
    return _is_port(colon + port) and (name.lower() == "localhost" or _is_loopback(name))


def _is_port(text: str) -> bool:
    return not text or (text[0] == ":" and text[1:].isascii() and text[1:].isdigit())
