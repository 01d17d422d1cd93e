"""Attention by blocks, by a ring and by kernels equals that by a mask."""

from functools import partial
import re

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from lm import config, sharding, tree
from lm.layers import attention, blockwise, dot_product, kernels, masks
from lm.models import linen
from lm.planning import topology
from lm.training import step

B, K, G, H = 4, 2, 2, 8
N = K * G
# Each that is said of a mask in one of them, and the softcap.
CASES = {
  'causal': {},
  'window': {'window': 5},
  'both ways': {'causal': False, 'window': 5},
  'all': {'window': 7, 'prefix': True, 'softcap': 2.0},
}
needs_eight = pytest.mark.skipif(
  jax.device_count() < 8, reason='needs eight devices: CPU simulates them'
)
SEQUENCE = {'sequence': 8}
MIXED = {'data': 2, 'sequence': 2, 'tensor': 2}


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def packed(length, *, causal=True, window=None, prefix=False, **changes):
  """Documents of uneven lengths, and padding at the end of most rows."""
  rng = np.random.default_rng(0)
  segments, positions = np.zeros((2, B, length), np.int32)
  shown = np.zeros((B, length), bool)
  for b in range(B):
    start, document = 0, 1
    used = length - b * length // 16
    while start < used:
      stop = min(used, start + int(rng.integers(1, 1 + length // 2)))
      segments[b, start:stop] = document
      positions[b, start:stop] = np.arange(stop - start)
      shown[b, start : min(stop, start + int(rng.integers(0, 5)))] = True
      start, document = stop, document + 1
  return masks.AttentionMask(
    jnp.asarray(segments),
    None if window is None else jnp.asarray(positions),
    jnp.asarray(shown) if prefix else None,
    causal=causal,
    window=window,
    **changes,
  )


def inputs(length, width=H):
  """Queries, keys, values and a cotangent."""
  q, d = (normal(i, B, length, N, width) for i in range(2))
  k, v = (normal(i, B, K, length, width) for i in range(2, 4))
  return q, k, v, d


def outcome(attend, mask, given, **settings):
  """Returns the value and the gradients of queries, keys and values."""
  q, k, v, d = given

  def run(q, k, v, d, mask):
    out, pull = jax.vjp(lambda *x: attend(*x, mask, **settings), q, k, v)
    return out, *pull(d)

  return jax.jit(run)(q, k, v, d, mask)


def masked(q, k, v, mask, **settings):
  return dot_product.attend(q, k, v, mask.materialize(), **settings)


def assert_same(got, want, tolerance=1e-5):
  for g, w in zip(got, want, strict=True):
    assert g.dtype == w.dtype and g.shape == w.shape
    assert np.isfinite(np.asarray(w)).all()
    bound = tolerance * max(1, float(jnp.abs(w).max()))
    np.testing.assert_allclose(g, w, atol=bound)


def case(name, length, **changes):
  """Returns the mask of a case and its softcap."""
  found = dict(CASES[name])
  softcap = found.pop('softcap', None)
  return packed(length, **found, **changes), softcap


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('length', [17, 50])
def test_runs_of_queries_equal_the_whole(monkeypatch, name, length):
  """Scores that a causal text does not need change nothing."""
  monkeypatch.setattr(dot_product, '_SHORTEST', 8)
  mask, softcap = case(name, length)
  given = inputs(length)
  bias = normal(5, 1, N, length, length)

  def run(q, k, v, mask, **settings):
    mask = mask.replace(whole_B1LS=mask.materialize())
    return dot_product.attend(q, k, v, mask, **settings)

  for settings in ({'softcap': softcap}, {'terms': dot_product.Terms(bias)}):
    want = outcome(masked, mask, given, **settings)
    assert_same(outcome(run, mask, given, **settings), want)
  runs = dot_product._runs(mask, length, length)
  assert (len(runs) > 1) == (mask.causal and mask.prefix is None)


@pytest.mark.parametrize(
  ('name', 'length', 'compute_dtype', 'tolerance'),
  [
    ('causal', 64, 'float32', 1e-5),
    ('causal', 9, 'bfloat16', 0.02),
    ('both ways', 50, 'float32', 1e-5),
    ('all', 50, 'float32', 1e-5),
  ],
)
def test_blocks_equal_the_mask(
  monkeypatch, name, length, compute_dtype, tolerance
):
  monkeypatch.setattr(kernels, '_BLOCK', 16)
  mask, softcap = case(name, length)
  given = inputs(length)
  settings = {'softcap': softcap, 'compute_dtype': compute_dtype}
  want = outcome(masked, mask, given, **settings)
  got = outcome(dot_product.attend_unmasked, mask, given, **settings)
  assert_same(got, want, tolerance)


@needs_eight
@pytest.mark.parametrize(
  ('name', 'mesh', 'length'),
  [
    ('causal', SEQUENCE, 64),
    ('both ways', SEQUENCE, 50),
    ('all', SEQUENCE, 64),
    ('causal', MIXED, 50),
    ('both ways', MIXED, 64),
    ('all', MIXED, 50),
  ],
)
def test_a_ring_equals_the_mask(monkeypatch, name, mesh, length):
  monkeypatch.setattr(kernels, '_BLOCK', 16)
  mask, softcap = case(name, length, kernel='ring')
  given = inputs(length)
  want = outcome(masked, mask, given, softcap=softcap)
  with jax.set_mesh(sharding.make_mesh(**mesh)):
    got = outcome(dot_product.attend_unmasked, mask, given, softcap=softcap)
  assert_same(got, want)


@pytest.mark.slow
@needs_eight
def test_rings_of_a_pipeline_are_one_computation():
  mask, _ = case('all', 32, kernel='ring')
  given = inputs(32)
  want = outcome(masked, mask, given)

  def both(attend):
    attend = jax.vmap(attend, spmd_axis_name='stage')
    return lambda q, k, v, mask: attend(q, k, v, mask)

  twice = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), (given, mask))
  with jax.set_mesh(sharding.make_mesh(stage=2, sequence=2, data=2)):
    got = outcome(both(dot_product.attend_unmasked), twice[1], twice[0])
  assert_same([x[0] for x in got], want)
  assert_same([x[1, ::-1] for x in got], want)


@pytest.mark.parametrize(
  ('changes', 'unseen', 'queries'),
  [
    ({}, slice(48, 64), slice(0, 48)),
    ({'window': 8}, slice(0, 16), slice(32, 64)),
    ({'segments': (32, 32), 'causal': False}, slice(0, 32), slice(32, 64)),
  ],
  ids=['later', 'beyond the window', 'another document'],
)
def test_blocks_that_nobody_sees_are_left_out(changes, unseen, queries):
  sizes = changes.pop('segments', (64,))
  mask = masks.AttentionMask(
    jnp.asarray(np.repeat(np.arange(len(sizes)), sizes)[None]),
    jnp.arange(64)[None],
    causal=changes.get('causal', True),
    window=changes.get('window'),
  )
  q, k, v = (normal(i, 1, 1, 1, 64, H) for i in range(3))
  settings = blockwise.Settings(None, 'float32', 16)
  # What is multiplied with a nan, be it by 0, is nan.
  v = v[:, 0].at[:, :, unseen].set(jnp.nan)
  out = blockwise.attend(q, k[:, 0], v, mask, settings=settings)
  assert np.isfinite(np.asarray(out[:, :, :, queries])).all()
  assert np.isnan(np.asarray(out[:, :, :, unseen])).all()


@pytest.mark.slow
def test_scanned_layers_some_with_a_window_equal_those_by_masks():
  def make(kernel='auto'):
    def block(window):
      mixer = base.attention(
        kv_heads=2,
        window=window,
        positions=base.rotary(),
        scores=base.scores(kernel=kernel),
      )
      return base.block(mixer, base.mlp(), base.layernorm())

    spec = base.decoder(
      length=24,
      width=16,
      depth=2,
      blocks={'local': block(3), 'global': block(None)},
      pattern=('local', 'global'),
      embed=base.embedding(),
      init=base.init(std=0.5),
      scan=True,
      remat='full',
    )
    return config.build(spec, vocab=16)

  batch = linen.example_batch(2, 24)
  tokens = np.arange(48, dtype=np.int32).reshape(2, 24) * 7 % 16
  batch = batch._replace(tokens=tokens)
  params = make().init(0, batch)

  def gradient(kernel):
    model = make(kernel)
    return jax.jit(
      jax.grad(lambda p: jnp.sum(jnp.cos(model.apply(p, batch).logits)))
    )(params)

  want = jax.tree.leaves(gradient('einsum'))
  assert_same(jax.tree.leaves(gradient('blockwise')), want)


@pytest.mark.slow
def test_32k_tokens_train_in_8_gib():
  spec = base.decoder(length=32_768, scan=True, remat='full')
  model = config.build(spec, vocab=256)
  batch = linen.example_batch(1, 32_768)
  state = jax.eval_shape(
    partial(step.init_state, tx=optax.adamw(1e-3)),
    tree.shapes(model.parameters(batch)),
  )
  update = partial(
    step.train_step, model=model, tx=optax.adamw(1e-3), rng=jax.random.key(1)
  )
  compiled = jax.jit(update).lower(state, batch).compile()
  used = compiled.memory_analysis()
  total = sum(
    getattr(used, f'{kind}_size_in_bytes')
    for kind in ('argument', 'output', 'temp', 'generated_code')
  )
  assert 0.1 < total / 2**30 < 8


def away(platform, **axes):
  """Makes the mesh of a machine that is not here."""
  device = jax.sharding.AbstractDevice(platform, 1, platform)
  sizes = {name: axes.get(name, 1) for name in sharding.AXES}
  mesh = jax.sharding.AbstractMesh(
    tuple(sizes.values()), tuple(sizes), abstract_device=device
  )
  return jax.sharding.use_abstract_mesh(mesh)


def choose(asked='auto', **changes):
  usual = {'length': 2048, 'head_width': 64, 'compute_dtype': 'bfloat16'}
  return kernels.choose(asked, **usual | changes)


def test_the_kernel_is_that_of_the_machine_compiled_for(monkeypatch):
  with away('cpu'):
    assert choose() == 'blockwise'
    assert choose(length=512) == 'einsum'
    assert choose('einsum', length=10**6) == 'einsum'
  with away('tpu'):
    assert choose() == 'splash'
    assert choose(prefix=True) == choose(length=2047) == 'blockwise'
    assert choose(initializing=True) == 'einsum'
  with away('tpu', sequence=2):
    assert choose() == choose('blockwise', length=8) == 'ring'
    assert choose('einsum') == 'einsum'
    assert choose(initializing=True, length=8) == 'einsum'
  with away('gpu'):
    assert choose() == 'blockwise'
    monkeypatch.setattr(kernels, '_has_cudnn', lambda: True)
    assert choose() == 'cudnn'
    assert (
      choose(softcap=20.0) == choose(compute_dtype='float32') == 'blockwise'
    )
    assert choose(length=32_768) == choose(head_width=192) == 'blockwise'


@pytest.mark.parametrize(
  ('platform', 'asked', 'changes', 'message'),
  [
    (
      'cpu',
      'splash',
      {},
      "'splash' is for TPU, and this is cpu; or use 'auto'",
    ),
    ('tpu', 'splash', {'prefix': True}, "'splash' knows no prefix"),
    ('tpu', 'splash', {'length': 100}, "'splash' needs a length that 128"),
    ('tpu', 'cudnn', {}, "'cudnn' is for GPU, and this is tpu"),
    (
      'gpu',
      'cudnn',
      {'compute_dtype': 'float32'},
      "needs compute_dtype='bfloat16'",
    ),
    ('gpu', 'cudnn', {'softcap': 1.0}, "'cudnn' knows no softcap"),
    ('gpu', 'cudnn', {'head_width': 20}, 'needs a head_width that 8 divides'),
  ],
)
def test_a_kernel_that_cannot_is_one_line(
  platform, asked, changes, message, monkeypatch
):
  monkeypatch.setattr(kernels, '_has_cudnn', lambda: True)
  with away(platform), pytest.raises(ValueError, match=re.escape(message)):
    choose(asked, **changes)


def test_an_unknown_kernel_and_a_cut_text_are_one_line(monkeypatch):
  monkeypatch.setattr(kernels, '_has_cudnn', lambda: False)
  with away('gpu'), pytest.raises(ValueError, match="needs jax's CUDA plug-in"):
    choose('cudnn')
  with pytest.raises(ValueError, match="kernel='flash' is not one of"):
    attention.scores(kernel='flash')
  with (
    away('tpu', sequence=4),
    pytest.raises(ValueError, match=r'cuts no text: set mesh\.sequence=1'),
  ):
    choose('splash')


def long(**changes):
  """A mask of documents without gaps, and inputs, that splash takes."""
  segments = jnp.asarray(np.repeat([1, 2, 0], [100, 120, 36])[None])
  places = jnp.asarray(
    np.concatenate([np.arange(n) for n in (100, 120, 36)])[None]
  )
  mask = masks.AttentionMask(segments, places, **changes)
  q, d = (normal(i, 1, 256, 2, 64) for i in range(2))
  k, v = (normal(i, 1, 1, 256, 64) for i in range(2, 4))
  return mask, (q, k, v, d)


@pytest.mark.slow
def test_splash_equals_the_mask(monkeypatch):
  interpreted = partial(kernels.splash, interpret=True)
  monkeypatch.setattr(kernels, 'splash', interpreted)
  mask, given = long(window=40, kernel='splash')
  want = outcome(masked, mask, given, softcap=5.0)
  assert_same(
    outcome(dot_product.attend_unmasked, mask, given, softcap=5.0), want, 2e-5
  )


@pytest.fixture
def uncached():
  """Compiles anew: no device here can load what is for another machine."""
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  yield
  jax.config.update('jax_enable_compilation_cache', True)
  compilation_cache.reset_cache()


def test_splash_compiles_for_a_tpu_that_is_not_there(libtpu, uncached):
  devices = topology.target('v5e:2x2').devices
  mesh = sharding.make_mesh(tensor=2, devices=devices)
  where = jax.sharding.NamedSharding(mesh, sharding.spec('batch'))
  shape = partial(jax.ShapeDtypeStruct, sharding=where)
  keys = shape((4, 2, 512, 64), jnp.float32)
  segments = shape((4, 512), jnp.int32)

  def total(q, k, v, segments):
    mask = masks.AttentionMask(segments, window=128, kernel=choose(length=512))
    assert mask.kernel == 'splash'
    return jnp.sum(
      dot_product.attend_unmasked(
        q, k, v, mask, softcap=20.0, compute_dtype='bfloat16'
      )
    )

  with jax.set_mesh(mesh):
    lowered = jax.jit(jax.value_and_grad(total, (0, 1, 2))).lower(
      shape((4, 512, 4, 64), jnp.float32), keys, keys, segments
    )
  # Forward, and the gradients of queries and of keys and values.
  assert str(lowered.compile().as_text()).count('tpu_custom_call') == 3


@pytest.mark.parametrize('name', ['causal', 'both ways', 'one document'])
def test_cudnn_is_told_what_the_mask_says(monkeypatch, name):
  """Here by the call's own reference, which reads what cuDNN would."""
  attend = jax.nn.dot_product_attention
  monkeypatch.setattr(
    jax.nn,
    'dot_product_attention',
    lambda *a, **b: attend(*a, **{**b, 'implementation': 'xla'}),
  )
  mask, given = for_cudnn(name), inputs(16)
  want = outcome(masked, mask, given)
  assert_same(outcome(dot_product.attend_unmasked, mask, given), want)


def for_cudnn(name):
  if name != 'one document':
    return case(name, 16, kernel='cudnn')[0]
  return masks.AttentionMask(jnp.ones((B, 16), jnp.int32), kernel='cudnn')


@pytest.mark.gpu
def test_cudnn_equals_the_mask():
  for name in ('causal', 'both ways', 'one document'):
    mask, given = for_cudnn(name), inputs(16, 64)
    want = outcome(masked, mask, given)
    got = outcome(
      dot_product.attend_unmasked, mask, given, compute_dtype='bfloat16'
    )
    assert_same(got, want, 0.03)
