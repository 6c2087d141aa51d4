"""Artefacts with an adapter, in every form of packing that is recognised."""

from __future__ import annotations

from pathlib import Path

from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from tests.oci_server import Blob, tar_of

MIB = 1 << 20
MODELPACK = "application/vnd.cncf.model"
KIT = "application/vnd.kitops.modelkit"
DOCKER = "application/vnd.docker.ai"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


def content_of(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}


def plain(files: dict[str, bytes], annotation: str, media_type: str) -> list[Blob]:
    return [Blob(content, media_type, {annotation: name}) for name, content in files.items()]


def packings(files: dict[str, bytes]) -> dict[str, tuple[list[Blob], str, str]]:
    """By name: the layers, the type of the configuration, and the kind that is recognised."""
    readme = Blob(b"# ", f"{MODELPACK}.doc.v1.raw", {"org.cncf.model.filepath": "README.md"})
    path, title = "org.cncf.model.filepath", "org.opencontainers.image.title"
    in_folder = {f"adapters/home/{name}": content for name, content in files.items()}
    config_only = {f"./{CONFIG_FILE}": files[CONFIG_FILE]}
    return {
        "modelpack": (
            [readme, *plain(files, path, f"{MODELPACK}.weight.v1.raw")],
            f"{MODELPACK}.config.v1+json",
            "ModelPack",
        ),
        "modelpack, each file in an archive": (
            [
                Blob(tar_of({name: content}), f"{MODELPACK}.weight.v1.tar", {path: name})
                for name, content in files.items()
            ],
            f"{MODELPACK}.config.v1+json",
            "ModelPack",
        ),
        "modelkit": (
            [
                Blob(tar_of({"README.md": b"#"}, compress=True), f"{KIT}.docs.v1.tar+gzip"),
                Blob(tar_of(in_folder, compress=True), f"{KIT}.model.v1.tar+gzip"),
            ],
            f"{KIT}.config.v1+json",
            "ModelKit",
        ),
        "modelkit without compression": (
            [Blob(tar_of(files | {"x.bin": bytes(3000)}), f"{KIT}.modelpart.v1.tar")],
            f"{KIT}.config.v1+json",
            "ModelKit",
        ),
        "docker, a layer a file": (
            plain(files, path, f"{DOCKER}.model.file"),
            f"{DOCKER}.model.config.v0.2+json",
            "Docker model",
        ),
        "docker, the older form": (
            [
                Blob(files[WEIGHTS_FILE], f"{DOCKER}.safetensors"),
                Blob(tar_of(config_only), f"{DOCKER}.vllm.config.tar"),
            ],
            f"{DOCKER}.model.config.v0.1+json",
            "Docker model",
        ),
        "oras": (plain(files, title, OCI_LAYER), "application/vnd.oci.empty.v1+json", "files"),
        "an image": (
            [Blob(tar_of(in_folder, compress=True), f"{OCI_LAYER}+gzip")],
            "application/vnd.oci.image.config.v1+json",
            "files",
        ),
    }
