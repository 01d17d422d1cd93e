from functools import partial
import re

import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np
import pytest

from configs import base
from lm import config, initial
from lm.layers import (
  activations,
  dot_product,
  initializers,
  linear,
  masks,
  norms,
  positions,
  recurrent,
  relative,
  stack,
)
from lm.models import linen


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def variables(module, *inputs):
  params = initializers.parameters(module, *inputs)
  return {'params': initial.draw(params, 0)}


@pytest.mark.slow
@pytest.mark.parametrize(
  ('spec', 'a', 'b'),
  [
    ('BLD,DNH->BLNH', (2, 3, 4), (4, 5, 6)),
    ('BLNH,NHD->BLD', (2, 3, 5, 6), (5, 6, 4)),
    ('BLKGH,BSKH->BKGLS', (2, 3, 4, 5, 6), (2, 7, 4, 6)),
    ('BKGLS,BSKH->BLKGH', (2, 4, 5, 3, 7), (2, 7, 4, 6)),
    ('BLD,VD->BLV', (2, 3, 4), (9, 4)),
    ('BLNH,BSNH->BNLS', (2, 3, 5, 4), (2, 7, 5, 4)),
    ('FBL,LBD->DBF', (6, 2, 3), (3, 2, 4)),
  ],
)
def test_bfloat16_products_keep_their_gradients(spec, a, b):
  x, y = normal(0, *a), normal(1, *b)

  def total(x, y, compute_dtype):
    out = linear.contract(spec, x, y, compute_dtype, 'float32')
    return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape))

  np.testing.assert_allclose(
    linear.contract(spec, x, y, 'float32', 'float32'),
    np.einsum(spec, x, y),
    atol=1e-5,
  )
  wide = jax.grad(total, (0, 1))(x, y, 'float32')
  plain = jax.grad(
    lambda x, y: jnp.sum(
      (out := jnp.einsum(spec, x, y))
      * jnp.cos(jnp.arange(out.size)).reshape(out.shape)
    ),
    (0, 1),
  )(x, y)
  for w, p in zip(wide, plain, strict=True):
    np.testing.assert_allclose(w, p, atol=1e-5)
  narrow = jax.grad(total, (0, 1))(x, y, 'bfloat16')
  for w, n in zip(wide, narrow, strict=True):
    assert n.dtype == w.dtype
    np.testing.assert_allclose(w, n, atol=0.03 * float(jnp.abs(w).max()))


def test_every_product_of_a_bfloat16_step_has_bfloat16_operands():
  def total(x, y):
    return jnp.sum(
      jnp.square(linear.contract('BD,DF->BF', x, y, 'bfloat16', 'float32'))
    )

  text = str(
    jax.make_jaxpr(jax.grad(total, (0, 1)))(normal(0, 2, 3), normal(1, 3, 4))
  )
  products = [line for line in text.splitlines() if 'dot_general' in line]
  assert len(products) == 3
  assert text.count('new_dtype=bfloat16') >= 3


def reference_attention(q, k, v, mask, softcap, bias):
  B, L, N, H = q.shape
  out = np.zeros((B, L, N, H))
  for b in range(B):
    for n in range(N):
      kv = n // (N // k.shape[1])
      scores = q[b, :, n] @ k[b, kv].T / np.sqrt(H)
      if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
      scores = scores + bias[b % len(bias), n]
      scores = np.where(mask[b, 0], scores, -np.inf)
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      out[b, :, n] = weights / weights.sum(-1, keepdims=True) @ v[b, kv]
  return out


