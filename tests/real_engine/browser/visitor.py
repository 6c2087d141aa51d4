"""Someone at the console in a real browser, and a note of all that goes wrong in the pages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    ViewportSize,
    expect,
)

TIMEOUT_MS = 30_000
"""For whatever a page waits for: the tests share two processors with an engine."""
ROOT = Path(__file__).parents[3]
PICTURES = {"overview", "adapter", "playground", "refused", "adapter-dark", "adapters-phone"}
"""Those that the documents show."""
DESKTOP = ViewportSize(width=1280, height=800)
PHONE = ViewportSize(width=390, height=844)
_REPORT_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) => {
  console.error(`policy violation: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
});
"""


class Contexts:
    """Browser contexts, which visitors use one after the other.

    Each new one would fetch and compile the scripts of every page again. A context that is given
    back keeps what it has cached, and neither cookies nor pages.
    """

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._free: dict[str, list[BrowserContext]] = {}

    def take(self, options: dict[str, Any]) -> BrowserContext:
        """Return a context with these options, which are those of Playwright's `new_context`."""
        if free := self._free.get(repr(options)):
            return free.pop()
        context = self._browser.new_context(**options)
        context.set_default_timeout(TIMEOUT_MS)
        context.add_init_script(_REPORT_VIOLATIONS)
        return context

    def give_back(self, context: BrowserContext, options: dict[str, Any]) -> None:
        """Close the pages of a context, and forget who is logged in."""
        for page in context.pages:
            page.close()
        context.clear_cookies()
        self._free.setdefault(repr(options), []).append(context)


class Visitor:
    """A browser with cookies of its own.

    Errors and warnings in the browser's console, scripts that fail, dialogs that a script opens
    and violations of the page's policy all end up in `faults`.
    """

    def __init__(
        self, contexts: Contexts, address: str, sessions: dict[str, Any], **options: Any
    ) -> None:
        """`address`: where the server is. `options`: those of Playwright's `new_context`.

        `sessions`: the cookies of those who have logged in, by their key.
        """
        self._options = {"viewport": DESKTOP, "reduced_motion": "reduce", **options}
        self._options["base_url"] = address
        self._contexts, self._context = contexts, contexts.take(self._options)
        # Those of the context: a page's own miss what its first script does.
        self._notes: dict[Any, Any] = {
            "console": self._note_message,
            "weberror": lambda error: self.faults.append(f"script: {error.error}"),
            "dialog": lambda dialog: self.faults.append(f"dialog: {dialog.message}"),
        }
        for event, note in self._notes.items():
            self._context.on(event, note)
        self._sessions = sessions
        self.faults: list[str] = []
        self._expected: list[str] = []
        self.page = self.new_page()

    def new_page(self) -> Page:
        """Open another tab."""
        return self._context.new_page()

    def log_in(self, key: str, path: str = "") -> Page:
        """Log in with a key, and open the page at a path below `/console`.

        Who has logged in with it before, at this server, goes on with that session.
        """
        if key in self._sessions:
            self._context.add_cookies(self._sessions[key])
            self.open(path or "/")
            return self.page
        self.page.goto("/console/login")
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Log in").click()
        self.page.wait_for_url(lambda url: "/login" not in url)
        self._sessions[key] = self.cookies()
        if path:
            self.open(path)
        return self.page

    def open(self, path: str) -> int:
        """Open the page at a path below `/console`, and return the answer's status."""
        answer = self.page.goto(f"/console{path}")
        assert answer is not None
        return answer.status

    def expect_fault(self, text: str) -> None:
        """Say that a fault with this text is meant to come, such as a status that is tested."""
        self._expected.append(text)

    def cookies(self) -> list[Any]:
        """Return the browser's cookies."""
        return list(self._context.cookies())

    def close(self) -> None:
        """Close the browser's pages, and forget its cookies."""
        self._contexts.give_back(self._context, self._options)
        for event, note in self._notes.items():
            self._context.remove_listener(event, note)

    def check(self) -> None:
        """Fail if anything went wrong that was not expected, or did not go wrong as expected."""
        unexpected = [f for f in self.faults if not any(text in f for text in self._expected)]
        assert not unexpected, f"the browser reports: {unexpected}"
        missing = [text for text in self._expected if not any(text in f for f in self.faults)]
        assert not missing, f"the browser did not report: {missing}"

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type}: {message.text} ({message.location['url']})")


def confirm(page: Page, verb: str) -> None:
    """Press the button of the open dialog, and wait until the page says what was done."""
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name=verb, exact=True).click()
    expect(dialog).to_have_count(0)


def version_row(page: Page, number: int) -> Locator:
    """Return the row of a version in the table of versions on an adapter's page."""
    table = page.get_by_role("region", name="Versions", exact=True)
    return table.get_by_role("row").filter(
        has=page.get_by_role("rowheader", name=f"@{number}", exact=True)
    )


def live_row(page: Page, number: int) -> Locator:
    """Return the row of a version in the table of live versions."""
    table = page.get_by_role("region", name="Live versions")
    return table.get_by_role("row").filter(
        has=page.get_by_role("rowheader", name=f"@{number}", exact=True)
    )


def take_picture(page: Page, name: str, *, whole: bool = False) -> None:
    """Write what the page shows, if `SCREENSHOTS` asks for it; `whole` shows all of a long page.

    The pictures of the documents go to `docs/images/`; with `SCREENSHOTS=all` every picture goes to
    `build/screenshots/`.
    """
    wanted = os.environ.get("SCREENSHOTS")
    if wanted == "all" or (wanted and name in PICTURES):
        folder = ROOT / ("build/screenshots" if wanted == "all" else "docs/images")
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        if whole:
            height = page.evaluate("document.documentElement.scrollHeight")
            page.set_viewport_size({"width": DESKTOP["width"], "height": height})
        page.screenshot(path=folder / f"console-{name}.png")
