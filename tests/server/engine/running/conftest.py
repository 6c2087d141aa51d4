"""A metered client of an engine, and the meter of one request."""

from typing import Any

import pytest

from server.engine.grammar.trial import GrammarTrials
from server.engine.running.metering import Metering
from server.engine.running.progress import Progress
from server.tenancy.meter import Meter
from server.tenancy.prompt_queue import PromptQueue
from tests.server.engine.running.llm_client import Client, allow


@pytest.fixture
def client() -> Any:
    return Client()


@pytest.fixture
def metering(client: Any) -> Metering:
    return Metering(client, Progress(), GrammarTrials(str), allow)


@pytest.fixture
def current() -> Meter:
    return Meter(PromptQueue(4, 100), "acme")
