"""Fully trained modules are refused with what to do; a list that names absent ones is a warning."""

from adapters_registry.check.base import BaseSpec
from adapters_registry.check.static_check import check_adapter
from tests.tiny import AdapterFactory


def test_modules_that_the_file_lacks_are_a_warning(
    tiny_base: BaseSpec, make_adapter: AdapterFactory
) -> None:
    directory = make_adapter(config={"modules_to_save": ["embed_tokens", "lm_head"]})
    (warning,) = check_adapter(directory, tiny_base).warnings
    assert warning.startswith("modules_to_save names modules that the file does not hold")
