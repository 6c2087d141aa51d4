"""The group of commands `loraplex adapters`."""

from __future__ import annotations

from server.cli.adapters import aliases, canary, compose, listing, recheck, registration, service
from server.cli.commands import Commands

app = Commands(
    help="Register, list, promote, roll back and retire adapters of a running server.",
    no_args_is_help=True,
)
app.command("register", epilog=registration.EXAMPLES)(registration.register)
app.command("compose", epilog=compose.EXAMPLES)(compose.compose)
app.command("list", epilog=listing.LIST_EXAMPLES)(listing.list_adapters)
app.command("show", epilog=listing.SHOW_EXAMPLE)(listing.show)
app.command("promote", epilog=aliases.PROMOTE_EXAMPLES)(aliases.promote)
app.command("canary", epilog=canary.EXAMPLES)(canary.canary)
app.command("rollback", epilog=aliases.ROLLBACK_EXAMPLE)(aliases.rollback)
app.command("pin", epilog=service.PIN_EXAMPLES)(service.pin)
app.command("unpin", epilog=service.UNPIN_EXAMPLE)(service.unpin)
app.command("recheck", epilog=recheck.EXAMPLES)(recheck.recheck)
app.command("retire", epilog=service.RETIRE_EXAMPLE)(service.retire)
app.command("delete", epilog=service.DELETE_EXAMPLE)(service.delete)
app.command("suspend", epilog=service.SUSPEND_EXAMPLE)(service.suspend)
app.command("resume", epilog=service.RESUME_EXAMPLE)(service.resume)
app.command("share", epilog=service.SHARE_EXAMPLES)(service.share)
