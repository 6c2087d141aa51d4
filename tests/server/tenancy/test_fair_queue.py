"""Fair sharing is decided here, by plain calls: simulated tenants on a simulated engine."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.tenancy.fair_queue import INPUT_COST, OUTPUT_COST, FairQueue, PromptTicket

MAX_INPUT, MAX_OUTPUT = 100, 50
PREFILL_TOKENS = 10_000
"""More than anybody has."""


class Engine:
    """Gives each running prompt a token a step; tenants ask as much as they are told to."""

    def __init__(self, max_running: int, seed: int, prefill_tokens: int = PREFILL_TOKENS) -> None:
        self.max_running, self.random = max_running, random.Random(seed)
        self.queue = FairQueue(max_running, prefill_tokens)
        self.keeps_room = prefill_tokens < PREFILL_TOKENS
        self.left: dict[PromptTicket, int] = {}
        self.served: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()
        self.asked_at: dict[PromptTicket, int] = {}
        self.waits: dict[str, list[int]] = {}
        self.now = 0

    def ask(self, tenant: str, weight: int = 1) -> None:
        ticket = self.queue.ask(tenant, weight, self.random.randint(1, MAX_INPUT))
        self.waiting[tenant] += 1
        self.asked_at[ticket] = self.now

    def step(self) -> None:
        for ticket in self.queue.advance():
            self.left[ticket] = self.random.randint(1, MAX_OUTPUT)
            self.served[ticket.tenant] += INPUT_COST * ticket.input_tokens
            self.waiting[ticket.tenant] -= 1
            self.waits.setdefault(ticket.tenant, []).append(self.now - self.asked_at[ticket])
        assert len(self.left) <= 2 * self.max_running
        wanted = len(self.left) + self.waiting.total()
        assert self.keeps_room or len(self.left) >= min(self.max_running, wanted), "idle"
        for ticket in list(self.left):
            self.queue.charge(ticket, 1)
            self.served[ticket.tenant] += OUTPUT_COST
            self.left[ticket] -= 1
            if not self.left[ticket]:
                del self.left[ticket]
                self.queue.leave(ticket)
        self.now += 1

    def backlog(self, weights: dict[str, int], num_steps: int, depth: int = 30) -> None:
        """Run with every tenant always having something waiting."""
        for _ in range(num_steps):
            for tenant, weight in weights.items():
                while self.waiting[tenant] < depth:
                    self.ask(tenant, weight)
            self.step()


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 8),
    st.dictionaries(st.sampled_from("abcde"), st.integers(1, 4), min_size=2),
    st.integers(0, 99),
)
def test_backlogged_tenants_are_served_by_weight(
    max_running: int, weights: dict[str, int], seed: int
) -> None:
    """The paper's bound: a difference that doesn't grow, of what a full engine costs."""
    engine = Engine(max_running, seed)
    bound = 2 * (INPUT_COST * MAX_INPUT + OUTPUT_COST * 2 * max_running * MAX_OUTPUT)
    for _ in range(10):
        engine.backlog(weights, 50, depth=2 * max_running)
        shares = [engine.served[tenant] / weight for tenant, weight in weights.items()]
        assert max(shares) - min(shares) <= bound


def test_jains_index_of_equal_backlogged_tenants() -> None:
    engine = Engine(8, seed=1)
    engine.backlog(dict.fromkeys("abcdefgh", 1), 2000)
    served = engine.served.values()
    assert sum(served) ** 2 / (len(served) * sum(s * s for s in served)) >= 0.98


@pytest.mark.parametrize("others", [1, 3])
def test_a_flood_delays_itself(others: int) -> None:
    """Tenants that ask now and then are served at once beside one that always has 200 waiting."""
    engine = Engine(8, seed=2)
    for step in range(3000):
        while engine.waiting["flood"] < 200:
            engine.ask("flood")
        for number in range(others):
            if step % 60 == number:
                engine.ask(f"calm{number}")
        engine.step()
    for number in range(others):
        assert max(engine.waits[f"calm{number}"]) == 0
    assert engine.served["flood"] > engine.served["calm0"], "what is left over is used"


def test_nobody_saves_up_for_later() -> None:
    engine = Engine(4, seed=3)
    engine.ask("late")
    engine.backlog({"busy": 1}, 2000)
    before = engine.served.copy()
    engine.backlog({"busy": 1, "late": 1}, 1000)
    late, busy = (engine.served[t] - before[t] for t in ("late", "busy"))
    assert late / busy == pytest.approx(1, abs=0.15)


def test_who_leaves_while_waiting_takes_no_turn() -> None:
    queue = FairQueue(1, PREFILL_TOKENS)
    first, second, third = (queue.ask("acme", 1, 1) for _ in range(3))
    assert queue.advance() == [first]
    queue.leave(second)
    with pytest.raises(ValueError, match="not in deque"):
        queue.leave(second)
    queue.leave(first)
    assert queue.advance() == [third]


def test_the_next_tenant_below_its_share_need_not_wait() -> None:
    queue = FairQueue(4, PREFILL_TOKENS)
    flood = [queue.ask("flood", 1, 10) for _ in range(9)]
    assert queue.advance() == flood[:4]
    calm = [queue.ask("calm", 1, 30) for _ in range(3)]
    queue.charge(flood[0], 5)
    assert queue.advance() == calm[:2]
    queue.leave(flood[0])
    assert queue.advance() == [], "there is still no room"


def test_prompts_of_one_moment_need_not_wait_for_each_other() -> None:
    """The first one's cost doesn't put its tenant behind a flood of others."""
    queue = FairQueue(4, PREFILL_TOKENS)
    flood = [queue.ask("flood", 1, 10) for _ in range(9)]
    assert queue.advance() == flood[:4]
    calm = [queue.ask("calm", 1, 1000), queue.ask("calm", 1, 1000)]
    assert queue.advance() == calm
    for ticket in calm:
        queue.leave(ticket)
    for _ in range(3):
        later = queue.ask("calm", 1, 1000)
        assert later in queue.advance(), "the flood has its share, and is hardly behind"
        queue.leave(later)
    queue.ask("calm", 1, 1000)
    assert queue.advance() == [], "what has been answered is paid for"


def test_prompts_of_one_of_several_tenants_begin_a_few_at_a_time() -> None:
    queue = FairQueue(8, prefill_tokens=25)
    calm = queue.ask("calm", 1, 1000)
    flood = [queue.ask("flood", 1, 10) for _ in range(9)]
    assert queue.advance() == [calm, *flood[:2]], "no prompt is too long by itself"
    second = queue.ask("calm", 1, 1)
    assert queue.advance() == []
    queue.charge(flood[0], 1)
    queue.charge(flood[0], 1)
    assert queue.advance() == [flood[2]]
    queue.leave(flood[1])
    assert queue.advance() == [flood[3]]
    queue.charge(calm, 1)
    assert queue.advance() == [second]


def test_more_prompts_of_one_tenant_alone_begin_at_once() -> None:
    queue = FairQueue(8, prefill_tokens=20)
    tickets = [queue.ask("flood", 1, 30) for _ in range(9)]
    assert queue.advance() == tickets[:5]
    queue.charge(tickets[0], 1)
    assert queue.advance() == tickets[5:6]


@pytest.mark.parametrize("prefill_tokens", [1, 150])
def test_few_prompts_at_a_time_are_shared_as_fairly(prefill_tokens: int) -> None:
    engine = Engine(8, 4, prefill_tokens)
    engine.backlog(dict.fromkeys("abc", 1), 2000)
    served = engine.served.values()
    assert max(served) / min(served) < 1.05


@pytest.mark.parametrize("seed", range(3))
def test_bursts_of_a_tenant_below_its_share_need_not_wait(seed: int) -> None:
    """By Poisson's law: half its share of the tokens, at times more than its share of the room."""
    engine = Engine(8, seed)
    share_of_room = 8 / 2
    steps_per_request = (MAX_OUTPUT / 2) / (share_of_room / 2)
    for _ in range(6000):
        while engine.waiting["flood"] < 32:
            engine.ask("flood")
        if engine.random.random() < 1 / steps_per_request:
            engine.ask("calm")
        engine.step()
    waits = sorted(engine.waits["calm"])
    assert waits[int(0.95 * len(waits))] <= 1
    assert engine.served["flood"] > 1.5 * engine.served["calm"]


