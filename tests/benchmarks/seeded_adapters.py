"""Writes the adapters of `many-adapters` into a data folder, without trying them on the engine.

    python -m tests.benchmarks.seeded_adapters FOLDER NUMBER
    loraplex serve --data-dir FOLDER
    LORAPLEX_URL=... LORAPLEX_API_KEY=... loraplex loadtest run many-adapters --adapters NUMBER

Each adapter is checked as the gate does. To have the engine try a thousand of them takes minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from adapters_registry.records.tables import VersionState
from adapters_registry.registry import Registry
from loadtest.drive.random_adapters import LlamaShape, make_adapter
from loadtest.measurements.many_adapters import RANKS, adapter_names
from server.process.data_dir import own_data_dir
from server.process.serve import prepare_base
from server.process.startup import open_registry
from server.settings import load_settings


def register(registry: Registry, name: str, seed: int) -> None:
    """Register the adapter that `many-adapters` would upload, and make it the live version."""

    def stage(directory: Path) -> None:
        with TemporaryDirectory() as parent:
            made = Path(parent) / name
            make_adapter(made, LlamaShape(), rank=RANKS[seed % len(RANKS)], seed=seed)
            for file in made.iterdir():
                (directory / file.name).write_bytes(file.read_bytes())

    version, _ = registry.register("default", name, "a benchmark", stage, promote=True)
    if version.state is not VersionState.READY:
        registry.accept(version, registry.check_files(version))


def main() -> None:
    """Write what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("number", type=int)
    arguments = parser.parse_args()
    settings = load_settings(data_dir=arguments.folder)
    with own_data_dir(settings):
        registry = open_registry(settings, prepare_base(settings, print))
        try:
            for seed, name in enumerate(adapter_names(arguments.number)):
                if ("default", name) not in registry.catalog.adapters:
                    register(registry, name, seed)
        finally:
            registry.close()


if __name__ == "__main__":
    main()
