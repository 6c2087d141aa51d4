from tests.training.data.character_tokenizer import CharacterTokenizer
from training.data.conversations import exchange
from training.data.special_tokens import special_tokens_in


def test_examples_are_counted_by_role() -> None:
    data = [exchange("a", "x $ y"), exchange("#", "# $"), exchange("a", "b")]
    found = special_tokens_in(CharacterTokenizer(), data)
    assert (found.num_examples, dict(found.by_role)) == (2, {"assistant": 2, "user": 1})
    assert str(found).startswith(
        "2 example(s) hold special tokens in their text (assistant 2, user 1), such as $, #:"
    ) or str(found).startswith(
        "2 example(s) hold special tokens in their text (assistant 2, user 1), such as #, $:"
    )
    assert special_tokens_in(CharacterTokenizer(), data[2:]).num_examples == 0
