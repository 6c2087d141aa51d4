"""A real OCI registry for tests: Debian's package `docker-registry`, on the loopback interface."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx

START_SECONDS = 60
USER, PASSWORD = "reader", "test-secret"
HTPASSWD = "reader:$2y$04$Gh8nEW4P.8CQh8zn/U.JcuyWAyPO2ExmBbhAdDNnQf3Z7Vb9duiYe\n"
"""`PASSWORD` as `htpasswd -B` writes it."""
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"


class Blob(NamedTuple):
    """A layer to push."""

    content: bytes
    media_type: str
    annotations: Mapping[str, str] = MappingProxyType({})


def program() -> str | None:
    """Return the registry's program, or None if it isn't installed."""
    return shutil.which("docker-registry")


class OciServer:
    """One registry. With `auth`, its configuration of access to it."""

    def __init__(self, auth: dict[str, Any] | None = None) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="loraplex-oci-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{probe.getsockname()[1]}"
        self.url = f"http://{self.host}"
        (self._directory / "htpasswd").write_text(HTPASSWD)
        if auth == {"htpasswd": {}}:
            auth = {"htpasswd": {"realm": "test", "path": str(self._directory / "htpasswd")}}
        config = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(self._directory / "data")}},
            "http": {"addr": self.host},
            **({"auth": auth} if auth else {}),
        }
        # JSON is YAML, too.
        (self._directory / "config.yml").write_text(json.dumps(config))
        headers = {"authorization": "Bearer pushing"} if auth and "silly" in auth else {}
        self._client = httpx.Client(base_url=self.url, headers=headers, timeout=30)
        if auth and "htpasswd" in auth:
            self._client.auth = httpx.BasicAuth(USER, PASSWORD)
        self._start()

    def _start(self) -> None:
        name = program()
        assert name is not None
        with (self._directory / "log").open("a") as log:
            command = [name, "serve", str(self._directory / "config.yml")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                log_text = (self._directory / "log").read_text()
                self.stop()
                raise AssertionError(f"the registry did not start:\n{log_text[-4000:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return self._client.get("/v2/").status_code in (200, 401)
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        self._client.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def push_blob(self, repository: str, content: bytes) -> str:
        """Push a blob and return its digest."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        started = self._client.post(f"/v2/{repository}/blobs/uploads/")
        assert started.status_code == 202, started.text
        place = httpx.URL(started.headers["location"]).copy_merge_params({"digest": digest})
        done = self._client.put(place, content=content)
        assert done.status_code == 201, done.text
        return digest

    def push_manifest(self, repository: str, tag: str, manifest: dict[str, Any]) -> str:
        """Push a manifest or an index and return its digest."""
        answer = self._client.put(
            f"/v2/{repository}/manifests/{tag}",
            content=json.dumps(manifest).encode(),
            headers={"content-type": manifest["mediaType"]},
        )
        assert answer.status_code == 201, answer.text
        return answer.headers["docker-content-digest"]

    def push(
        self,
        repository: str,
        layers: list[Blob],
        *,
        tag: str = "latest",
        config_type: str = EMPTY_CONFIG,
        artifact_type: str | None = None,
        bend: dict[str, Any] | None = None,
    ) -> str:
        """Push an artefact and return its manifest's digest. `bend` replaces manifest fields."""
        config = b"{}"
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": config_type,
                "digest": self.push_blob(repository, config),
                "size": len(config),
            },
            "layers": [
                {
                    "mediaType": layer.media_type,
                    "digest": self.push_blob(repository, layer.content),
                    "size": len(layer.content),
                    "annotations": dict(layer.annotations),
                }
                for layer in layers
            ],
        }
        if artifact_type:
            manifest["artifactType"] = artifact_type
        return self.push_manifest(repository, tag, manifest | (bend or {}))

    def attach(
        self, repository: str, subject: str, content: bytes, media_type: str = BUNDLE
    ) -> str:
        """Attach a file to an artefact as `oras attach` does where there is no referrers API.

        `subject` is the digest of the artefact's manifest. Returns the attached manifest's digest.
        """
        names = {"mediaType": MANIFEST, "digest": subject, "size": 1}
        tag = f"attached-{hashlib.sha256(content).hexdigest()[:12]}"
        digest = self.push(
            repository,
            [Blob(content, media_type)],
            tag=tag,
            artifact_type=media_type,
            bend={"subject": names},
        )
        known = self._client.get(
            f"/v2/{repository}/manifests/{subject.replace(':', '-')}", headers={"accept": INDEX}
        )
        entry = {"mediaType": MANIFEST, "digest": digest, "size": 1, "artifactType": media_type}
        listed = [*(known.json()["manifests"] if known.is_success else []), entry]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
        self.push_manifest(repository, subject.replace(":", "-"), index)
        return digest

    def file_of_blob(self, digest: str) -> Path:
        """Return the file in which the registry keeps a blob."""
        hexadecimal = digest.removeprefix("sha256:")
        blobs = self._directory / "data/docker/registry/v2/blobs/sha256"
        return blobs / hexadecimal[:2] / hexadecimal / "data"


def tar_of(files: dict[str, bytes], *, compress: bool = False) -> bytes:
    """Return an archive of files by their paths."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(archive.getvalue()) if compress else archive.getvalue()
