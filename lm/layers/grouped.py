"""Matrix products of groups of rows, each group with a kernel of its own.

T rows stand one group after another, and `sizes_E` says how many are in each.
Rows past the last group give arbitrary results and add nothing to gradients.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from lm.layers import linear

# Rows of one product on a CPU; 64 to 512 were much the same.
_BLOCK = 128


def contract(
  x_TD: jax.Array,
  kernels_EDF: jax.Array,
  sizes_E: jax.Array,
  compute_dtype: str,
  result: str,
) -> jax.Array:
  """Multiplies each row with the kernel of its group: [T, F].

  Precisions are those of `linear.contract`, in the backward pass too.

  Accelerators use `jax.lax.ragged_dot`. XLA:CPU would let that multiply every
  row with every kernel, so a CPU loops over blocks of rows instead: 0.3 s
  instead of 3 s for 24,576 rows and 64 kernels of [256, 128].

  Args:
    x_TD: the rows.
    kernels_EDF: a kernel a group.
    sizes_E: how many rows each group has, at most T together.
    compute_dtype: the type that both factors are rounded to, as in
      `linear.contract`; a type of few bits stands for bfloat16.
    result: dtype of the product.
  """
  compute_dtype = linear.floating(compute_dtype)
  return _contract(x_TD, kernels_EDF, sizes_E, compute_dtype, result)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _contract(x_TD, kernels_EDF, sizes_E, compute_dtype, result):
  return _forward(x_TD, kernels_EDF, sizes_E, compute_dtype, result)[0]


def _forward(x_TD, kernels_EDF, sizes_E, compute_dtype, result):
  # What the backward pass reads is kept in the narrow type: half the memory.
  narrow = x_TD.astype(compute_dtype), kernels_EDF.astype(compute_dtype)
  # Residuals of a custom_vjp must be arrays, so empty ones carry the dtypes.
  dtypes = jnp.zeros((0,), x_TD.dtype), jnp.zeros((0,), kernels_EDF.dtype)
  return _rows(*narrow, sizes_E, 1, result), (narrow, sizes_E, dtypes)


def _backward(compute_dtype, result, residuals, cotangent_TF):
  del result
  (x_TD, kernels_EDF), sizes_E, (x_dtype, kernels_dtype) = residuals
  cotangent_TF = cotangent_TF.astype(compute_dtype)
  # The same product with the kernels transposed: F is summed over, not D.
  dx_TD = _rows(cotangent_TF, kernels_EDF, sizes_E, 2, x_dtype.dtype)
  dkernels_EDF = _kernels(x_TD, cotangent_TF, sizes_E, kernels_dtype.dtype)
  return dx_TD, dkernels_EDF, None


_contract.defvjp(_forward, _backward)


def _rows(x, kernels, sizes_E, summed, result):
  """Multiplies rows with the kernels of their groups: [T, F] or [T, D].

  Args:
    x: rows [T, D] or [T, F].
    kernels: [E, D, F].
    sizes_E: how many rows each group has.
    summed: the dimension of a kernel that is summed over: 1 for D, 2 for F.
    result: dtype of the product.
  """
  outputs = kernels.shape[3 - summed]

  def loop(x, kernels, sizes_E):
    def step(group, first, y):
      kernel = jax.lax.dynamic_index_in_dim(kernels, group, 0, keepdims=False)
      product = jax.lax.dot_general(
        jax.lax.dynamic_slice_in_dim(padded, first, _BLOCK),
        kernel,
        (((1,), (summed - 1,)), ((), ())),
        preferred_element_type=result,
      )
      # The last block of a group also writes rows of the next group. They are
      # wrong, and that group, which comes later, overwrites them.
      return jax.lax.dynamic_update_slice_in_dim(y, product, first, 0)

    # So that the last block of all does not reach past the end: a slice that
    # does would be moved to the left, onto other rows.
    padded = jnp.pad(x, ((0, _BLOCK), (0, 0)))
    return _fold(step, sizes_E, (len(padded), outputs), result)[: len(x)]

  dims = (((1,), (summed,)), ((), ())), [0], [0]
  return _either(loop, dims, x, kernels, sizes_E, result)


def _kernels(x, y, sizes_E, result):
  """Sums x^T y over the rows of each group: gradients of kernels [E, D, F]."""

  def loop(x, y, sizes_E):
    ends_E = jnp.cumsum(sizes_E)

    def step(group, first, total):
      a, b = (jax.lax.dynamic_slice_in_dim(z, first, _BLOCK) for z in padded)
      # Rows of the next group are in the last block, too, and would be added
      # to the wrong kernel. Zeros on one side are enough.
      inside = first + jnp.arange(_BLOCK) < ends_E[group]
      product = jax.lax.dot_general(
        jnp.where(inside[:, None], a, 0),
        b,
        (((0,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
      )
      before = jax.lax.dynamic_index_in_dim(total, group, 0)
      return jax.lax.dynamic_update_index_in_dim(
        total, before + product[None], group, 0
      )

    padded = [jnp.pad(z, ((0, _BLOCK), (0, 0))) for z in (x, y)]
    shape = len(sizes_E), x.shape[1], y.shape[1]
    # Float32 until all blocks are added, as the rows within a block are: a
    # bfloat16 sum of many blocks would lose the last ones.
    return _fold(step, sizes_E, shape, 'float32').astype(result)

  dims = (((0,), (0,)), ((), ())), [0], []
  return _either(loop, dims, x, y, sizes_E, result)


def _either(loop: Callable[..., jax.Array], dims, x, y, sizes_E, result):
  """Runs the loop on a CPU, and `jax.lax.ragged_dot_general` elsewhere.

  Args:
    loop: `(x, y, sizes_E) -> product`.
    dims: of a ragged product: those of `dot_general`, then the dimension of x
      that is cut into groups and the dimension of y that counts them.
    x, y: the factors.
    sizes_E: how many rows each group has.
    result: dtype of the product.
  """
  dims = jax.lax.RaggedDotDimensionNumbers(*dims)

  # Under `jax.vmap` examples run one after another: jax has no batching rule
  # for a ragged product whose kernels are shared, and a batched loop would copy
  # its whole result in each step, where it now writes a few rows in place.
  @jax.custom_batching.sequential_vmap
  def run(x, y, sizes_E):
    return jax.lax.platform_dependent(
      x,
      y,
      sizes_E,
      cpu=loop,
      default=partial(
        jax.lax.ragged_dot_general,
        ragged_dot_dimension_numbers=dims,
        preferred_element_type=result,
      ),
    )

  return run(x, y, sizes_E)


def _fold(step, sizes_E, shape, dtype):
  """Folds `step(group, first_row, result)` over the blocks of all groups.

  One loop over all blocks and not one for each group: its length is known when
  the program runs, so no time is spent on the room of empty groups.
  """
  blocks_E = -(-sizes_E // _BLOCK)
  ends_E = jnp.cumsum(blocks_E)  # in blocks
  first_E = jnp.cumsum(sizes_E) - sizes_E

  def body(n, result):
    # The group that block n belongs to; 'right' passes over empty groups.
    group = jnp.searchsorted(ends_E, n, side='right')
    block = n - (ends_E[group] - blocks_E[group])
    return step(group, first_E[group] + block * _BLOCK, result)

  return jax.lax.fori_loop(0, ends_E[-1], body, jnp.zeros(shape, dtype))
