"""The directions of imports, as docs/structures.md draws them."""

import ast
import re
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
    "server/cli/training/comparison.py": {"training"},
    "server/cli/training/data.py": {"training"},
    "server/cli/training/dedicate.py": {"training"},
    "server/cli/training/evaluation.py": {"training"},
    "server/cli/training/export.py": {"training"},
    "server/cli/training/plan.py": {"training"},
    "server/cli/training/probes.py": {"training"},
    "server/cli/training/quantize.py": {"training"},
    "server/cli/training/shared.py": {"training"},
    "server/cli/training/train.py": {"training"},
    "server/cli/loadtest.py": {"loadtest"},
    "server/cli/measurements.py": {"loadtest", "training"},
    "server/cli/workloads.py": {"loadtest"},
}
"""The command line is where packages meet; it imports them when a command is called."""
FOLDERS_OF_THE_SERVER = (
    ("cli",),
    ("doctor",),
    ("process",),
    ("app",),
    ("console",),
    ("api",),
    ("gate", "rollout"),
    ("residency",),
    ("middleware", "engine"),
    ("tenancy",),
    ("auth",),
    ("lifecycle", "workers", "bundled_base"),
    ("tracing",),
    ("errors", "metrics", "settings", "request_log"),
)
"""Parts of `server/` in the order of a request: each may import those of later lines only."""
LARGEST_FOLDER = 14
MODULES_OF_SERVER = 6
"""At most so many stand in `server/` itself, `__main__.py` among them."""
READERS_OF_THE_ENVIRONMENT = {
    "server/settings/loading.py",
    "server/engine/environment.py",
    "server/engine/worker/plugin.py",
    "server/bundled_base/__init__.py",
    "server/bundled_base/prepare.py",
    "training/data/archives.py",
}


def sources() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def imports(file: Path, *, within_functions: bool = True) -> set[str]:
    """Return the modules that a file imports; those under `TYPE_CHECKING` count, too."""
    modules: set[str] = set()
    pending: list[ast.AST] = [ast.parse(file.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        if within_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending.extend(ast.iter_child_nodes(node))
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
        allowed = {"httpx"} if name_of(file).startswith("adapters_registry/sources/") else set()
        assert not used & {"torch", "transformers", "fastapi", "starlette", "httpx"} - allowed


@pytest.mark.parametrize("package", PACKAGES)
def test_no_class_name_stands_twice_in_a_package(package: str) -> None:
    """A search for a name finds one thing."""
    places: dict[str, list[str]] = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name_of(file))
    assert not {name: files for name, files in places.items() if len(files) > 1}


def test_no_import_cycles() -> None:
    modules = {name_of(file)[:-3].replace("/", ".").removesuffix(".__init__") for file in sources()}
    graph = {}
    for file in sources():
        name = name_of(file)[:-3].replace("/", ".").removesuffix(".__init__")
        graph[name] = {m for m in imports(file, within_functions=False) if m in modules} - {name}
    while ends := {name for name, used in graph.items() if not used}:
        graph = {name: used - ends for name, used in graph.items() if name not in ends}
    while unused := graph.keys() - set().union(*graph.values()):
        graph = {name: used for name, used in graph.items() if name not in unused}
    assert not graph, "these import each other"


@pytest.mark.parametrize("file", sources(), ids=name_of)
def test_the_environment_is_read_in_one_place(file: Path) -> None:
    if name_of(file) not in READERS_OF_THE_ENVIRONMENT:
        assert "os.environ" not in file.read_text()
        assert "getenv" not in file.read_text()


@pytest.mark.parametrize(
    "file", [*sources(), *sorted(Path(__file__).parent.rglob("*.py"))], ids=name_of
)
def test_files_stay_small(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 350, "is a second noun hiding in it?"


def part_of(module: str) -> str:
    return module.split(".")[1] if module.startswith("server.") else ""


def test_the_folders_of_the_server_import_downwards() -> None:
    line_of = {part: line for line, parts in enumerate(FOLDERS_OF_THE_SERVER) for part in parts}
    parts, upwards = set(), set()
    for file in sources():
        name = name_of(file)[:-3].replace("/", ".").removesuffix(".__init__")
        if not (part := part_of(name)) or part == "__main__":
            continue
        parts.add(part)
        for used in {part_of(module) for module in imports(file)} & line_of.keys() - {part}:
            if line_of[used] <= line_of[part]:
                upwards.add(f"{name} imports {used}")
    assert not upwards
    assert parts <= line_of.keys() | {""}, "a part of server/ that has no place in the order yet"


def test_the_page_draws_the_folders_in_this_order() -> None:
    page = (ROOT / "docs" / "structures.md").read_text()
    drawn = re.search(r"`(cli -> [^`]+)`", page)
    assert drawn is not None
    lines = [tuple(line.split(", ")) for line in " ".join(drawn[1].split()).split(" -> ")]
    assert [set(line) for line in lines] == [set(parts) for parts in FOLDERS_OF_THE_SERVER]


@pytest.mark.parametrize("package", PACKAGES)
def test_folders_stay_small(package: str) -> None:
    for folder in [ROOT / package, *(ROOT / package).rglob("*/")]:
        if folder.name == "versions":  # of the database's schema: one file for each, for ever
            continue
        modules = [file for file in folder.glob("*.py") if file.name != "__init__.py"]
        assert len(modules) <= LARGEST_FOLDER, f"{name_of(folder)}: make a folder of some"


def test_the_root_of_the_server_stays_small() -> None:
    modules = [file for file in (ROOT / "server").glob("*.py") if file.name != "__init__.py"]
    assert len(modules) <= MODULES_OF_SERVER
