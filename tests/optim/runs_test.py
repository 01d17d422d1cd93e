"""Runs with each of the larger optimizers: resumed, sharded, from a config."""

from typing import Any

import jax
import numpy as np
import pytest

from lm import checkpoint, train, tree
from lm.training import setup
from tests import programs

MUON = {'adam_peak': 0.005}
RULES = 'lm.optim.rules:'
OPTIM: dict[str, dict[str, Any]] = {
  'soap': {'rule': {'fn': RULES + 'soap', 'every': 2}},
  'soap_muon': {'rule': {'fn': RULES + 'soap_muon', 'every': 2, **MUON}},
  'normuon': {'rule': {'fn': RULES + 'normuon', **MUON}},
  'adamh': {'sphere': 'matrix', 'decay_where': 'aligned'},
  'muonh': {'rule': {'fn': RULES + 'muon', **MUON}, 'sphere': 'neuron'},
  'ema': {'average': 'ema', 'ema_decay': 0.9},
  # It begins after the save.
  'tail': {'average': 'tail', 'tail': 2},
  'schedule_free': {
    'average': 'schedule_free',
    'schedule': 'constant',
    'rule': {'fn': RULES + 'adamw', 'b1': 0.0},
  },
}


def made(folder, name, **changes):
  """Makes a config of a tiny run, as a config file would write it."""
  settings = {'steps': 6, 'save_every': 3, 'eval_every': 6} | changes
  c = programs.make(folder, **settings).unlock()
  # SOAP's third step has the first refreshed bases, after the save.
  c.optim = {'fn': 'lm.optim.optimizers:make', 'peak': 0.01, **OPTIM[name]}
  c.data.fn = 'lm.data.stream:make'
  del c.data.seconds, c.data.hang_at, c.evals.pause
  return c.lock()


@pytest.mark.parametrize('name', OPTIM)
def test_a_run_goes_on_with_the_same_bits(data, one_device, tmp_path, name):
  c = made(data, name)
  train.train(c, tmp_path / 'whole')
  programs.rewind(tmp_path / 'whole', tmp_path / 'half', 3)
  train.train(c, tmp_path / 'half')
  assert checkpoint.digest(tmp_path / 'whole', 6) == checkpoint.digest(
    tmp_path / 'half', 6
  )
  losses = [loss for _, loss in programs.losses(tmp_path / 'half')]
  assert losses[-1] < losses[0] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize('name', OPTIM)
def test_a_sharded_run_is_the_run_of_one_device(
  data, tmp_path, name, monkeypatch
):
  if jax.device_count() < 8:
    pytest.skip('needs eight devices: CPU simulates them')
  if name == 'soap':
    # A first gradient has too few directions for the larger sides of the mlp.
    # Their other eigenvectors are what rounding makes of them.
    rule = OPTIM['soap']['rule'] | {'max_size': 16}
    monkeypatch.setitem(OPTIM, 'soap', {'rule': rule})
  mesh = {'mesh__fsdp': 2, 'mesh__tensor': 2, 'mesh__data': 2}
  train.train(made(data, name, **mesh), tmp_path / 'eight')
  first = jax.devices()[:1]
  monkeypatch.setattr(jax, 'devices', lambda *_: first)
  train.train(made(data, name), tmp_path / 'one')
  np.testing.assert_allclose(
    *(
      [loss for _, loss in programs.losses(tmp_path / x)]
      for x in ('eight', 'one')
    ),
    rtol=1e-4,
  )


def test_bases_are_cut_over_devices(data):
  if jax.device_count() < 8:
    pytest.skip('needs eight devices: CPU simulates them')
  c = made(data, 'soap', mesh__fsdp=4, mesh__tensor=2)
  run = setup.assemble(setup.fill(c))
  where = dict(tree.paths(run.program.where.opt_state))
  like = dict(tree.paths(run.program.like.opt_state))
  seen = 0
  for path, leaf in like.items():
    if '/factors/' in path or '/bases/' in path:
      part = where[path].shard_shape(leaf.shape)
      assert part == (*leaf.shape[:2], leaf.shape[2] // 4), path
      seen += 1
  assert seen >= 4 * 4
