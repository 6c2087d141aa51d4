"""Cuts a release: `python -m tests.release.cut 0.2.0`, or `make release VERSION=0.2.0`.

The entries of the changelog under "Unreleased" get a heading with the version and the date, and
every file that has the version gets the new one. Nothing is written if something is wrong.
Committing, tagging and publishing stay with the person who releases.
"""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNRELEASED = "## [Unreleased]\n"
VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
PLACES = {
    "pyproject.toml": (r'^version = "([\d.]+)"$',),
    "helm/Chart.yaml": (r"^version: ([\d.]+)$", r"^appVersion: ([\d.]+)$"),
    "docs/install.md": (r"loraplex:([\d.]+)-[cg]pu", r"loraplex-([\d.]+)-py3"),
    "examples/compose.yaml": (r"loraplex:([\d.]+)-[cg]pu",),
}
"""The files that have the version, with expressions whose group is the version."""
LIKE_WORDS = 8
"""Two entries that begin with as many equal words are one entry twice, left by a merge."""


class CannotRelease(Exception):
    """Something must be corrected before the release. The message says what."""


def cut_changelog(text: str, version: str, day: date) -> str:
    """Return the changelog with what is unreleased under the version's heading.

    Raises:
        CannotRelease: the version isn't newer than the last one, or an entry isn't in order.
    """
    before, unreleased, rest = _split(text)
    released = [_parts(found) for found in re.findall(r"^## \[([\d.]+)\]", rest, re.MULTILINE)]
    if released and _parts(version) <= max(released):
        last = ".".join(map(str, max(released)))
        raise CannotRelease(f"{version} isn't newer than {last}, which the changelog has")
    if faults := entry_faults(unreleased):
        raise CannotRelease("CHANGELOG.md: " + "; ".join(faults))
    heading = f"## [{version}] - {day.isoformat()}\n"
    return f"{before}{UNRELEASED}\n{heading}{unreleased}{rest}"


def entries_of(unreleased: str) -> list[str]:
    """Return the entries of a part of the changelog, each on one line."""
    parts = re.split(r"^(?:### .*|- )", unreleased, flags=re.MULTILINE)
    return [" ".join(part.split()) for part in parts if part.strip()]


def entry_faults(unreleased: str) -> list[str]:
    """Return what is wrong with the entries of a part of the changelog."""
    entries = entries_of(unreleased)
    if not entries:
        return ["nothing is unreleased"]
    faults = [f"this entry doesn't end: {each[:60]}" for each in entries if each[-1] not in ".:"]
    seen: dict[str, str] = {}
    for entry in entries:
        begin = " ".join(entry.split()[:LIKE_WORDS])
        if begin in seen:
            faults.append(f"this entry stands twice: {begin}")
        seen[begin] = entry
    return faults


def _split(text: str) -> tuple[str, str, str]:
    """Return the text before the unreleased entries, these, and the earlier releases."""
    if text.count(UNRELEASED) != 1:
        raise CannotRelease("CHANGELOG.md has no part [Unreleased], or several")
    before, after = text.split(UNRELEASED)
    end = re.search(r"^## \[", after, re.MULTILINE)
    cut = end.start() if end else len(after)
    return before, after[:cut], after[cut:]


def unreleased_of(text: str) -> str:
    """Return the part of the changelog that is unreleased."""
    return _split(text)[1]


def versions_in(root: Path) -> dict[str, set[str]]:
    """Return the versions that each file of `PLACES` has."""
    return {
        name: {
            found
            for place in places
            for found in re.findall(place, (root / name).read_text(), re.MULTILINE)
        }
        for name, places in PLACES.items()
    }


def with_version(text: str, places: tuple[str, ...], version: str) -> str:
    """Return a file's text with the version at each of its places."""

    def changed(match: re.Match[str]) -> str:
        begin, end = match.start(1) - match.start(), match.end(1) - match.start()
        return match[0][:begin] + version + match[0][end:]

    for place in places:
        text = re.sub(place, changed, text, flags=re.MULTILINE)
    return text


def cut(root: Path, version: str, day: date) -> None:
    """Write the release's version and changelog.

    Raises:
        CannotRelease: something isn't in order. Nothing was written.
    """
    if not VERSION.fullmatch(version):
        raise CannotRelease(f"{version!r} isn't a version like 1.2.3")
    known = set().union(*versions_in(root).values())
    if len(known) != 1:
        raise CannotRelease(f"files have different versions: {', '.join(sorted(known))}")
    if _parts(version) < _parts(*known):
        raise CannotRelease(f"{version} is older than {', '.join(known)}, which the files have")
    _check_repository(root, version)
    texts = {"CHANGELOG.md": cut_changelog((root / "CHANGELOG.md").read_text(), version, day)}
    for name, places in PLACES.items():
        texts[name] = with_version((root / name).read_text(), places, version)
    for name, text in texts.items():
        (root / name).write_text(text)


def _check_repository(root: Path, version: str) -> None:
    if _git(root, "status", "--porcelain"):
        raise CannotRelease("there are changes that are not committed")
    if _git(root, "tag", "--list", f"v{version}"):
        raise CannotRelease(f"the tag v{version} exists")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def main() -> None:
    """Cut the release that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("name the version: make release VERSION=1.2.3")
    version = sys.argv[1]
    try:
        cut(ROOT, version, datetime.now(UTC).date())
    except CannotRelease as error:
        sys.exit(str(error))
    print(f"the changelog and {', '.join(PLACES)} have version {version}")


if __name__ == "__main__":
    main()
