"""What proves the kernels where there is no GPU would notice: planted defects are caught, and it is as strict as CuPy."""
from contextlib import suppress

import cupy
import numpy as np
import pytest
from conftest import ON_DEVICE, operators
from operator_cases import ARGUMENTS, Draw, copies, results, same

from minires.backends import reference
from minires.backends.cuda import compiler, elementwise, norm

pytestmark = pytest.mark.skipif(ON_DEVICE, reason="these are tests of what stands in for a device")


@pytest.fixture
def plant(monkeypatch):
    """plant(file, old, new, place): the kernels of `file` are compiled with the place-th `old` replaced by `new`."""
    def change(file, old, new, place=0):
        parts = compiler.source(file).split(old)
        assert len(parts) > place + 1, f"{file} has no {old!r} number {place}"
        text = old.join(parts[:place + 1]) + new + old.join(parts[place + 1:])
        whole = compiler.source
        monkeypatch.setattr(compiler, "source", lambda name: text if name == file else whole(name))
        forget()

    def forget():
        compiler._module.cache_clear()
        compiler._function.cache_clear()

    yield change
    monkeypatch.undo()
    forget()
    with suppress(IndexError):  # of other arrays that the planted defect has hurt
        cupy.check_guards()


def check(name, dtype=np.float64):
    """The operator of `cuda` against the reference, on every case of the suite."""
    rng = np.random.default_rng(0)
    for arguments in ARGUMENTS[name](Draw(rng, dtype)):
        expected = results(name, getattr(reference, name), copies(arguments))
        same(name, results(name, getattr(operators("cuda"), name), copies(arguments)), expected, dtype, "planted")
    cupy.check_guards()


OUT_OF_BOUNDS = {
    "add": ("elementwise.cu", "sum[i] = a[i] + b[i]", "sum[i + 1] = a[i] + b[i]"),
    "relu_forward": ("elementwise.cu", "FOR_EACH(i, count) y[i]", "FOR_EACH(i, count + 1) y[i]"),
    "maxpool2d_forward": ("pool.cu", "argmax[i] = winner", "argmax[i - 1] = winner"),
    "batchnorm_apply": ("norm.cu", "row < own.last; row += own.step)\n        y[",
                        "row <= own.last; row += own.step)\n        y["),
    "sgd_update": ("optim.cu", ": sizes[of];", ": sizes[of] + 1;"),
    "softmax_cross_entropy_forward": ("losses.cu", "losses[n] =", "losses[n + 1] ="),
}


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_a_write_outside_an_array_is_caught(name, plant):
    check(name)
    plant(*OUT_OF_BOUNDS[name])
    with pytest.raises(IndexError, match="a kernel wrote outside an array of"):
        check(name)


def test_a_read_outside_an_array_is_caught(plant):
    plant("elementwise.cu", "sum[i] = a[i] + b[i]", "sum[i] = a[i] + b[i + 1]")
    with pytest.raises(AssertionError, match=r"relative error \d.*e\+29\d"):  # what the guard holds
        check("add")


# (file, operator that runs it, which of its barriers, headers first)
BARRIERS = [("norm.cu", "batchnorm_backward", place) for place in range(2)]  # of column_sum
BARRIERS += [("norm.cu", "batchnorm_forward", place) for place in (2, 3)]  # of the moments' merging
BARRIERS += [("conv.cu", "conv2d_forward", None), ("conv.cu", "conv2d_input_gradient", None),
             ("conv.cu", "conv2d_weight_gradient", None)]


@pytest.mark.parametrize(("file", "name", "place"), BARRIERS)
def test_a_missing_barrier_is_caught(file, name, place, plant):
    if place is None:  # the second barrier of the kernel's loop over slices: the next slice overwrites what others read
        text = compiler.source(file)
        kernel = text.index(f"__global__ void {name}")
        place = text[:kernel].count("__syncthreads();") + (text[kernel:].count("__syncthreads();") > 1)
    plant(file, "__syncthreads();", "", place)
    with pytest.raises(AssertionError, match=r"planted: relative error|relative error"):
        check(name)


def test_a_barrier_that_not_all_threads_reach_is_caught(plant):
    plant("norm.cu", "if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];",
          "if (threadIdx.x >= half) return value; shared[threadIdx.x] += shared[threadIdx.x + half];")
    with pytest.raises(RuntimeError, match=r"gradient_sums<double>: block .* __syncthreads is not reached by all of"):
        check("channel_sum")


def test_a_shuffle_that_not_all_lanes_reach_is_caught(plant):
    plant("norm.cu", "    sum = warp_sum(sum) / C;", "    if (lane < 7) sum = warp_sum(sum) / C;")
    with pytest.raises(RuntimeError, match="a warp's lanes do not meet in one shuffle"):
        check("layernorm_backward")


@pytest.mark.parametrize(("name", "axis"), [("batchnorm_forward", 1), ("batchnorm_backward", 1), ("channel_sum", 0),
                                            ("batchnorm_apply", 0)])
def test_a_wrong_grid_is_caught(name, axis, monkeypatch):
    """One block too few along an axis: results that nobody computed are NaN."""
    right = norm.Columns.__init__

    def short(self, *arguments, **options):
        right(self, *arguments, **options)
        self.grid = tuple(max(1, size - (place == axis)) for place, size in enumerate(self.grid))

    monkeypatch.setattr(norm.Columns, "__init__", short)
    with pytest.raises(AssertionError, match="relative error"):
        check(name)


