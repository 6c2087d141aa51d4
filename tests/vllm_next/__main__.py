"""Tries another version of vLLM: `make vllm-next`, or `make vllm-next VERSION=0.33.0`.

It makes an environment with that version in build/vllm-next/, compares what we use of vLLM in both
versions, runs the tests that lean on vLLM's inside, and writes a report beside the environment. It
ends with 1 if something that we use is gone, or a test fails.

Where the index has that version for GPUs but not yet as a CPU build, a machine without a GPU tries
its Python files with the compiled operators of the present CPU build. The report says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from tests.vllm_next import environment as environments
from tests.vllm_next.changes import Change, changes, faults, moved_to, table
from tests.vllm_next.environment import PIP, ROOT, Environment, NoSuchVersion, requirements_of
from tests.vllm_next.snapshot import FIELDS, FLAGS, MEMBERS, METRICS, SYMBOLS, VARIABLES, Snapshot
from tests.vllm_next.used import Used, used_by

HOME = ROOT / "build" / "vllm-next"
REQUIREMENTS = "Requirements"
PARTS = (SYMBOLS, MEMBERS, FIELDS, FLAGS, VARIABLES, METRICS, REQUIREMENTS)
TESTS = (
    "tests/server/engine",
    "tests/real_engine/test_openai_api.py",
    "tests/real_engine/test_openai_errors.py",
    "tests/real_engine/test_around_answers.py",
    "tests/real_engine/test_traces.py",
    "tests/real_engine/test_mixed_batch.py",
    "tests/real_engine/test_poison.py",
    "tests/real_engine/test_loading.py",
)
"""Those that lean on vLLM's inside, and each kind of request on a real engine."""
FOR_GPUS = (
    *("torch", "nvidia", "flashinfer", "cuda", "quack", "tilelang", "apache-tvm", "fa4", "nvtx"),
    *("PyNv", "humming", "tokenspeed"),
)
"""How the names of packages begin that only a GPU's build wants, or that stay as compiled for."""
PINNED = "tests/server/engine/test_vllm_symbols.py::test_pinned_version"


def what_we_use() -> Used:
    """Return what this repository uses of vLLM."""
    texts = [*(ROOT / "helm").rglob("*.*ml"), *(ROOT / "helm").rglob("*.json")]
    texts += [file for name in ("server", "loadtest") for file in (ROOT / name).rglob("*.py")]
    return used_by(ROOT / "server", texts)