@pytest.mark.parametrize('softcap', [None, 2.0])
@pytest.mark.parametrize(('kv_heads', 'bias_rows'), [(1, 1), (2, 2), (4, 1)])
def test_attention_equals_a_loop_over_heads(kv_heads, bias_rows, softcap):
  q = normal(0, 2, 5, 4, 8)
  k, v = normal(1, 2, kv_heads, 5, 8), normal(2, 2, kv_heads, 5, 8)
  bias = normal(3, bias_rows, 4, 5, 5)
  segments = jnp.array([[1, 1, 2, 2, 2], [1, 1, 1, 1, 1]])
  mask = masks.causal_mask(segments, segments)
  got = dot_product.attend(
    q, k, v, mask, terms=dot_product.Terms(bias), softcap=softcap
  )
  q, k, v, bias = (np.asarray(x, np.float64) for x in (q, k, v, bias))
  want = reference_attention(q, k, v, np.asarray(mask), softcap, bias)
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(('softcap', 'bias_rows'), [(None, 1), (2.0, 2)])
@pytest.mark.parametrize(
  ('compute_dtype', 'tolerance'), [('float32', 1e-5), ('bfloat16', 0.03)]
)
def test_attention_has_the_gradients_of_autodiff(
  compute_dtype, tolerance, softcap, bias_rows
):
  q = normal(0, 2, 5, 4, 8)
  k, v = normal(1, 2, 2, 5, 8), normal(2, 2, 2, 5, 8)
  bias = normal(4, bias_rows, 4, 5, 5)
  segments = jnp.array([[1, 1, 2, 2, 2], [1, 1, 1, 1, 1]])
  mask = masks.causal_mask(segments, segments).at[0, 0, 3].set(False)

  def plain(q, k, v, bias):
    scores = jnp.einsum('BLNH,BNSH->BNLS', q, jnp.repeat(k, 2, 1)) * 0.5
    if softcap is not None:
      scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask, scores + bias, masks.MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum('BNLS,BNSH->BLNH', weights, jnp.repeat(v, 2, 1))

  def ours(q, k, v, bias):
    return dot_product.attend(
      q,
      k,
      v,
      mask,
      terms=dot_product.Terms(bias),
      scale=0.5,
      softcap=softcap,
      compute_dtype=compute_dtype,
    )

  want_out, want_of = jax.vjp(plain, q, k, v, bias)
  got_out, got_of = jax.vjp(ours, q, k, v, bias)
  direction = normal(3, *want_out.shape)
  want = want_out, *want_of(direction)
  got = got_out, *got_of(direction)
  for w, g in zip(want, got, strict=True):
    assert g.dtype == w.dtype
    np.testing.assert_allclose(g, w, atol=tolerance * float(jnp.abs(w).max()))


