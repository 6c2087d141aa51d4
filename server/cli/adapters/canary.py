"""The command `loraplex adapters canary`: a split by hand, or one that is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.adapters.aliases import point
from server.cli.adapters.shared import JsonFlag, Name, TenantFlag, path_of
from server.cli.client import call

EXAMPLES = """Examples:

loraplex adapters canary smart-home 2 --weight 10

loraplex adapters canary smart-home 2 --weight 0

loraplex adapters canary smart-home 2 --steps 1,10,50,100 --every 10m --data held-out.jsonl

loraplex adapters canary smart-home
"""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def canary(
    name: Name,
    version: Annotated[
        int | None,
        typer.Argument(
            help="The version's number, for example 2. Without it, the judged canary is shown."
        ),
    ] = None,
    weight: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=100,
            help="The version's share of the requests in per cent. With 0 the canary ends. "
            "Default: 10.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            help="Have the server judge it, with these shares in per cent one after the other, for "
            "example 1,10,50,100."
        ),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(
            help="With --steps: how long a step lasts at least, as 30s, 10m or 2h. Default: 10m."
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="With --steps: some of error_rate, first_token_p95, answer_length and evaluation. "
            "Default: error_rate,first_token_p95, and with --data evaluation."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="With --steps: held-out conversations that both versions answer, in any format "
            "that `loraplex train` takes."
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="With --data: exact_match, rouge_l, bleu or json_valid. Default: exact_match."
        ),
    ] = None,
    min_requests: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --steps: the requests that each version needs. Default: 100."
        ),
    ] = None,
    margin: Annotated[
        list[str] | None,
        typer.Option(help="With --steps: how much worse is accepted, for example error_rate=0.02."),
    ] = None,
    warm: Annotated[
        bool,
        typer.Option("--warm", help="With --steps: promote it when every server has it in memory."),
    ] = False,
    tenant: TenantFlag = "",
    as_json: JsonFlag = False,
) -> None:
    """Give a version a share of the requests for the bare name. The live version gets the rest.

    With --steps the server judges it: at each step it compares both versions, and goes on, holds,
    or rolls back, and records the reason in the audit trail.
    """
    judging = {
        "--every": every,
        "--judge": judge,
        "--data": data,
        "--metric": metric,
        "--min-requests": min_requests,
        "--margin": margin,
        "--warm": warm,
    }
    _check_together(version, weight, steps, [flag for flag, given in judging.items() if given])
    if version is None:
        show(path_of(tenant, name), as_json)
        return
    if steps is None:
        _split(tenant, name, version, 10 if weight is None else weight, as_json)
        return
    given: dict[str, Any] = {
        "every_seconds": None if every is None else seconds_of(every),
        "min_requests": min_requests,
        "metric": metric,
    }
    body: dict[str, Any] = {
        "version": version,
        "steps": _numbers(steps),
        "margins": dict(map(_margin, margin or [])),
        "warm": warm,
        **{field: value for field, value in given.items() if value is not None},
    }
    if judge is not None:
        body["judge"] = [criterion.strip() for criterion in judge.split(",")]
    if data is not None:
        body["data"] = _conversations(data)
    begun = call("POST", f"{path_of(tenant, name)}/canary", json=body).json()
    if as_json:
        print(json.dumps(begun))
        return
    criteria = ", ".join(begun["judge"])
    print(
        f"{tenant}/{name}@{version} gets {begun['weight']} % of the requests and is judged by "
        f"{criteria} beside @{begun['live']}"
    )


def _check_together(
    version: int | None, weight: int | None, steps: str | None, judging: list[str]
) -> None:
    """Refuse options that would mean nothing together, rather than do something else."""
    if weight is not None and steps is not None:
        raise typer.BadParameter("give --weight or --steps, not both")
    if judging and steps is None:
        raise typer.BadParameter(f"{judging[0]} is for a canary that is judged: give --steps, too")
    if version is None and (weight is not None or steps is not None):
        raise typer.BadParameter("name the version that gets the share")


def show(path: str, as_json: bool) -> None:
    """Print an adapter's last judged canary."""
    canary: dict[str, Any] = call("GET", f"{path}/canary").json()
    if as_json:
        print(json.dumps(canary))
        return
    print(
        f"@{canary['version']} beside @{canary['live']}: {canary['state']} at {canary['weight']} % "
        f"(steps {', '.join(map(str, canary['steps']))})"
    )
    print(f"requests: {canary['canary_requests']} and {canary['live_requests']}")
    for comparison in canary["comparisons"]:
        print(f"{comparison['criterion']}: {comparison['in_words']}")
    if canary["reason"]:
        print(f"last judgement: {canary['reason']}")


def _split(tenant: str, name: str, version: int, weight: int, as_json: bool) -> None:
    response = call("GET", f"{path_of(tenant, name)}/aliases/live")
    stable = next(t["version"] for t in reversed(response.json()["targets"]))
    targets = [{"version": version, "weight": weight}, {"version": stable, "weight": 100 - weight}]
    # The canary comes first, so that its conversations stay with it when its share grows.
    targets = [target for target in targets if target["weight"]]
    point(tenant, name, targets, {"If-Match": response.headers["etag"]}, as_json)


def seconds_of(text: str) -> float:
    """Return the seconds of a duration: 30s, 10m, 2h, 1d, or a number of seconds."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "s")
    try:
        return float(number) * UNITS[unit]
    except ValueError:
        raise typer.BadParameter(f"--every: {text!r} is no duration, as 30s, 10m or 2h") from None


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--steps: {text!r} isn't a list as 1,10,50,100") from None


def _margin(text: str) -> tuple[str, float]:
    criterion, _, number = text.partition("=")
    try:
        return criterion, float(number)
    except ValueError:
        raise typer.BadParameter(f"--margin: {text!r} isn't one as error_rate=0.02") from None


def _conversations(file: Path) -> list[dict[str, Any]]:
    from server.cli.training.shared import explained, read

    with explained():
        return [conversation.record for conversation in read(file, says_format=False)]
