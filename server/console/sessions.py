"""Sessions: a signed cookie names an API key. The key itself is never stored in the browser.

The key is looked up anew with each request, so a session ends with its key. The signature's secret
stays on the server: whoever has it can make sessions, whoever has the database cannot.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from server.auth import Caller, Keys
from server.errors import Unauthenticated

COOKIE = "loraplex_session"
MAX_SECONDS = 8 * 3600
"""A session ends after a working day, however much it is used."""
SECRET_BYTES = 32
_ENDED = "this session has ended: log in again"


class Sessions:
    """Begins sessions, and says whose session a request belongs to."""

    def __init__(self, keys: Keys, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        """`secret` is the same for all servers that a browser may reach. `clock`: Unix time."""
        self._keys, self._secret, self._clock = keys, secret, clock
        self._logged_out: dict[str, int] = {}
        """Sessions that were ended here, until they would have ended by themselves."""

    def begin(self, key: str) -> tuple[Caller, str]:
        """Return the caller of an API key, and the cookie's value for a session of it.

        Raises:
            Unauthenticated: the key is not valid.
        """
        caller = self._keys.authenticate(key)
        ends_at = int(self._clock()) + MAX_SECONDS
        session = f"{caller.key_id}.{ends_at}.{secrets.token_urlsafe(12)}"
        return caller, f"{session}.{self._sign('session', session)}"

    def caller(self, cookie: str) -> Caller:
        """Return whose session this is.

        Raises:
            Unauthenticated: it is not a session, it has ended, or its key is not valid any more.
        """
        key_id, ends_at = self._verified(cookie)
        if ends_at <= self._clock() or cookie in self._logged_out:
            raise Unauthenticated(_ENDED, reason="expired")
        return self._keys.caller(key_id)

    def end(self, cookie: str) -> None:
        """End a session before its time, on this server. Nothing happens if it is none."""
        now = self._clock()
        self._logged_out = {c: end for c, end in self._logged_out.items() if end > now}
        try:
            _, self._logged_out[cookie] = self._verified(cookie)
        except Unauthenticated:
            return

    def csrf_token(self, cookie: str) -> str:
        """Return what each change must carry in a header. Only this session's pages know it."""
        return self._sign("csrf", cookie)

    def is_csrf_token(self, given: str, cookie: str) -> bool:
        """Whether a request comes from one of this session's pages."""
        return hmac.compare_digest(given.encode(), self.csrf_token(cookie).encode())

    def _verified(self, cookie: str) -> tuple[str, int]:
        session, _, signature = cookie.rpartition(".")
        expected = self._sign("session", session)
        if not hmac.compare_digest(signature.encode(), expected.encode()):
            raise Unauthenticated(_ENDED, reason="unknown")
        key_id, ends_at, _ = session.split(".")
        return key_id, int(ends_at)

    def _sign(self, purpose: str, text: str) -> str:
        message = f"{purpose} {text}".encode(errors="replace")
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()


def read_secret(file: Path) -> bytes:
    """Return the secret in a file that only its owner can read; a new one if there is no file.

    Raises:
        OSError: the file can be neither read nor written.
        ValueError: it holds too little to be a secret.
    """
    if not file.is_file():
        file.touch(mode=0o600)
        file.write_text(secrets.token_hex(SECRET_BYTES) + "\n")
    secret = file.read_text().strip().encode()
    if len(secret) < SECRET_BYTES:
        raise ValueError(f"a secret has at least {SECRET_BYTES} characters")
    return secret