def test_a_prompt_takes_a_sequence_for_each_choice() -> None:
    queue = FairQueue(4, PREFILL_TOKENS)
    wide, narrow = queue.ask("acme", 1, 10, choices=3), [queue.ask("acme", 1, 10) for _ in range(3)]
    assert queue.advance() == [wide, narrow[0]]
    queue.leave(wide)
    assert queue.advance() == narrow[1:]
    with pytest.raises(ValueError, match="5 choices"):
        queue.ask("acme", 1, 10, choices=5)


def test_choices_pay_for_their_tokens_and_the_prompt_once() -> None:
    queue = FairQueue(4, PREFILL_TOKENS)
    wide = queue.ask("acme", 1, 10, choices=4)
    assert queue.advance() == [wide]
    for _ in range(4):
        queue.charge(wide, 5)
    assert wide.cost == INPUT_COST * 10 + OUTPUT_COST * 20


def test_a_flood_of_choices_leaves_room_for_others() -> None:
    queue = FairQueue(4, PREFILL_TOKENS)
    flood = [queue.ask("flood", 1, 10, choices=4) for _ in range(9)]
    assert queue.advance() == flood[:1]
    calm = [queue.ask("calm", 1, 10) for _ in range(3)]
    assert queue.advance() == calm[:2], "its share"


