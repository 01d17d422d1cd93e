"""Norms by layer are right, and nothing that trains depends on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import checkpoint, train, types
from lm.reporting import metrics_log
from lm.training import diagnostics
from tests import programs


def lines(workdir):
  found = metrics_log.read(workdir / 'metrics.jsonl')
  return [x for x in found if any('param_norm/' in name for name in x)]


@pytest.mark.parametrize(
  'changes',
  [
    {'model__scan': True, 'model__depth': 2},
    *(
      pytest.param(changes, marks=pytest.mark.slow)
      for changes in (
        {},
        {'microbatches': 2},
        {'numerics': 'deterministic', 'logical_shards': 4},
        {'optim__clip': 0.0},
      )
    ),
  ],
  ids=str,
)
def test_bits_are_the_same_with_norms_and_without(
  data, tmp_path, one_device, changes
):
  changes = {'steps': 8, 'save_every': 8, **changes}
  train.train(programs.make(data, **changes), tmp_path / 'without')
  c = programs.make(data, log__norms_every=2, **changes)
  train.train(c, tmp_path / 'with')
  want = checkpoint.digest(tmp_path / 'without', 8)
  assert checkpoint.digest(tmp_path / 'with', 8) == want
  assert programs.losses(tmp_path / 'with') == programs.losses(
    tmp_path / 'without'
  )
  assert [x['step'] for x in lines(tmp_path / 'with')] == [2, 4, 6, 8]
  assert not lines(tmp_path / 'without')


@pytest.mark.slow
def test_bits_are_the_same_on_a_mesh(data, trained, tmp_path):
  train.train(programs.on_eight(data, log__norms_every=5), tmp_path / 'run')
  want = checkpoint.digest(trained, 36)
  assert checkpoint.digest(tmp_path / 'run', 36) == want
  assert len(lines(tmp_path / 'run')) == 7


def test_scanned_layers_are_told_apart(data, tmp_path, one_device):
  changes = {'steps': 6, 'model__depth': 2, 'log__norms_every': 3}
  for scan in (False, True):
    c = programs.make(data, model__scan=scan, **changes)
    train.train(c, tmp_path / str(scan))
  alone, scanned = (lines(tmp_path / str(x)) for x in (False, True))
  assert len(alone) == 2
  assert 'update_ratio/layers_1/mlp' in alone[0]
  for one, other in zip(alone, scanned, strict=True):
    assert one.keys() == other.keys()
    for name, value in one.items():
      assert value == pytest.approx(other[name], rel=1e-3), name
  assert alone[0]['param_norm/layers_0/mlp'] != pytest.approx(
    alone[0]['param_norm/layers_1/mlp'], rel=1e-3
  )


def test_norms_are_those_of_the_arrays():
  rng = np.random.default_rng(0)

  def draw():
    return {
      'embed': {'table': rng.normal(size=(5, 3))},
      'layers_0': {'mlp': {'up': rng.normal(size=(3, 4))}},
      # A pattern of two kinds, repeated twice.
      'layers': {
        '0': {'mlp': {'up': rng.normal(size=(2, 3)), 'b': np.zeros((2, 1))}},
        '1': {'mlp': {'up': rng.normal(size=(2, 3))}},
      },
      'head': {'kernel': np.zeros((3, 5))},
    }

  old, grads, new = draw(), draw(), draw()
  state = types.TrainState(jnp.int32(5), old, (), {})

  def update(state, grads, new):
    return diagnostics.norms(state, grads, new)

  measured = jax.jit(diagnostics.measuring(update, 6))(state, grads, new)
  found = diagnostics.named(jax.device_get(measured)[diagnostics.NAME], state)

  def norm(*arrays):
    return float(np.sqrt(sum(np.square(x).sum() for x in arrays)))

  def near(value):
    return pytest.approx(value, rel=1e-5)

  for n in range(4):
    place, row = str(n % 2), n // 2
    up = [x['layers'][place]['mlp']['up'][row] for x in (grads, old, new)]
    if n:  # the first is unrolled
      place, row = str((n - 1) % 2), (n - 1) // 2
      up = [x['layers'][place]['mlp']['up'][row] for x in (grads, old, new)]
    else:
      up = [x['layers_0']['mlp']['up'] for x in (grads, old, new)]
    grad, weight, after = up
    name = f'layers_{n}/mlp'
    assert found[f'grad_norm/{name}'] == near(norm(grad))
    assert found[f'param_norm/{name}'] == near(norm(weight))
    assert found[f'update_ratio/{name}'] == near(
      norm(after - weight) / norm(weight)
    )
  assert found['grad_norm/embed'] == near(norm(grads['embed']['table']))
  # Nothing is divided by a norm of zero.
  assert found['param_norm/head'] == 0 and 'update_ratio/head' not in found
  # The update to step 7 is not measured.
  state = state._replace(step=jnp.int32(6))
  measured = jax.jit(diagnostics.measuring(update, 6))(state, grads, new)
  assert not diagnostics.named(measured[diagnostics.NAME], state)
  assert update(state, grads, new) == {}


def test_a_dropped_update_moves_nothing(
  data, tmp_path, one_device, monkeypatch
):
  monkeypatch.setenv('FAULT', 'nan_grad@3')
  c = programs.make(data, steps=6, log__norms_every=2)
  train.train(c, tmp_path / 'run')
  dropped = lines(tmp_path / 'run')[1]
  assert dropped['step'] == 4
  assert dropped['update_ratio/embed'] == 0
  assert np.isnan(dropped['grad_norm/embed'])
