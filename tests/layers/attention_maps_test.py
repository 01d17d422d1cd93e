"""Maps of attention show what the model computes, layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config
from lm.data import objectives
from lm.layers import attention_maps

IDS = [1, 5, 7, 9, 30, 2, 8, 8, 3, 1, 2, 40]


def model(depth=1, **mixer):
  """Makes a small decoder with larger weights than at a start."""
  c = base.get_config().model
  c.update(width=16, depth=depth, length=32, scan=mixer.pop('scan', False))
  c.init.std = 0.3
  c.blocks.main.mixer.heads = 2
  c.blocks.main.mixer.update(mixer)
  made = config.build(c, vocab=50)
  batch = objectives.padded([IDS], 0)
  return made, jax.tree.map(jnp.asarray, made.init(0, batch)), batch


def maps(made, params, batch):
  return attention_maps.observe(lambda: made.apply(params, batch))


def test_they_are_the_softmax_of_the_scores():
  made, params, batch = model()
  (found,) = maps(made, params, batch)
  p = jax.tree.map(np.asarray, params)
  x = p['embed']['table'][IDS] + p['embed']['positions'][: len(IDS)]
  block = next(v for k, v in p.items() if 'layer' in k)
  attention = block['attention']
  norm = next(v for k, v in block.items() if 'norm' in k)
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1) + 1e-5)[:, None]
  x = x * norm['scale'] + norm['bias']
  q, k = (
    np.einsum('ld,dnh->nlh', x, attention[name])
    + attention[f'{name}_bias'][:, None]
    for name in 'qk'
  )
  scores = np.einsum('nlh,nsh->nls', q, k) / 8**0.5
  scores[:, ~np.tri(len(IDS), dtype=bool)] = -np.inf
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  np.testing.assert_allclose(found[0], weights, atol=1e-5)


SETTINGS = {
  'grouped': {'heads': 4, 'kv_heads': 2},
  'window': {'window': 3},
  'rotary': {'positions': {'fn': 'lm.layers.positions:rotary'}},
  'normed': {'qk_norm': {'fn': 'lm.layers.norms:rmsnorm'}},
}


@pytest.mark.parametrize('mixer', SETTINGS.values(), ids=SETTINGS)
def test_scanned_layers_come_in_their_order(mixer):
  plain = model(depth=3, **mixer)
  scanned = model(depth=3, scan=True, **mixer)
  first, second = maps(*plain), maps(*scanned)
  assert len(first) == len(second) == 3
  assert not np.allclose(first[0], first[2], atol=1e-2)
  for a, b in zip(first, second, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(a.sum(-1), 1, atol=1e-5)
    L = len(IDS)
    seen = np.tri(L, dtype=bool)
    if 'window' in mixer:
      seen &= ~np.tri(L, k=-mixer['window'], dtype=bool)
    assert (a[:, :, ~seen] == 0).all() and (a[:, :, seen] > 0).all()


def test_looking_changes_nothing():
  made, params, batch = model(depth=2)
  before = made.apply(params, batch).logits
  maps(made, params, batch)
  after = made.apply(params, batch).logits
  assert (np.asarray(before) == np.asarray(after)).all()


def test_a_family_without_attention_has_none():
  c = base.get_config().model
  c.update(width=16, depth=1, length=32)
  c.blocks.main.mixer = {'fn': 'lm.layers.recurrent:make', 'cell': 'gru'}
  made = config.build(c, vocab=50)
  batch = objectives.padded([IDS], 0)
  params = jax.tree.map(jnp.asarray, made.init(0, batch))
  assert maps(made, params, batch) == []
