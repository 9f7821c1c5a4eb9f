"""The measurements that the README quotes, a command each. Results go to benchmarks/results as JSON and pictures.

    python -m benchmarks.vs_torch   training steps and inference beside PyTorch's; the same as minires bench --vs torch
    python -m benchmarks.kernels    each kernel against the roofline of the machine, beside naive loops and im2col
    python -m benchmarks.scaling    threads, batch size, depth
    python -m benchmarks.rewrites   what each rewrite of a plan earns
    python -m benchmarks.finetune   published weights on 500 images of two classes, against training from scratch
    python -m benchmarks.cuda_floor operations, bytes and least times of the CUDA kernels, computed
    python -m benchmarks.same_batches  one recipe in both engines on the same batches: accuracy over time
    python -m benchmarks.table      the README's table, from results/vs_torch.json

Times of one machine drift, so what is compared is measured in turns within one run.
"""
import json
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def run(command):
    """Run a function as a command line, its arguments the options; a user's mistake is one sentence and exit code 2."""
    import typer

    from minires.errors import UserError

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        app()
    except UserError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        sys.exit(2)


def write_json(name, result):
    """Write `result` to results/`name`, whole or not at all, and say so."""
    from minires.files import write_atomically

    RESULTS.mkdir(exist_ok=True)
    write_atomically(RESULTS / name, (json.dumps(result, indent=1) + "\n").encode())
    print(f"wrote benchmarks/results/{name}")
