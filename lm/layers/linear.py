"""Matrix products in a chosen precision, in the backward pass too.

The rule of low precision has three parts. Linear layers (`contract`) run in
`compute_dtype`. Other products run in bfloat16 where `compute_dtype` has fewer
bits, see `floating`. Sums of products, norms, softmax, rotations and losses are
always float32.
"""

from collections.abc import Sequence
from functools import partial
import importlib.util
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm import errors
from lm.layers import initializers

# The type of the factors of a quantized product, and of the gradient that comes
# back to it. Gradients have longer tails than 255 even steps can hold without
# stochastic rounding, so int8 products have bfloat16 gradients. FP8 has a type
# with more exponents for gradients: Micikevicius et al. 2022, arXiv 2209.05433,
# section 3.
_QUANTIZED = {
  'int8': ('int8', 'bfloat16'),
  'fp8': ('float8_e4m3fn', 'float8_e5m2'),
}
COMPUTE_DTYPES = ('float32', 'bfloat16', *_QUANTIZED)


class Dense(nn.Module):
  """Multiplies with a kernel [D, F] and adds a bias [F].

  Attributes:
    outputs: F.
    kernel_init: initializer of the kernel; the bias starts at 0.
    dtype: type of the result.
    compute_dtype: type that the factors are rounded to, see `contract`.
    bias: whether to add a bias.
  """

  outputs: int
  kernel_init: initializers.Initializer
  dtype: str
  compute_dtype: str
  bias: bool = True

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    shape = x_BLD.shape[-1], self.outputs
    kernel_DF = self.param('kernel', self.kernel_init, shape)
    y_BLF = contract(
      'BLD,DF->BLF', x_BLD, kernel_DF, self.compute_dtype, self.dtype
    )
    if not self.bias:
      return y_BLF
    bias_F = self.param('bias', initializers.ZEROS, shape[1:])
    return y_BLF + bias_F.astype(self.dtype)[None, None]


def contract(
  spec: str, x: jax.Array, y: jax.Array, compute_dtype: str, result: str
) -> jax.Array:
  """Multiplies like `jnp.einsum(spec, x, y)`, in stated precisions.

  The gradient is written by hand. Autodiff of a bfloat16 product with a float32
  result would multiply a float32 gradient with a bfloat16 factor, in float32;
  here all three products run in the compute dtype, each in its best order.

  Args:
    spec: einsum letters; each letter of an input also stands in the other
      input or in the result.
    x, y: the factors, in any float type.
    compute_dtype: one of `COMPUTE_DTYPES`. Both factors are rounded to it, and
      so is the incoming gradient in the backward pass. 'int8' and 'fp8' scale
      each row and column by its largest entry; gradients of 'int8' products
      are computed in bfloat16.
    result: dtype of the product. Sums run in float32, those of integers in
      int32.
  """
  return _contract(x, y, spec, compute_dtype, result)


def floating(compute_dtype: str) -> str:
  """Names the type of all products that are not linear layers.

  Attention scores, logits and grouped products of experts are never quantized:
  a softmax amplifies errors, and no quantized grouped product exists.
  """
  return 'bfloat16' if compute_dtype in _QUANTIZED else compute_dtype


