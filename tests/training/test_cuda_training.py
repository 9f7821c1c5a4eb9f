"""Training on the device: its batches, the Trainer, the command line, and what is said when something is missing."""
import importlib.util
from itertools import pairwise

import cupy
import numpy as np
import pytest
from carried import synchronisations
from conftest import ON_DEVICE
from picture_folders import write_pictures
from test_training import coloured, make_trainer, small_network, without_times

from minires.backends import memory_advice, require_device, to_device, to_numpy
from minires.cli import main
from minires.data import Loader
from minires.errors import UserError
from minires.files import load_tensors
from minires.losses import CrossEntropyLoss
from minires.optim import SGD
from minires.training import Trainer, evaluate
from minires.training.feed import feed
from minires.training.metrics import READ_EVERY, Score

pytestmark = pytest.mark.gpu


def batches(seed=3, count=50, **options):
    settings = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.1], "augment": True, "shuffle": True, **options}
    return Loader(coloured(count, 1), 16, rng=np.random.default_rng(seed), **settings)


@pytest.mark.parametrize("options", [{}, {"augment": False}, {"shuffle": False}, {"drop_last": True},
                                     {"augment": False, "shuffle": False}, {"dtype": np.float64}], ids=str)
def test_batches_made_on_the_device_are_the_loaders_to_the_bit(options):
    here, there = batches(**options), feed(batches(**options), "cuda")
    assert len(here) == len(there) and there.dataset is there.loader.dataset
    for _ in range(2):  # two epochs
        expected, waits = list(here), synchronisations()
        found = list(there)
        assert synchronisations() == waits
        for (x, target), (x_there, target_there) in zip(expected, found, strict=True):
            assert np.array_equal(x, to_numpy(x_there)) and x.dtype == x_there.dtype
            assert np.array_equal(target, to_numpy(target_there))
    assert here.rng.bit_generator.state == there.rng.bit_generator.state


def device_trainer(out=None, seed=0, **options):
    trainer = make_trainer(out, seed, **options)
    trainer.model.to("cuda")
    schedule = trainer.schedule
    trainer.optimiser = schedule.optimiser = SGD(trainer.model.parameters(), trainer.optimiser.lr, 0.9, 5e-4, True)
    trainer.train, trainer.test, trainer.device = feed(trainer.train, "cuda"), feed(trainer.test, "cuda"), "cuda"
    return trainer


def test_the_trainer_on_both_devices(tmp_path):
    rows, expected = device_trainer(tmp_path / "cuda").fit(2), make_trainer(tmp_path / "cpu").fit(2)
    for row, other in zip(without_times(rows), without_times(expected), strict=True):
        # The norm of the gradients is that of the steps whose gradients were read: on a device of the first alone here.
        assert row.pop("grad_norm") > 0 < other.pop("grad_norm")
        assert row == pytest.approx(other, rel=1e-3)
    saved, other = (load_tensors(tmp_path / device / "last.safetensors")[0] for device in ("cuda", "cpu"))
    assert saved.keys() == other.keys()
    for name in saved:
        np.testing.assert_allclose(saved[name], other[name], rtol=0, atol=1e-3 * np.abs(other[name]).max(), err_msg=name)


