"""Matrix products in a chosen precision, in the backward pass too."""

from functools import partial

import jax
import jax.numpy as jnp


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
  that all three products run on bfloat16 operands.
  """
  if operands == 'float32':
    return jnp.einsum(spec, x, y).astype(result)
  return _contract(x, y, spec, operands, result)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _contract(x, y, spec, operands, result):
  return jnp.einsum(
    spec,
    x.astype(operands),
    y.astype(operands),
    preferred_element_type=jnp.dtype(result),
  )


def _forward(x, y, spec, operands, result):
  # What the backward pass reads is kept in the narrow type: half the memory.
  narrow = x.astype(operands), y.astype(operands)
  # Empty arrays carry the original dtypes, which jax types do not travel in.
  kinds = jnp.zeros((0,), x.dtype), jnp.zeros((0,), y.dtype)
  return _contract(*narrow, spec, operands, result), (narrow, kinds)


def _backward(spec, operands, result, residuals, cotangent):
  (x, y), (x_kind, y_kind) = residuals
  inputs, output = spec.split('->')
  x_spec, y_spec = inputs.split(',')
  cotangent = cotangent.astype(operands)
  dx = jnp.einsum(
    f'{output},{y_spec}->{x_spec}',
    cotangent,
    y,
    preferred_element_type=x_kind.dtype,
  )
  dy = jnp.einsum(
    f'{x_spec},{output}->{y_spec}',
    x,
    cotangent,
    preferred_element_type=y_kind.dtype,
  )
  return dx, dy


_contract.defvjp(_forward, _backward)
