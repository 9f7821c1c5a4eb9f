"""A plan that is read: a line a step, with the operations and bytes that papers and hands count; times, and a picture."""
import numpy as np
import pytest
from PIL import Image

import minires
from minires import CrossEntropyLoss, MSELoss, Sequential, build_model, use_backend
from minires.backends.listing import CONVOLUTIONS, LINEAR, TWICE, flops, moved_bytes, names, rows, text
from minires.backends.trace import RULES, WRITES, Tracer
from minires.bench.roofline import least_seconds, step_seconds
from minires.layer import Layer
from minires.layers import BasicBlock, Conv2d, Linear, ReLU
from minires.plan.run import Runner
from minires.plots.plan import draw_memory
from minires.study.summary import summarise

SHAPE = (2, 8, 8, 3)


@pytest.fixture(scope="module")
def plan():
    """The plan of a training step of ResNet-20 on two small images."""
    return minires.compile(build_model("resnet20"), CrossEntropyLoss()).plan(SHAPE)


def traced(function, *shapes, dtype=np.float32):
    """The steps that a function of arrays without numbers calls, and those arrays."""
    tracer = Tracer()
    arrays = [tracer.array(shape, dtype) for shape in shapes]
    function(tracer, *arrays)
    return tracer.steps, arrays


# --- what a step costs ---

@pytest.mark.parametrize("name, options, size", [("resnet20", {}, 32), ("resnet20", {"shortcut": "B"}, 20),
                                                 ("plain20", {}, 32), ("resnet18", {"stem": "imagenet"}, 33)])
def test_forward_has_the_multiply_adds_of_the_summary(name, options, size):
    model = build_model(name, **options)
    expected = 2 * 3 * sum(row.multiply_adds for row in summarise(model, size))
    for found in (minires.compile(model).plan((3, size, size, 3)), minires.compile(model, CrossEntropyLoss()).plan(
            (3, size, size, 3))):
        for steps in (found.before, found.steps):
            made_again = [row.mark == "~" for row in found.rows(steps)]
            assert sum(flops(step) for step, again in zip(steps, made_again, strict=True)
                       if not step.backward and not again) == expected


def test_resnet20_has_the_published_operations():
    found = minires.compile(build_model("resnet20")).plan((1, 32, 32, 3))
    assert sum(row.flops for row in found.rows()) == 2 * 40_551_040


def test_a_backward_pass_has_two_products_for_each_of_the_forward_pass(plan):
    forward, backward = (sum(flops(step) for step in plan.before if step.backward == way) for way in (False, True))
    first = flops(plan.before[0])
    assert plan.before[0].operator == "conv2d_forward" and first == 2 * 2 * 8 * 8 * 16 * 9 * 3
    assert backward == 2 * forward
    # The plan leaves out the gradient by the images, which nobody asked for.
    assert sum(row.flops for row in plan.rows() if row.mark == "<") == 2 * forward - first


def test_every_operator_has_a_rule():
    assert {*CONVOLUTIONS, *LINEAR} == {name for name in RULES if "conv2d" in name or name.startswith("linear")}
    assert {*TWICE, *WRITES} <= set(RULES)


def test_operations_and_bytes_by_hand():
    weight, bias, total = np.zeros((3, 3, 4, 6), np.float32), np.zeros(6, np.float32), np.zeros((3, 3, 4, 6), np.float32)
    same = (1, 1), (1, 1), (1, 1)
    products, x, z = 2 * 2 * 5 * 7 * 6 * 36, 2 * 5 * 7 * 4 * 4, 2 * 5 * 7 * 6 * 4

    def calls(tracer, x, dy):
        tracer.conv2d_forward(x, weight, bias, *same)
        tracer.conv2d_input_gradient(dy, weight, x.shape, *same)
        tracer.conv2d_weight_gradient(dy, x, (3, 3), *same)
        tracer.conv2d_unit_gradient(dy, None, None, x, None, weight, (1, 1), (1, 1), None, True, None, total, None)
        tracer.conv2d_unit_gradient(dy, None, None, x, None, weight, (1, 1), (1, 1), None, False, None, None, None)
        tracer.batchnorm_forward(dy, bias, bias, 1e-5)
        tracer.add(x, x)
        tracer.add_into(total, total)
        tracer.zero((total, bias))
        x.reshape(-1)

    steps, _ = traced(calls, (2, 5, 7, 4), (2, 5, 7, 6))
    assert [flops(step) for step in steps] == [products, products, products, 2 * products, products, 0, 0, 0, 0, 0]
    w, b = weight.nbytes, bias.nbytes
    assert [moved_bytes(step) for step in steps] == [
        x + w + b + z, z + w + x, z + x + w, z + x + w + x + 2 * w, z + x + w + w, 2 * z + b + z + 2 * b, 2 * x, 2 * w,
        w + b, 0]


