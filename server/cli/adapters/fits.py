"""What the commands say of a best fit: of which version, how far from it, and where."""

from __future__ import annotations

from typing import Any

SHOWN_LAYERS = 5


def print_fit(version: dict[str, Any]) -> None:
    """Print what a version is the best fit of. Prints nothing for a version that is no fit."""
    fitted = version["metadata"].get("fitted")
    if fitted is None:
        return
    original = fitted["of"]
    print(
        f"{original['model']} has rank {original['rank']} and is kept for a server with a higher "
        f"limit; {version['model']} is its best fit of rank {fitted['rank']}"
    )
    print(f"{fitted['error']:.2%} away from it; {farthest(fitted)}")
    change = version["metadata"].get("checked", {}).get("logprob_change")
    if change is not None:
        print(f"on a probe it moves the base's log-probabilities by up to {change:.3g}")
    if difference := version.get("logprob_difference"):
        print(
            f"log-probabilities of {difference['num_tokens']} tokens of probe texts: "
            f"{difference['mean']:.3g} from the original's on average, {difference['largest']:.3g} "
            "at most (nats)"
        )


def farthest(fit: dict[str, Any]) -> str:
    """Return the layers that are farthest from what was fitted."""
    by_layer = fit["error_by_layer"]
    worst = sorted(by_layer, key=lambda layer: -by_layer[layer])[:SHOWN_LAYERS]
    return "farthest layers: " + ", ".join(f"{n} ({by_layer[n]:.2%})" for n in worst)
