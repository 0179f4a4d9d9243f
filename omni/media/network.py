"""Fetching media from the web, only when the caller allows it."""

import ipaddress
import socket
import time
from collections.abc import Iterator

import httpx

from omni.errors import MediaAccessError
from omni.media.limits import MediaLimits
from omni.media.source import COPY_BYTES, Source, spool_source

MAX_REDIRECTS = 5
TIMEOUT_S = 30.0  # for one connection or read
MAX_FETCH_SECONDS = 600.0


def fetch(address: str, limits: MediaLimits) -> Source:
    """Download an address, following redirects to public hosts only.

    Args:
        address: http or https.
        limits: `max_bytes` stops the download early.

    Raises:
        MediaAccessError: if it cannot be fetched, takes longer than ten minutes, or leads to an
            address that is not public.
        MediaLimitError: if it is larger than `limits.max_bytes`.
    """
    try:
        url = httpx.URL(address)
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
            for _ in range(MAX_REDIRECTS):
                request = _pinned_request(client, url)
                response = client.send(request, stream=True)
                try:
                    if response.has_redirect_location:
                        url = url.join(response.headers["location"])
                        continue
                    response.raise_for_status()
                    return spool_source(address, _chunks(response, address), limits)
                finally:
                    response.close()
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
        raise MediaAccessError(
            f"{address}: cannot be fetched ({error}); download the file and give its path"
        ) from error
    raise MediaAccessError(
        f"{address}: found more than {MAX_REDIRECTS} redirects; give the last address"
    )


def _pinned_request(client: httpx.Client, url: httpx.URL) -> httpx.Request:
    """A request to the very address that was checked, so that a second lookup cannot differ."""
    if url.scheme not in ("http", "https"):
        raise MediaAccessError(f"{url}: found a redirect to {url.scheme!r}, expected http or https")
    port = url.port or (443 if url.scheme == "https" else 80)
    found = {
        str(info[4][0]) for info in socket.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
    }
    private = sorted(ip for ip in found if not is_public(ip))
    if private or not found:
        raise MediaAccessError(
            f"{url}: found the address {', '.join(private) or 'none'}, which is not public; "
            "download the file and give its path"
        )
    ip = sorted(found, key=lambda text: ":" in text)[0]  # IPv4 first
    headers = {"Host": url.netloc.decode("ascii")}
    return client.build_request(
        "GET", url.copy_with(host=ip), headers=headers, extensions={"sni_hostname": url.host}
    )


def is_public(ip: str) -> bool:
    """Whether an IP address belongs to the open internet."""
    return ipaddress.ip_address(ip.partition("%")[0]).is_global


def _chunks(response: httpx.Response, address: str) -> Iterator[bytes]:
    deadline = time.monotonic() + MAX_FETCH_SECONDS
    for chunk in response.iter_bytes(COPY_BYTES):
        if time.monotonic() > deadline:
            raise MediaAccessError(
                f"{address}: the download took longer than {MAX_FETCH_SECONDS:.0f} s; download "
                "the file and give its path"
            )
        yield chunk
