"""The command line, for people and for CI.

A command imports what it needs when it runs, so that ``--help`` and shell completion load neither MLflow nor Node.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from pomlflow.cli.options import settings_options
from pomlflow.cli.prompts import check, render, show_problems, variables
from pomlflow.cli.registry import diff, pull, register, replay
from pomlflow.exceptions import PomlError, RenderError

__all__ = ["CommandError", "cli", "main"]

_STORES = ("mlflow.", "sqlalchemy.", "requests.", "urllib3.")


class CommandError(click.ClickException):
    """An error that the user can fix, shown without a traceback."""

    exit_code = 2


class _Commands(click.Group):
    """A group of commands that shows pomlflow's errors and those of MLflow's stores without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RenderError as error:  # a prompt from standard input that is not UTF-8
            show_problems("-", error)
            ctx.exit(1)
        except PomlError as error:
            raise CommandError(str(error)) from error
        except BrokenPipeError:  # click handles it itself
            raise
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
        except ModuleNotFoundError as error:  # the driver of a database
            raise CommandError(f"MLflow's store needs the package {error.name}: {error}") from error
        except Exception as error:
            if not type(error).__module__.startswith(_STORES):
                raise
            raise CommandError(f"MLflow: {str(error).strip() or type(error).__name__}") from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pomlflow", message="pomlflow %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Render, check and register POML prompts, and replay their traces.

    FILE is a .poml file, - for standard input, or a prompt in MLflow's registry (prompts:/support@production).
    MLflow's stores are those of MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI.

    Exit codes: 0 success; 1 a prompt fails, differs or replays differently; 2 an error.

    \b
    Tab completion, in your shell's start-up file:
      eval "$(_POMLFLOW_COMPLETE=bash_source pomlflow)"      # or zsh_source
      _POMLFLOW_COMPLETE=fish_source pomlflow | source       # fish
    """
    if os.environ.get("NO_COLOR"):  # click (8.5) does not respect it
        ctx.color = False
    for stream in (sys.stdout, sys.stderr):  # a console may not encode every character of a prompt
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


for _command in (render, variables, check, register, diff, pull, replay):
    cli.add_command(settings_options(_command))


def main() -> None:
    """Run the command line: the entry point of ``pomlflow`` and ``python -m pomlflow``."""
    cli(prog_name="pomlflow")
