"""Matrix products in a chosen precision, in the backward pass too.

The rule of low precision: linear layers, `contract`, are what `compute_dtype` says;
products of another kind are in bfloat16 where it says less, see `floating`; and
sums of products, norms, softmax, rotations and losses are always in float32.
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

# Types of the factors of a quantized product, and of the gradients that come
# back to it. Gradients have longer tails than 255 even steps hold unless they
# are rounded at random: after int8 they are in bfloat16, which is safe. FP8 has
# a type with more exponents for them: Micikevicius et al. 2022, arXiv
# 2209.05433, section 3.
_QUANTIZED = {
  'int8': ('int8', 'bfloat16'),
  'fp8': ('float8_e4m3fn', 'float8_e5m2'),
}
COMPUTE_DTYPES = ('float32', 'bfloat16', *_QUANTIZED)


class Dense(nn.Module):
  """Multiplies with a kernel [D, F] and adds a bias [F].

  Attributes:
    outputs: F.
    kernel_init: of the kernel; the bias starts at 0.
    dtype, compute_dtype: result and operand types of the product.
    bias: whether there is one.
  """

  outputs: int
  kernel_init: nn.initializers.Initializer
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
    bias_F = self.param('bias', nn.initializers.zeros, shape[1:])
    return y_BLF + bias_F.astype(self.dtype)[None, None]


def contract(
  spec: str, x: jax.Array, y: jax.Array, compute_dtype: str, result: str
) -> jax.Array:
  """Multiplies like `jnp.einsum(spec, x, y)` with stated precisions.

  Args:
    spec: einsum letters; each letter of an input also stands in the other
      input or in the result.
    x, y: the factors, in any float type.
    compute_dtype: one of `COMPUTE_DTYPES`, that both factors are rounded to before they
      are multiplied, and the incoming gradient in the backward pass. 'int8' and
      'fp8' scale each row and column by its largest entry; gradients with
      'int8' are those of 'bfloat16'.
    result: dtype of the product. Sums always run in float32, of integers in
      int32.

  Autodiff of a bfloat16 product with a float32 result would multiply a float32
  gradient with a bfloat16 factor, in float32: the rule is written by hand so
  that all three products run on such compute_dtype, each in its best order.
  """
  return _contract(x, y, spec, compute_dtype, result)


def floating(compute_dtype: str) -> str:
  """Names the type of products that are no linear layer's.

  Scores of attention, logits and experts' groups of tokens are not quantized: a
  softmax blows errors up, and there is no such product of groups.
  """
  return 'bfloat16' if compute_dtype in _QUANTIZED else compute_dtype


def check(compute_dtype: str) -> None:
  """Checks that products can be computed so.

  Raises:
    ValueError: they cannot.
  """
  if compute_dtype not in COMPUTE_DTYPES:
    raise ValueError(
      f'compute_dtype={compute_dtype!r} is not one of {", ".join(COMPUTE_DTYPES)}'
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
  # Empty arrays carry the original dtypes, which jax types do not travel in.
  kinds = jnp.zeros((0,), x.dtype), jnp.zeros((0,), y.dtype)
  if compute_dtype not in _QUANTIZED:
    return multiply(spec, *narrow, result), (narrow, kinds)
  inputs, output = spec.split('->')
  x_spec, y_spec = inputs.split(',')
  factor, gradient = _QUANTIZED[compute_dtype]
  x, y = (_quantized(*a, output, factor) for a in ((x, x_spec), (y, y_spec)))
  kept = narrow if gradient == 'bfloat16' else (x, y)
  return multiply(spec, x, y, result), (kept, kinds)


def _backward(spec, compute_dtype, result, residuals, cotangent):
  del result
  (x, y), (x_kind, y_kind) = residuals
  inputs, output = spec.split('->')
  x_spec, y_spec = inputs.split(',')

  def round_for(factor, letters, other):
    """Rounds the gradient, to be multiplied with a factor for the other."""
    if isinstance(factor, jax.Array):
      return cotangent.astype(factor.dtype), factor
    # The factor's scales are of what is summed over now: they go to the
    # gradient before it is rounded.
    sizes = dict(zip(letters, factor.shape, strict=True))
    kept = [a for a in letters if a in output]
    order = [a for a in output if a in letters]
    scale = jnp.einsum(
      f'{"".join(kept)}->{"".join(order)}',
      factor.scale.reshape([sizes[a] for a in kept]),
    ).reshape([sizes.get(a, 1) for a in output])
    kind = _QUANTIZED[compute_dtype][1]
    return _quantized(cotangent * scale, output, other, kind), factor.qvalue

  gradient, y = round_for(y, y_spec, x_spec)
  dx = multiply(f'{output},{y_spec}->{x_spec}', gradient, y, x_kind.dtype)
  gradient, x = round_for(x, x_spec, y_spec)
  dy = multiply(f'{x_spec},{output}->{y_spec}', x, gradient, y_kind.dtype)
  return dx, dy


_contract.defvjp(_forward, _backward)


def quantized(x: Any, kept: Sequence[int], kind: str) -> Any:
  """Rounds to a type of few bits, with a scale for each entry along `kept`.

  Returns:
    An array of qwix: `qvalue`, times `scale` of size 1 along other dimensions.
  """
  import qwix  # seconds, and few want it

  # So are the scales.
  return qwix.quantize(x.astype(jnp.float32), kind, channelwise_axes=kept)


def _quantized(x, letters, kept, kind):
  return quantized(x, [i for i, a in enumerate(letters) if a in kept], kind)


def _dot(a, b, dimensions, result):
  if isinstance(a, jax.Array) and isinstance(b, jax.Array):
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=result)
  import qwix

  product = qwix.dot_general(a, b, dimensions, preferred_element_type='float32')
  return product.astype(result)


def multiply(spec: str, x: Any, y: Any, result: str | np.dtype) -> jax.Array:
  """Multiplies, without a rule of its own for gradients.

  In the order in which a CPU has the least to transpose: XLA:CPU wants the
  summed letters of the left factor last, and writes the left factor's letters
  before the right one's. What is otherwise is copied in one thread, which
  costs more than the product when it is large.

  Args:
    spec, x, y: as of `contract`; the factors have one dtype, or are arrays of
      qwix.
    result: dtype of the product.
  """
  inputs, output = spec.split('->')
  x_spec, y_spec = inputs.split(',')
  sizes = dict(zip(x_spec + y_spec, x.shape + y.shape, strict=True))

  def size(letters):
    return math.prod(sizes[a] for a in letters)

  def written(left, right):
    """The result's letters, as they are written: both's, left's, right's."""
    kept = [a for a in left + right if a in output]
    return sorted(
      dict.fromkeys(kept), key=lambda a: 2 * (a not in left) + (a not in right)
    )

  def copied(order):
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
  # A barrier, or XLA:CPU folds the transposition into the product again.
  product = jax.lax.platform_dependent(
    product, cpu=jax.lax.optimization_barrier, default=lambda x: x
  )
  return jnp.einsum(f'{natural}->{output}', product)
