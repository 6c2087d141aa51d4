"""A client of the OCI distribution API: manifests, and blobs whose digest is verified."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adapters_registry.content.stopping import check_stop
from adapters_registry.errors import SourceRefused, StoreUnavailable
from adapters_registry.sources.oci.credentials import NO_CREDENTIALS, Credentials
from adapters_registry.sources.oci.reference import DIGEST, Reference

if TYPE_CHECKING:
    import httpx

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
INDEXES = (INDEX, DOCKER_LIST)

_MAX_JSON_BYTES = 4 << 20
"""Of a manifest, or of the answer with a token. Registries take manifests of 4 MiB."""
_CHUNK_BYTES = 1 << 18
_MAX_REDIRECTS = 5
_MAX_PAGES = 32
"""Of the list of what refers to a digest. Later pages are passed over."""
_TRY_AGAIN = (429, 500, 502, 503, 504)
"""Statuses by which a registry says nothing of what it has."""
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


class OciClient:
    """Reads one repository. Use it as a context manager: it holds a connection."""

    def __init__(
        self, base_url: str, reference: Reference, credentials: Credentials = NO_CREDENTIALS
    ) -> None:
        import httpx

        self._reference, self._credentials = reference, credentials
        self._base_url = f"{base_url}/v2/{reference.path}"
        self._http = httpx.Client(
            timeout=httpx.Timeout(30, connect=5), max_redirects=_MAX_REDIRECTS
        )
        self._is_plain = base_url.startswith("http://")
        self._authorization = f"Bearer {credentials.token}" if credentials.token else ""

    def __enter__(self) -> OciClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def manifest(self, selector: str) -> tuple[dict[str, Any], str]:
        """Return a manifest by its tag or digest, and its digest.

        Raises:
            SourceRefused: there is none, the server may not read it, or it is no manifest.
            StoreUnavailable: the registry does not answer, or its answer has another digest.
        """
        accept = ", ".join((MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST))
        with self._opened(f"manifests/{selector}", {"accept": accept}) as response:
            raw = self._body(response)
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        if DIGEST.fullmatch(selector) and selector != digest:
            raise self._damaged("the manifest", selector, digest)
        manifest = self._json_of(raw)
        manifest.setdefault("mediaType", response.headers.get("content-type", ""))
        return manifest, digest

    def referrers(self, digest: str) -> Iterator[dict[str, Any]]:
        """Yield the index of the manifests that refer to a digest, page by page.

        A registry without that API has the index under a tag that is made of the digest. Yields
        nothing if there is none either.

        Raises:
            SourceRefused: what is there is no index, or its next page is of another repository.
            StoreUnavailable: the registry does not answer.
        """
        for path in (f"referrers/{digest}", f"manifests/{digest.replace(':', '-')}"):
            is_there = False
            for page in self._pages(path):
                is_there = True
                yield page
            if is_there:
                return

    def _pages(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield a list's pages. Yields none if the registry does not know such a list."""
        following: str | None = path
        for number in range(_MAX_PAGES):
            if following is None:
                return
            with self._answered(following, {"accept": INDEX}) as response:
                status = response.status_code
                if status in _TRY_AGAIN or (status != 200 and number):
                    raise self._answers_otherwise(status)
                if status != 200:
                    return
                page, following = self._json_of(self._body(response)), self._next_page(response)
            yield page

    def _next_page(self, response: httpx.Response) -> str | None:
        """Return the path of a list's next page in this repository. None: there is none.

        The registry is asked where it is known to be, whatever host the link names: the
        credentials are for it alone.
        """
        link = response.links.get("next", {}).get("url")
        if link is None:
            return None
        path = response.url.join(link).raw_path.decode()
        place = f"{response.url.join(self._base_url).raw_path.decode()}/"
        if not path.startswith(place):
            raise SourceRefused(f"{self._name}: its registry leads to a page of another repository")
        return path.removeprefix(place)

    def blob(self, digest: str, size_bytes: int) -> Iterator[bytes]:
        """Yield the parts of a blob. Read it to the end: its digest is verified there.

        Raises:
            SourceRefused: there is no such blob.
            StoreUnavailable: the registry does not answer, or the blob has another size or digest.
        """
        sha256, left = hashlib.sha256(), size_bytes
        # Registries lead to stores of other hosts. httpx shows the credentials to none of them.
        with self._opened(f"blobs/{digest}", {"accept": "*/*"}, redirects=True) as response:
            for part in response.iter_raw(_CHUNK_BYTES):
                check_stop()
                left -= len(part)
                if left < 0:
                    break
                sha256.update(part)
                yield part
        found = f"sha256:{sha256.hexdigest()}"
        if left or found != digest:
            raise self._damaged("a blob", digest, found)

    @property
    def _name(self) -> str:
        return self._reference.location

    @contextmanager
    def _opened(
        self, path: str, headers: dict[str, str], *, redirects: bool = False
    ) -> Iterator[httpx.Response]:
        """Open the answer that there is. Raises what its status says if it is another one."""
        with self._answered(path, headers, redirects=redirects) as response:
            self._check(response)
            yield response

    @contextmanager
    def _answered(
        self, path: str, headers: dict[str, str], *, redirects: bool = False
    ) -> Iterator[httpx.Response]:
        """Open an answer, after the registry was told who asks if it wants to know."""
        response = self._send(path, headers, redirects=redirects)
        try:
            if response.status_code == 401:
                challenge = response.headers.get("www-authenticate", "")
                response.close()
                self._authorization = self._answer_to(challenge)
                response = self._send(path, headers, redirects=redirects)
            with self._errors():
                yield response
        finally:
            response.close()

    def _send(self, path: str, headers: dict[str, str], *, redirects: bool) -> httpx.Response:
        check_stop()
        sent = headers | {"accept-encoding": "identity"}
        if self._authorization:
            sent["authorization"] = self._authorization
        with self._errors():
            request = self._http.build_request("GET", f"{self._base_url}/{path}", headers=sent)
            return self._http.send(request, stream=True, follow_redirects=redirects)

    def _answer_to(self, challenge: str) -> str:
        """Return the authorization that a challenge asks for: a token, or name and password."""
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic" and self._credentials.username:
            return self._basic
        if scheme.lower() != "bearer" or self._credentials.token:
            raise self._unauthorized()
        fields = dict(_CHALLENGE.findall(rest))
        realm = fields.get("realm", "")
        if not realm.startswith(("https://", "http://") if self._is_plain else "https://"):
            raise SourceRefused(f"{self._name}: its registry asks for a token in an unsafe way")
        wanted = {"scope": f"repository:{self._reference.path}:pull"}
        if service := fields.get("service"):
            wanted["service"] = service
        headers = {"authorization": self._basic} if self._credentials.username else {}
        with self._errors():
            request = self._http.build_request("GET", realm, params=wanted, headers=headers)
            response = self._http.send(request, stream=True)
        with self._errors():
            try:
                self._check(response)
                answer = json.loads(self._body(response))
                token = answer.get("token") or answer.get("access_token")
            except (ValueError, AttributeError, RecursionError) as error:
                raise StoreUnavailable(f"{self._name}: its token service gave no token") from error
            finally:
                response.close()
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise StoreUnavailable(f"{self._name}: its token service gave no token")
        return f"Bearer {token}"

    @property
    def _basic(self) -> str:
        pair = f"{self._credentials.username}:{self._credentials.password}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    def _body(self, response: httpx.Response) -> bytes:
        """Return an answer that must be small."""
        body = bytearray()
        for part in response.iter_raw(_CHUNK_BYTES):
            check_stop()
            body += part
            if len(body) > _MAX_JSON_BYTES:
                raise SourceRefused(f"{self._name}: its manifest is over 4 MiB")
        return bytes(body)

    def _json_of(self, raw: bytes) -> dict[str, Any]:
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise SourceRefused(f"{self._name} has no manifest that is JSON") from error
        if not isinstance(found, dict):
            raise SourceRefused(f"{self._name} has no manifest that is a JSON object")
        return found

    def _check(self, response: httpx.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        if status in (401, 403):
            raise self._unauthorized()
        if status == 404:
            raise SourceRefused(
                f"{self._name}: no such repository, tag or digest ({self._reference.selector})"
            )
        raise self._answers_otherwise(status)

    def _answers_otherwise(self, status: int) -> StoreUnavailable:
        return StoreUnavailable(f"{self._name}: the registry answered {status}: try again")

    def _unauthorized(self) -> SourceRefused:
        return SourceRefused(
            f"{self._name}: no such repository, or this server may not read it: check the name, "
            "and the registry's entry in LORAPLEX_OCI_AUTH_FILE on the server"
        )

    def _damaged(self, what: str, expected: str, found: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"{what} of {self._name} is damaged: it should be {expected}, and is {found}: try again"
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise StoreUnavailable(
                f"{self._name} cannot be reached ({type(error).__name__}): check the connection "
                "and LORAPLEX_OCI_REGISTRIES on the server, or upload the files"
            ) from error
