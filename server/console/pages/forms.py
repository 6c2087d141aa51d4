"""Forms as the bodies of the HTTP routes, so that both are checked by the same types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

Body = TypeVar("Body", bound=BaseModel)


def body_of(kind: type[Body], fields: Mapping[str, Any]) -> Body:
    """Return the body that a form's fields make. Empty texts are left out.

    Raises:
        RequestValidationError: the fields do not make one.
    """
    filled = {name: value for name, value in fields.items() if value != ""}
    try:
        return kind.model_validate(filled)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
