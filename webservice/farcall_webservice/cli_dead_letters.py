"""The commands of `farcall-webservice` that show messages which nobody could use: dead-letters."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from farcall.errors import ConfigurationError
from farcall_webservice.cli_common import BrokerUrl, Home, clear_errors, configuration

dead_letters = typer.Typer(help="Messages that neither the service nor an agent could use.", no_args_is_help=True)


@dead_letters.command("list")
def list_letters(home: Home = None, broker_url: BrokerUrl = None) -> None:
    """Every letter, oldest first: id, when it was set aside, queue, sender, size, reason. They stay where they are."""
    with _broker(home, broker_url) as url:
        from farcall_webservice import dead_letters as kept

        found = kept.letters(url)
        if not found:
            typer.echo("There are no dead letters.", err=True)
        for letter in found:
            reason = " ".join(letter.reason.split())
            line = f"{letter.id}  {letter.time}  {letter.queue}  {letter.sender}  {letter.size}  {reason}"
            typer.echo(_printable(line))


@dead_letters.command("show")
def show_letter(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="As `dead-letters list` shows it.")],
    body: Annotated[bool, typer.Option("--body", help="Write the body as it came, and nothing else.")] = False,
    home: Home = None,
    broker_url: BrokerUrl = None,
) -> None:
    """One letter with the beginning of its body, of which up to 64 KiB are kept."""
    with _broker(home, broker_url) as url:
        from farcall_webservice import dead_letters as kept

        found = next((letter for letter in kept.letters(url) if letter.id == letter_id), None)
        if found is None:
            raise ConfigurationError(f"there is no dead letter {letter_id}; `dead-letters list` shows those there are")
        if body:
            sys.stdout.buffer.write(found.body)
            return
        for name, value in found.headers.items():
            typer.echo(_printable(f"{name}: {value}"))
        typer.echo()
        typer.echo(_printable(found.body.decode("utf-8", "backslashreplace")))


@dead_letters.command("purge")
def purge_letters(home: Home = None, broker_url: BrokerUrl = None) -> None:
    """Remove all letters."""
    with _broker(home, broker_url) as url:
        from farcall_webservice import dead_letters as kept

        typer.echo(f"{kept.purge(url)} dead letters were removed.")


@contextmanager
def _broker(home: Home, broker_url: BrokerUrl) -> Iterator[str]:
    """The URL of the broker that is meant; if it cannot be used, that is said in a sentence."""
    with clear_errors():
        from farcall_webservice import queues, valkey

        config = configuration(home=home, broker_url=broker_url)
        url = config.broker_url or valkey.url_of(config.service_directory / "valkey")
        try:
            yield url
        except queues.errors_of(url) as error:
            raise ConfigurationError(f"the broker cannot be used: {error} (does the service run?)") from error


def _printable(text: str) -> str:
    """Without what would make a terminal do something: who wrote this may be anybody."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)