def test_a_run_on_the_device_resumes_to_the_same_bits(tmp_path):
    device_trainer(tmp_path / "whole", dropout=0.3).fit(3)
    device_trainer(tmp_path / "parts", dropout=0.3).fit(1)
    device_trainer(tmp_path / "parts", dropout=0.3).restore().fit(3)
    for name in ("last.safetensors", "state.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.skipif(ON_DEVICE, reason="the stand-in counts how often the host waits")
def test_the_host_reads_once_every_so_many_steps():
    model = small_network().to("cuda")
    trainer = Trainer(model, SGD(model.parameters(), 0.01), feed(batches(count=16 * (READ_EVERY + 7)), "cuda"), None,
                      device="cuda", progress=False)
    waits, steps = [], trainer.optimiser.step

    def step():
        waits.append(synchronisations())
        steps()

    trainer.optimiser.step = step
    row = trainer.fit(1)[0]
    assert len(waits) == READ_EVERY + 7
    changes = [index for index, (before, after) in enumerate(pairwise(waits)) if before != after]
    # The score is read in one step; the guards look at the first step, and after so many again (guards.DEVICE_EVERY).
    assert changes == [0, READ_EVERY - 2, READ_EVERY - 1, READ_EVERY], "only the steps that read wait"
    assert 0 < row["train_accuracy"] < 1 and np.isfinite(row["train_loss"])


def test_a_score_read_late_is_the_score(rng):
    early, late = Score(), Score()
    for step in range(READ_EVERY + 3):
        y, target = rng.standard_normal((5, 4)).astype(np.float32), rng.integers(0, 4, 5)
        known = late.add(cupy.asarray(np.float32(step)), cupy.asarray(y), cupy.asarray(target))
        assert early.add(float(step), y, target) == [step]
        assert known == (list(range(READ_EVERY)) if step == READ_EVERY - 1 else [])
    assert late.read() == [READ_EVERY, READ_EVERY + 1, READ_EVERY + 2] and late.read() == []
    assert (early.loss, early.images, early.accuracy) == (late.loss, late.images, late.accuracy)
    assert np.array_equal(early.class_accuracy, late.class_accuracy)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_not_finite_is_found_when_it_is_read():
    trainer = device_trainer()
    trainer.fit(1)
    trainer.schedule, trainer.optimiser.lr = None, 1e30
    with pytest.raises(UserError, match=r"loss became (nan|inf) in epoch 2, at its step 2 with learning rate 1e\+30"):
        trainer.fit(4)


def test_evaluation_on_the_device_is_the_cpus():
    data = Loader(coloured(60, 2), 16, mean=[0.4] * 3, std=[0.2] * 3)
    here = evaluate(small_network(), CrossEntropyLoss(), data)
    for loader in (data, feed(data, "cuda")):  # copied batch by batch, and made there
        there = evaluate(small_network().to("cuda"), CrossEntropyLoss(), loader, "cuda")
        assert there.loss == pytest.approx(here.loss, rel=1e-5) and np.array_equal(there.correct, here.correct)


@pytest.fixture
def small_pool():
    """small_pool(size): within, device memory comes from a pool of so many bytes, with nothing freed in it to use again."""
    def within(size):
        pool = cupy.cuda.MemoryPool()
        pool.set_limit(size=size)
        return cupy.cuda.using_allocator(pool.malloc)

    return within


def test_memory_that_does_not_suffice_names_a_batch_size(small_pool):
    trainer = device_trainer()
    trainer.fit(1)
    sentence = r"a batch of 16 does not fit into memory \(Out of.*\): try a batch size of 8$"
    with small_pool(2000), pytest.raises(UserError, match=sentence):
        trainer.fit(2)
    with pytest.raises(UserError, match="use a smaller network or smaller images"), memory_advice(1):
        raise MemoryError("no more")
    assert not [row for row in trainer.rows if row["epoch"] > 1]


def test_a_data_set_larger_than_the_device(small_pool):
    with small_pool(1000), pytest.raises(UserError, match=r"the data set, 0 MiB of images, does not fit .*--device cpu"):
        feed(batches(), "cuda")


def test_train_and_eval_from_the_command_line(tmp_path, capsys):
    write_pictures(tmp_path / "pictures", ("dark", "bright"), 12, 4, (8, 8), brighter=130)
    out = tmp_path / "run"
    train = f"train --dataset {tmp_path / 'pictures'} --epochs 1 --batch-size 4 --lr 0.01 --out {out}".split()
    for arguments in (train, ["eval", "--checkpoint", str(out / "last.safetensors")]):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--device", "cuda"])
        assert not ended.value.code, capsys.readouterr().err
    on_cuda = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["eval", "--checkpoint", str(out / "last.safetensors")])
    assert capsys.readouterr().out.splitlines()[-1] == on_cuda.splitlines()[-1]
    assert "accuracy" in on_cuda


# --- what is missing ---


def test_a_device_that_is_there():
    assert require_device("cuda") is None


def test_no_cupy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs CuPy, which is not installed: pip install 'minires\[cuda12\]' or .*cuda13"):
        require_device("cuda")


def test_cupy_that_does_not_load(monkeypatch):
    def load(name):
        raise ImportError("libcuda.so.1: cannot open shared object file\nmore")

    monkeypatch.setattr("minires.backends.importlib.import_module", load)
    with pytest.raises(UserError, match=r"does not load \(libcuda.so.1: cannot open shared object file\): pip install"):
        require_device("cuda")


@pytest.mark.parametrize("status", [35, 100, None])
def test_no_device_or_driver(monkeypatch, status):
    def count():
        if status is None:
            return 0
        raise cupy.cuda.runtime.CUDARuntimeError(status)

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", count)
    reason = {35: "cudaErrorInsufficientDriver", 100: "cudaErrorNoDevice", None: "counts 0"}[status]
    with pytest.raises(UserError, match=rf"an NVIDIA GPU and its driver, .* finds none \(.*{reason}.*--device cpu"):
        require_device("cuda")


def test_no_compiler(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("CuPy failed to load libnvrtc.so.12: {gone}\nmore")

    monkeypatch.setattr("minires.backends.cuda.trial.relu_forward", broken)
    with pytest.raises(UserError, match=r"needs CUDA's compiler, .*nvrtc.so.12: \(gone\)\): pip install 'minires\[cuda12"):
        require_device("cuda")


def test_a_library_that_cupy_loads_late(monkeypatch):
    """Its own kernels need CUDA's headers and its products cuBLAS: kernels of our own would run without either."""
    def refused(said):
        with pytest.raises(UserError, match=r"needs CUDA's compiler, headers and cuBLAS, and .*: pip install") as told:
            require_device("cuda")
        return said in str(told.value)

    def no_cublas(*arguments, **options):
        raise ImportError('Failure finding "libcublas.so.12": No such file')

    class NoHeaders:
        def __add__(self, other):
            raise cupy.cuda.compiler.CompileException('cannot open source file "vector_types.h"', "", "", ())

    with monkeypatch.context() as patch:
        patch.setattr(cupy, "matmul", no_cublas)
        assert refused("libcublas.so.12")
    monkeypatch.setattr("minires.backends.cuda.trial.relu_forward", lambda x: NoHeaders())
    assert refused("vector_types.h")


def test_a_device_that_is_full(monkeypatch):
    def full(*arguments):
        raise cupy.cuda.memory.OutOfMemoryError(512, 0, 0)

    monkeypatch.setattr(cupy, "asarray", full)
    with pytest.raises(UserError, match=r"cannot put anything on it \(Out of memory allocating 512 bytes .*--device cpu"):
        require_device("cuda")


def test_to_device_keeps_what_is_there():
    x = cupy.asarray(np.ones(3))
    assert to_device(x, "cuda") is x
    assert np.array_equal(to_device(x, "cpu"), np.ones(3))
