"""What a look at training data finds."""

from pathlib import Path

from tests.training.data.character_tokenizer import CharacterTokenizer
from training.data.conversations import checked, exchange
from training.data.inspection import Lengths, Segment, inspect_data
from training.data.reading import read_data, write_conversations
from training.data.rendering import Renderer


def test_counts_lengths_and_what_carries_loss(tmp_path: Path) -> None:
    messages = [*exchange("a", "bad").messages, *exchange("b", "good").messages]
    messages[1]["weight"] = 0
    data = [exchange("q", "y"), exchange("q", "y"), exchange("Q ", "$"), checked(messages)]
    write_conversations(tmp_path / "data.jsonl", data)
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write('{"messages": []}\n')
    found = inspect_data(read_data(tmp_path / "data.jsonl"), Renderer(CharacterTokenizer()), 20)
    assert (found.num_examples, found.num_bad, found.num_duplicates) == (4, 1, 1)
    assert (found.num_prompts, found.num_turns, found.num_unlearned) == (2, 4, 1)
    assert found.formats == {"messages": 4}
    assert found.special_tokens.startswith("1 example(s) hold special tokens")
    assert found.lengths == Lengths(shortest=12, median=12, p95=29, longest=29)
    assert found.answer_lengths == Lengths(shortest=2, median=2, p95=5, longest=5)
    assert found.num_too_long == 1
    assert len(found.examples) == 3
    assert found.examples[0] == [
        Segment("<u>q$\n<a>", is_learned=False),
        Segment("y$", is_learned=True),
        Segment("\n", is_learned=False),
    ]


def test_examples_that_cannot_be_rendered_are_counted(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    asked = {"role": "user", "content": "a"}
    chat = checked([asked, {"role": "assistant", "content": None, "tool_calls": [call]}])
    write_conversations(tmp_path / "data.jsonl", [chat, chat])
    found = inspect_data(read_data(tmp_path / "data.jsonl"), Renderer(CharacterTokenizer()), 20)
    ((cause, count),) = found.unrenderable.items()
    assert "can't render tool calls" in cause
    assert (count, found.num_with_tools, found.lengths) == (2, 2, None)
