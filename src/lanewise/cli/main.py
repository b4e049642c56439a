"""The `lanewise` command: registers the verb groups and turns errors into one line and an exit code."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import Annotated, cast

import typer

from lanewise import __version__
from lanewise.cli import (
    ablate,
    calibrate,
    data,
    doctor,
    feature,
    generate,
    graduate,
    lane,
    receipt,
    report,
    screen,
    train,
)
from lanewise.errors import LanewiseError

EXIT_INTERRUPTED = 130
EXIT_STORE = 5
EXIT_DEFECT = 70

# Newer typer carries its own copy of click and older ones use the installed one: take the class from typer itself.
USAGE_FAILURE = cast("type[typer.BadParameter]", typer.BadParameter.__base__)

app = typer.Typer(
    name="lanewise",
    help=(
        "Train hybrid language models, and know which features move step time.\n\n"
        "Start with `lanewise doctor`, then `lanewise ablate nam56r-tiny`. "
        "A lane is an exactly named training problem; a feature is one switch on it."
    ),
    epilog=(
        "Exit codes: 0 done, 1 a --fail-on verdict, 2 usage, 3 invalid evidence, 4 inconclusive, "
        "5 disk or child process, 130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"lanewise {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for group in (
    doctor,
    lane,
    feature,
    screen,
    ablate,
    calibrate,
    train,
    generate,
    receipt,
    report,
    graduate,
    data,
):
    group.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; bad input never ends in a traceback.

    Args:
        arguments: words after `lanewise`; None takes them from the process.
    """
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    try:
        result = app(
            args=None if arguments is None else list(arguments),
            prog_name="lanewise",
            standalone_mode=False,
        )
    except LanewiseError as error:
        _complain(str(error), error.exit_code)
        return error.exit_code
    except typer.Exit as leave:
        return leave.exit_code
    except USAGE_FAILURE as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted", EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        return _environment_failure(error)
    except Exception as error:  # noqa: BLE001  # the last line of defence: a defect is named, not dumped
        return _defect(error)
    return result if isinstance(result, int) else 0


def _complain(message: str, exit_code: int) -> None:
    _first, _, rest = message.partition("\n")
    prefix = "" if rest else "error: "
    sys.stderr.write(f"{prefix}{message}  (exit {exit_code})\n")


def _environment_failure(error: OSError) -> int:
    what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    if error.errno == errno.ENOSPC:
        what += "; free some space or give another --store, then repeat the command"
    _complain(what, EXIT_STORE)
    return EXIT_STORE


def _defect(error: Exception) -> int:
    from lanewise.receipts.environment import variable

    if variable("LANEWISE_DEBUG"):
        raise error
    _complain(
        f"defect in lanewise: {type(error).__name__}: {error}; "
        "run again with LANEWISE_DEBUG=1 for the traceback and report it",
        EXIT_DEFECT,
    )
    return EXIT_DEFECT
