"""The law of transfer: what a model computes moves alike at every width.

The coordinate check of Yang et al. 2022, arXiv 2203.03466, appendix D.1. A
failure means that a rate, a deviation or a constant does not follow the width,
often because an axis of a new parameter has no name: see `optim.transfer`.
"""

import copy
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config, optim, types
from lm.training import step
from tests.laws import laws_test as laws

BASE = 32
WIDTHS = (64, 256)
STEPS, SEEDS = 4, 4
# Few tokens: what they share has to be narrower than the narrowest model.
ROWS = 2
# A rate at which the wide models learn, and not more: far above it the models
# without transfer saturate.
MUON = {'fn': 'lm.optim.rules:muon', 'adam_peak': 0.01, 'matrices': None}
RULES: dict[str, tuple[dict[str, Any], float]] = {
  'adamw': ({'fn': 'lm.optim.rules:adamw'}, 0.01),
  'muon': (MUON, 0.02),
}
FAMILIES = [x for x in laws.names('gradients') if x != 'lora']
# One family for each kind of parameter: a tied table, grouped heads, Muon's
# matrices, the router of experts, an encoder and a decoder, a recurrence. All
# others keep the law, too (docs/transfer.md), at half a minute each.
CHECKED = (
  ('gpt2', 'adamw'),
  ('llama', 'adamw'),
  ('modern', 'muon'),
  ('mixtral', 'adamw'),
  ('t5', 'adamw'),
  ('gru', 'adamw'),
)


def widened(name: str, width: int) -> dict[str, Any]:
  """Makes a family's model of another width: its heads grow, not their number.

  Explicit widths inside it grow, too, and it is as shallow as can be.
  """
  spec = copy.deepcopy(laws.MODELS[name].spec)

  def grow(part: Any) -> None:
    for key, value in part.items():
      if isinstance(value, dict):
        grow(value)
      elif key in ('width', 'head_width', 'value_width') and value is not None:
        part[key] = value * width // BASE

  grow(spec)
  for side in (spec, spec.get('encoder', {}), spec.get('decoder', {})):
    if 'pattern' in side:
      side['depth'] = len(side['pattern'])  # the least: it compiles faster
  return spec


def head_width(name: str) -> int | None:
  """Finds the features of a head at the base width; None without attention."""
  found = []

  def look(part: Any) -> None:
    if part.get('fn', '').startswith('lm.layers.attention:') and (
      'heads' in part
    ):
      found.append(part['head_width'] or BASE // part['heads'])
    for value in part.values():
      if isinstance(value, dict):
        look(value)

  look(laws.MODELS[name].spec)
  return found[0] if found else None


def transferred(name: str, width: int) -> dict[str, Any]:
  """Makes the same model with transfer from the base width."""
  spec = widened(name, width)
  old = spec['init']
  spec['init'] = base.mup(
    BASE,
    base_head_width=head_width(name),
    std=old['std'],
    outputs=old['outputs'],
  )
  return spec


def rows(name: str) -> types.Batch:
  return jax.tree.map(lambda x: x[:ROWS], laws.packed(name))


def optimizer(rule: str, model: types.Model) -> Any:
  settings, peak = RULES[rule]
  spec = {
    'fn': 'lm.optim.optimizers:make',
    'rule': settings,
    'peak': peak,
    'schedule': 'constant',
    'decay': 0.0,
  }
  return config.build(optim.fitted(spec, model), steps=STEPS)[0]


def changes(name: str, rule: str, spec: dict[str, Any]) -> dict[str, float]:
  """Measures how far a few steps move what the model computes: RMS."""
  model = config.build(spec, vocab=laws.V)
  tx, batch = optimizer(rule, model), rows(name)

  @jax.jit
  def run(params):
    def one(state, _):
      rng = jax.random.key(1)
      return step.train_step(state, batch, model=model, tx=tx, rng=rng)

    # Loops, so that the step and the model compile once.
    state = step.init_state(params, tx=tx)
    state, _ = jax.lax.scan(one, state, None, length=STEPS)
    both = jax.tree.map(lambda *x: jnp.stack(x), params, state.params)

    def compute(params):
      out = model.apply(params, batch)
      return {'hidden': out.hidden, 'logits': out.logits}

    return jax.lax.map(compute, both)

  found: dict[str, list[float]] = {}
  for seed in range(SEEDS):
    for key, (before, after) in run(model.init(seed, batch)).items():
      moved = np.asarray(after - before)[batch.segments > 0]
      found.setdefault(key, []).append(float(np.sqrt(np.mean(moved**2))))
  return {key: float(np.mean(x)) for key, x in found.items()}


def slopes(name: str, rule: str, make: Any) -> dict[str, float]:
  """Fits the power of the width that each change grows with."""
  found = [changes(name, rule, make(name, width)) for width in WIDTHS]
  return {
    key: float(
      np.polyfit(np.log(WIDTHS), np.log([x[key] for x in found]), 1)[0]
    )
    for key in found[0]
  }


def check(name: str, rule: str) -> None:
  with_it = slopes(name, rule, transferred)
  assert max(map(abs, with_it.values())) < 0.1, with_it
  without = slopes(name, rule, widened)
  assert max(map(abs, without.values())) > 0.3, without


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'rule'), CHECKED)
def test_activations_move_alike_at_every_width(name, rule):
  check(name, rule)


@pytest.mark.parametrize('name', FAMILIES)
def test_at_the_base_width_nothing_changes(name):
  plain = config.build(widened(name, BASE), vocab=laws.V)
  spec = transferred(name, BASE)
  spec['init']['base_depth'] = depth(spec)
  same = config.build(spec, vocab=laws.V)
  assert same.growth == (1, 1)
  batch = laws.packed(name)
  assert same.parameters(batch) == plain.parameters(batch)
  rule = {'rule': {'fn': 'lm.optim.rules:adamw'}}
  assert optim.fitted(rule, same) == optim.fitted(rule, plain)
  traced = [
    str(jax.make_jaxpr(partial(x.apply, batch=batch))(x.init(0, batch)))
    for x in (plain, same)
  ]
  assert traced[0] == traced[1]


def depth(spec: dict[str, Any]) -> int | None:
  """Finds the depth of a model; None of one without a residual stream."""
  if spec['fn'].startswith('lm.models.recurrent'):
    return None
  return spec['depth'] if 'depth' in spec else spec['decoder']['depth']