def test_a_prompt_with_many_choices_is_not_passed_by_for_ever() -> None:
    queue = FairQueue(4, PREFILL_TOKENS)
    running = [queue.ask(tenant, 1, 10) for tenant in "abcde"]
    assert queue.advance() == running
    wide = queue.ask("wide", 1, 10, choices=4)
    for ticket in running:
        queue.charge(ticket, 5)
    later = [queue.ask(tenant, 1, 10) for tenant in "xyz"]
    assert queue.advance() == [], "none goes beyond the room before it"
    queue.leave(running[0])
    assert queue.advance() == [wide]
    assert later


def test_long_answers_of_a_tenant_with_its_share_leave_room_for_who_comes_later() -> None:
    queue = FairQueue(4, PREFILL_TOKENS)
    stream = queue.ask("calm", 1, 10)
    assert queue.advance() == [stream]
    for num_tokens in (200, 200, 200, 5):
        earlier = queue.ask("calm", 1, 10)
        assert queue.advance() == [earlier]
        queue.charge(earlier, num_tokens)
        queue.leave(earlier)
    wide = [queue.ask("new", 1, 10, choices=4) for _ in range(2)]
    assert queue.advance() == wide[:1], "the newcomer's counter is low"
    queue.leave(stream)
    again = queue.ask("calm", 1, 10)
    assert queue.advance() == [again], "the second wide prompt would leave no room for it"


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 8), st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 8)), max_size=60)
)
def test_every_prompt_is_served_and_the_room_is_never_more_than_doubled(
    max_running: int, asked: list[tuple[str, int]]
) -> None:
    queue = FairQueue(max_running, PREFILL_TOKENS)
    left = {queue.ask(tenant, 1, 10, min(width, max_running)) for tenant, width in asked}
    running: list[PromptTicket] = []
    while left:
        running += queue.advance()
        assert running, "stuck"
        assert sum(ticket.choices for ticket in running) <= 2 * max_running
        first = running.pop(0)
        queue.charge(first, first.choices)
        queue.leave(first)
        left.remove(first)