def test_mask_is_causal_within_documents():
  segments = jnp.array([[1, 1, 2, 0]])
  mask = masks.causal_mask(segments, segments)[0, 0]
  np.testing.assert_array_equal(
    mask, [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
  )


def test_a_prefix_is_seen_by_its_whole_document_alone():
  segments = jnp.array([[1, 1, 1, 2, 2]])
  prefix = jnp.array([[1, 1, 0, 1, 0]], bool)
  mask = masks.causal_mask(segments, segments, 0, prefix)[0, 0]
  np.testing.assert_array_equal(
    mask,
    [
      [1, 1, 0, 0, 0],
      [1, 1, 0, 0, 0],
      [1, 1, 1, 0, 0],
      [0, 0, 0, 1, 0],
      [0, 0, 0, 1, 1],
    ],
  )


def test_a_window_is_counted_in_positions():
  # a gap in the slots, as between prompts of uneven lengths and what follows
  keys = jnp.array([[0, 1, 2, 0, 3]])
  mask = masks.window_mask(jnp.array([[3, 4]]), keys, 2)[0, 0]
  np.testing.assert_array_equal(mask, [[0, 0, 1, 0, 1], [0, 0, 0, 0, 1]])


def test_buckets_are_those_of_t5():
  # What transformers 5.23 gives for 32 buckets within 128.
  near = relative.buckets(
    jnp.array([[200]]),
    jnp.array([[200, 199, 185, 184, 183, 170, 101, 73, 72, 0, 201]]),
    count=32,
    max_distance=128,
    bidirectional=False,
  )
  np.testing.assert_array_equal(
    near[0, 0], [0, 1, 15, 16, 16, 20, 30, 31, 31, 31, 0]
  )
  both = relative.buckets(
    jnp.array([[100]]),
    jnp.array([[100, 99, 92, 80, 0, 101, 107, 108, 130, 250]]),
    count=32,
    max_distance=128,
    bidirectional=True,
  )
  np.testing.assert_array_equal(
    both[0, 0], [0, 1, 8, 10, 15, 17, 23, 24, 27, 31]
  )


def test_sinusoids_turn_with_the_position():
  vectors = np.asarray(positions.sinusoids(jnp.array([[0, 1, 5]]), 6))[0]
  rates = 10_000.0 ** (-np.arange(3) / 3)
  for vector, place in zip(vectors, (0, 1, 5), strict=True):
    want = np.concatenate([np.sin(place * rates), np.cos(place * rates)])
    np.testing.assert_allclose(vector, want, atol=1e-6)


def test_softcap_bounds_scores():
  q = 100 * normal(0, 1, 3, 1, 4)
  k = jnp.swapaxes(q, 1, 2)
  mask = jnp.ones((1, 1, 3, 3), bool)
  v = jnp.eye(3, 4)[None, None]
  weights = dot_product.attend(q, k, v, mask, softcap=1.0)[0, :, 0, :3]
  # Scores within [-1, 1]: no weight is beyond e^2 times another.
  assert float(weights.max() / weights.min()) < np.exp(2) + 1e-3


def test_rope_scores_depend_on_distance_alone():
  q, k = normal(0, 1, 1, 1, 8), normal(1, 1, 1, 1, 8)

  def rotated(x, place, width=8):
    turn = positions.rotation(jnp.array([[place]]), width, 10_000.0)
    return positions.rope(x, turn)

  def score(i, j):
    return float(jnp.sum(rotated(q, i) * rotated(k, j)))

  assert score(3, 1) == pytest.approx(score(103, 101), abs=1e-4)
  assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-3)
  np.testing.assert_allclose(rotated(q, 0), q, atol=1e-6)
  part = np.asarray(rotated(q, 3, width=4))
  np.testing.assert_array_equal(part[..., 4:], q[..., 4:])
  np.testing.assert_allclose(
    part[..., :4], rotated(q[..., :4], 3, width=4), atol=1e-6
  )


@pytest.mark.parametrize(
  'module',
  [
    norms.LayerNorm(),
    norms.LayerNorm(bias=False),
    norms.RMSNorm(),
    norms.RMSNorm(offset=1.0),
  ],
)
def test_gradients_of_norms_are_those_of_autodiff(module):
  offset = getattr(module, 'offset', 0.0)

  def plain(params, x):
    params = params['params']
    if isinstance(module, norms.LayerNorm):
      x -= jnp.mean(x, -1, keepdims=True)
    x /= jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + module.epsilon)
    x *= (params['scale'] + offset)[None, None]
    return x + params['bias'][None, None] if 'bias' in params else x

  x, weights = 5 + 3 * normal(0, 2, 3, 8), normal(1, 2, 3, 8)
  params = jax.tree.map(
    lambda p: p + 0.5 * normal(2, *p.shape), variables(module, x)
  )
  got, want = (
    jax.value_and_grad(lambda *a, fn=fn: jnp.sum(fn(*a) * weights), (0, 1))(
      params, x
    )
    for fn in (module.apply, plain)
  )
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, want
  )


def test_gelu_and_its_gradient_are_those_of_jax():
  x = jnp.concatenate([jnp.linspace(-12, 12, 97), jnp.asarray([-1e4, 1e4])])
  plain = partial(jax.nn.gelu, approximate=True)
  for got, want in (
    (activations.gelu(x), plain(x)),
    (jax.vmap(jax.grad(activations.gelu))(x), jax.vmap(jax.grad(plain))(x)),
  ):
    # Theirs is a difference of near numbers in the tail.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  assert activations.gelu(x.astype('bfloat16')).dtype == 'bfloat16'


