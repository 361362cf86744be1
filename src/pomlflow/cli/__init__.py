"""The command line: POML prompts for people and for CI.

What it prints is plain where it is piped or ``NO_COLOR`` is set. Its exit codes are those of ``diff``:

- 0: all is well.
- 1: a prompt does not render, has drifted from the registry, or replays differently.
- 2: it could not be found out: wrong usage, a file or a prompt that is not there, a store that is away.

A command imports what it needs when it runs, so that ``--help`` and a shell's completion need neither MLflow nor Node.
"""

from __future__ import annotations

import os
from typing import Any

import click

from pomlflow.cli.checking import check
from pomlflow.cli.prompts import render, variables
from pomlflow.cli.registry import diff, pull, register
from pomlflow.cli.replaying import replay
from pomlflow.exceptions import PomlError

__all__ = ["Trouble", "cli", "main"]

_FOREIGN = ("mlflow.", "sqlalchemy.", "requests.", "urllib3.")


class Trouble(click.ClickException):
    """What a user can mend: told in a line or two, without a traceback."""

    exit_code = 2


class _Commands(click.Group):
    """Turns our own errors, and those of MLflow's stores, into messages."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PomlError as error:
            raise Trouble(str(error)) from error
        except BrokenPipeError:  # whoever read the output has enough: click's to handle
            raise
        except OSError as error:
            raise Trouble(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
        except ModuleNotFoundError as error:  # a database's driver
            raise Trouble(f"MLflow's store needs the package {error.name}: {error}") from error
        except Exception as error:
            if not type(error).__module__.startswith(_FOREIGN):
                raise
            raise Trouble(f"MLflow: {str(error).strip() or type(error).__name__}") from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pomlflow", message="pomlflow %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Render, check and register POML prompts, and replay their traces.

    FILE is a .poml file, - for standard input, or a prompt in MLflow's registry (prompts:/support@production).
    MLflow's stores are those of MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI.

    Exit codes: 0 all is well; 1 a prompt is wrong, has drifted or replays differently; 2 it could not be found out.

    \b
    Tab completion, in your shell's start-up file:
      eval "$(_POMLFLOW_COMPLETE=bash_source pomlflow)"      # or zsh_source
      _POMLFLOW_COMPLETE=fish_source pomlflow | source       # fish
    """
    if os.environ.get("NO_COLOR"):  # rich heeds it by itself, click does not (8.5)
        ctx.color = False


for _command in (render, variables, check, register, diff, pull, replay):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; what ``pomlflow`` and ``python -m pomlflow`` do."""
    cli(prog_name="pomlflow")