def prepare(engine: str, version: str, folder: Path) -> tuple[Environment, str]:
    """Make the environment; return it with a sentence that says what it has."""
    made = Environment.create(folder / "env")
    package = environments.ENGINES[engine]
    if engine == "gpu" or environments.has(package, version):
        present = (environments.REQUIREMENTS / f"{engine}.txt").read_text().splitlines()
        lines = environments.moved(present, environments.resolve(engine, version, folder))
        made.install(lines)
        return made, f"`{package}=={version}`, with what it wants: {', '.join(lines)}."
    download = [*PIP, "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*download, f"{environments.PLAIN}=={version}"], check=True)
    (wheel,) = folder.glob("vllm-*.whl")
    environments.unpack_python_files(wheel, made.packages)
    wheel.unlink()
    environments.borrow_compiled(present_vllm(), made.packages / "vllm")
    wanted, before = requirements_of(made.packages), requirements_of(present_vllm().parent)
    found = [r for r in environments.unmet(wanted, before) if not r.name.startswith(FOR_GPUS)]
    others = [f"{r.name}{r.specifier}" for r in found]
    made.install(others)
    return made, (
        f"The Python files of `vllm=={version}` with the compiled operators of the present CPU "
        f"build, as the index has no `{package}=={version}`; and what it wants in other versions: "
        f"{', '.join(others) or 'nothing'}."
    )


def present_vllm() -> Path:
    """Return the folder of the vLLM of the present environment, without importing it."""
    package = importlib.util.find_spec("vllm")
    assert package is not None
    assert package.submodule_search_locations is not None
    return Path(package.submodule_search_locations[0])


def snapshot_of(python: Path, used: Path, out: Path) -> Snapshot:
    """Return what the vLLM of an environment has."""
    command = [str(python), "-m", "tests.vllm_next.snapshot", str(used), str(out)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    taken: Snapshot = json.loads(out.read_text())
    return taken


def compare(made: Environment, folder: Path, used: Used) -> list[Change]:
    """Return what differs between the present vLLM and that of an environment."""
    file = folder / "used.json"
    used.write(file)
    before = snapshot_of(Path(sys.executable), file, folder / "before.json")
    after = snapshot_of(made.python, file, folder / "after.json")
    before[REQUIREMENTS] = dict.fromkeys(requirements_of(present_vllm().parent), "")
    after[REQUIREMENTS] = dict.fromkeys(requirements_of(made.packages), "")
    return changes(before, after)


def engine_here() -> str:
    """Return the engine whose locked set is installed: `make install` leaves a mark."""
    return "gpu" if (ROOT / ".venv" / ".installed-gpu").exists() else "cpu"


def run_tests(made: Environment, results: Path, tests: Sequence[str]) -> int:
    """Run the tests in an environment; return pytest's exit code."""
    options = ["-q", "-p", "no:cacheprovider", "--deselect", PINNED, f"--junitxml={results}"]
    return made.run("-m", "pytest", *options, *tests)


def failures(results: Path) -> list[str]:
    """Return a line for each failed test, with the first line of what was wrong."""
    lines = []
    for case in ElementTree.parse(results).iter("testcase"):
        for found in [*case.findall("failure"), *case.findall("error")]:
            said = (found.get("message") or "").splitlines() or [""]
            lines.append(f"* `{case.get('classname')}.{case.get('name')}`: {said[0][:300]}")
    return lines


def report(
    title: str, found: list[Change], gone: list[Change], package: Path, tests: list[str]
) -> str:
    """Return the report as Markdown."""
    lines = [title, "", "## What we use and is gone", ""]
    sources = {file: file.read_text() for file in sorted(package.rglob("*.py"))} if gone else {}
    for change in gone:
        places = ", ".join(f"`{place}`" for place in moved_to(change.name, package, sources)[:5])
        why = change.after or "it isn't there"
        lines.append(f"* `{change.name}` ({why}). Defined in: {places or 'no module'}.")
    lines += [] if gone else ["Nothing."]
    lines += ["", "## Tests", "", *tests]
    for part in PARTS:
        lines += table(part, found)
    return "\n".join(lines) + "\n"


def main() -> int:
    """Try the version that the command line names, or the newest one; return the exit code."""
    parser = argparse.ArgumentParser(prog="make vllm-next", description=__doc__)
    parser.add_argument("version", nargs="?", default="")
    parser.add_argument("--tests", default=" ".join(TESTS), help="paths for pytest; empty: none")
    arguments = parser.parse_args()
    engine = engine_here()
    try:
        version = arguments.version or environments.newest(environments.PLAIN)
    except NoSuchVersion as error:
        print(error, file=sys.stderr)
        return 2
    if version == environments.locked(engine):
        print(f"{version} is the locked version, and the index has no newer one.")
        return 0
    folder = HOME / version
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made, what = prepare(engine, version, folder)
    used = what_we_use()
    found = compare(made, folder, used)
    gone = faults(found, used)
    told, code = ["Not run."], 0
    if tests := arguments.tests.split():
        code = run_tests(made, folder / "tests.xml", tests)
        told = failures(folder / "tests.xml") or ["All passed."]
    title = f"# From vLLM {environments.locked(engine)} to {version}\n\n{what}"
    text = report(title, found, gone, made.packages / "vllm", told)
    (folder / "report.md").write_text(text)
    print(f"{text}\nThis report is {folder / 'report.md'}")
    return 1 if gone or code else 0


if __name__ == "__main__":
    sys.exit(main())
