"""The command line: minires train | eval | predict | export | summary | plan | gradcheck | xray | exercise | study | plot |
bench | warmup | doctor.

Exit codes: 0 done, 1 a fault of ours, a gradient that is wrong or a mistake that `doctor RUN` found, 2 wrong input, 128 and
the signal's number stopped by it (130 by Ctrl-C). Each command imports what it needs when it runs, so that `minires --help`
is quick.
"""
import sys

import typer

from minires.bench.command import bench
from minires.commands.doctor import doctor
from minires.commands.evaluate import evaluate
from minires.commands.exercise import exercise
from minires.commands.export import export
from minires.commands.gradcheck import gradcheck
from minires.commands.plan import plan
from minires.commands.plot import plot
from minires.commands.predict import predict
from minires.commands.study import study
from minires.commands.summary import summary
from minires.commands.train import train
from minires.commands.warmup import warmup
from minires.commands.xray import xray
from minires.errors import UserError

app = typer.Typer(help="A from-scratch, autograd-free ResNet engine.", no_args_is_help=True, add_completion=False,
                  pretty_exceptions_enable=False)
_UsageError = typer.BadParameter.__base__  # typer shows this class under no name of its own


app.command()(train)
app.command("eval")(evaluate)
for command in (predict, summary, export, plan, gradcheck, bench, warmup, doctor, xray):
    app.command()(command)
app.add_typer(exercise, name="exercise")
app.add_typer(plot, name="plot")
app.add_typer(study, name="study")


def main(arguments=None):
    """Run the command line and exit with its code. A user's mistake is one sentence on stderr."""
    try:
        code = app(args=arguments, prog_name="minires", standalone_mode=False)
    except (UserError, _UsageError) as error:
        message = error.format_message() if isinstance(error, _UsageError) else str(error)
        typer.echo(f"minires: error: {message}", err=True)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("minires: stopped", err=True)
        code = 130
    sys.exit(code)
