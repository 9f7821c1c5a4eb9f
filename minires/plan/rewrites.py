"""From what layers say to what is run: each rewrite makes the same numbers with fewer passes over memory.

They look at operators and at who reads what, never at layers: any network profits whose arithmetic matches. A rewrite that
finds no match changes nothing. They stand in the order that they are applied in (TRAINING, EVALUATION, below); z is a
convolution's output, `...` what an operator takes besides.

A value may move to a later step only where nobody reads it in between, to an earlier one only where all it reads is there.
"""
from minires.backends.trace import Array
from minires.plan.program import like

PLAIN = (1, 1)  # dilation


def split_normalisation(program):
    """Batch normalisation into the parts that others take over.

    batchnorm_forward(z)    ->  batch_moments(z), normalisation_scale, normalise(z, (mean, scale, bias))
    batchnorm_apply(z)      ->  normalisation_scale, normalise(z, (mean, scale, bias))
    batchnorm_backward(g, z)->  gradient_sums(g, z), batchnorm_coefficients, normalise_gradient(g, z)
    """
    changes = {}
    for step in program.steps:
        if step.operator in ("batchnorm_forward", "batchnorm_apply"):
            x, *statistics, weight, bias, eps = step.arguments
            y, *made = step.results
            mean, var = made or statistics
            (scale,) = _new(step, "normalisation_scale", (weight, var, eps))
            changes[step] = [like(step, "batch_moments", (x,), made)] if made else []
            changes[step] += [like(step, "normalisation_scale", (weight, var, eps), [scale]),
                              like(step, "normalise", (x, (mean, scale, bias)), [y])]
        elif step.operator == "batchnorm_backward":
            dy, x, mean, var, weight, eps, batch_statistics = step.arguments
            dx, *gradients = step.results
            sums = _new(step, "gradient_sums", (dy, x, mean))
            arguments = *sums, var, weight, eps, x.size // x.shape[-1] if batch_statistics else None, (None, None)
            factors = _new(step, "batchnorm_coefficients", arguments)[:3]
            changes[step] = [like(step, "gradient_sums", (dy, x, mean), sums),
                             like(step, "batchnorm_coefficients", arguments, (*factors, *gradients)),
                             like(step, "normalise_gradient", (dy, x, (mean, *factors)), [dx])]
    program.rewrite(changes)


def moments_into_convolution(program):
    """z = conv2d_forward(x, weight), batch_moments(z)  ->  conv2d_moments(x, weight): sums taken where z is written."""
    changes = {}
    for step, conv in _pairs(program, "batch_moments", "conv2d_forward"):
        x, weight, bias, stride, padding, dilation = conv.arguments
        if bias is None and dilation == PLAIN:
            moments = like(conv, "conv2d_moments", (x, None, weight, stride, padding), conv.results + step.results)
            changes.update({conv: [moments], step: []})
    program.rewrite(changes)


def relu_into_normalisation(program):
    """relu_forward(add(normalise(z), s))  ->  normalise_add_relu(z, ..., s), with or without the sum; a convolution with a
    bias in the place of the normalisation  ->  conv2d_bias_relu(..., s)."""
    makers, readers, changes = program.makers(), program.readers(), {}
    for step in program.steps:
        if step.operator != "relu_forward":
            continue
        total, inner, residual = step.arguments[0], None, None
        plus = makers.get(total)
        candidates = [(total, None)]
        if _is(plus, "add") and len(readers[total]) == 1 and plus.arguments[0] is not plus.arguments[1]:
            candidates = [plus.arguments, plus.arguments[::-1]]
        for value, other in candidates:
            maker = makers.get(value)
            if maker not in changes and len(readers[value]) == 1 and (_is(maker, "normalise") or _has_bias(maker)):
                inner, residual = maker, other
                break
        if inner is None:
            continue
        if inner.operator == "normalise":
            new = like(step, "normalise_add_relu", (*inner.arguments, residual), step.results)
        else:
            x, weight, bias, stride, padding, _ = inner.arguments
            new = like(step, "conv2d_bias_relu", (x, weight, bias, residual, True, stride, padding), step.results)
        changes.update({step: [new], inner: []})
        if residual is not None:
            changes[plus] = []
    program.rewrite(changes)