def check(compute_dtype: str) -> None:
  """Checks that products can be computed in `compute_dtype` here.

  Raises:
    ValueError: there is no such type, or qwix, which it needs, is missing.
  """
  if compute_dtype not in COMPUTE_DTYPES:
    raise ValueError(
      f'compute_dtype={compute_dtype!r} is not one of '
      f'{", ".join(COMPUTE_DTYPES)}'
    )
  if compute_dtype in _QUANTIZED and importlib.util.find_spec('qwix') is None:
    raise ValueError(
      f'compute_dtype={compute_dtype!r} needs qwix: {errors.install("quant")}'
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _contract(x, y, spec, compute_dtype, result):
  return _forward(x, y, spec, compute_dtype, result)[0]


def _forward(x, y, spec, compute_dtype, result):
  # What the backward pass reads is kept in the narrow type: half the memory.
  narrow = x.astype(floating(compute_dtype)), y.astype(floating(compute_dtype))
  # Residuals of a custom_vjp must be arrays, so empty ones carry the dtypes.
  dtypes = jnp.zeros((0,), x.dtype), jnp.zeros((0,), y.dtype)
  if compute_dtype not in _QUANTIZED:
    return multiply(spec, *narrow, result), (narrow, dtypes)
  inputs, output = spec.split('->')
  x_spec, y_spec = inputs.split(',')
  factor, gradient = _QUANTIZED[compute_dtype]
  x, y = (_quantized(*a, output, factor) for a in ((x, x_spec), (y, y_spec)))
  # Gradients in bfloat16 multiply bfloat16 factors, which were not quantized.
  kept = narrow if gradient == 'bfloat16' else (x, y)
  return multiply(spec, x, y, result), (kept, dtypes)


def _backward(spec, compute_dtype, result, residuals, cotangent):
  del result
  (x, y), (x_dtype, y_dtype) = residuals
  inputs, output = spec.split('->')
  x_spec, y_spec = inputs.split(',')

  def round_for(factor, letters, other):
    """Rounds the gradient so that it can be multiplied with `factor`.

    Returns:
      The rounded gradient, and the factor without its scales.
    """
    if isinstance(factor, jax.Array):
      return cotangent.astype(factor.dtype), factor
    # The factor has a scale for each of its outputs, and these are summed over
    # in the backward pass. A scale inside a sum cannot be multiplied
    # afterwards, so the gradient takes it before it is rounded.
    sizes = dict(zip(letters, factor.shape, strict=True))
    kept = [a for a in letters if a in output]
    order = [a for a in output if a in letters]
    scale = jnp.einsum(
      f'{"".join(kept)}->{"".join(order)}',
      factor.scale.reshape([sizes[a] for a in kept]),
    ).reshape([sizes.get(a, 1) for a in output])
    dtype = _QUANTIZED[compute_dtype][1]
    return _quantized(cotangent * scale, output, other, dtype), factor.qvalue

  # dx sums the gradient times y over the letters that x does not have; dy
  # likewise.
  gradient, y = round_for(y, y_spec, x_spec)
  dx = multiply(f'{output},{y_spec}->{x_spec}', gradient, y, x_dtype.dtype)
  gradient, x = round_for(x, x_spec, y_spec)
  dy = multiply(f'{x_spec},{output}->{y_spec}', x, gradient, y_dtype.dtype)
  return dx, dy


_contract.defvjp(_forward, _backward)


def quantized(x: Any, kept: Sequence[int], dtype: str) -> Any:
  """Rounds to a type of few bits, with a scale for each entry along `kept`.

  Args:
    x: an array of a float type.
    kept: the dimensions along which entries have scales of their own.
    dtype: 'int8' or a float8 type.

  Returns:
    A `qwix.QArray`. Its value is `qvalue * scale`, where `scale` has size 1
    along all other dimensions.
  """
  import qwix  # takes seconds, and few runs need it

  # Scales have the type of what is quantized, and bfloat16 ones would be wrong
  # by up to 0.4 %.
  return qwix.quantize(x.astype(jnp.float32), dtype, channelwise_axes=kept)


def _quantized(x, letters, kept, dtype):
  """Does the same for dimensions that are given as letters."""
  return quantized(x, [i for i, a in enumerate(letters) if a in kept], dtype)


def _dot(a, b, dimensions, result):
  if isinstance(a, jax.Array) and isinstance(b, jax.Array):
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=result)
  import qwix

  product = qwix.dot_general(a, b, dimensions, preferred_element_type='float32')
  return product.astype(result)


def multiply(spec: str, x: Any, y: Any, result: str | np.dtype) -> jax.Array:
  """Multiplies two factors in the order that costs a CPU the fewest copies.

  XLA:CPU wants the summed letters of the left factor last, and writes the left
  factor's letters before the right one's. Everything else it copies in one
  thread, which costs more than the product when the array is large.

  Gradients are those of autodiff; `contract` has a rule of its own.

  Args:
    spec: einsum letters, with the same restriction as in `contract`.
    x, y: the factors, of one dtype, or both of type `qwix.QArray`.
    result: dtype of the product.
  """
  inputs, output = spec.split('->')
  x_spec, y_spec = inputs.split(',')
  sizes = dict(zip(x_spec + y_spec, x.shape + y.shape, strict=True))

  def size(letters):
    return math.prod(sizes[a] for a in letters)

  def written(left, right):
    """Orders the result's letters as XLA does: of both, of left, of right."""
    kept = [a for a in left + right if a in output]
    return sorted(
      dict.fromkeys(kept), key=lambda a: 2 * (a not in left) + (a not in right)
    )

  def copied(order):
    """Counts the elements that have to be transposed."""
    (left, _), (right, _) = order
    kept_last = sorted(left, key=lambda a: a not in output) != list(left)
    moved = written(left, right) != list(output)
    return kept_last * size(left) + moved * size(output)

  orders = ((x_spec, x), (y_spec, y)), ((y_spec, y), (x_spec, x))
  (left, a), (right, b) = min(orders, key=copied)
  shared = [a for a in left if a in right]

  def places(letters, kept):
    return [letters.index(a) for a in shared if (a in output) == kept]

  summed = places(left, kept=False), places(right, kept=False)
  batched = places(left, kept=True), places(right, kept=True)
  product = _dot(a, b, (summed, batched), result)
  natural = ''.join(written(left, right))
  if natural == output:
    return product
  # Without a barrier XLA:CPU folds the transposition into the product again,
  # which then runs in its slow order.
  product = jax.lax.platform_dependent(
    product, cpu=jax.lax.optimization_barrier, default=lambda x: x
  )
  return jnp.einsum(f'{natural}->{output}', product)
