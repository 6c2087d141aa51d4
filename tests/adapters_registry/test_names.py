import pytest

from adapters_registry.errors import InvalidName
from adapters_registry.names import check_name


@pytest.mark.parametrize("name", ["a", "smart-home", "v1.2_final", "0", "a" * 64])
def test_allowed(name: str) -> None:
    assert check_name(name, "adapter") == name


@pytest.mark.parametrize(
    "name",
    ["", "A", "a/b", "../etc", "a..b", "a@1", "-a", "a-", "a" * 65, "аdmin", "a b", "a\n", "ａ"],
)
def test_refused(name: str) -> None:
    with pytest.raises(InvalidName, match="adapter name"):
        check_name(name, "adapter")