def fold_normalisation(program):
    """normalise(conv2d_forward(x, weight)) of constant statistics, where nothing is kept for a backward pass
    ->  conv2d_forward(x, weight * scale, bias - mean * scale): `folded`, computed when the weights change."""
    makers, readers, changes = program.makers(), program.readers(), {}
    for step, conv in _pairs(program, "normalise", "conv2d_forward"):
        mean, scale, shift = step.arguments[1]
        if len(readers[step.arguments[0]]) > 1:
            continue
        if isinstance(mean, Array) or not _is(makers.get(scale), "normalisation_scale"):
            continue
        weight, var, eps = makers[scale].arguments
        x, kernel, bias, *geometry = conv.arguments
        arguments = kernel, bias, weight, shift, mean, var, eps
        folded = _new(step, "folded", arguments)
        changes[conv] = []
        changes[step] = [like(step, "folded", arguments, folded),
                         like(step, "conv2d_forward", (x, *folded, *geometry), step.results)]
    program.rewrite(changes)


def prepare_weights(program):
    """A convolution of constant weights  ->  conv2d_bias_relu(..., prepared): what the back end makes of weights before it
    multiplies by them (Winograd's transform, another order), once and not each time."""
    changes = {}
    for step in program.steps:
        if step.operator == "conv2d_bias_relu":
            taken = step.arguments
        elif _has_bias(step):
            x, weight, bias, stride, padding, _ = step.arguments
            taken = x, weight, bias, None, False, stride, padding
        else:
            continue
        arguments = taken[1], taken[0].shape, *taken[5:7]
        ready = _new(step, "prepare", arguments)
        changes[step] = [like(step, "prepare", arguments, ready),
                         like(step, "conv2d_bias_relu", (*taken, *ready), step.results)]
    program.rewrite(changes)


def sums_into_mask(program):
    """gradient_sums(relu_backward(dy, y), z, mean)  ->  add_relu_gradient(dy, y, z, mean)."""
    changes = {}
    for step, mask in _pairs(program, "gradient_sums", "relu_backward"):
        arguments = *mask.arguments, *step.arguments[1:]
        changes.update({mask: [like(mask, "add_relu_gradient", arguments, mask.results + step.results)], step: []})
    program.rewrite(changes)


def gradients_of_one_convolution(program):
    """dz = normalise_gradient(g, z, ...), conv2d_weight_gradient(dz, x), conv2d_input_gradient(dz, weight)
    ->  conv2d_unit_gradient(g, z, ..., x, weight): dz is formed once, in scratch, and both gradients read it there."""
    makers, readers, changes = program.makers(), program.readers(), {}
    for step in program.steps:
        if step.operator != "conv2d_weight_gradient" or step.arguments[5] != PLAIN:
            continue
        dz, x, kernel_size, stride, padding, dilation = step.arguments
        others = [reader for reader in readers[dz] if reader is not step]
        back = next((other for other in others if _is(other, "conv2d_input_gradient") and other not in changes
                     and other.arguments[2:] == (x.shape, stride, padding, dilation)
                     and other.arguments[1].shape == (*kernel_size, x.shape[3], dz.shape[3])), None)
        inner = makers.get(dz)
        normalised = _is(inner, "normalise_gradient") and all(other is back for other in others)
        weight = back.arguments[1] if back else _weight_of(readers[x], step.results[0].shape)
        if weight is None or (back is None and not normalised):
            continue
        g, z, normalisation = inner.arguments if normalised else (dz, None, None)
        changes[step] = [like(step, "conv2d_unit_gradient", (g, z, normalisation, x, None, weight, stride, padding, None,
                                                             back is not None, None, None, None, False),
                              (back.results[0] if back else None, step.results[0], None, None))]
        if back:
            changes[back] = []
        if normalised:
            changes[inner] = []
    program.rewrite(changes)


