"""Rates, deviations and constants that follow the width: factors by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from lm import checkpoint, config, optim, train, tree
from lm.checkpoint import manifest
from lm.interop import trees
from lm.optim import optimizers, rules, transfer
from tests import programs
from tests.laws import laws_test as laws

CLASSES = {
  'embed/table': 'input',
  'embed/positions': 'input',
  'head/kernel': 'output',
  'head/bias': 'fixed',
  'final_norm/scale': 'input',
  'layers_0/attention_norm/bias': 'input',
  'layers_0/attention/q': 'hidden',
  'layers_0/attention/k': 'hidden',
  'layers_0/attention/o': 'hidden',
  'layers_0/attention/q_bias': 'input',
  'layers_0/mlp/up': 'hidden',
  'layers_0/mlp/down': 'hidden',
  'layers_0/mlp/up_bias': 'input',
  'layers_0/mlp/router': 'output',
  'layers_0/mlp/experts/up': 'hidden',
  'layers_0/mlp/experts/down': 'hidden',
  'layers_0/mlp/shared/down': 'hidden',
  'layers_0/delta/q': 'hidden',
  'layers_0/delta/conv': 'input',
  'layers_0/delta/norm/scale': 'input',
  'layers_0/delta/decay_bias': 'input',
  'forward/layers_0/recurrent/input': 'hidden',
  'forward/layers_0/recurrent/state': 'hidden',
  'forward/layers_0/recurrent/bias': 'input',
  'encoder/relative/table': 'input',
  'decoder/layers_0/cross/k': 'hidden',
  'transform/kernel': 'hidden',
  'body/layers_0/attention/q': 'hidden',
  'task/pooler/kernel': 'hidden',
  'task/scores/kernel': 'output',
}
HEAD = {
  'fn': 'lm.models.heads:classify',
  'body': laws.MODELS['bert'].spec,
  'classes': 3,
  'hidden': True,
}


def grown(width: int = 32, **init: Any) -> dict[str, Any]:
  """Makes a small decoder whose base is 8 wide."""
  spec = base.decoder(2, width=width, depth=2, length=16)
  return spec | {'head': base.output(tied=False), 'init': base.mup(8, **init)}


def test_the_axes_of_every_family_say_the_class():
  found = {}
  for spec in (*(x.spec for x in laws.MODELS.values()), HEAD):
    if spec['fn'].endswith(('ngram:make', 'lora:make')):
      continue
    model = config.build(spec, vocab=laws.V)
    name = 't5' if 'encoder' in spec else 'gpt2'
    batch = laws.packed(name)
    if spec is HEAD:
      batch = batch._replace(targets=batch.targets[:, :1])
    classes = transfer.classes(model)
    for path, _ in tree.paths(model.parameters(batch)):
      powers = transfer._powers(path, classes)
      found[path] = next(k for k, v in transfer.TABLE.items() if v is powers)
  for path, expected in CLASSES.items():
    assert found[path] == expected, path


def test_deviations_follow_the_width_and_logits_of_a_tied_table():
  batch = laws.packed('gpt2')
  wide = config.build(grown(), vocab=64).init(0, batch)
  plain = grown() | {'init': base.init()}
  same = config.build(plain, vocab=64).init(0, batch)
  ratios = {
    path: float(np.max(np.abs(x)) / np.max(np.abs(y)))
    for (path, x), (_, y) in zip(
      tree.paths(wide), tree.paths(same), strict=True
    )
    if np.any(y)
  }
  assert ratios['embed/table'] == 1 and ratios['final_norm/scale'] == 1
  assert ratios['layers_0/attention/q'] == pytest.approx(0.5)
  assert ratios['layers_1/mlp/down'] == pytest.approx(0.5)
  assert ratios['head/kernel'] == pytest.approx(0.25)
  # Without a deviation of its own a kernel has that of its inputs already.
  fan_in = config.build(grown(std=None), vocab=64).init(0, batch)
  assert np.std(fan_in['layers_0']['mlp']['up']) == pytest.approx(
    32**-0.5, rel=0.1
  )
  assert np.std(fan_in['head']['kernel']) == pytest.approx(
    32**-0.5 / 2, rel=0.1
  )
  tied = grown() | {'head': base.output()}
  hidden = jnp.ones((1, 1, 32))
  score = config.build(tied, vocab=64).head
  assert score is not None
  np.testing.assert_allclose(
    score(wide, hidden)[0, 0], wide['embed']['table'].sum(1) / 4, rtol=1e-5
  )


@pytest.mark.parametrize(
  ('rule', 'hidden', 'head', 'embed'),
  [
    ({'fn': 'lm.optim.rules:adamw'}, 1 / 4, 1 / 4, 1),
    ({'fn': 'lm.optim.rules:lion'}, 1 / 4, 1 / 4, 1),
    ({'fn': 'lm.optim.rules:sgd', 'momentum': 0.0}, 1, 1 / 4, 4),
    ({'fn': 'lm.optim.rules:adafactor', 'matrices': None}, 1 / 2, 1, 1),
    (
      {'fn': 'lm.optim.rules:muon', 'adam_peak': 1.0, 'matrices': None},
      1 / 2,
      1 / 4,
      1,
    ),
    (
      {
        'fn': 'lm.optim.rules:muon',
        'adam_peak': 1.0,
        'update_rms': 0.0,
        'matrices': None,
      },
      1,
      1 / 4,
      1,
    ),
    (
      {'fn': 'lm.optim.rules:normuon', 'adam_peak': 1.0, 'matrices': None},
      1 / 2,
      1 / 4,
      1,
    ),
    (
      {'fn': 'lm.optim.rules:soap_muon', 'adam_peak': 1.0, 'matrices': None},
      1 / 2,
      1 / 4,
      1,
    ),
  ],
)
def test_rates_follow_the_width_and_decay_does_not(rule, hidden, head, embed):
  model = config.build(grown(), vocab=64)
  params = model.init(0, laws.packed('gpt2'))
  gradients = jax.tree.map(lambda x: jnp.sin(jnp.arange(x.size) + 1.0), params)
  gradients = jax.tree.map(lambda g, x: g.reshape(x.shape), gradients, params)

  def first(model, decay) -> Any:
    spec = {'peak': 1.0, 'rule': rule, 'decay': decay, 'clip': 0.0}
    tx, _ = optimizers.make(
      steps=2, schedule='constant', **optim.fitted(spec, model)
    )
    return tx.update(gradients, tx.init(params), params)[0]

  # Gradients of one size, so that eps is as good as nothing in both.
  plain = first(model._replace(growth=(1.0, 1.0)), 0.0)
  for decay in (0.0, 0.5):
    found = first(model, decay)
    for path, factor in (
      (('layers_0', 'attention', 'q'), hidden),
      (('layers_1', 'mlp', 'down'), hidden),
      (('head', 'kernel'), head),
      (('embed', 'table'), embed),
    ):
      a: Any = found
      b: Any = plain
      w: Any = params
      for name in path:
        a, b, w = a[name], b[name], w[name]
      np.testing.assert_allclose(
        a, factor * b - decay * w, rtol=1e-3, atol=1e-6
      )


def test_eps_follows_the_gradients():
  spec = {
    'peak': 1.0,
    'rule': {'fn': 'lm.optim.rules:adamw', 'eps': 1e-3},
    'decay': 0.0,
    'clip': 0.0,
  }
  model = config.build(grown(base_depth=1), vocab=64)
  assert model.growth == (4, 2)
  params = model.init(0, laws.packed('gpt2'))
  tx, _ = optimizers.make(
    steps=2, schedule='constant', **optim.fitted(spec, model)
  )
  gradients = jax.tree.map(lambda x: jnp.full(x.shape, 1e-3), params)
  found: Any = tx.update(gradients, tx.init(params), params)[0]
  # g / (g + eps / growth): 4 of the width, 2 of the depth inside of blocks.
  for update, rate, growth in (
    (found['embed']['table'], 1, 4),
    (found['layers_0']['mlp']['up'], 1 / 4, 8),
    (found['layers_0']['mlp']['up_bias'], 1, 8),
    (found['head']['kernel'], 1 / 4, 1),
  ):
    np.testing.assert_allclose(update, -rate / (1 + 1 / growth), rtol=1e-4)


def test_branches_and_scores_follow_depth_and_heads():
  batch = laws.packed('gpt2')
  deep = config.build(grown(base_depth=1), vocab=64)
  spec = grown()
  params = deep.init(0, batch)
  # The deviation of last kernels is the base's, of one block.
  assert np.std(params['layers_0']['mlp']['down']) == pytest.approx(
    0.02 / 2 / 2**0.5, rel=0.1
  )
  # Half of what each branch adds is half of its last kernel.
  for block in ('layers_0', 'layers_1'):
    for part, name in (('attention', 'o'), ('mlp', 'down')):
      kernel = params[block][part][name]
      params[block][part][name] = kernel * 8
  halved = jax.tree.map(lambda x: x, params)
  for block in ('layers_0', 'layers_1'):
    for part, name in (('attention', 'o'), ('mlp', 'down')):
      halved[block][part][name] = halved[block][part][name] / 2
  plain = config.build(spec, vocab=64)
  np.testing.assert_allclose(
    deep.apply(params, batch).logits,
    plain.apply(halved, batch).logits,
    atol=1e-5,
  )
  # 1 / 16 of scores where the base has 1 / sqrt(4): sqrt(4) / 16.
  heads = config.build(grown(base_head_width=4), vocab=64)
  spec['blocks']['main']['mixer']['scores'] = base.scores(scale=2 / 16)
  np.testing.assert_allclose(
    heads.apply(params, batch).logits,
    config.build(spec, vocab=64).apply(params, batch).logits,
    atol=1e-5,
  )


def test_what_cannot_transfer_is_refused():
  def fit(**settings):
    optim.fitted(settings, config.build(grown(), vocab=64))

  rule = {'fn': 'lm.optim.rules:adamw'}
  with pytest.raises(config.ConfigError, match=r'optim\.l2=0\.1 is a gradient'):
    fit(rule=rule, l2=0.1)
  with pytest.raises(config.ConfigError, match='has no rule whose rates'):
    fit(fn='a.b:c')
  with pytest.raises(config.ConfigError, match='says no update_size'):
    spec = {'rule': {'fn': 'tests.optim.transfer_test:silent'}}
    model = config.build(grown(), vocab=64)
    config.build(optim.fitted(spec, model)['rule'])
  with pytest.raises(config.ConfigError) as caught:
    spec = {'rule': {'fn': 'lm.optim.rules:soap', 'matrices': None}}
    model = config.build(grown(), vocab=64)
    config.build(optim.fitted(spec, model)['rule'])
  assert str(caught.value).endswith(
    'lm.optim.rules:soap says no update_size, so that its rates cannot follow '
    'model.init.base_width: return Rule(..., update_size=...)'
  )
  recurrent = base.recurrent(width=16) | {'init': base.mup(8, base_depth=1)}
  with pytest.raises(config.ConfigError, match='depth transfers along a resid'):
    config.build(recurrent, vocab=64)
  uneven = base.t5(2, width=16, depth=2) | {'init': base.mup(8, base_depth=1)}
  uneven['encoder']['depth'] = 3
  with pytest.raises(config.ConfigError, match='encoder and decoder have one'):
    config.build(uneven, vocab=64)
  with pytest.raises(config.ConfigError, match='base_width=0'):
    config.build(grown() | {'init': base.mup(0)}, vocab=64)
  with pytest.raises(ValueError, match=r'model\.head\.tied with lm\.layers\.'):
    trees.flatten(grown() | {'head': base.output()})
  trees.flatten(grown())  # its constants are all 1


def silent() -> rules.Rule:
  """Makes a rule that does not say how large its updates are."""
  return rules.Rule(optax.identity())


def with_transfer(folder, **changes):
  c = programs.make(folder, steps=4, save_every=2, **changes).unlock()
  c.model.init = base.mup(8, base_depth=2, base_head_width=4)
  c.data.fn = 'lm.data.stream:make'
  del c.data.seconds, c.data.hang_at, c.evals.pause
  return c.lock()


def test_a_run_with_transfer_goes_on_with_the_same_bits(
  data, one_device, tmp_path
):
  c = with_transfer(data)
  train.train(c, tmp_path / 'whole')
  programs.rewind(tmp_path / 'whole', tmp_path / 'half', 2)
  train.train(c, tmp_path / 'half')
  digests = {checkpoint.digest(tmp_path / x, 4) for x in ('whole', 'half')}
  assert len(digests) == 1
  assert manifest.steps(tmp_path / 'half')[-1] == 4


@pytest.mark.slow
def test_a_model_with_transfer_is_fine_tuned(data, one_device, tmp_path):
  c = with_transfer(data)
  train.train(c, tmp_path / 'body')
  tuned = c.copy_and_resolve_references().unlock()
  tuned.model = {
    'fn': 'lm.models.lora:make',
    'body': c.model.to_dict(),
    'rank': 2,
  }
  tuned.init_from, tuned.init_paths = str(tmp_path / 'body'), ('=body',)
  state = train.train(tuned.lock(), tmp_path / 'lora')
  before, after = (
    dict(tree.paths(x))
    for x in (
      checkpoint.restore_params(tmp_path / 'body'),
      jax.device_get(state.params['body']),
    )
  )
  for path, value in before.items():
    np.testing.assert_array_equal(value, after[path], path)
