"""What minires/backends/cpu/numba_private.py assumes of Numba, one test for each assumption."""
import numpy as np
import pytest
from llvmlite import ir
from numba import config, njit, types
from numba.core.caching import CompileResultCacheImpl
from numba.extending import intrinsic

from minires.backends.cpu import numba_private

seen = []


@intrinsic
def look(typingctx):
    """Note the function that this is called from."""
    def codegen(context, builder, sig, args):
        seen.append(builder.function)
        return context.get_dummy_value()

    return types.void(), codegen


def total(tasks, counter, thread, x, pair):
    look()
    if tasks < 0:
        raise ValueError("negative")
    return x[0] + pair[1][0] + thread  # references to arrays are counted, unless `_nrt` says otherwise


ARGUMENTS = 1, np.zeros(3, np.int64), 0, np.ones((2,)), (1.0, np.ones(2))


@pytest.fixture
def kernel():
    seen.clear()
    compiled = njit(nogil=True, **numba_private.OPTIONS)(total)
    assert compiled(*ARGUMENTS) == 2
    return compiled


def text_of(compiled):
    return next(iter(compiled.inspect_llvm().values()))


def test_nrt_false_leaves_out_reference_counts(kernel):
    plain = njit(total)
    plain(*ARGUMENTS)
    assert "NRT_" in text_of(plain) and "NRT_" not in text_of(kernel)


def test_no_cfunc_wrapper_leaves_out_an_entrance(kernel):
    plain = njit(total)
    plain(*ARGUMENTS)
    assert "@cfunc." in text_of(plain) and "@cfunc." not in text_of(kernel)


def test_an_intrinsic_writes_into_the_function_that_calls_it(kernel):
    assert {function.name for function in seen} == {next(iter(kernel.overloads.values())).fndesc.llvm_func_name}


def test_a_compiled_function_takes_places_for_result_and_exception_then_named_arguments(kernel):
    arguments = seen[-1].args
    assert all(isinstance(argument.type, ir.PointerType) for argument in arguments[:2])
    names = [argument.name for argument in arguments[2:]]
    assert all(name.startswith("arg.") for name in names) and names.count("arg.thread") == 1
    assert {"arg.tasks", "arg.counter.4", "arg.x.4"} <= set(names)  # the fifth part of an array is its data
    thread, = (argument.type for argument in arguments if argument.name == "arg.thread")
    assert thread == ir.IntType(64)


def test_a_compiled_function_returns_0_unless_it_raised(kernel):
    assert seen[-1].function_type.return_type == ir.IntType(32)
    with pytest.raises(ValueError, match="negative"):
        kernel(-1, *ARGUMENTS[1:])


def test_a_kernel_runs_without_its_bitcode(kernel):
    library = next(iter(kernel.overloads.values())).library
    assert library._get_module_for_linking() is library._shared_module is not None  # or nothing is saved by forgetting
    numba_private.forget_bitcode(kernel)
    assert library._shared_module is None
    assert kernel(*ARGUMENTS) == 2


def test_compiling_is_an_event(kernel):
    told = []
    numba_private.on_compile(told.append)
    fresh = njit(total)
    fresh(*ARGUMENTS)
    fresh(*ARGUMENTS)
    assert told == [total]


def test_a_function_asks_what_stands_in_its_cache_attribute(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    compiled = njit(total)
    numba_private.keep_on_disk(compiled, "stamp", pytest.fail)
    compiled(*ARGUMENTS)
    file, = tmp_path.rglob("*.*")
    assert str(file.parent) == compiled.stats.cache_path and ".stamp." in file.name


def test_the_first_place_for_a_cache_is_what_the_user_names():
    assert CompileResultCacheImpl._locator_classes[0].__name__.lstrip("_") == "UserProvidedCacheLocator"