def test_a_strided_and_dilated_convolution_counts_its_outputs():
    weight = np.zeros((3, 2, 4, 6), np.float32)
    steps, _ = traced(lambda tracer, x: tracer.conv2d_forward(x, weight, None, (2, 1), (0, 1), (2, 3)), (1, 9, 8, 4))
    y = steps[0].results[0]
    assert flops(steps[0]) == 2 * y.size * 3 * 2 * 4


def test_a_linear_layer_and_its_gradients():
    layer = Linear(5, 3)

    def both(tracer, x, dy):
        with tracer.tracing():
            layer.forward(x)
            layer.backward(dy)

    found = {step.operator: flops(step) for step in traced(both, (7, 5), (7, 3))[0]}
    assert found["linear_forward"] == 2 * 7 * 5 * 3 and found["linear_backward"] == 2 * found["linear_forward"]


# --- what is printed ---

def test_a_line_for_each_step(plan):
    lines = str(plan).splitlines()
    assert len(lines) == len(plan.steps) + 2
    assert lines[0].split() == ["operator", "layer", "reads", "writes", "shape", "GFLOP", "MB", "kernel"]
    for number, (line, step) in enumerate(zip(lines[1:-1], plan.steps, strict=True), 1):
        words = line.split()
        assert words[:2] == [str(number), step.operator] and (not step.layer or step.layer in words)
        assert not step.backward or words[2] in "<~"
    assert f"{len(plan.steps)} steps; " in lines[-1] and f"memory {plan.peak_bytes / 2**20:.2f} MiB" in lines[-1]
    assert lines[1].split()[3:8] == ["x", "w", "z1", "+2", "2x8x8x16"]


def test_what_is_read_has_been_written(plan):
    for stage in (plan.before, plan.steps):
        seen = {"x", "target", "w"}
        for row in plan.rows(stage):
            assert {word for word in row.reads.split() if not word.startswith("+")} <= seen, row
            seen.update(row.writes.split())


def test_gradients_that_are_added_are_no_forward_operator_done_again():
    found = minires.compile(BasicBlock(4, 4), MSELoss(), input_gradient=True).plan(
        (2, 6, 6, 4), (2, 6, 6, 4), np.float32, np.float32)
    (last,) = [row for row in found.rows(found.before) if row.operator == "add" and row.mark]
    assert last.mark == "<" and last.writes.startswith("g") and all(word.startswith("g") for word in last.reads.split())


def test_values_made_again_are_marked():
    found = minires.compile(build_model("resnet20"), CrossEntropyLoss()).plan((64, 16, 16, 3))
    marks = names(found.steps, found.program.inputs)[1]
    again = [step.operator for step, mark in zip(found.steps, marks, strict=True) if mark == "~"]
    assert again and set(again) <= {"normalise_add_relu", "conv2d_forward", "pad_shortcut_forward"}
    assert "~" not in names(found.before, found.program.inputs)[1]


def test_the_kernel_is_the_one_that_runs():
    found = minires.compile(Sequential(Conv2d(16, 16, 3, padding=1), ReLU(), Conv2d(16, 16, 3, stride=2))).plan(
        (2, 8, 8, 16))
    assert [row.kernel for row in found.rows()] == ["F(4x4)", "direct"]
    with use_backend("reference"):
        assert [row.kernel for row in found.rows()] == ["", ""]


class Sorted(Layer):
    """Something that needs numbers."""

    def forward(self, x):
        return np.sort(x, axis=0)

    def backward(self, dy):
        return dy


def test_constant_and_opaque_steps_are_said():
    found = minires.compile(Sequential(Conv2d(3, 4, 3), Sorted())).plan((1, 8, 8, 3))
    lines = str(found).splitlines()
    assert f"{len(found.steps)} steps, {len(found.program.constant)} more when weights change; " in lines[-2]
    assert found.program.constant and lines[-1].startswith("opaque: 1: ") and found.opaque[0][1] in lines[-1]


def test_a_trace_is_listed_with_names_of_ones_own():
    steps, (x, dy) = traced(lambda tracer, x, dy: tracer.add(tracer.relu_backward(dy, x), x * 2), (2, 3), (2, 3))
    lines = text(rows(steps, {x: "x", dy: "dy"})).splitlines()
    assert [line.split()[1:4] for line in lines[1:]] == [["relu_backward", "dy", "x"], ["numpy.multiply", "x", "y1"],
                                                         ["add", "g1", "y1"]]


def test_stages_go_from_the_trace_to_the_plan(plan):
    stages = list(plan.after())
    assert stages[0][:2] == ("traced", len(plan.before)) and stages[-1][1] == len(plan.steps)
    assert [stage[0] for stage in stages][:3] == ["traced", "drop_unread", "split_normalisation"]
    assert stages[-1][2] == sum(row.bytes for row in plan.rows()) < stages[0][2]
    assert stages[-1][3] == plan.peak_bytes <= stages[0][3]


# --- times ---