def test_a_grid_or_block_no_device_takes_is_refused():
    launch = compiler.kernel("elementwise.cu", "relu_forward", np.float32)
    x = cupy.zeros(4, np.float32)
    for grid, block in [((0,), (32,)), ((1, 70000), (32,)), ((1,), (2048,)), ((1,), (32, 64)), ((1,), (1, 1, 65))]:
        with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
            launch(grid, block, (x, x, 4))


def test_what_cupy_takes_as_a_tuple_only_is_refused_as_a_list():
    launch = compiler.kernel("elementwise.cu", "relu_forward", np.float32)
    x = cupy.zeros(4, np.float32)
    for grid, block in [([1], (32,)), ((1,), [32]), (1, (32,))]:
        with pytest.raises(TypeError, match="expected tuple"):
            launch(grid, block, (x, x, 4))
    with pytest.raises(TypeError, match="options a tuple, got str and list"):
        cupy.RawModule(code="", options=list(compiler.OPTIONS), name_expressions=["add<float>"])


def test_arguments_of_the_wrong_type_are_refused():
    launch = compiler.kernel("elementwise.cu", "relu_forward", np.float32)
    x = cupy.zeros(4, np.float32)
    for arguments, reason in [((x, x, np.int32(4)), "argument 2 is i4 and the kernel takes i8"),
                              ((x, x.astype(np.int32), 4), r"argument 1 is i4\* and the kernel takes f4\*"),
                              ((x, x), "got 2 arguments and the kernel takes 3"), ((x, x, 4.0), "argument 2 is f4")]:
        with pytest.raises(RuntimeError, match=reason):
            launch((1,), (32,), arguments)
    for odd in (np.zeros(4, np.float32), "x", [1]):
        with pytest.raises(TypeError, match="Unsupported type"):
            launch((1,), (32,), (odd, x, 4))
    with pytest.raises(TypeError, match="not C-contiguous"):
        launch((1,), (32,), (cupy.zeros((4, 4), np.float32).T, x, 4))


def test_a_source_that_does_not_compile_says_why():
    broken = cupy.RawModule(code="template <typename T> __global__ void f(T* x) { y = 1; }", name_expressions=["f<float>"])
    with pytest.raises(cupy.cuda.compiler.CompileException, match=r"error: .*y\W"):
        broken.get_function("f<float>")


def test_device_arrays_do_not_mix_with_numpys():
    x, y = cupy.ones(3), np.ones(3)
    for mix in (lambda: x + y, lambda: y + x, lambda: np.add(x, y), lambda: x.__setitem__(slice(None), y),
                lambda: x @ y, lambda: x[y > 0]):
        with pytest.raises(TypeError, match="Unsupported type"):
            mix()
    with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
        np.asarray(x)
    assert isinstance(np.float32(2) * x, cupy.ndarray) and isinstance(2 * x, cupy.ndarray)
    assert not isinstance(x, np.ndarray)


def test_every_way_to_the_host_is_counted():
    x = cupy.ones(())
    for read in (float, int, bool, cupy.asnumpy, lambda array: array.item(), lambda array: array.get(),
                 lambda array: cupy.cuda.Stream.null.synchronize(), repr):
        before = cupy.counters.synchronisations
        read(x)
        assert cupy.counters.synchronisations == before + 1
    before = cupy.counters.synchronisations
    (x + 1).reshape(1)[0].copy().astype(np.float32).fill(2)
    assert cupy.counters.synchronisations == before


def test_fresh_memory_is_poisoned():
    assert np.isnan(cupy.empty(5).get()).all() and (cupy.empty(5, np.int32).get() == -1).all()


def test_memory_comes_back_to_the_pool():
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    x = cupy.ones((100, 10))
    part = x[3:, 2]
    assert pool.used_bytes() == before + 8000
    del x
    assert pool.used_bytes() == before + 8000, "a view keeps its memory"
    del part
    assert pool.used_bytes() == before


def test_memory_of_an_allocators_blocks_is_given_again():
    blocks = []
    with cupy.cuda.using_allocator(cupy.cuda.MemoryPool(blocks.append).malloc):
        x = cupy.ones(100)
        address = x.data.ptr
        del x
        y = cupy.empty(100)
    assert y.data.ptr == address and blocks == [800] and np.isnan(y.get()).all()


def test_a_stream_that_notes_computes_nothing_and_refuses_what_waits():
    stream, x = cupy.cuda.Stream(non_blocking=True), cupy.ones(3)
    with stream:
        stream.begin_capture()
        y = elementwise.add(x, x) + 1
    assert float((x + 1)[0]) == 2, "other streams compute"
    graph = stream.end_capture()
    assert np.isnan(y.get()).all()
    graph.launch()
    assert (y.get() == 3).all()
    with stream:
        stream.begin_capture()
        with pytest.raises(NotImplementedError, match="cuBLAS"):
            cupy.matmul(x, x)
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="not permitted when stream is capturing"):
            y.get()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="a previous error during capture"):
        stream.end_capture()


def test_kernels_are_compiled_once(monkeypatch):
    x = cupy.ones(3, np.float32)
    elementwise.relu_forward(x)
    monkeypatch.setattr(cupy.RawModule, "__init__", None)
    elementwise.relu_forward(x)
    assert {"relu_forward", "relu_backward", "gelu_forward", "add", "dropout"} <= set(compiler.names_in("elementwise.cu"))