def accumulate_where_made(program):
    """add_into(gradient, d)  ->  d is added where it is made, by conv2d_unit_gradient or batchnorm_coefficients.

    zero(gradient, ..) and a convolution's d that nothing else is added to  ->  written, and not set to zero before.
    """
    makers, readers, changes, latest, written = program.makers(), program.readers(), {}, {}, set()
    additions = [step for step in program.steps if step.operator == "add_into"]
    zeros = [step for step in program.steps if step.operator == "zero"]
    called = any(step.operator in ("opaque", "numpy") for step in program.steps)  # and may change any gradient
    alone = {id(array) for zero in zeros for array in zero.arguments[0] if not called
             and sum(step.arguments[0] is array for step in additions) == 1}
    for step in additions:
        total, value = step.arguments
        maker = makers.get(value) if isinstance(value, Array) and not isinstance(total, Array) else None
        places = {"conv2d_unit_gradient": (1,), "batchnorm_coefficients": (3, 4)}.get(maker.operator if maker else None, ())
        index = next((i for i in places if maker.results[i] is value), None)  # dx, say, may be a parameter's gradient
        if index is None or readers[value] != [step]:
            continue
        now, changes[step] = latest.get(maker, maker), []
        if index == 1:
            more = {11: total, 13: id(total) in alone}
            written |= {id(total)} & alone
        else:
            more = {6: tuple(total if index - 3 == i else old for i, old in enumerate(now.arguments[6]))}
        latest[maker] = _with(now, more, {index: None})
    for zero in zeros:
        left = tuple(array for array in zero.arguments[0] if id(array) not in written)
        changes[zero] = [like(zero, "zero", (left,), ())] if left else []
    program.rewrite({**changes, **{old: [new] for old, new in latest.items()}})


def sum_into_gradient(program):
    """add(dx, s), dx from conv2d_unit_gradient  ->  conv2d_unit_gradient(..., residual_gradient=s), where the sum stood."""
    makers, readers, changes = program.makers(), program.readers(), {}
    for step in program.steps:
        if step.operator != "add":
            continue
        for dx, other in (step.arguments, step.arguments[::-1]):
            unit = makers.get(dx)
            if _is(unit, "conv2d_unit_gradient") and unit not in changes and readers[dx] == [step] and (
                    unit.arguments[8] is None and other is not dx and not any(map(readers.get, unit.results[1:]))):
                changes[step] = [_with(unit, {8: other}, {0: step.results[0]})]
                changes[unit] = []
                break
    program.rewrite(changes)


def mask_into_gradient(program):
    """add_relu_gradient(dx, y, z, mean), dx from conv2d_unit_gradient(..., x=y)
    ->  conv2d_unit_gradient(..., front=(z, mean)): masked, and its sums taken, where it is written."""
    readers, changes = program.readers(), {}
    for step, unit in _pairs(program, "add_relu_gradient", "conv2d_unit_gradient"):
        if readers[step.arguments[0]] == [step] and unit.arguments[3] is step.arguments[1]:
            g, *sums = step.results
            new = _with(unit, {10: step.arguments[2:]}, {0: g, 2: sums[0], 3: sums[1]})
            changes.update({unit: [new], step: []})
    program.rewrite(changes)


def normalise_where_read(program):
    """y = normalise_add_relu(z, ..., None)  ->  whoever reads y reads z and forms it again, if all of its readers can.

    Those are conv2d_moments, add_relu_gradient and conv2d_unit_gradient, whose `front` then is the prologue. A residual is
    added there by a gradient that is the only reader of y.
    """
    readers, changes = program.readers(), {}
    for step in program.steps:
        if step.operator != "normalise_add_relu":
            continue
        z, prologue, residual = step.arguments
        (y,) = step.results
        found = [changes[reader][0] if changes.get(reader) else reader for reader in readers[y]]
        formed = [_reading(reader, y, z, prologue, residual) for reader in found]
        if found and all(formed) and (residual is None or len(found) == 1):
            changes[step] = []
            changes.update(zip(readers[y], ([new] for new in formed), strict=True))
    program.rewrite(changes)


