"""The commands of `minires study`, one file each."""
import typer

from minires.commands.bugs import bugs
from minires.commands.diff import diff
from minires.commands.sharpness import sharpness

study = typer.Typer(help="Study how a network learns and where it goes wrong.", no_args_is_help=True)

study.command()(bugs)
study.command()(diff)
study.command()(sharpness)