def test_each_step_is_timed_beside_the_roofline():
    found = minires.compile(Sequential(Conv2d(3, 8, 3), ReLU(), Conv2d(8, 8, 1)), MSELoss()).plan(
        (1, 6, 6, 3), (1, 4, 4, 8), np.float32, np.float32)
    inputs = np.zeros((1, 6, 6, 3), np.float32), np.zeros((1, 4, 4, 8), np.float32)
    seconds, whole = step_seconds(Runner(found.program, found.memory), inputs, 3)
    least = least_seconds(found.steps)
    assert len(seconds) == len(least) == len(found.steps) and whole > 0 and (seconds >= 0).all()
    assert all((bound > 0) == bool(row.bytes) for bound, row in zip(least, found.rows(), strict=True))


# --- the command ---

def test_the_command_prints_the_table_in_a_pipe(command):
    code, out, error = command("plan", "resnet20", "--batch-size", 2, "--image-size", 8, "--rewrites", "--num-classes", 5)
    assert (code, error) == (0, "")
    found = minires.compile(build_model("resnet20", 5), CrossEntropyLoss()).plan(SHAPE)
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[:len(found.steps) + 1] == text(found.rows()).splitlines()
    assert found.totals() in lines and "resnet20, a training step on 2 images of 8 x 8" in lines
    stages = [line.split()[-3:] for line in lines[lines.index(found.totals()) + 3:]]
    assert stages[0][0] == str(len(found.before)) and stages[-1][0] == str(len(found.steps))


def test_the_command_plans_inference_and_times_it(command, monkeypatch):
    monkeypatch.setattr("minires.bench.roofline.best_seconds", lambda function: function() or 1e-3)
    code, out, error = command("plan", "resnet20", "--batch-size", 1, "--image-size", 8, "--inference", "--time",
                               "--threads", 1)
    assert code == 0 and "minires: error" not in error
    lines = out.splitlines()
    assert lines[0].split()[-2:] == ["ms", "roofline"] and "conv2d_bias_relu" in lines[1] and " < " not in lines[1]
    assert float(lines[1].split()[-2]) > 0 and "ms step by step" in lines[-1]


MISTAKES = {
    "unknown model": (["resnet21"], "unknown model 'resnet21'"),
    "batch size 0": (["resnet20", "--batch-size", "0"], "batch size 0 is too small"),
    "image size 0": (["resnet20", "--image-size", "0"], "image size 0 is too small"),
    "no classes": (["resnet20", "--num-classes", "0"], "number of classes 0 is too small"),
    "shortcut of a plain network": (["plain20", "--shortcut", "A"], "has no shortcuts"),
    "stem of a small network": (["resnet20", "--stem", "imagenet"], "has one stem"),
    "no picture": (["resnet20", "--picture", "memory.txt"], "ends in .png"),
    "too many threads": (["resnet20", "--threads", "4096"], "4096"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(command, name):
    arguments, expected = MISTAKES[name]
    code, out, error = command("plan", *arguments)
    assert (code, out) == (2, "") and error.startswith("minires: error: ") and expected in error
    assert len(error.splitlines()) == 1


# --- the picture ---

def test_memory_holds_every_value(tmp_path, monkeypatch, command):
    from matplotlib.figure import Figure

    made = []
    monkeypatch.setattr("minires.plots.plan.new_figure",
                        lambda width, height: made.append(Figure((width, height), layout="constrained")) or made[0])
    found = minires.compile(build_model("resnet20"), CrossEntropyLoss()).plan((16, 16, 16, 3))
    draw_memory(found, tmp_path / "memory.png")
    with Image.open(tmp_path / "memory.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height > 400
    (axes,) = made[0].axes
    drawn = sorted((patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()) for patch in axes.patches)
    offsets, steps = found.memory.offsets, found.steps
    assert len(drawn) == len(offsets) >= len(found.memory.lives)
    np.testing.assert_allclose([row[:2] for row in drawn], sorted(
        (index + 0.5, offsets[array] / 2**20) for index, step in enumerate(steps) for array in step.results
        if array in offsets))
    ends = {(x, y): x + width for x, y, width, _ in drawn}
    for array, (first, last) in found.memory.lives.items():  # of all that lie in a place one after another
        assert any(y == offsets[array] / 2**20 and start >= first and end == min(last, len(steps) - 1) + 1.5
                   for (start, y), end in ends.items())
    for x, y, width, height in drawn:  # no two in one place at one time
        assert sum(x < x_ + w_ and x_ < x + width and y < y_ + h_ and y_ < y + height for x_, y_, w_, h_ in drawn) == 1
    words = [words.get_text() for words in axes.texts]
    assert {"forward", "backward", f"peak {found.peak_bytes / 2**20:.1f} MiB", "layer1", "layer3"} <= set(words)
    assert "z1" in words and draw_memory(found)._repr_png_()[0].startswith(b"\x89PNG")


def test_the_command_draws(tmp_path, command):
    code, out, _ = command("plan", "resnet20", "--batch-size", 4, "--image-size", 16, "--inference", "--picture",
                           tmp_path / "memory.png")
    assert code == 0 and f"drew memory over the step into {tmp_path / 'memory.png'}" in out
    assert (tmp_path / "memory.png").stat().st_size > 10_000
