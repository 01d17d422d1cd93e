"""Matrix products of groups of rows, each group with a kernel of its own.

T rows stand one group after another: `sizes_E` says how many are in each. Rows
past the last group give anything, and take part in nothing.
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
  """Multiplies rows with the kernel of their group: [T, F].

  In the precisions of `linear.contract`, in the backward pass too.

  On accelerators this is `jax.lax.ragged_dot`. XLA:CPU has that multiply every
  row with every kernel, and so a CPU loops over blocks of rows: 0.3 s instead
  of 3 s for 24,576 rows and 64 kernels of [256, 128].

  Args:
    x_TD, kernels_EDF: the factors.
    sizes_E: rows of each group, at most T together.
    compute_dtype, result: as of `linear.contract`, but never quantized.
  """
  compute_dtype = linear.floating(compute_dtype)
  return _contract(x_TD, kernels_EDF, sizes_E, compute_dtype, result)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _contract(x_TD, kernels_EDF, sizes_E, compute_dtype, result):
  return _forward(x_TD, kernels_EDF, sizes_E, compute_dtype, result)[0]


def _forward(x_TD, kernels_EDF, sizes_E, compute_dtype, result):
  # What the backward pass reads is kept in the narrow type: half the memory.
  narrow = x_TD.astype(compute_dtype), kernels_EDF.astype(compute_dtype)
  # Empty arrays carry the original dtypes, which jax types do not travel in.
  kinds = jnp.zeros((0,), x_TD.dtype), jnp.zeros((0,), kernels_EDF.dtype)
  return _rows(*narrow, sizes_E, 1, result), (narrow, sizes_E, kinds)


def _backward(compute_dtype, result, residuals, cotangent_TF):
  del result
  (x_TD, kernels_EDF), sizes_E, (x_kind, kernels_kind) = residuals
  cotangent_TF = cotangent_TF.astype(compute_dtype)
  dx_TD = _rows(cotangent_TF, kernels_EDF, sizes_E, 2, x_kind.dtype)
  dkernels_EDF = _kernels(x_TD, cotangent_TF, sizes_E, kernels_kind.dtype)
  return dx_TD, dkernels_EDF, None


_contract.defvjp(_forward, _backward)


def _rows(x, kernels, sizes_E, summed, result):
  """Multiplies rows with dimension `summed` of their group's kernel."""
  outputs = kernels.shape[3 - summed]

  def loop(x, kernels, sizes_E):
    def step(group, first, y):
      kernel = jax.lax.dynamic_index_in_dim(kernels, group, 0, keepdims=False)
      answer = jax.lax.dot_general(
        jax.lax.dynamic_slice_in_dim(padded, first, _BLOCK),
        kernel,
        (((1,), (summed - 1,)), ((), ())),
        preferred_element_type=result,
      )
      # What this says of the next group's rows is overwritten by that group.
      return jax.lax.dynamic_update_slice_in_dim(y, answer, first, 0)

    padded = jnp.pad(x, ((0, _BLOCK), (0, 0)))
    return _fold(step, sizes_E, (len(padded), outputs), result)[: len(x)]

  dims = (((1,), (summed,)), ((), ())), [0], [0]
  return _either(loop, dims, x, kernels, sizes_E, result)


def _kernels(x, y, sizes_E, result):
  """Sums the outer products of two arrays' rows over each group."""

  def loop(x, y, sizes_E):
    ends_E = jnp.cumsum(sizes_E)

    def step(group, first, total):
      a, b = (jax.lax.dynamic_slice_in_dim(z, first, _BLOCK) for z in padded)
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
    # Blocks add up in float32, as the rows of one do.
    return _fold(step, sizes_E, shape, 'float32').astype(result)

  dims = (((0,), (0,)), ((), ())), [0], []
  return _either(loop, dims, x, y, sizes_E, result)


def _either(loop: Callable[..., jax.Array], dims, x, y, sizes_E, result):
  """Takes the loop on a CPU, and `jax.lax.ragged_dot_general` elsewhere."""
  dims = jax.lax.RaggedDotDimensionNumbers(*dims)

  # One after another under `jax.vmap`: jax has no rule for a ragged product
  # with kernels that all share, and the loop would select where it now writes.
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
  """Folds `step(group, first row, result)` over the blocks of all groups."""
  blocks_E = -(-sizes_E // _BLOCK)
  last_E = jnp.cumsum(blocks_E)
  first_E = jnp.cumsum(sizes_E) - sizes_E

  def body(n, result):
    group = jnp.searchsorted(last_E, n, side='right')
    block = n - (last_E[group] - blocks_E[group])
    return step(group, first_E[group] + block * _BLOCK, result)

  return jax.lax.fori_loop(0, last_E[-1], body, jnp.zeros(shape, dtype))
