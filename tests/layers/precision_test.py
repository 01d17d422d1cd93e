"""Products of eight bits: what they cost in exactness, and where they are."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import sharding
from lm.layers import linear, vocabulary
from tests.laws import laws_test as laws

# Of a random product and of its gradients, relative to their size. Half a step
# of int8 is 1/255 of the largest of 64 normal numbers; e4m3 has 3 bits of
# mantissa and e5m2 has 2.
ERRORS = {'int8': (0.012, 0.004), 'fp8': (0.045, 0.07)}
SPECS = {
  'BLD,DF->BLF': ((2, 8, 64), (64, 16)),
  'BLNH,NHD->BLD': ((2, 8, 4, 16), (4, 16, 32)),
  'BECD,EDF->BECF': ((2, 3, 8, 64), (3, 64, 16)),
}


def product(spec, compute_dtype, x, y, gradient, result='float32'):
  """A product and the gradients of both factors."""

  @jax.jit
  def run(x, y, gradient):
    out, pull = jax.vjp(
      lambda x, y: linear.contract(spec, x, y, compute_dtype, result), x, y
    )
    return out, *pull(gradient)

  return run(x, y, gradient)


def factors(spec, seed=0):
  rng = np.random.default_rng(seed)
  x, y = (rng.normal(size=s).astype(np.float32) for s in SPECS[spec])
  out = np.einsum(spec, x, y)
  return x, y, rng.normal(size=out.shape).astype(np.float32)


def distance(a, b) -> float:
  a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
  return float(np.linalg.norm(a - b) / np.linalg.norm(a))


@pytest.mark.parametrize('compute_dtype', ERRORS)
@pytest.mark.parametrize('spec', SPECS)
def test_a_product_of_eight_bits_is_near_the_exact_one(spec, compute_dtype):
  given = factors(spec)
  exact = product(spec, 'float32', *given)
  found = product(spec, compute_dtype, *given)
  forward, backward = ERRORS[compute_dtype]
  for a, b, bound in zip(
    exact, found, (forward, backward, backward), strict=True
  ):
    assert b.dtype == jnp.float32
    assert bound / 4 < distance(a, b) < bound


@pytest.mark.parametrize('compute_dtype', ERRORS)
def test_rows_and_columns_have_scales_of_their_own(compute_dtype):
  spec = 'BLD,DF->BLF'
  x, y, gradient = factors(spec)
  # Powers of two change no rounding, each in its own row or column.
  rows = 2.0 ** np.arange(-8, 8, dtype=np.float32).reshape(2, 8, 1)
  columns = 2.0 ** np.arange(-8, 8, dtype=np.float32)
  plain = product(spec, compute_dtype, x, y, gradient)
  scaled = product(spec, compute_dtype, x * rows, y * columns[None], gradient)
  np.testing.assert_allclose(
    scaled[0], plain[0] * rows * columns[None, None], rtol=1e-6
  )
  empty = product(spec, compute_dtype, x * 0, y * 0, gradient)
  assert all((np.asarray(a) == 0).all() for a in empty)


def types_of_products(fn, *args) -> list[str]:
  """Lists the types of the factors and the result of each product."""
  text = jax.jit(fn).lower(*args).as_text()
  return [
    ' '.join(re.findall(r'x([a-zA-Z]\w*)>', line.rsplit(' : ', 1)[1]))
    for line in text.splitlines()
    if 'dot_general' in line
  ]


def test_products_have_eight_bits_and_sums_more():
  spec = 'BLD,DF->BLF'
  x, y, gradient = factors(spec)

  def types(compute_dtype):
    return types_of_products(
      lambda *given: product(spec, compute_dtype, *given), x, y, gradient
    )

  assert types('int8') == ['i8 i8 i32', 'bf16 bf16 f32', 'bf16 bf16 f32']
  assert types('fp8') == [
    'f8E4M3FN f8E4M3FN f32',
    'f8E5M2 f8E4M3FN f32',
    'f8E4M3FN f8E5M2 f32',
  ]
  logits = vocabulary.Logits(7, 'int8')
  table_VD = np.ones((7, 64), np.float32)
  assert types_of_products(lambda x: logits.apply({}, x, table_VD), x) == [
    'bf16 bf16 f32'
  ]


@pytest.mark.slow
@laws.over(
  [
    ('llama', 'fp8'),
    *((name, 'int8') for name in ('llama', 'mixtral', 'bert', 't5')),
  ],
  'compute_dtype',
)
def test_a_model_of_eight_bits_is_near_float32(name, compute_dtype):
  params, batch = laws.random_params(name), laws.packed(name)
  whole = laws.logits(laws.build(name), params, batch)
  narrow = laws.logits(
    laws.build(name, compute_dtype=compute_dtype), params, batch
  )
  assert (
    0 < distance(whole, narrow) < {'int8': 0.06, 'fp8': 0.15}[compute_dtype]
  )


def test_scanned_rematerialized_and_sharded_products_are_the_same():
  if jax.device_count() < 8:
    pytest.skip('needs eight devices: CPU simulates them')
  plain = laws.build('llama', compute_dtype='int8')
  model = laws.build('llama', compute_dtype='int8', scan=True, remat='full')
  params, batch = laws.random_params('llama'), laws.packed('llama')

  def run(model):
    return jax.jit(
      jax.value_and_grad(
        lambda params, batch: jnp.sum(
          jax.nn.log_softmax(model.apply(params, batch).logits)[..., 0]
        )
      )
    )

  want, grads = run(plain)(params, batch)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  stacked = laws.stacked('llama', params)
  where = sharding.shardings(
    jax.eval_shape(lambda: stacked),
    mesh=mesh,
    axes=model.axes,
    rules=laws.RULES,
  )
  with jax.set_mesh(mesh):
    got, others = run(model)(
      jax.device_put(stacked, where), sharding.put(batch, mesh)
    )
  # Where a number lies between two steps, the last bit decides.
  np.testing.assert_allclose(got, want, rtol=1e-3)
  for a, b in zip(
    jax.tree.leaves(laws.stacked('llama', grads)),
    jax.tree.leaves(others),
    strict=True,
  ):
    assert distance(a, b) < 0.03


def test_products_of_eight_bits_can_be_mapped():
  spec = 'BLD,DF->BLF'
  x, y, _ = factors(spec)
  both = np.stack([x, 2 * x])

  def multiply(x):
    return linear.contract(spec, x, y, 'int8', 'float32')

  np.testing.assert_allclose(
    jax.jit(jax.vmap(multiply))(both)[1], 2 * jax.jit(multiply)(x), rtol=1e-6
  )


def test_operands_that_cannot_be_are_one_line(monkeypatch):
  with pytest.raises(
    ValueError,
    match="compute_dtype='int4' is not one of float32, bfloat16, int8,",
  ):
    laws.build('gpt2', compute_dtype='int4')
  with pytest.raises(
    ValueError, match="compute_dtype='int8' is not one of float32"
  ):
    laws.build('lstm', compute_dtype='int8')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(
    ValueError,
    match=re.escape(
      "compute_dtype='int8' needs qwix: pip install -e '.[quant]'"
    ),
  ):
    laws.build('gpt2', compute_dtype='int8', dtype='bfloat16')
