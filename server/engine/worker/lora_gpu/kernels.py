# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""Triton kernels: shrink (x A^T) and expand (that times B^T, added to y) of a wrapped layer.

`scatter` fills slots. In the first two, a program works on one tile: at most TILE_ROWS rows of the
batch that share an adapter. `tiles` holds each tile's slot, first position and number of rows. A
slot of -1 marks the unused end of the table, whose length depends only on shapes. Rows without an
adapter are in no tile, so they are neither read nor written. `rows` maps positions, sorted by slot,
to rows of x and y.

The products with A of all slices (q, k and v, or gate and up) lie side by side in `partial`.
`ends[slot, slice]` is the sum of the adapter's ranks up to that slice, so column c belongs to the
slice whose range of ranks holds c. The work of a program thus depends on the adapter's own ranks,
and a slice that the adapter doesn't change costs nothing.

If everything is ALIGNED to 16 bytes, ranks in `ends` are multiples of 8 (the slots hold zeros
behind an adapter's own rank), and masks are written for 8 numbers at a time. So the compiler can
prove that each thread may load 16 bytes at once.

x's features may be split into parts. Each part has its own plane in `partial`, and expand adds the
planes up. This needs no atomic operations, and nothing must be set to zero first.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _below(values, limit, ALIGNED: tl.constexpr):
    """Return values < limit. With ALIGNED, limits and every eighth value are multiples of 8."""
    if ALIGNED:  # noqa: SIM108 # decided when the kernel is compiled
        below = values // 8 < limit // 8
    else:
        below = values < limit
    return below


@triton.jit
def shrink(
    x,
    a,
    partial,
    rows,
    tiles,
    ends,
    geometry,
    scale,
    features,
    x_stride,
    a_slot_stride,
    ends_stride,
    partial_plane,
    partial_stride,
    part_features,
    SLICES: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FEATURES: tl.constexpr,
    ALIGNED: tl.constexpr,
    EARLY: tl.constexpr,
):
    """partial[part, position, column] = scale * x[row, part's features] . A[column, the same]."""
    # This comes before any return, because the next kernel waits only for this one.
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    tile = tiles + 4 * tl.program_id(0)
    slot = tl.load(tile)
    if slot < 0:
        return
    adapter_ends = ends + slot * ends_stride
    num_columns = tl.load(adapter_ends + SLICES - 1)
    first_column = tl.program_id(1) * COLUMNS
    if first_column >= num_columns:
        return

    first = tl.load(tile + 1)
    count = tl.load(tile + 2)
    place = tl.arange(0, TILE_ROWS)
    in_tile = place < count
    row = tl.load(rows + first + place, mask=in_tile, other=0).to(tl.int64)

    column = first_column + tl.arange(0, COLUMNS)
    live = _below(column, num_columns, ALIGNED)
    slice_of = tl.zeros([COLUMNS], dtype=tl.int32)
    start = tl.zeros([COLUMNS], dtype=tl.int32)
    for i in tl.static_range(SLICES):
        end = tl.load(adapter_ends + i)
        slice_of += (column >= end).to(tl.int32)
        start = tl.where(column >= end, end, start)
    a_offset = tl.load(geometry + 4 * slice_of, mask=live, other=0)
    a_offset += slot.to(tl.int64) * a_slot_stride + (column - start).to(tl.int64) * features
    if ALIGNED:  # to 16 bytes: the compiler can't know this about offsets that it loads
        a_offset = tl.multiple_of(a_offset, 8)

    first_feature = tl.program_id(2) * part_features
    end_feature = tl.minimum(first_feature + part_features, features)
    product = tl.zeros([TILE_ROWS, COLUMNS], dtype=tl.float32)
    for k in range(first_feature, end_feature, FEATURES):
        feature = k + tl.arange(0, FEATURES)
        inside = feature < features
        x_part = tl.load(
            x + row[:, None] * x_stride + feature[None, :],
            mask=in_tile[:, None] & inside[None, :],
            other=0.0,
        )
        a_part = tl.load(
            a + a_offset[:, None] + feature[None, :],
            mask=live[:, None] & inside[None, :],
            other=0.0,
        )
        product = tl.dot(x_part, tl.trans(a_part), product)

    at = (first + place).to(tl.int64) * partial_stride
    if ALIGNED:
        at = tl.multiple_of(at, 8)
    to = partial + tl.program_id(2).to(tl.int64) * partial_plane
    to += at[:, None] + column[None, :]
    tl.store(to, product * scale, mask=in_tile[:, None] & live[None, :])


@triton.jit
def expand(
    partial,
    b,
    y,
    rows,
    tiles,
    ends,
    geometry,
    max_rank,
    y_stride,
    ends_stride,
    partial_plane,
    partial_stride,
    num_parts,
    SLICES: tl.constexpr,
    PARTS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    RANKS: tl.constexpr,
    ALIGNED: tl.constexpr,
    ADD: tl.constexpr,
    EARLY: tl.constexpr,
):
    """y[row, outputs] += (sum of partial's planes)[position, slice's columns] . B[outputs, ranks].

    Without ADD it is `=`, but only for rows with an adapter and for slices that it changes.
    """
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    tile = tiles + 4 * tl.program_id(0)
    slot = tl.load(tile)
    if slot < 0:
        return

    # Find the slice of this program's block of outputs. A block never crosses slices.
    block = tl.program_id(1)
    slice_of = 0
    first_output = 0
    slice_output = 0
    width = 0
    blocks_before = 0
    outputs_before = 0
    for i in tl.static_range(SLICES):
        slice_width = tl.load(geometry + 4 * i + 3).to(tl.int32)
        blocks_after = blocks_before + tl.cdiv(slice_width, OUTPUTS)
        here = (block >= blocks_before) & (block < blocks_after)
        slice_of = tl.where(here, i, slice_of)
        first_output = tl.where(here, (block - blocks_before) * OUTPUTS, first_output)
        slice_output = tl.where(here, outputs_before, slice_output)
        width = tl.where(here, slice_width, width)
        blocks_before = blocks_after
        outputs_before += slice_width

    adapter_ends = ends + slot * ends_stride
    start = tl.load(adapter_ends + slice_of - 1, mask=slice_of > 0, other=0)
    num_ranks = tl.load(adapter_ends + slice_of) - start
    if num_ranks == 0:
        return

    first = tl.load(tile + 1)
    count = tl.load(tile + 2)
    place = tl.arange(0, TILE_ROWS)
    in_tile = place < count
    row = tl.load(rows + first + place, mask=in_tile, other=0).to(tl.int64)
    b_offset = tl.load(geometry + 4 * slice_of + 1)
    b_offset += slot.to(tl.int64) * tl.load(geometry + 4 * slice_of + 2)
    output = first_output + tl.arange(0, OUTPUTS)
    in_slice = _below(output, width, ALIGNED)
    b_row = b_offset + output.to(tl.int64) * max_rank
    product_row = (first + place).to(tl.int64) * partial_stride + start
    if ALIGNED:
        b_row = tl.multiple_of(b_row, 8)
        product_row = tl.multiple_of(product_row, 8)
        slice_output = tl.multiple_of(slice_output, 8)

    total = tl.zeros([TILE_ROWS, OUTPUTS], dtype=tl.float32)
    for r in range(0, num_ranks, RANKS):
        rank = r + tl.arange(0, RANKS)
        live = _below(rank, num_ranks, ALIGNED)
        at = partial + product_row[:, None] + rank[None, :]
        seen = in_tile[:, None] & live[None, :]
        if PARTS == 1:
            v = tl.load(at, mask=seen, other=0.0)
        else:
            part = tl.arange(0, PARTS)
            planes = tl.load(
                at[None, :, :] + part.to(tl.int64)[:, None, None] * partial_plane,
                mask=seen[None, :, :] & (part < num_parts)[:, None, None],
                other=0.0,
            )
            v = tl.sum(planes, axis=0)
        b_part = tl.load(
            b + b_row[:, None] + rank[None, :],
            mask=in_slice[:, None] & live[None, :],
            other=0.0,
        )
        total = tl.dot(v.to(b_part.dtype), tl.trans(b_part), total)

    to = y + row[:, None] * y_stride + (slice_output + output)[None, :]
    keep = in_tile[:, None] & in_slice[None, :]
    if ADD:
        total += tl.load(to, mask=keep, other=0.0).to(tl.float32)
    tl.store(to, total.to(y.dtype.element_ty), mask=keep)


@triton.jit
def scatter(source, base, segments, scales, slot, BLOCK: tl.constexpr):
    """Copy an adapter's matrices from its file into a slot: converted, scaled, padded with zeros.

    A segment describes one matrix by eight numbers: its start in `source`, its start relative to
    `base`, the distance between slots, the rows and columns to write, the matrix's own rows and
    columns, and the distance between rows in the slot.
    """
    segment = segments + 8 * tl.program_id(0)
    rows, columns = tl.load(segment + 3).to(tl.int32), tl.load(segment + 4).to(tl.int32)
    first = tl.program_id(1) * BLOCK
    if first >= rows * columns:
        return
    place = first + tl.arange(0, BLOCK)
    row, column = place // columns, place % columns
    inside = row < rows
    own_columns = tl.load(segment + 6)
    own = inside & (row < tl.load(segment + 5)) & (column < own_columns)
    value = tl.load(
        source + tl.load(segment) + row * own_columns + column,
        mask=own,
        other=0.0,
    )
    # As in vLLM: first converted to the slot's type, then multiplied in float32.
    scaled = value.to(base.dtype.element_ty).to(tl.float32) * tl.load(scales + tl.program_id(0))
    to = base + tl.load(segment + 1) + slot * tl.load(segment + 2)
    tl.store(
        to + row * tl.load(segment + 7) + column, scaled.to(base.dtype.element_ty), mask=inside
    )
