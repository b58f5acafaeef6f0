"""The program: its commands by name, and how each one ends."""

from __future__ import annotations

import logging
import signal
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gdmix._version import __version__
from gdmix.cli import converting, inspecting, preparing, scoring, training
from gdmix.cli.options import is_debugged
from gdmix.cli.terminal import Messages, err, print_labelled
from gdmix.errors import GdmixError


class _Program(TyperGroup):
    """All commands: what a user can mend ends with one line per finding and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        logger, terminal = logging.getLogger("gdmix"), Messages()
        logger.addHandler(terminal)
        try:
            return super().invoke(ctx)
        except GdmixError as error:
            if is_debugged(ctx):
                traceback.print_exception(error)
            for line in str(error).splitlines():
                print_labelled("error", "bold red", line)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as error:
            what = str(error) or "nothing half-written is left"
            err.print(f"interrupted; {what}", soft_wrap=True)
            raise typer.Exit(130) from None
        except MemoryError:
            print_labelled("error", "bold red", "out of memory")
            raise typer.Exit(3) from None
        finally:
            logger.removeHandler(terminal)


# Plain help: as readable in a log or an 80-column terminal as anywhere.
_LOOK: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(
    name="gdmix", cls=_Program, help="Train, score and inspect generalized mixed models.", **_LOOK
)
example_app = typer.Typer(help="Prepare an example's data.", **_LOOK)
app.add_typer(example_app, name="example")
convert_app = typer.Typer(help="Convert rows, features and models between formats.", **_LOOK)
app.add_typer(convert_app, name="convert")

app.command("train")(training.train)
app.command("tune")(training.tune)
app.command("score")(scoring.score)
app.command("encode")(scoring.encode)
app.command("evaluate")(scoring.evaluate)
app.command("inspect")(inspecting.inspect)
app.command("compare")(inspecting.compare)
app.command("features")(inspecting.features)
app.command("warmup")(preparing.warmup)
convert_app.command("rows")(converting.rows)
convert_app.command("features")(converting.features)
convert_app.command("model")(converting.model)
example_app.command("movielens")(preparing.movielens)


def main() -> None:
    """Run the program."""
    # A scheduler's request to stop is met like a user's: clean up, say so, leave.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"gdmix {__version__}")
        raise typer.Exit
