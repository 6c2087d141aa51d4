"""The directions of imports, as DESIGN.md draws them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("server", "adapters_registry", "training", "loadtest")
ALLOWED = {
    "server": {"server", "adapters_registry"},
    "adapters_registry": {"adapters_registry"},
    "training": {"training", "adapters_registry"},
    "loadtest": {"loadtest"},
}
COMMANDS = {
    "server/evaluation_cli.py": {"training"},
    "server/export_cli.py": {"training"},
    "server/plan_cli.py": {"training"},
    "server/training_cli.py": {"training"},
    "server/loadtest_cli.py": {"loadtest", "training"},
    "server/residency_cli.py": {"loadtest"},
    "server/started_server.py": {"loadtest"},
    "server/workload_cli.py": {"loadtest"},
}
"""The command line is where packages meet; it imports them when a command is called."""
READERS_OF_THE_ENVIRONMENT = {
    "server/settings.py",
    "server/engine/environment.py",
    "server/engine/plugin.py",
    "server/bundled_base/__init__.py",
    "server/bundled_base/prepare.py",
    "training/archives.py",
}


def sources() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def imports(file: Path, *, at_import_only: bool = False) -> set[str]:
    tree = ast.parse(file.read_text())
    nodes = tree.body if at_import_only else ast.walk(tree)
    modules: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", sources(), ids=name_of)
def test_packages_import_in_one_direction(file: Path) -> None:
    package = file.relative_to(ROOT).parts[0]
    allowed = ALLOWED[package] | COMMANDS.get(name_of(file), set())
    used = {module.split(".")[0] for module in imports(file)} & set(PACKAGES)
    assert used <= allowed


@pytest.mark.parametrize("file", sources(), ids=name_of)
def test_heavy_libraries_stay_where_they_belong(file: Path) -> None:
    used = {module.split(".")[0] for module in imports(file)}
    if not name_of(file).startswith("server/engine/"):
        assert "vllm" not in used
    if name_of(file).startswith("adapters_registry/"):
        assert not used & {"torch", "transformers", "fastapi", "starlette", "httpx"}


def test_no_import_cycles() -> None:
    modules = {name_of(file)[:-3].replace("/", ".").removesuffix(".__init__") for file in sources()}
    graph = {}
    for file in sources():
        name = name_of(file)[:-3].replace("/", ".").removesuffix(".__init__")
        graph[name] = {m for m in imports(file, at_import_only=True) if m in modules} - {name}
    done: set[str] = set()
    while ready := {name for name in graph.keys() - done if graph[name] <= done}:
        done |= ready
    assert not graph.keys() - done, "these import each other"


@pytest.mark.parametrize("file", sources(), ids=name_of)
def test_the_environment_is_read_in_one_place(file: Path) -> None:
    if name_of(file) not in READERS_OF_THE_ENVIRONMENT:
        assert "os.environ" not in file.read_text()
        assert "getenv" not in file.read_text()


@pytest.mark.parametrize("file", sources(), ids=name_of)
def test_files_stay_small(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 350, "is a second noun hiding in it?"
