"""What the documents say is there is there, and the other way round."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from server.api.intake import bounds
from server.engine.grammar import budget
from server.engine.request_fields import ALLOWED
from server.settings import Settings, group_of, variable_of
from tests.docs import generated, texts

ROOT = Path(__file__).parent.parent
PAGES = texts.documents()
RESULTS = [ROOT / "loadtest" / "RESULTS.md", ROOT / "training" / "RESULTS.md"]


NO_BOUND_ON_CLIENTS = {
    "engine_stop_seconds",
    "kv_cache_gib",
    "notice_seconds",
    "slot_quantum_seconds",
}
"""Settings with a name like that of a bound, which say how the server itself works."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@pytest.mark.parametrize("page", generated.generated_pages(), ids=name_of)
def test_generated_pages_are_current(page: Path) -> None:
    text = page.read_text()
    if page.name == "structures.md":  # its sentences may be older than the modules' own
        for file, _ in generated.all_modules():
            assert f"| `{file.name}` |" in text, f"run `make docs`: {file} isn't listed"
    else:
        assert generated.current(text) == text, "run `make docs` and commit what it changes"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_every_folder_of_a_package_is_in_the_tree_of_the_readme() -> None:
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1]
    for _, folder in generated.all_modules():
        parts = folder.relative_to(ROOT).parts
        if len(parts) <= 2:
            assert f"{parts[-1]}/" in tree, folder


def test_every_setting_has_a_group() -> None:
    groups = {group_of(field) for field in Settings.model_fields.values()}
    assert groups == {"Base", "Adapters", "Server", "Client"}


def test_the_table_of_bounds_names_every_setting_that_bounds() -> None:
    table = (ROOT / "SECURITY.md").read_text().split("## Limits")[1].split("## Dependencies")[0]
    for field in Settings.model_fields:
        if field.startswith("max_") or field.endswith(("_seconds", "_gib", "_days")):
            name = variable_of(field)
            assert f"`{name}`" in table or field in NO_BOUND_ON_CLIENTS, name


def test_the_bounds_are_those_of_the_code() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    for shown in (
        f"{bounds.MAX_ITEMS:,}; {budget.MAX_TOOLS} `tools`; "
        f"{bounds.MAX_ITEMS_OF['documents']} `documents`; {bounds.MAX_TOKEN_IDS:,} token ids",
        f"{bounds.MAX_ITEMS:,}; {bounds.MAX_DEPTH}; {bounds.MAX_CONTAINERS:,}",
        f"{budget.MAX_SCHEMA_BYTES >> 10} KiB; {budget.MAX_PATTERN_BYTES:,} characters; "
        f"{budget.MAX_GRAMMAR_BYTES:,} characters; {budget.MAX_TOOLS_BYTES >> 10} KiB",
        f"{budget.MAX_ENUM_VALUES:,}; {budget.MAX_PROPERTIES:,}; {budget.MAX_NESTING} levels; "
        f"{budget.MAX_REPETITIONS:,}, {budget.MAX_TOTAL_REPETITIONS:,}",
    ):
        assert shown in text, shown


@each_page
def test_files_named_in_the_documents_exist(page: Path) -> None:
    folders = "server|adapters_registry|training|loadtest|tests|deploy|docs|helm|requirements"
    for code in texts.inline_code(page.read_text()):
        if re.fullmatch(rf"(?:{folders})/[\w./-]*", code):
            assert (ROOT / code).exists(), code


@each_page
def test_nothing_is_left_to_do_in_the_documents(page: Path) -> None:
    assert "TODO" not in page.read_text()


@pytest.mark.parametrize("page", [*PAGES, *RESULTS], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in texts.links(page.read_text()):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in texts.anchors(target.read_text()), f"{link}: there is no such heading"


@each_page
def test_pictures_are_there(page: Path) -> None:
    for picture in re.findall(r"!\[[^\]]+\]\(([^)\s]+)\)", texts.without_blocks(page.read_text())):
        assert (page.parent / picture).is_file(), f"{picture} is not there"


def test_every_picture_is_shown() -> None:
    shown = "".join(page.read_text() for page in PAGES)
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.name in shown, picture.name


@each_page
def test_commands_exist_with_their_options(page: Path) -> None:
    assert_commands_exist(page.read_text())


def test_the_commands_of_the_first_hour_exist_with_their_options() -> None:
    """`make test-long` runs the script."""
    script = (ROOT / "examples" / "first_hour.sh").read_text()
    assert script.count("loraplex ") > 12
    assert_commands_exist(f"```bash\n{script.replace('loraplex --version', '')}\n```\n")


def assert_commands_exist(text: str) -> None:
    known = generated.all_commands()
    for words in texts.commands(text):
        path = next(
            (p for n in (2, 1) if (p := " ".join(["loraplex", *words[:n]])) in known),
            None,
        )
        if path is None:
            groups = {name.split()[1] for name in known}
            assert words[0] in groups, f"there is no `loraplex {words[0]}`"
            assert len(words) == 1, f"there is no `loraplex {' '.join(words[:2])}`"
            continue
        options = {name for p in known[path].params for name in [*p.opts, *p.secondary_opts]}
        for word in words:
            option = word.split("=")[0]
            if option.startswith("--") and option != "--help" and path != "loraplex serve":
                assert option in options, f"{path} has no {option}"


@each_page
def test_variables_are_settings(page: Path) -> None:
    known = {variable_of(name) for name in Settings.model_fields}
    assert set(re.findall(r"LORAPLEX_[A-Z][A-Z_]*[A-Z]", page.read_text())) <= known


@each_page
def test_make_targets_and_modules_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = [*texts.inline_code(text), *(block.text for block in texts.blocks(text))]
    for target in re.findall(r"^make ([a-z][\w.-]*)", "\n".join(code), re.MULTILINE):
        assert target in targets, f"there is no `make {target}`"
    for module in re.findall(r"python -m ((?:tests|server|training|loadtest)[\w.]*)", text):
        file = ROOT / module.rstrip(".").replace(".", "/")
        assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), module


@each_page
def test_code_blocks_can_be_read(page: Path) -> None:
    for block in texts.blocks(page.read_text()):
        if block.language == "python":
            ast.parse(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)


@each_page
def test_paths_that_curl_asks_are_routes(page: Path, tmp_path: Path) -> None:
    asked = [
        path
        for block in texts.blocks(page.read_text())
        for path in re.findall(r"curl[^\n]*?(?::\d+|\$\w+|HOST)(/[\w/@.-]+)", block.text)
    ]
    if asked:
        known = [*generated.application(tmp_path).openapi()["paths"], "/docs", "/openapi.json"]
        known += sorted(ALLOWED)
        patterns = [re.compile(re.sub(r"\{\w+\}", "[^/]+", path)) for path in known]
        for path in asked:
            assert any(pattern.fullmatch(path) for pattern in patterns), path
