"""Matrix products in a chosen precision, in the backward pass too."""

from functools import partial
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Dense(nn.Module):
  """Multiplies with a kernel [D, F] and adds a bias [F].

  Attributes:
    outputs: F.
    kernel_init: of the kernel; the bias starts at 0.
    dtype, operands: result and operand types of the product.
  """

  outputs: int
  kernel_init: nn.initializers.Initializer
  dtype: str
  operands: str

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    shape = x_BLD.shape[-1], self.outputs
    kernel_DF = self.param('kernel', self.kernel_init, shape)
    bias_F = self.param('bias', nn.initializers.zeros, shape[1:])
    return (
      contract('BLD,DF->BLF', x_BLD, kernel_DF, self.operands, self.dtype)
      + bias_F.astype(self.dtype)[None, None]
    )


def contract(
  spec: str, x: jax.Array, y: jax.Array, operands: str, result: str
) -> jax.Array:
  """Multiplies like `jnp.einsum(spec, x, y)` with stated precisions.

  Args:
    spec: einsum letters; each letter of an input also stands in the other
      input or in the result.
    x, y: the factors, in any float type.
    operands: dtype that both factors are rounded to before they are multiplied,
      and the incoming gradient in the backward pass.
    result: dtype of the product. Sums always run in float32.

  Autodiff of a bfloat16 product with a float32 result would multiply a float32
  gradient with a bfloat16 factor, in float32: the rule is written by hand so
  that all three products run on such operands, each in its best order.
  """
  return _contract(x, y, spec, operands, result)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _contract(x, y, spec, operands, result):
  return multiply(spec, x.astype(operands), y.astype(operands), result)


def _forward(x, y, spec, operands, result):
  # What the backward pass reads is kept in the narrow type: half the memory.
  narrow = x.astype(operands), y.astype(operands)
  # Empty arrays carry the original dtypes, which jax types do not travel in.
  kinds = jnp.zeros((0,), x.dtype), jnp.zeros((0,), y.dtype)
  return multiply(spec, *narrow, result), (narrow, kinds)


def _backward(spec, operands, result, residuals, cotangent):
  del result
  (x, y), (x_kind, y_kind) = residuals
  inputs, output = spec.split('->')
  x_spec, y_spec = inputs.split(',')
  cotangent = cotangent.astype(operands)
  dx = multiply(f'{output},{y_spec}->{x_spec}', cotangent, y, x_kind.dtype)
  dy = multiply(f'{x_spec},{output}->{y_spec}', x, cotangent, y_kind.dtype)
  return dx, dy


_contract.defvjp(_forward, _backward)


def multiply(
  spec: str, x: jax.Array, y: jax.Array, result: str | np.dtype
) -> jax.Array:
  """Multiplies, without a rule of its own for gradients.

  In the order in which a CPU has the least to transpose: XLA:CPU wants the
  summed letters of the left factor last, and writes the left factor's letters
  before the right one's. What is otherwise is copied in one thread, which
  costs more than the product when it is large.

  Args:
    spec, x, y: as of `contract`; the factors have one dtype.
    result: dtype of the product.
  """
  inputs, output = spec.split('->')
  x_spec, y_spec = inputs.split(',')
  sizes = dict(zip(x_spec + y_spec, x.shape + y.shape, strict=True))

  def written(left, right):
    """The result's letters, as they are written: both's, left's, right's."""
    kept = [a for a in left + right if a in output]
    return sorted(
      dict.fromkeys(kept), key=lambda a: 2 * (a not in left) + (a not in right)
    )

  def copied(order):
    (left, factor), (right, _) = order
    kept_last = sorted(left, key=lambda a: a not in output) != list(left)
    moved = written(left, right) != list(output)
    return kept_last * factor.size + moved * math.prod(sizes[a] for a in output)

  orders = ((x_spec, x), (y_spec, y)), ((y_spec, y), (x_spec, x))
  (left, a), (right, b) = min(orders, key=copied)
  shared = [a for a in left if a in right]

  def places(letters, kept):
    return [letters.index(a) for a in shared if (a in output) == kept]

  product = jax.lax.dot_general(
    a,
    b,
    (
      (places(left, kept=False), places(right, kept=False)),
      (places(left, kept=True), places(right, kept=True)),
    ),
    preferred_element_type=result,
  )
  natural = ''.join(written(left, right))
  if natural == output:
    return product
  # A barrier, or XLA:CPU folds the transposition into the product again.
  product = jax.lax.platform_dependent(
    product, cpu=jax.lax.optimization_barrier, default=lambda x: x
  )
  return jnp.einsum(f'{natural}->{output}', product)
