"""The ``farcall-endpoint`` command. Whatever takes long to import is imported by the command that needs it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from farcall.config import home, login_variable
from farcall.errors import ConfigurationError, FarcallError, Unauthenticated
from farcall.exits import exit_code_of

from . import commanding, directories, pidfile, roster, showing
from .commanding import complain, existing
from .directories import DEFAULT_NAME
from .pidfile import State

if TYPE_CHECKING:
    from .service import Service


class _Commands(TyperGroup):
    """Ends with a sentence and an exit code, not with a traceback, where we know what went wrong."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FarcallError as error:
            complain(str(error))
            if isinstance(error, Unauthenticated):
                complain("A token is kept by: farcall-endpoint login")
            raise typer.Exit(exit_code_of(error)) from error
        except OSError as error:
            # A full or read-only disk, most likely; the sentence names the file.
            complain(str(error))
            raise typer.Exit(os.EX_IOERR) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run the tasks of a Farcall service here.",
)

Name = Annotated[str, typer.Argument(metavar="[NAME]", help="The endpoint.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


@app.command()
def configure(
    name: Name = DEFAULT_NAME,
    provider: Annotated[str, typer.Option(help="Who starts the workers; see 'providers'.")] = "local",
    display_name: Annotated[str | None, typer.Option(help="What people see in lists.")] = None,
    endpoint_config: Annotated[Path | None, typer.Option(help="Use this config.yaml or config.py.")] = None,
) -> None:
    """Make a new endpoint."""
    from .configuring import configure as make

    path = make(name, provider=provider, display_name=display_name, source=endpoint_config)
    typer.echo(f"The endpoint {name!r} is configured in {path}")
    typer.echo(f"Look through that file, then start it with: farcall-endpoint start {name}")


@app.command()
def start(
    name: Name = DEFAULT_NAME,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay attached to the terminal.")] = False,
    endpoint_uuid: Annotated[
        uuid.UUID | None, typer.Option(help="Register under this id. It must be yours, or new.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background; it always does.")] = False,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Start an endpoint, in the background, and wait until it is ready."""
    directory = existing(name)
    if ready_fd is None and not commanding.may_start(directory):
        return
    chosen = commanding.choose_id(directory, endpoint_uuid)
    code = (
        commanding.be_the_agent(directory, ready_fd)
        if foreground or ready_fd is not None
        else commanding.start(directory)
    )
    if code and chosen:
        directories.forget_endpoint_id(directory)
    raise typer.Exit(code)


@app.command()
def stop(
    name: Name = DEFAULT_NAME,
    remote: Annotated[bool, typer.Option("--remote", help="Through the service, wherever it runs.")] = False,
) -> None:
    """Stop an endpoint and wait until it is down."""
    directory = existing(name)
    if not remote:
        raise typer.Exit(0 if commanding.stop(directory) else 1)
    endpoint_id = directories.read_endpoint_id(directory)
    if endpoint_id is None:
        raise ConfigurationError(f"the endpoint {name!r} was never started, so the service does not know it")
    _service().lock(endpoint_id)
    typer.echo(f"The service has told the endpoint {name!r} to stop, and will not let it in for a minute.")


@app.command()
def restart(name: Name = DEFAULT_NAME) -> None:
    """Stop an endpoint if it runs, and start it."""
    directory = existing(name)
    # Looked at before anything is stopped: a mistake in it should not end an endpoint that works.
    from .loading import load_config

    load_config(directory)
    if pidfile.state_of(directory) in (State.RUNNING, State.DISCONNECTED):
        # What it could not end, its successor will.
        commanding.stop(directory)
    raise typer.Exit(commanding.start(directory))


@app.command("list")
def list_endpoints(as_json: AsJson = False) -> None:
    """List the endpoints of this account on this machine."""
    found = [showing.listed(directory) for directory in directories.endpoint_directories()]
    if as_json:
        showing.show_json(found)
    elif found:
        rows = [[endpoint["endpoint_id"] or "None", endpoint["status"], endpoint["name"]] for endpoint in found]
        showing.show_table(("Endpoint ID", "Status", "Endpoint Name"), rows)
    else:
        typer.echo("There are no endpoints here; make one with: farcall-endpoint configure")


@app.command()
def resume(name: Name = DEFAULT_NAME) -> None:
    """Have an endpoint ask for blocks again, after some in a row came to nothing and that is mended."""
    commanding.resume(existing(name))


@app.command()
def status(
    name: Name = DEFAULT_NAME,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it as it changes, until Ctrl-C.")] = False,
) -> None:
    """Show how an endpoint is, as this machine and the service see it."""
    if watch:
        from .dashboard import watch as go_on

        with contextlib.suppress(KeyboardInterrupt):
            go_on(existing(name))
        return
    facts = showing.local_facts(existing(name))
    if facts["endpoint_id"]:
        try:
            told = showing.service_facts(_service().endpoint_status(facts["endpoint_id"]))
            # What both know of, this machine knows sooner.
            facts |= {key: value for key, value in told.items() if key not in facts}
        except FarcallError as error:
            facts["service_status"] = f"not known: {error}"
    (showing.show_json if as_json else showing.show_facts)(facts)


@app.command()
def logs(
    name: Name = DEFAULT_NAME,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is added.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many lines.")] = 50,
) -> None:
    """Show the end of an endpoint's log."""
    from .logfile import last_lines

    path = existing(name) / directories.LOG_NAME
    if not path.exists():
        typer.echo(f"The endpoint {name!r} has not run yet, so there is no log.", err=True)
        return
    tail = shutil.which("tail") if follow else None
    if follow and tail is None:
        raise ConfigurationError("--follow needs the 'tail' program in PATH")
    if tail:
        # It waits for changes without asking, and finds the new file when the log is rotated.
        os.execv(tail, ["tail", "-n", str(lines), "-F", str(path)])
    for line in last_lines(path, lines):
        typer.echo(line)


@app.command()
def delete(
    name: Name = DEFAULT_NAME,
    force: Annotated[bool, typer.Option("--force", help="Even if it runs, or the service cannot be told.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete an endpoint, here and in the service. Tasks that wait for it fail."""
    directory = directories.endpoint_directory(name)
    if not directory.is_dir():
        raise ConfigurationError(f"there is no endpoint called {name!r} in {home()}")
    if pidfile.state_of(directory) is State.RUNNING and not force:
        raise ConfigurationError(f"the endpoint {name!r} is running; stop it first, or say --force")
    if not yes and not typer.confirm(f"Delete the endpoint {name!r} and everything in {directory}?"):
        raise typer.Exit(1)
    if pidfile.state_of(directory) is State.RUNNING:
        commanding.stop(directory)
    _refuse_to_forget(directory, force)
    commanding.delete_in_service(directory, force)
    shutil.rmtree(directory)
    typer.echo(f"The endpoint {name!r} is deleted.")


@app.command()
def providers(as_json: AsJson = False) -> None:
    """List the installed providers, and where they come from; none of them is loaded."""
    from .plugins import installed_providers

    found = installed_providers()
    if as_json:
        showing.show_json([vars(provider) for provider in found])
    else:
        rows = [[provider.name, provider.distribution, provider.version, provider.origin] for provider in found]
        showing.show_table(("Provider", "Distribution", "Version", "Origin"), rows)


@app.command()
def doctor(
    name: Name = DEFAULT_NAME,
    block: Annotated[bool, typer.Option(help="Ask for a block, to see whether its nodes can work.")] = True,
    wait: Annotated[float, typer.Option(min=1, help="Seconds that the block may take to begin.")] = 120,
) -> None:
    """Look for what would keep an endpoint from working, and say how to mend it."""
    from .doctor import examine

    all_is_well = True
    directory = directories.endpoint_directory(name)
    for finding in examine(directory, _service, patience_s=wait if block else None, tell=complain):
        typer.echo(f"{'OK  ' if finding.is_well else 'BAD '} {finding.subject}: {finding.said}")
        if not finding.is_well:
            all_is_well = False
            typer.echo(f"     -> {finding.remedy}")
    raise typer.Exit(0 if all_is_well else 1)


@app.command()
def login(
    service_url: Annotated[str | None, typer.Option(help="Where the service is.")] = None,
    token: Annotated[
        str | None, typer.Option(help="Better left out, and typed when asked or piped in: others see commands.")
    ] = None,
    client_id: Annotated[str | None, typer.Option(help="Log in as a client, whose secret is asked for.")] = None,
) -> None:
    """Keep a service's address and a token for it, once the service has accepted them."""
    from .service import log_in, log_in_client

    if client_id is not None:
        if token is not None:
            raise ConfigurationError("a token and a client's id were given: log in with one of them")
        url, caller = log_in_client(service_url, client_id, _ask("Secret"))
    else:
        url, caller = log_in(service_url, _ask("Token") if token is None else token)
    typer.echo(f"Logged in to {url} as {caller['name']}.")
    _say_what_goes_first()


@app.command()
def logout() -> None:
    """Forget the token, or the client's id and secret, that is kept on this machine."""
    from .service import log_out

    typer.echo("Logged out." if log_out() else "Nobody is logged in.")
    _say_what_goes_first()


@app.command()
def whoami(as_json: AsJson = False) -> None:
    """Say as whom the service knows you."""
    caller = _service().whoami()
    if as_json:
        showing.show_json(caller)
    else:
        typer.echo(f"{caller['name']} ({caller['id']})")


@app.command()
def version() -> None:
    """Say which version this is."""
    from importlib.metadata import version as version_of

    typer.echo(version_of("farcall-endpoint"))


def _ask(what: str) -> str:
    """Without echo, or from a pipe: a secret on the command line is seen in the list of processes."""
    if sys.stdin.isatty():
        return str(typer.prompt(what, hide_input=True))
    return sys.stdin.readline().strip()


def _say_what_goes_first() -> None:
    variable = login_variable()
    if variable is not None:
        complain(f"{variable} is set, and goes before what is kept")


def _service() -> Service:
    from .service import Service

    return Service.from_settings()


def _refuse_to_forget(directory: Path, force: bool) -> None:
    left = [key for key, entry in roster.read_roster(directory / roster.FILE_NAME).items() if not entry.is_ending]
    if left and not force:
        raise ConfigurationError(
            f"blocks {', '.join(left)} of the endpoint {directory.name!r} may not have ended, and nobody would know of "
            "them any more; start and stop it, or end them yourself and say --force"
        )
