"""Sinks by every way of mixing, gates, and embeddings of values."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lm import config, sharding, tree
from lm.interop import trees
from lm.layers import attention, dot_product, kernels, masks, parts
from lm.models import linen
from lm.planning import flops
from tests.layers import attention_test as common

SINK = jnp.asarray(np.linspace(-1.0, 2.0, common.N), jnp.float32)


def formula(q, k, v, mask, sink, softcap=None):
  """Mixes by a softmax with one more column, as the papers write it."""
  group = q.shape[2] // k.shape[1]
  k, v = (jnp.repeat(x, group, axis=1) for x in (k, v))
  scores = jnp.einsum('BLNH,BNSH->BNLS', q, k) * q.shape[-1] ** -0.5
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  scores = jnp.where(mask.materialize(), scores, masks.MASKED)
  column = jnp.broadcast_to(sink[None, :, None, None], (*scores.shape[:3], 1))
  weights = jax.nn.softmax(jnp.concatenate([scores, column], axis=-1), axis=-1)
  return jnp.einsum('BNLS,BNSH->BLNH', weights[..., :-1], v)


def outcome(attend, mask, given, **settings):
  """Returns the value and the gradients of q, k, v and the sinks."""
  q, k, v, d = given

  def run(q, k, v, sink, d, mask):
    def mix(q, k, v, sink):
      return attend(q, k, v, mask, sink, **settings)

    out, pull = jax.vjp(mix, q, k, v, sink)
    return out, *pull(d)

  return jax.jit(run)(q, k, v, SINK, d, mask)


def whole(q, k, v, mask, sink, **settings):
  return dot_product.attend(
    q,
    k,
    v,
    mask.materialize(),
    terms=dot_product.Terms(sink_N=sink),
    **settings,
  )


def in_runs(q, k, v, mask, sink, **settings):
  mask = mask.replace(whole_B1LS=mask.materialize())
  return dot_product.attend(
    q, k, v, mask, terms=dot_product.Terms(sink_N=sink), **settings
  )


def unmasked(q, k, v, mask, sink, **settings):
  return dot_product.attend_unmasked(
    q, k, v, mask, terms=dot_product.Terms(sink_N=sink), **settings
  )


def test_a_sink_by_hand():
  """Scores of two keys are 0 and ln 2, that of the sink is ln 3: 1 + 2 + 3."""
  q = jnp.ones((1, 1, 1, 1))
  k = jnp.log(jnp.asarray([1.0, 2.0])).reshape(1, 1, 2, 1)
  v = jnp.asarray([6.0, 12.0]).reshape(1, 1, 2, 1)
  mask = jnp.ones((1, 1, 1, 2), bool)
  sink = jnp.log(jnp.asarray([3.0]))
  mixed = dot_product.attend(
    q, k, v, mask, terms=dot_product.Terms(sink_N=sink)
  )
  assert float(mixed[0, 0, 0, 0]) == pytest.approx(1 / 6 * 6 + 2 / 6 * 12)
  # A query that may look nowhere gets nothing.
  mixed = dot_product.attend(
    q, k, v, ~mask, terms=dot_product.Terms(sink_N=sink)
  )
  assert float(mixed[0, 0, 0, 0]) == 0


@pytest.mark.parametrize('name', common.CASES)
@pytest.mark.parametrize('attend', [whole, in_runs, unmasked])
def test_every_way_equals_the_formula(monkeypatch, name, attend):
  monkeypatch.setattr(dot_product, '_SHORTEST', 8)
  monkeypatch.setattr(kernels, '_BLOCK', 16)
  mask, softcap = common.case(name, 50)
  given = common.inputs(50)
  want = outcome(formula, mask, given, softcap=softcap)
  common.assert_same(outcome(attend, mask, given, softcap=softcap), want)


@common.needs_eight
@pytest.mark.parametrize('mesh', [common.SEQUENCE, common.MIXED])
def test_a_ring_equals_the_formula(monkeypatch, mesh):
  monkeypatch.setattr(kernels, '_BLOCK', 16)
  mask, softcap = common.case('all', 50, kernel='ring')
  given = common.inputs(50)
  want = outcome(formula, mask, given, softcap=softcap)
  with jax.set_mesh(sharding.make_mesh(**mesh)):
    got = outcome(unmasked, mask, given, softcap=softcap)
  common.assert_same(got, want)


def test_a_cache_equals_the_formula():
  mask, softcap = common.case('causal', 20)
  q, k, v, _ = common.inputs(20)
  B, K, S, H = k.shape
  got = dot_product.attend_cache(
    q,
    jnp.einsum('BKSH->BKHS', k).reshape(B * K, H, S),
    v.reshape(B * K, S, H),
    mask.materialize(),
    terms=dot_product.Terms(sink_N=SINK),
    softcap=softcap,
  )
  want = formula(q, k, v, mask, SINK, softcap)
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize('kernel', ['splash', 'cudnn'])
def test_a_kernel_without_sinks_says_so(monkeypatch, kernel):
  where = {'splash': 'tpu', 'cudnn': 'gpu'}[kernel]
  monkeypatch.setattr(sharding, 'platform', lambda: where)
  monkeypatch.setattr(kernels, '_has_cudnn', lambda: True)
  text = {'length': 1024, 'head_width': 64, 'compute_dtype': 'bfloat16'}
  assert kernels.choose('auto', **text) == kernel
  assert kernels.choose('auto', **text, sink=True) == 'blockwise'
  with pytest.raises(ValueError, match=f"kernel='{kernel}' knows no sink"):
    kernels.choose(kernel, **text, sink=True)


def mixer_output(x, tokens=None, **settings):
  """Applies an attention of one head without positions; and its parameters."""
  shared = parts.Shared(4, 1, parts.init(std=None), vocab=5)
  mixer = attention.make(shared=shared, heads=1, **settings)
  ones = jnp.ones(x.shape[:2], jnp.int32)
  text = parts.Text(ones, jnp.cumsum(ones, axis=1) - 1, tokens=tokens)

  def drawn(module, *inputs):
    # A module's initial values are zeros in boxes, see `initializers.Boxed`.
    boxes = nn.unbox(module.init(jax.random.key(0), *inputs))
    leaves, treedef = jax.tree.flatten(boxes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    found = map(jax.random.normal, keys, [x.shape for x in leaves])
    return jax.tree.unflatten(treedef, found)

  seen, known = mixer.see(text, False), {}
  if mixer.common is not None:
    table = mixer.common.build(name=None)
    known = drawn(table, text)
    seen = mixer.see(text, False, table.apply(known, text))
  module = mixer.build(name=None)
  own = drawn(module, x, seen, None)
  y, _ = module.apply(own, x, seen, None)
  return np.asarray(y), {**own['params'], **known.get('params', {})}


def plain(x, p, values: Any = 0.0):
  """Computes a causal attention of one head with numpy, before `o`."""
  q, k, v = (np.asarray(x[0] @ p[n][:, 0]) for n in 'qkv')
  v = v + values
  scores = np.where(np.tri(len(q)), q @ k.T * q.shape[1] ** -0.5, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize('gate', ['head', 'element'])
def test_a_gate_by_hand(gate):
  x = jax.random.normal(jax.random.key(2), (1, 3, 4))
  got, p = mixer_output(x, gate=gate)
  assert p['gate'].shape == (4, 1, 4 if gate == 'element' else 1)
  open_ = 1 / (1 + np.exp(-np.asarray(x[0] @ p['gate'][:, 0])))
  want = (plain(x, p) * open_) @ np.asarray(p['o'][0])
  np.testing.assert_allclose(got[0], want, atol=1e-5)


def test_embeddings_of_values_by_hand():
  x = jax.random.normal(jax.random.key(2), (1, 3, 4))
  tokens = jnp.asarray([[4, 0, 2]])
  got, p = mixer_output(x, tokens, value_embed=True)
  added = np.asarray(p['table'])[[4, 0, 2]]
  want = plain(x, p, added) @ np.asarray(p['o'][0])
  np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-4)


def test_a_look_up_takes_no_part_in_the_arithmetic():
  counts = []
  for value_embed in (False, True):
    mixer = base.attention(heads=2, value_embed=value_embed)
    spec = base.llama(mixer, base.mlp(), width=8, depth=1, length=4)
    model = config.build(spec, vocab=5)
    params = model.init(0, linen.example_batch(1, 4))
    counts.append((tree.count(params), flops.multiplied(params)))
  assert counts[1][0] == counts[0][0] + 5 * 8
  assert counts[1][1] == counts[0][1]


def test_a_gate_of_heads_does_not_grow():
  init = parts.init()._replace(base_width=2, base_head_width=1)
  with pytest.raises(ValueError, match="use gate='element'"):
    attention.make(shared=parts.Shared(4, 1, init), heads=2, gate='head')


@pytest.mark.parametrize(
  ('change', 'line'),
  [
    ({'gate': 'all'}, "gate='all'"),
    (
      {
        'value_embed': True,
        'positions': {'fn': 'lm.layers.positions:relative'},
      },
      'does not go with relative positions',
    ),
  ],
)
def test_what_does_not_fit_is_one_line(change, line):
  shared = parts.Shared(4, 1, parts.init(), vocab=5)
  with pytest.raises(ValueError, match=line):
    attention.make(shared=shared, heads=2, **change)


def test_a_model_without_tokens_has_no_value_embedding():
  with pytest.raises(ValueError, match='value_embed: this kind of model'):
    attention.make(
      shared=parts.Shared(4, 1, parts.init()), heads=2, value_embed=True
    )


@pytest.mark.parametrize(
  'change',
  [
    {'gate': 'head'},
    {'value_embed': True},
    {'scores': {'fn': 'lm.layers.attention:scores', 'sink': True}},
  ],
)
def test_transformers_have_no_place_for_them(change):
  spec = base.llama(base.attention(**change), base.mlp(activation='swiglu'))
  with pytest.raises(ValueError, match='has no counterpart in transformers'):
    trees.flatten(spec)
