"""Who is calling, and what the service allows."""

from __future__ import annotations

from farcall.cli.app import AsJson, app, connect
from farcall.cli.showing import show_facts, show_json


@app.command()
def whoami(as_json: AsJson = False) -> None:
    """Show as whom the service knows you."""
    client = connect()
    caller = {**client.whoami(), "service": client.transport.service_url}
    if as_json:
        show_json(caller)
        return
    groups = ", ".join(f"{group['name']} ({group['id']})" for group in caller.get("groups") or ())
    show_facts({"name": caller.get("name"), "id": caller.get("id"), "groups": groups, "service": caller["service"]})


@app.command()
def limits(as_json: AsJson = False) -> None:
    """Show how much the service takes at once, and how long it keeps what it has."""
    found = connect().get_limits()
    (show_json if as_json else show_facts)(found)
