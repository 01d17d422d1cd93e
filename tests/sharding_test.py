import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from lm import sharding
from lm.models import linen

AXES = ((r'w$', ('embed', 'mlp')), (r'table$', ('vocab', 'embed')), (r'b$', ()))
RULES = {
  'layers': 'stage',
  'embed': 'fsdp',
  'mlp': 'tensor',
  'vocab': ('fsdp', 'tensor'),
}


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh(data=2, fsdp=2, tensor=2)


def place(shapes, mesh, axes=AXES, rules=RULES):
  tree = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}
  return sharding.shardings(tree, mesh=mesh, axes=axes, rules=rules)


def test_rows_align_to_the_right_and_scalars_are_replicated(mesh):
  got = place({'w': (4, 8), 'layers/w': (3, 4, 8), 'b': (5,), 'n': ()}, mesh)
  assert got['w'].spec == PartitionSpec('fsdp', 'tensor')
  assert got['layers/w'].spec == PartitionSpec('stage', 'fsdp', 'tensor')
  assert got['b'].spec == PartitionSpec(None)
  assert got['n'].spec == PartitionSpec()


@pytest.mark.parametrize(
  ('shapes', 'axes', 'rules', 'message'),
  [
    ({'x': (4,)}, AXES, RULES, r'x: no row of the sharding table matches'),
    (
      {'w': (4,)},
      AXES,
      RULES,
      r"w: rank 1 does not fit its sharding row \('em",
    ),
    ({'w': (2, 2, 4, 8)}, AXES, RULES, r'w: rank 4 does not fit'),
    (
      {'w': (3, 8)},
      AXES,
      RULES,
      r'w: dimension 3 does not divide over mesh ax',
    ),
    (
      {'w': (4, 8)},
      AXES,
      {'embed': None},
      r"w: logical axis 'mlp' has no rule",
    ),
    (
      {'w': (4, 8)},
      AXES,
      RULES | {'mlp': ('fsdp', 'tensor')},
      r"w: mesh axis fsdp would cut two dimensions, \('embed', 'mlp'\): change",
    ),
  ],
)
def test_an_array_that_does_not_fit_is_refused_by_path(
  mesh, shapes, axes, rules, message
):
  with pytest.raises(ValueError, match=message):
    place(shapes, mesh, axes, rules)


def test_an_impossible_mesh_names_its_devices():
  with pytest.raises(ValueError, match=r'fsdp=3 .* there are 8: change mesh'):
    sharding.make_mesh(fsdp=3)


def test_a_batch_keeps_its_rows_in_order_on_any_mesh(mesh):
  batch = linen.example_batch(8, 4)
  batch = batch._replace(tokens=np.arange(32, dtype=np.int32).reshape(8, 4))
  put = sharding.put(batch, mesh)
  np.testing.assert_array_equal(put.tokens, batch.tokens)
  assert put.tokens.addressable_shards[0].data.shape == (2, 4)


def test_a_batch_that_does_not_divide_is_refused(mesh):
  with pytest.raises(ValueError, match=r'batch_size: 6 rows .* over 4 parts'):
    sharding.put(linen.example_batch(6, 4), mesh)


def test_constrain_places_activations_and_does_nothing_without_a_mesh(mesh):
  x = jnp.zeros((8, 4, 6))
  assert sharding.constrain(x, 'batch', None, 'vocab') is x
  with jax.set_mesh(mesh):
    y = jax.jit(lambda x: sharding.constrain(x, 'batch', None, 'vocab'))(x)
  assert y.addressable_shards[0].data.shape == (2, 4, 3)
