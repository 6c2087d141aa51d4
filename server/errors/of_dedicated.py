"""The error of a dedicated server for everything but its own version."""

from __future__ import annotations

from server.errors import ModelNotFound


class ModelElsewhere(ModelNotFound):
    """A dedicated server answers for one version only, and this request means something else.

    Proxies repeat the request on a shared server. Envoy sees this error's header, and HAProxy its
    status. The status is not 421, because HAProxy 2.6 can't repeat that one.
    """

    code = "model_elsewhere"

    @property
    def headers(self) -> dict[str, str]:
        return {"x-loraplex-elsewhere": "1"}