def test_norms_in_float64():
  x = 5 + 3 * np.asarray(normal(0, 2, 3, 8), np.float64)
  module = norms.LayerNorm()
  params = variables(module, x)
  want = (x - x.mean(-1, keepdims=True)) / np.sqrt(
    x.var(-1, keepdims=True) + 1e-5
  )
  got = np.asarray(module.apply(params, jnp.asarray(x, jnp.float32)))
  np.testing.assert_allclose(got, want, atol=1e-5)
  module = norms.RMSNorm()
  params = variables(module, x)
  want = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
  got = np.asarray(module.apply(params, jnp.asarray(x, jnp.float32)))
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_unknown_remat_policy_is_one_line_with_a_suggestion():
  with pytest.raises(ValueError, match=r"remat='dot'.*did you mean 'dots'"):
    stack.remat_policy('dot')


def test_a_batch_longer_than_the_learned_positions_is_refused():
  spec = base.decoder(2, length=4, width=8, depth=1)
  model = config.build(spec, vocab=8)
  with pytest.raises(ValueError, match=r'length 5 is longer than model\.leng'):
    model.init(0, linen.example_batch(1, 5))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ('blocks.main.norm.fn=lm.layers.norms:batch', 'has no function batch'),
    ('blocks.main.mlp.activation=tanh', "activation='tanh' is not one of"),
    ('dtype=float16', "dtype='float16' is not one of float32, bfloat16"),
    (
      'blocks.main.mixer.heads=5',
      'blocks.main: lm.layers.attention:make: width=32 is not a multiple of '
      'heads=5: set head_width',
    ),
    (
      'blocks.main.mixer.kv_heads=3',
      'heads=4 is not a multiple of kv_heads=3',
    ),
    (
      'blocks.main.mixer.head_width=3',
      'head_width=3 * fraction=1.0 must be even',
    ),
    ('blocks.main.order=after', "order='after' is not one of pre, post, both"),
    ('depth=0', 'depth=0 must be at least 1'),
    ('dropout=1.0', 'dropout=1.0 must be below 1'),
    ('pattern=mian', "pattern: no block 'mian'; did you mean main?"),
    ('first=main,main', 'first: names 2 blocks, more than depth=1'),
    ('remat=dot', "did you mean 'dots'"),
  ],
)
def test_a_decoder_that_cannot_be_is_refused(changes, message):
  mixer = base.attention(positions=base.rotary())
  spec = base.llama(mixer, base.mlp(), length=8, width=32, depth=1)
  c = config_dict.ConfigDict({'model': spec})
  key, _, value = changes.partition('=')
  config.override(c, f'model.{key}', value)
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    config.build(c.model, vocab=8)
  assert '\n' not in str(caught.value) and len(str(caught.value)) <= 200


@pytest.mark.slow
@pytest.mark.parametrize('cell', recurrent.CELLS)
def test_narrow_products_of_a_recurrence_have_near_gradients(cell):
  rng = jax.random.key(0)
  x_BLD = jax.random.normal(rng, (8, 5, 16))
  starts_BL = jnp.zeros((8, 5), bool).at[:, 3].set(True)

  def gradient(compute_dtype):
    layer = recurrent.Recurrent(
      cell,
      initializers.normal(0.3),
      0.0,
      False,
      'float32',
      compute_dtype,
    )
    seen = recurrent.Seen(starts_BL, ~starts_BL)

    def total(params):
      y_BLD, _ = layer.apply(params, x_BLD, seen, None)
      return jnp.sum(jnp.square(y_BLD))

    params = variables(layer, x_BLD, seen, None)
    return jax.jit(jax.grad(total))(params)

  for wide, narrow in zip(
    jax.tree.leaves(gradient('float32')),
    jax.tree.leaves(gradient('bfloat16')),
    strict=True,
  ):
    assert np.abs(wide - narrow).max() < 0.1 * np.abs(wide).max()
