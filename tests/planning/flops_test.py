"""Counts against hand-written sums; chips by the names jax gives them."""

import jax
import numpy as np
import pytest

from lm.planning import flops

D, F, L, V, DEPTH = 8, 32, 16, 64, 2
BLOCK = 4 * D * D + 2 * D * F + 2 * D


def _shape(*shape):
  return jax.ShapeDtypeStruct(shape, np.float32)


def _block(*lead):
  return {
    'attention_norm': {'scale': _shape(*lead, D)},
    'attention': {
      **{name: _shape(*lead, D, 2, 4) for name in 'qkv'},
      'o': _shape(*lead, 2, 4, D),
    },
    'mlp_norm': {'scale': _shape(*lead, D)},
    'mlp': {'up': _shape(*lead, D, F), 'down': _shape(*lead, F, D)},
  }


def _decoder(tied, positions=False, scanned=False):
  params = {
    'embed': {'table': _shape(V, D)},
    'final_norm': {'scale': _shape(D)},
  }
  if positions:
    params['embed']['positions'] = _shape(L, D)
  if not tied:
    params['head'] = {'kernel': _shape(D, V)}
  if scanned:
    return params | {'layers': _block(DEPTH)}
  return params | {f'layers_{i}': _block() for i in range(DEPTH)}


@pytest.mark.parametrize('scanned', [False, True])
@pytest.mark.parametrize('positions', [False, True])
@pytest.mark.parametrize('tied', [False, True])
def test_multiplied_leaves_lookups_out(tied, positions, scanned):
  params = _decoder(tied, positions, scanned)
  assert flops.multiplied(params) == DEPTH * BLOCK + D + V * D


def test_flops_are_six_n_plus_attention():
  # By hand: 6 * 100 + 12 * 3 * 50 * 7.
  assert flops.train_flops_per_token(100, 3, 50, 7) == 13_200
  assert flops.forward_flops_per_token(100, 3, 50, 7) == 4_400


def test_flops_bound_what_xla_counts():
  """One attention-free block: XLA's count is 2N, less what is not a matmul."""
  w = jax.ShapeDtypeStruct((D, F), np.float32)
  x = jax.ShapeDtypeStruct((10, D), np.float32)
  cost = jax.jit(lambda x, w: x @ w).lower(x, w).compile().cost_analysis()
  assert isinstance(cost, dict)
  want = 10 * flops.forward_flops_per_token(D * F, 0, 0, 0)
  assert cost['flops'] == want


def test_a_product_that_no_result_needs_does_not_count():
  @jax.jit
  def both(x, y):
    return x @ y, y @ x

  def loop(x, y):
    return jax.lax.scan(lambda c, _: (c + 1, both(x, y)[0]), 0, length=3)

  shapes = _shape(L, D), _shape(D, L)
  assert flops.products(both, *shapes) == 2 * L * D * L + 2 * D * L * D
  assert flops.products(lambda *x: both(*x)[0], *shapes) == 2 * L * D * L
  assert flops.products(lambda *x: loop(*x)[0], *shapes) == 0
  assert flops.products(loop, *shapes) == 3 * 2 * L * D * L


def test_products_of_a_function_that_is_compiled_in_its_own_way():
  def fn(x, y):
    return jax.nn.relu(x @ y).sum()

  options = {'xla_llvm_disable_expensive_passes': True}
  shapes = _shape(L, D), _shape(D, F)
  for compiled in (fn, jax.jit(fn, compiler_options=options)):
    assert flops.products(compiled, *shapes) == 2 * L * D * F


@pytest.mark.parametrize(
  ('kind', 'want'),
  [
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H200', 989e12),
    ('NVIDIA A100-SXM4-40GB', 312e12),
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA A100-PCIE-40GB', 312e12),
    ('NVIDIA A100 80GB PCIe', 312e12),
    ('NVIDIA L4', 121e12),
    ('Tesla T4', 65e12),
    ('NVIDIA GeForce RTX 4090', 165.2e12),
    ('TPU v4', 275e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5e', 197e12),
    ('TPU v5', 459e12),
    ('TPU v5p', 459e12),
    ('TPU v6 lite', 918e12),
    ('TPU v6e', 918e12),
    ('TPU7x', 1153.5e12),
  ],
)
def test_peak_of_known_chips(kind, want):
  assert flops.peak(kind) == want


@pytest.mark.parametrize(
  'kind',
  [
    'cpu',
    '',
    'NVIDIA H100 PCIe',
    'NVIDIA H200 NVL',
    'NVIDIA L40S',
    'NVIDIA L4 MIG',
    'NVIDIA GeForce RTX 4090 Laptop GPU',
    'NVIDIA GeForce RTX 4090 D',
    'NVIDIA H100 80GB HBM3 MIG 1g.10gb',
    'TPU v4 lite',
    'TPU v55',
    'x' * 500,
  ],
)
def test_unknown_chips_are_refused(kind):
  with pytest.raises(ValueError, match=r'^device .*: peak FLOP/s unk') as error:
    flops.peak(kind)
  assert len(str(error.value)) <= 200 and '\n' not in str(error.value)


def test_mfu_is_the_part_of_the_peak():
  assert flops.mfu(1000.0, 2e9, 8e12) == 0.25
