"""What all commands share: how they find the service, and how they end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from farcall.errors import FarcallError, Unauthenticated
from farcall.exits import exit_code_of

if TYPE_CHECKING:
    from farcall import Client

#: What a shell says of a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130
#: The command did what it should, and the answer is no.
EXIT_NO = 1

_EPILOG = (
    "Exit codes: 0 done; 1 the answer is no (a task failed or had ended otherwise); 2 wrong usage; 65 the service "
    "refused the request; 69 there is no such thing; 75 not yet, or the service does not answer: try later; "
    "77 not allowed; 78 a setting is wrong; 130 ended by Ctrl-C."
)


class _Commands(TyperGroup):
    """Ends with a sentence and an exit code, not with a traceback, where we know what went wrong."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FarcallError as error:
            complain(str(error).strip())
            if isinstance(error, Unauthenticated):
                complain("Set FARCALL_TOKEN, or keep a token with: farcall-endpoint login")
            raise typer.Exit(exit_code_of(error)) from error
        except ValueError as error:
            # An id or a number that is none: the sentence names it.
            complain(str(error))
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Look at the tasks that you gave to a Farcall service, and cancel them.",
    epilog=_EPILOG,
)

AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


def connect() -> Client:
    from farcall.client import Client  # late: help and completion need none

    return Client(do_version_check=False)


def complain(sentence: str) -> None:
    typer.echo(sentence, err=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        from farcall import __version__

        typer.echo(f"farcall {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
