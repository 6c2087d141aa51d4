"""What the test's fork server imports, instead of vLLM."""

from server.engine.process.titles import set_title

set_title()
