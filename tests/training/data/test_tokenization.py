"""Where the loss is taken: on answers, whatever the template and the tokenizer call their ends."""

from typing import Any

import pytest

from tests.training.data.character_tokenizer import CharacterTokenizer
from training.data.conversations import Conversation, checked, exchange
from training.data.rendering import Renderer
from training.data.tokenization import (
    Sample,
    tokenize_all,
    tokenize_conversation,
    tokenize_last_answer,
)
from training.errors import DataError

TWO = Conversation([*exchange("a", "one").messages, *exchange("b", "two").messages])
END = "{% if add_generation_prompt %}<a>{% endif %}"


def plain() -> Renderer:
    return Renderer(CharacterTokenizer())


def text_of(sample: Sample) -> str:
    return "".join(map(chr, sample.input_ids))


def learned(conversation: Conversation, renderer: Renderer | None = None) -> list[str]:
    samples = tokenize_conversation(renderer or plain(), conversation)
    assert all(len(sample.labels) == len(sample.input_ids) for sample in samples)
    return ["".join(map(chr, sample.answer_ids)) for sample in samples]


def test_only_the_answer_and_its_end_are_learned() -> None:
    assert learned(exchange("question", "answer")) == ["answer$"]


def test_every_answer_is_learned_and_nothing_between() -> None:
    system = {"role": "system", "content": "s"}
    assert learned(Conversation([system, *TWO.messages])) == ["one$two$"]


def test_an_evaluation_asks_for_the_last_answer() -> None:
    assert "".join(map(chr, tokenize_last_answer(plain(), TWO).answer_ids)) == "two$"


def test_an_answer_may_hold_the_end_token() -> None:
    assert learned(exchange("A?", "x $ y")) == ["x $ y$"]


def test_an_answer_without_weight_is_read_but_not_learned() -> None:
    messages = [dict(message) for message in TWO.messages]
    messages[1]["weight"] = 0
    (sample,) = tokenize_conversation(plain(), checked(messages))
    assert text_of(sample) == "<u>a$\n<a>one$\n<u>b$\n<a>two$\n"
    assert "".join(map(chr, sample.answer_ids)) == "two$"


CALLS = (
    "{% for t in tools %}[{{ t.function.name }}]{% endfor %}"
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}"
    "{% for c in m.tool_calls %}={{ c.function.name }}({{ c.function.arguments.x }}){% endfor %}$\n"
    "{% endfor %}" + END
)
CALL = {"function": {"name": "look", "arguments": '{"x": 1}'}}
WITH_CALL: list[dict[str, Any]] = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "One moment.", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "done"},
]
TOOLS = [{"name": "look", "parameters": {}}]


def test_calls_are_learned_and_what_tools_say_is_not() -> None:
    renderer = Renderer(CharacterTokenizer(CALLS))
    conversation = checked(WITH_CALL, TOOLS)
    assert learned(conversation, renderer) == ["One moment.=look(1)$done$"]
    (sample,) = tokenize_conversation(renderer, conversation)
    assert text_of(sample).startswith("[look]<u>hi$\n")


def test_a_template_that_leaves_out_calls_or_tools_is_refused() -> None:
    with pytest.raises(DataError, match="can't render tool calls"):
        learned(checked(WITH_CALL))
    with pytest.raises(DataError, match="can't render tools"):
        learned(checked(exchange("a", "b").messages, TOOLS))
    silent = CALLS.replace("{{ m.content }}", "{{ m.content if m.role != 'tool' }}")
    with pytest.raises(DataError, match="can't render the answers of tools"):
        learned(checked(WITH_CALL), Renderer(CharacterTokenizer(silent)))


def test_a_template_that_fails_is_an_error_with_its_words() -> None:
    failing = Renderer(CharacterTokenizer("{{ messages[5].content + 1 }}"))
    with pytest.raises(DataError, match=r"can't render the conversation: .*no element 5"):
        learned(exchange("a", "b"), failing)


THINKING = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}$\n{% endfor %}"
    "{% if add_generation_prompt %}<a><think>{% endif %}"
)


def test_a_template_that_opens_every_answer() -> None:
    renderer = Renderer(CharacterTokenizer(THINKING))
    with pytest.raises(DataError, match=r"opens every answer with '<think>': begin the answers"):
        learned(exchange("hi", "yes"), renderer)
    assert learned(exchange("hi", "<think>ok</think>yes"), renderer) == ["ok</think>yes$"]


REWRITING = (
    "{% for m in messages %}<{{ m.role[0] }}>"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}$\n{% endfor %}" + END
)
FORGETTING = REWRITING.replace("m.content if loop.last else ", "")


@pytest.mark.parametrize("template", [REWRITING, FORGETTING], ids=["earlier", "all"])
@pytest.mark.parametrize("opening", ["", "<think>"])
def test_a_template_that_drops_reasoning_gives_a_sample_for_each_answer(
    template: str, opening: str
) -> None:
    renderer = Renderer(CharacterTokenizer(template.replace("<a>{%", f"<a>{opening}{{%")))
    one = exchange("a", "<think>x</think>one").messages
    two = exchange("b", "<think>y</think>two").messages
    first, second = tokenize_conversation(renderer, checked([*one, *two]))
    assert text_of(first).rstrip() == "<u>a$\n<a><think>x</think>one$"
    assert text_of(second).rstrip() == "<u>a$\n<a>one$\n<u>b$\n<a><think>y</think>two$"
    for sample, said in ((first, "x</think>one$"), (second, "y</think>two$")):
        assert "".join(map(chr, sample.answer_ids)) == ("" if opening else "<think>") + said


def test_the_date_of_a_template_does_not_change() -> None:
    dated = "{{ strftime_now('%d %b %Y') }}|" + "{{ messages[0].content }}"
    conversation = exchange("a", "b")
    assert Renderer(CharacterTokenizer(dated)).render(conversation) == "26 Jul 2024|a"
    later = Renderer(CharacterTokenizer(dated), date="2026-01-02")
    assert later.render(conversation) == "02 Jan 2026|a"


def test_long_examples_are_listed_or_cut() -> None:
    data = [exchange("q", "short"), exchange("q", "longer answer"), exchange("long" * 9, "a")]
    with pytest.raises(DataError, match=r"2 example\(s\) are longer .* number 2, 3"):
        tokenize_all(plain(), data, max_length=20)
    cut = tokenize_all(plain(), data[:2], max_length=20, truncate=True)
    assert [len(sample.input_ids) for (sample,) in cut] == [16, 20]
    with pytest.raises(DataError, match=r"no answer within max_length=20 tokens: .* number 3"):
        tokenize_all(plain(), data, max_length=20, truncate=True)
    with pytest.raises(DataError, match=r"number 1, 2, .* 20 and 10 more$"):
        tokenize_all(plain(), [data[2]] * 30, max_length=20)


def test_an_example_that_cannot_be_rendered_is_numbered() -> None:
    with pytest.raises(DataError, match=r"^example 2: .*can't render tool calls"):
        tokenize_all(plain(), [TWO, checked(WITH_CALL)], max_length=100)
