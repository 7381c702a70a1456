"""Bring a file from an https address, or what of it is missing.

Standard library only.
"""

import http.client
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

CHUNK = 1 << 18
SCHEMES = ("https",)  # of addresses, and of those that they redirect to


class AddressError(Exception):
    """One address did not give the file; ``again`` says whether another attempt makes sense."""

    def __init__(self, message, again):
        super().__init__(message)
        self.again = again


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to another address, where that is https too."""

    def redirect_request(self, request, answer, code, message, headers, address):
        _need_https(address)
        return super().redirect_request(request, answer, code, message, headers, address)


def _need_https(url):
    if urlsplit(url).scheme not in SCHEMES:
        raise AddressError(f"{_plain(url)} is not https", again=False)


def _plain(text):
    """What a server says, on one line and without what a terminal would obey."""
    return "".join(filter(str.isprintable, " ".join(f"{text}".split())))[:200]


def bring(url: str, part: Path, size: int, timeout: float, log: Callable[[str], None]) -> None:
    """Bring the file ``part`` to ``size`` bytes from an address; raise AddressError if it stays shorter.

    timeout : seconds of one wait on the network · log : gets lines of text
    """
    have = part.stat().st_size if part.exists() else 0
    if have > size:
        part.unlink()
        have = 0
    if have and have == size:
        return
    _need_https(url)
    request = urllib.request.Request(url, headers={"User-Agent": "synthseg-native"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.build_opener(_Redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the server has fewer bytes than we do: start again
            part.unlink()
            raise AddressError("HTTP 416, starting again", again=True) from error
        passing = error.code >= 500 or error.code in (408, 425, 429)
        raise AddressError(f"HTTP {error.code} {_plain(error.reason)}", again=passing) from error
    except urllib.error.URLError as error:
        certificate = isinstance(error.reason, ssl.SSLCertVerificationError)
        raise AddressError(f"no connection ({_plain(error.reason)})", again=not certificate) from error
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise AddressError(f"no answer ({_plain(error)})", again=not isinstance(error, ValueError)) from error
    with response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if response.status == 206 and not goes_on:
            part.unlink(missing_ok=True)
            raise AddressError("another range than asked for, starting again", again=True)
        if not goes_on:
            have = 0  # no Range on this server
        offered = response.headers.get("Content-Length")
        total = have + int(offered) if offered and offered.isdigit() else None
        if total not in (None, size):
            part.unlink(missing_ok=True)
            raise AddressError(f"{total} bytes offered, {size} expected", again=False)
        _receive(response, part, have, size, log)


def _receive(response, part, have, total, log):
    shown = time.monotonic()
    with part.open("ab" if have else "wb") as stream:
        while True:
            try:
                block = response.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise AddressError(f"connection broke after {have} bytes ({error})", again=True) from error
            if not block:
                break
            stream.write(block)
            have += len(block)
            if have > total:
                return  # too long, perhaps without an end: the check of the size refuses it
            if sys.stderr.isatty() and time.monotonic() - shown > 5:
                shown = time.monotonic()
                log(f"{part.stem}: {have / 1e6:.0f} of {total / 1e6:.0f} MB")
    if have < total:
        raise AddressError(f"connection broke after {have} of {total} bytes", again=True)
