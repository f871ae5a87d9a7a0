"""Tasks: their states, results and output, and their end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from farcall.cli.app import EXIT_NO, AsJson, app, complain, connect
from farcall.cli.showing import local, moment, show_facts, show_json, show_table
from farcall.errors import FarcallError, NotFound, TaskCancelled, TaskExecutionFailed, TaskPending
from farcall.exits import exit_code_of
from farcall.wire import TaskState

_STATES = tuple(state.value for state in TaskState)

Task = Annotated[str, typer.Argument(metavar="TASK", help="The task's id.")]


@app.command()
def cancel(
    tasks: Annotated[list[str] | None, typer.Argument(metavar="TASK...", help="Ids of tasks.")] = None,
    group: Annotated[str | None, typer.Option(help="All tasks of this task group.")] = None,
    as_json: AsJson = False,
) -> None:
    """Cancel tasks, wherever they are; running ones are stopped with everything that they started.

    Ends with 1 if a task had ended otherwise, and with 69 if there is no such task.
    """
    if not tasks and group is None:
        raise ValueError("say what to cancel: ids of tasks, or --group with the id of a task group")
    client = connect()
    answers = client.cancel(tasks) if tasks else {}
    ended = client.cancel(task_group_id=group) if group is not None else None
    if as_json:
        show_json({"tasks": answers, "group": ended})
    else:
        for task_id, said in answers.items():
            typer.echo(f"{task_id}  {said['status']}" + (f": {said['reason']}" if said.get("reason") else ""))
        if ended is not None:
            typer.echo(f"{group}  {ended['cancelled']} cancelled, {ended['ended']} had ended before")
    if any(said["status"] == "unknown" for said in answers.values()):
        raise typer.Exit(exit_code_of(NotFound("")))
    if not all(said["cancelled"] for said in answers.values()):
        raise typer.Exit(EXIT_NO)


@app.command()
def status(task: Task, as_json: AsJson = False) -> None:
    """Show where a task is and why, and what became of it so far."""
    found = connect().look_at_task(task)
    if as_json:
        show_json(found)
        return
    show_facts(
        {
            "task": found["task_id"],
            "state": found["status"],
            "reason": found.get("reason"),
            "attempts": "\n".join(found.get("attempts") or ()),
            "endpoint": found.get("endpoint_id"),
            "function": found.get("function_id"),
            "group": found.get("task_group_id"),
            "history": "\n".join(_change(*change) for change in found.get("history") or ()),
            "error": found.get("exception", "").strip(),
        }
    )


@app.command()
def result(
    task: Task,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Until it has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a task returned.

    Ends with 1 and the traceback on stderr if it failed or was cancelled, and with 75 if it has not ended.
    """
    try:
        value = connect().get_result(task, timeout=None if wait else 0)
    except TaskPending as error:
        complain(f"The task {task} has not ended: it is {error.reason}. --wait waits for it.")
        raise typer.Exit(exit_code_of(error)) from None
    except FarcallError as error:
        if not isinstance(error, TaskExecutionFailed):
            raise
        _show_failure(task, "cancelled" if isinstance(error, TaskCancelled) else "failed", error.remote_data, as_json)
    except Exception as error:  # whatever the function raised
        if not isinstance(error.__cause__, TaskExecutionFailed):
            raise
        _show_failure(task, "failed", error.__cause__.remote_data, as_json)
    else:
        if as_json:
            show_json({"task_id": task, "status": "success", "result": value})
        else:
            typer.echo(value if isinstance(value, str) else repr(value))


@app.command()
def logs(
    task: Task,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what it prints, to its end.")] = False,
    stderr: Annotated[bool, typer.Option("--stderr", help="What it prints to stderr instead of stdout.")] = False,
    after: Annotated[int, typer.Option(help="From this character on.")] = 0,
) -> None:
    """Print what a task has printed, while it runs or later. With -f, stderr says at last how it ended."""
    client = connect()
    stream = "stderr" if stderr else "stdout"
    if not follow:
        while text := (piece := client.get_task_log(task, stream, after))["text"]:
            typer.echo(text, nl=False)
            after = piece["next"]
        return
    for text in client.follow_task_log(task, stream, after):
        typer.echo(text, nl=False)
    complain(f"The task {task} has ended: {_end_of(client.look_at_task(task))}")


@app.command("tasks")
def list_tasks(
    state: Annotated[str | None, typer.Option(help="Only those in this state, such as running.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only those of this endpoint.")] = None,
    function: Annotated[str | None, typer.Option(help="Only calls of this function.")] = None,
    group: Annotated[str | None, typer.Option(help="Only those of this task group.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List your tasks, newest first."""
    if state is not None and state not in _STATES:
        raise ValueError(f"there is no state {state!r}: --state takes one of {', '.join(_STATES)}")
    client = connect()
    found = list(
        client.tasks(state=state, endpoint_id=endpoint, function_id=function, task_group_id=group, limit=limit)
    )
    if as_json:
        show_json(found)
    elif found:
        rows = [[each["task_id"], each["status"], local(each["created_at"]), each["endpoint_id"]] for each in found]
        show_table(("TASK", "STATE", "SUBMITTED", "ENDPOINT"), rows)
    else:
        complain("There are no such tasks.")


def _change(state: str, seconds: float, note: str = "") -> str:
    return f"{moment(seconds)}  {state}" + (f"  ({note})" if note else "")


def _end_of(found: Mapping[str, Any]) -> str:
    """A word, and the last line of what the service says of it."""
    lines = str(found.get("exception") or "").strip().splitlines()
    return f"{found['status']}: {lines[-1]}" if lines else str(found["status"])


def _show_failure(task: str, state: str, text: str, as_json: bool) -> None:
    if as_json:
        show_json({"task_id": task, "status": state, "exception": text})
    complain(text.strip())
    raise typer.Exit(EXIT_NO)
