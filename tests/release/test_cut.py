"""How a release is cut, on a repository that is made for the test."""

from __future__ import annotations

import subprocess
from datetime import date
from pathlib import Path

import pytest

from tests.release import cut as cutting
from tests.release.cut import CannotRelease, cut, cut_changelog, entry_faults

DAY = date(2026, 11, 30)
CHANGELOG = """# Changelog

The format.

## [Unreleased]

### Added

- A thing that
  is new.

### Changed

- Another thing.
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in (*cutting.PLACES, "CHANGELOG.md"):
        copy = tmp_path / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text((cutting.ROOT / name).read_text())
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(repository: Path, *arguments: str) -> None:
    user = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", *user, *arguments], cwd=repository, check=True)


def commit(repository: Path) -> None:
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "a state")


def test_every_place_has_one_version() -> None:
    versions = cutting.versions_in(cutting.ROOT)
    assert all(len(found) == 1 for found in versions.values()), versions
    assert len(set().union(*versions.values())) == 1, versions


def test_the_changelog_is_in_order() -> None:
    unreleased = cutting.unreleased_of((cutting.ROOT / "CHANGELOG.md").read_text())
    assert not entry_faults(unreleased), "mend it, or a release is refused"


def test_a_release_moves_what_is_unreleased(repository: Path) -> None:
    cut(repository, "7.8.9", DAY)
    text = (repository / "CHANGELOG.md").read_text()
    assert "## [Unreleased]\n\n## [7.8.9] - 2026-11-30\n\n### Added\n\n- A thing that" in text
    assert set(cutting.PLACES) == cutting.versions_in(repository).keys()
    assert all(found == {"7.8.9"} for found in cutting.versions_in(repository).values())
    assert 'version = "7.8.9"' in (repository / "pyproject.toml").read_text()
    commit(repository)
    with pytest.raises(CannotRelease, match="nothing is unreleased"):
        cut(repository, "7.9.0", DAY)


def test_the_first_release_keeps_the_version(repository: Path) -> None:
    (version,) = cutting.versions_in(repository)["pyproject.toml"]
    cut(repository, version, DAY)
    assert f"## [{version}]" in (repository / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("version", ["1.2", "v1.2.3", "01.2.3", "1.2.3rc1", ""])
def test_a_version_has_three_numbers(repository: Path, version: str) -> None:
    with pytest.raises(CannotRelease, match="isn't a version"):
        cut(repository, version, DAY)


def test_an_older_version_is_refused(repository: Path) -> None:
    with pytest.raises(CannotRelease, match="is older"):
        cut(repository, "0.0.1", DAY)
    later = CHANGELOG + "\n## [0.9.0] - 2026-11-29\n\n- Old.\n"
    for version in ("0.9.0", "0.8.10"):
        with pytest.raises(CannotRelease, match=r"isn't newer than 0\.9\.0"):
            cut_changelog(later, version, DAY)
    assert "## [0.10.0]" in cut_changelog(later, "0.10.0", DAY)


def test_a_repository_with_changes_or_the_tag_is_refused(repository: Path) -> None:
    git(repository, "tag", "v7.8.9")
    with pytest.raises(CannotRelease, match=r"v7\.8\.9 exists"):
        cut(repository, "7.8.9", DAY)
    before = CHANGELOG.replace("is new", "is newer")
    (repository / "CHANGELOG.md").write_text(before)
    with pytest.raises(CannotRelease, match="not committed"):
        cut(repository, "8.0.0", DAY)
    assert (repository / "CHANGELOG.md").read_text() == before


def test_files_with_different_versions_are_refused(repository: Path) -> None:
    chart = repository / "helm" / "Chart.yaml"
    chart.write_text(chart.read_text().replace("appVersion: ", "appVersion: 9"))
    commit(repository)
    with pytest.raises(CannotRelease, match="different versions"):
        cut(repository, "7.8.9", DAY)


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ("- It ends\n", "doesn't end"),
        (
            "- One of a kind is this entry, I say.\n- One of a kind is this entry, I say it.\n",
            "twice",
        ),
        ("", "nothing is unreleased"),
        ("### Added\n", "nothing is unreleased"),
    ],
)
def test_entries_that_a_merge_has_broken_are_refused(entries: str, fault: str) -> None:
    (found,) = entry_faults(entries)
    assert fault in found
    assert not entry_faults("- One.\n- Two.\n")