def normalise_where_first_read(program):
    """y = normalise_add_relu(z, ..., s), conv2d_moments(y)  ->  add_relu_conv2d_moments(z, ..., s), which writes y too."""
    readers, changes = program.readers(), {}
    for step in program.steps:
        first = readers[step.results[0]][0] if step.operator == "normalise_add_relu" and readers[step.results[0]] else None
        if _is(first, "conv2d_moments") and first.arguments[0] is step.results[0] and first.arguments[1] is None:
            changes[first] = [like(first, "add_relu_conv2d_moments", (*step.arguments, *first.arguments[2:]),
                                   step.results + first.results)]
            changes[step] = []
    program.rewrite(changes)


def _reading(reader, y, z, prologue, residual):
    """`reader` with z and its prologue in the place of y, or None where it cannot read them."""
    if _is(reader, "conv2d_moments") and residual is None and reader.arguments[0] is y and reader.arguments[1] is None:
        return like(reader, "conv2d_moments", (z, prologue, *reader.arguments[2:]), reader.results)
    if _is(reader, "add_relu_gradient") and len(reader.arguments) == 4 and reader.arguments[1] is y and (
            reader.arguments[0] is not y and reader.arguments[2] is z and reader.arguments[3] is prologue[0]):
        dy, _, *statistics = reader.arguments
        return like(reader, "add_relu_gradient", (dy, None, *statistics, prologue, residual), reader.results)
    alone = sum(array is y for array in reader.reads) == 1 if reader is not None else False
    if not _is(reader, "conv2d_unit_gradient") or not alone or reader.arguments[3] is not y:
        return None
    front = reader.arguments[10]
    if reader.arguments[9] and (front is None or front[0] is not z or front[1] is not prologue[0]):
        return None
    return _with(reader, {3: z, 4: prologue, 10: None, 12: residual}, {})


def _pairs(program, operator, made_by):
    """(step, maker) of the steps of an operator whose first argument is made by another; each maker once."""
    makers, seen = program.makers(), set()
    for step in program.steps:
        maker = makers.get(step.arguments[0]) if step.operator == operator else None
        if _is(maker, made_by) and maker not in seen:
            seen.add(maker)
            yield step, maker


def _is(step, operator):
    return step is not None and step.operator == operator


def _has_bias(step):
    return _is(step, "conv2d_forward") and step.arguments[2] is not None and step.arguments[5] == PLAIN


def _with(step, arguments, results):
    """`step` with some arguments and results replaced, by their places."""
    return like(step, step.operator, (arguments.get(i, old) for i, old in enumerate(step.arguments)),
                (results.get(i, old) for i, old in enumerate(step.results)))


def _weight_of(readers, shape):
    """The weight, of a shape, that a convolution of the same input has, or None."""
    forward = (reader for reader in readers if _is(reader, "conv2d_forward") or _is(reader, "conv2d_moments"))
    weights = (next(a for a in reader.arguments[1:3] if hasattr(a, "shape")) for reader in forward)
    return next((weight for weight in weights if weight.shape == shape), None)


def _new(step, operator, arguments):
    """New Arrays for what `operator` makes of some arguments."""
    tracer = step.results[0]._tracer
    return tracer.results(operator, arguments)


TRAINING = (split_normalisation, moments_into_convolution, relu_into_normalisation, sums_into_mask,
            gradients_of_one_convolution, accumulate_where_made, sum_into_gradient, mask_into_gradient, normalise_where_read,
            normalise_where_first_read)
EVALUATION = (split_normalisation, fold_normalisation, relu_into_normalisation, prepare_weights)
