"""The loop over rows: sums of terms over the features of each row, and their gradients, in one pass.

A program takes ROWS rows, COLS columns at a time, and `split` cuts long rows among programs. It knows neither the
likelihood nor the divergence: an accumulator (accumulator.py) adds the observations. What a program can't finish alone,
sums over a cut row and over rows, it leaves as partial sums, which fold.py adds in fixed order.

Operands come as one tuple: (pointers, strides, gradients, x, mask); strides are (row, column) pairs, of the parameters,
then of x and the mask. KINDS says of each parameter whether it is one number a row (1), one row for all (2), both (3)
or neither (0).
"""

import triton
import triton.language as tl

from vae_fast.kernels.fastmath import widen


@triton.jit
def zeros_for(gradients, SHAPE: tl.constexpr, BIT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """An accumulator for each gradient that is summed over columns (BIT 1) or over rows (BIT 2)."""
    KINDS: tl.constexpr = SHAPE[0]
    parts = ()
    for k in tl.static_range(len(KINDS)):
        if (KINDS[k] == BIT or (KINDS[k] == 3 and BIT == 2)) and gradients[k] is not None:
            parts = parts + (tl.zeros([ROWS, COLS], tl.float32),)
        else:
            parts = parts + (0.0,)
    return parts


@triton.jit
def address(pointer, row, column, strides):
    return pointer + row * strides[0] + column * strides[1]


@triton.jit
def observe(
    carried,  # state, gradients' sums over columns, gradients' sums over rows, count
    operands,
    constants,
    where,  # row, whether it exists, whether it counts, the gradients' factor
    first,
    width: tl.constexpr,
    STEP: tl.constexpr,
    NEUTRAL: tl.constexpr,
    KINDS: tl.constexpr,
    ONE: tl.constexpr,
    OPTIONS: tl.constexpr,
    SELECT: tl.constexpr,
    BOUNDED: tl.constexpr,
    FOURS: tl.constexpr,
    COLS: tl.constexpr,
):
    """One tile: loads the operands, adds the observations, stores or sums the gradients."""
    pointers, strides, gradients, x_ptr, mask_ptr = operands
    x_strides, mask_strides = strides[len(KINDS)], strides[len(KINDS) + 1]
    state, over_columns, over_rows, count = carried
    row, exists, live, factor = where
    column = first + tl.arange(0, COLS)[None, :]
    inside = column < width if BOUNDED else None
    stored = exists & inside if BOUNDED else exists
    keep = live & inside if BOUNDED else live
    if mask_ptr is not None:
        keep = keep & (tl.load(address(mask_ptr, row, column, mask_strides), mask=inside) != 0)
        count += keep.to(tl.float32)

    parameters = ()
    for k in tl.static_range(len(KINDS)):
        if (KINDS[k] & 1) != 0:
            parameter = constants[k]
        else:
            parameter = widen(tl.load(address(pointers[k], row, column, strides[k]), mask=inside), FOURS)
        if SELECT or BOUNDED:
            parameter = tl.where(keep, parameter, NEUTRAL[k])
        parameters = parameters + (parameter,)
    x = None
    if x_ptr is not None:
        x = widen(tl.load(address(x_ptr, row, column, x_strides), mask=inside), FOURS)
        if SELECT or BOUNDED:
            x = tl.where(keep, x, NEUTRAL[len(KINDS)])

    state, found = STEP(state, parameters, x, factor, ONE, OPTIONS)

    grown_columns, grown_rows = (), ()
    for k in tl.static_range(len(KINDS)):
        column_sum, row_sum = over_columns[k], over_rows[k]
        if gradients[k] is not None:
            gradient = found[k]
            if KINDS[k] == 0:
                if SELECT:
                    gradient = tl.where(keep & (factor != 0), gradient, 0.0)
                to = gradients[k] + row * width + column
                tl.store(to, gradient.to(to.dtype.element_ty), mask=stored)
            else:
                gradient = tl.where(keep & stored & (factor != 0), gradient, 0.0)
                if KINDS[k] == 1:
                    column_sum += gradient
                else:
                    row_sum += gradient
        grown_columns = grown_columns + (column_sum,)
        grown_rows = grown_rows + (row_sum,)
    return state, grown_columns, grown_rows, count


@triton.jit
def zeros(STATES: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    state = ()
    for _ in tl.static_range(STATES):
        state = state + (tl.zeros([ROWS, COLS], tl.float32),)
    return state


@triton.jit
def sums_of_rows(over_columns, gradients, KINDS: tl.constexpr):
    """The accumulators over columns as one number a row."""
    sums = ()
    for k in tl.static_range(len(KINDS)):
        if KINDS[k] == 1 and gradients[k] is not None:
            sums = sums + (tl.sum(over_columns[k], 1),)
        else:
            sums = sums + (0.0,)
    return sums


@triton.jit
def section(
    operands,
    constants,
    where,
    begin,
    tiles,
    width: tl.constexpr,
    over_rows,
    STEP: tl.constexpr,
    FOLD: tl.constexpr,
    SHAPE: tl.constexpr,
    SELECT: tl.constexpr,
    BOUNDED: tl.constexpr,
    UNROLL: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """`tiles` tiles of COLS columns, a multiple of UNROLL: terms [ROWS], gradients' sums over columns and over rows,
    and what the mask counts."""
    KINDS: tl.constexpr = SHAPE[0]
    GROUP: tl.constexpr = min(SHAPE[2], COLS)
    FOURS: tl.constexpr = ROWS * COLS >= (32 * SHAPE[2] if COLS == SHAPE[1] else 512)  # see tiling.py: warps
    INTERVAL: tl.constexpr = SHAPE[6]
    ONE: tl.constexpr = SHAPE[7]
    STATES: tl.constexpr = SHAPE[8]
    NEUTRAL: tl.constexpr = SHAPE[9]
    OPTIONS: tl.constexpr = SHAPE[10]
    gradients = operands[2]
    count = tl.zeros([ROWS, COLS], tl.float32) if operands[4] is not None else 0.0
    carried = (zeros(STATES, ROWS, COLS), zeros_for(gradients, SHAPE, 1, ROWS, COLS), over_rows, count)
    if INTERVAL > 0:
        total = tl.zeros([ROWS, COLS // GROUP], tl.float32)
        for part in range(0, tiles, INTERVAL):
            for tile in range(part, tl.minimum(part + INTERVAL, tiles), UNROLL):
                for k in tl.static_range(UNROLL):
                    carried = observe(
                        carried, operands, constants, where, begin + (tile + k) * COLS, width,
                        STEP, NEUTRAL, KINDS, ONE, OPTIONS, SELECT, BOUNDED, FOURS, COLS,
                    )  # fmt: skip
            total += FOLD(carried[0], ONE, GROUP)
            carried = (zeros(STATES, ROWS, COLS), carried[1], carried[2], carried[3])
    else:
        for tile in range(0, tiles, UNROLL):
            for k in tl.static_range(UNROLL):
                carried = observe(
                    carried, operands, constants, where, begin + (tile + k) * COLS, width,
                    STEP, NEUTRAL, KINDS, ONE, OPTIONS, SELECT, BOUNDED, FOURS, COLS,
                )  # fmt: skip
        total = FOLD(carried[0], ONE, GROUP)
    _, over_columns, over_rows, count = carried
    counted = tl.sum(count, 1) if operands[4] is not None else 0.0
    return tl.sum(total, 1), sums_of_rows(over_columns, gradients, KINDS), over_rows, counted


@triton.jit
def sum_rows(
    operands,
    where,
    split,
    tiles,
    width: tl.constexpr,
    over_rows,
    STEP: tl.constexpr,
    FOLD: tl.constexpr,
    FINISH: tl.constexpr,
    SHAPE: tl.constexpr,
    SELECT: tl.constexpr,
    CUT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A split of ROWS rows, `tiles` whole tiles or what is left: their values [ROWS], gradients' sums over columns,
    and over_rows grown."""
    KINDS: tl.constexpr = SHAPE[0]
    COLS: tl.constexpr = SHAPE[1]
    TAIL: tl.constexpr = SHAPE[3]
    BOUNDED: tl.constexpr = SHAPE[4]
    UNROLL: tl.constexpr = SHAPE[5]
    WHOLE: tl.constexpr = width // COLS if TAIL > 0 else (width + COLS - 1) // COLS
    pointers, strides, _, _, mask_ptr = operands
    row, _, _, _ = where
    constants, flat = (), ()
    for k in tl.static_range(len(KINDS)):
        if (KINDS[k] & 1) != 0:
            constant = tl.load(address(pointers[k], row, 0, strides[k])).to(tl.float32)
            constants = constants + (constant,)
            flat = flat + (tl.reshape(constant, [ROWS]),)
        else:
            constants = constants + (0.0,)
            flat = flat + (0.0,)

    if CUT:
        begin = split * tiles * COLS
        tiles = tl.maximum(tl.minimum(tiles, WHOLE - split * tiles), 0)
    else:
        begin = split * 0
    whole = begin + tiles * COLS
    total, over_columns, over_rows, count = section(
        operands, constants, where, begin, tiles, width, over_rows,
        STEP, FOLD, SHAPE, SELECT, BOUNDED and TAIL == 0, UNROLL, ROWS, COLS,
    )  # fmt: skip
    counted = tl.maximum(tl.minimum(whole, width) - begin, 0)
    if TAIL > 0:
        last = ((tiles > 0) & (whole == WHOLE * COLS)).to(tl.int32) if CUT else 1
        more, more_columns, over_rows, more_count = section(
            operands, constants, where, whole, last, width, over_rows,
            STEP, FOLD, SHAPE, SELECT, BOUNDED, 1, ROWS, TAIL,
        )  # fmt: skip
        counted += last * (width - WHOLE * COLS)
        total += more
        count += more_count
        joined = ()
        for k in tl.static_range(len(KINDS)):
            joined = joined + (over_columns[k] + more_columns[k],)
        over_columns = joined
    if mask_ptr is None:
        value = FINISH(total, counted * 1.0, flat)
    else:
        value = tl.where(count > 0, FINISH(total, count, flat), 0.0)
    return value, over_columns, over_rows


@triton.jit
def store_row_sums(gradients, over_columns, at, exists, SHAPE: tl.constexpr):
    """Gradients that are one number a row."""
    KINDS: tl.constexpr = SHAPE[0]
    for k in tl.static_range(len(KINDS)):
        if KINDS[k] == 1 and gradients[k] is not None:
            tl.store(gradients[k] + at, over_columns[k].to(gradients[k].dtype.element_ty), mask=exists)


@triton.jit
def store_column_sums(gradients, over_rows, group, split, width: tl.constexpr, SHAPE: tl.constexpr):
    """Partial sums over the rows of a group, [groups, width], or over all its elements, [groups, splits]."""
    KINDS: tl.constexpr = SHAPE[0]
    COLS: tl.constexpr = SHAPE[1]
    column = split * COLS + tl.arange(0, COLS)
    for k in tl.static_range(len(KINDS)):
        if gradients[k] is not None:
            if KINDS[k] == 2:
                tl.store(gradients[k] + group * width + column, tl.sum(over_rows[k], 0), mask=column < width)
            elif KINDS[k] == 3:
                tl.store(gradients[k] + group * tl.num_programs(1) + split, tl.sum(tl.sum(over_rows[k], 1), 0))
