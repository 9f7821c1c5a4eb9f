"""The command `minires warmup`."""
import time
from typing import Annotated

import typer

from minires.commands.options import BatchSize, ImageSize, Shortcut, Stem, Threads, pixels_of, use_threads


def warmup(
    model: Annotated[str, typer.Argument(help="A model's name, such as resnet20, or FILE.py:function.")],
    batch_size: BatchSize = 128,
    image_size: ImageSize = None,
    shortcut: Shortcut = None,
    stem: Stem = None,
    threads: Threads = None,
):
    """Compile a network's CPU kernels now, for training and for inference, so that no later run waits for them."""
    import numpy as np

    from minires.backends import memory_advice
    from minires.backends.cpu import jit, numba_private
    from minires.losses import CrossEntropyLoss
    from minires.models import build_model
    from minires.optim import SGD
    from minires.plan import compile

    use_threads(threads)
    size = pixels_of(image_size, stem, batch_size=batch_size)
    network, found = build_model(model, 10, shortcut, stem), []
    numba_private.on_compile(found.append)
    x, target = np.zeros((batch_size, size, size, 3), np.float32), np.zeros(batch_size, np.int64)
    began = time.perf_counter()
    with memory_advice(batch_size):
        compile(network, CrossEntropyLoss())(x, target)
        SGD(network.parameters(), 0.1, 0.9, 5e-4, nesterov=True).step()
        network.eval()
        compile(network)(x)
    images = f"{batch_size} image{'s' if batch_size > 1 else ''} of {size} x {size}"
    if not found:
        typer.echo(f"{model} on {images}: every kernel was compiled before")
    else:
        kept = "" if jit.kept else ", for this process only"
        typer.echo(f"{model} on {images}: kernels compiled in {time.perf_counter() - began:.1f} s{kept}")
