"""Saving and restoring: nothing is lost, cast, overwritten or noisy."""

import json
from pathlib import Path
import re
import threading

import jax
import jax.numpy as jnp
from jax.sharding import (
  AxisType,
  NamedSharding,
  PartitionSpec,
  SingleDeviceSharding,
)
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from lm import checkpoint, errors, tree, types
from lm.checkpoint import manifest

META = {'config': '{"width": 32}', 'data': {'step': 1, 'shards': 'ab'}}


def make(seed: int = 0, step: int = 1) -> types.TrainState:
  """Makes a state with every kind of leaf that training may have."""
  rng = np.random.default_rng(seed)
  params = {
    'embed': jnp.asarray(rng.standard_normal((16, 8)), jnp.float32),
    'layer': {
      'w': jnp.asarray(rng.standard_normal((8, 24)), jnp.bfloat16),
      'scale': jnp.asarray(rng.standard_normal(()), jnp.float32),
    },
  }
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  extra = {
    'skipped': jnp.asarray(2, jnp.int32),
    'rng': jax.random.key(seed),
    'keys': jax.random.split(jax.random.key(seed, impl='rbg'), 3),
    'seen': jnp.asarray([True, False]),
    'nothing': jnp.zeros((0, 4)),
    'odd': jnp.asarray([-0.0, 1e-42, -3.4e38]),
  }
  return types.TrainState(
    jnp.asarray(step, jnp.int32), params, tx.init(params), extra
  )


def shapes(state):
  return jax.eval_shape(lambda: state)


def bits(state):
  def words(leaf):
    key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes()

  return {
    path: (str(leaf.dtype), leaf.shape, words(leaf))
    for path, leaf in tree.paths(state)
  }


def mesh_shardings(state, *shape: int):
  """Shards the matrices over a mesh of the given shape."""
  mesh = jax.make_mesh(
    shape, ('fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 2
  )
  return jax.tree.map(
    lambda x: NamedSharding(
      mesh,
      PartitionSpec('fsdp', 'tensor')
      if x.ndim == 2 and x.size
      else PartitionSpec(),
    ),
    shapes(state),
  )


@pytest.fixture
def one():
  return SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A run saved from a 4 x 2 mesh at step 1, and its state."""
  workdir = tmp_path_factory.mktemp('saved')
  state = make()
  where = mesh_shardings(state, 4, 2)
  with checkpoint.Checkpointer(workdir) as saver:
    saver.save(1, jax.device_put(state, where), META)
  return workdir, state


@pytest.mark.slow
def test_every_bit_comes_back_on_other_meshes(saved, one):
  workdir, state = saved
  for where in (mesh_shardings(state, 4, 2), mesh_shardings(state, 1, 2), one):
    got, meta = checkpoint.restore(workdir, shapes(state), where)
    assert bits(got) == bits(state)
    assert jax.tree.structure(got) == jax.tree.structure(state)
    assert meta == META
    want = one if where is one else where.params['embed']
    assert got.params['embed'].sharding == want
  assert jax.random.key_impl(got.extra['keys']) == 'rbg'


def test_a_restored_state_can_be_donated_and_used(saved):
  workdir, state = saved
  where = mesh_shardings(state, 8, 1)
  got, _ = checkpoint.restore(workdir, shapes(state), where)
  step = jax.jit(lambda s: s._replace(step=s.step + 1), donate_argnums=0)
  assert int(step(got).step) == 2


def test_content_hash_depends_on_bits_alone(saved, tmp_path):
  workdir, state = saved
  seen = {}
  moved = {**META, 'data': {'step': 2, 'shards': 'ab'}}
  for name, value, meta in [
    ('same', state, {**META, 'config': 'another'}),
    ('other', make(seed=1), META),
    ('moved', state, moved),
  ]:
    with checkpoint.Checkpointer(tmp_path / name) as saver:
      saver.save(1, value, meta)
    seen[name] = checkpoint.digest(tmp_path / name, 1)
  assert seen['same'] == checkpoint.digest(workdir, 1)  # one device, not eight
  assert len({*seen.values()}) == 3


def test_parameters_alone_need_no_mesh_and_no_optimizer(saved, monkeypatch):
  workdir, state = saved
  read = []
  real = ocp.type_handlers.NumpyHandler.deserialize

  async def spy(self, infos, args=None):
    read.extend(info.name for info in infos)
    return await real(self, infos, args)

  monkeypatch.setattr(ocp.type_handlers.NumpyHandler, 'deserialize', spy)
  params = checkpoint.restore_params(workdir)
  assert all(type(leaf) is np.ndarray for _, leaf in tree.paths(params))
  assert bits(params) == bits(state.params)
  assert sorted(read) == [
    'params.embed',
    'params.layer.scale',
    'params.layer.w',
  ]


def test_orbax_itself_can_read_a_step(saved):
  workdir, state = saved
  path = manifest.directory(workdir, 1) / 'state'
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    nested = reader.restore(path)
  np.testing.assert_array_equal(
    nested['params']['embed'], np.asarray(state.params['embed'])
  )


def test_meta_and_manifest_are_readable(saved):
  workdir, _ = saved
  assert checkpoint.read_meta(workdir) == META
  assert checkpoint.read_meta(workdir, 1) == META
  content = checkpoint.verify(workdir, 1)
  text = (manifest.directory(workdir, 1) / 'MANIFEST.json').read_text()
  assert json.loads(text) == content
  assert content['leaves']['params/layer/w']['dtype'] == 'bfloat16'
  assert content['leaves']['opt_state/1/0/mu/embed']['shape'] == [16, 8]


def test_the_copy_is_complete_when_save_returns(tmp_path, monkeypatch, one):
  release = threading.Event()
  real = ocp.Checkpointer.save

  def late(self, *args, **kwargs):
    release.wait(60)
    return real(self, *args, **kwargs)

  monkeypatch.setattr(ocp.Checkpointer, 'save', late)
  state = make()
  want = bits(state)
  spoil = jax.jit(
    lambda s: s._replace(params=jax.tree.map(lambda x: x * 0 + 7, s.params)),
    donate_argnums=0,
  )
  with checkpoint.Checkpointer(tmp_path) as saver:
    saver.save(1, state, META)
    state = jax.block_until_ready(spoil(state))
    assert checkpoint.steps(tmp_path) == []
    release.set()
    saver.wait()
    assert checkpoint.steps(tmp_path) == [1]
    saver.save(2, state, META)  # the memory of the first copy is used again
    second = bits(state)
  like = shapes(state)
  assert bits(checkpoint.restore(tmp_path, like, one, 1)[0]) == want
  assert bits(checkpoint.restore(tmp_path, like, one, 2)[0]) == second


def test_one_call_saves_a_step_for_a_notebook(tmp_path):
  params = {'embed': {'table': jnp.arange(6.0).reshape(2, 3)}}
  for step in (1, 2, 3):
    checkpoint.save(tmp_path, step, {'params': params}, {'note': step}, keep=2)
  assert checkpoint.steps(tmp_path) == [2, 3]
  assert bits(checkpoint.restore_params(tmp_path)) == bits(params)
  assert checkpoint.read_meta(tmp_path, 2) == {'note': 2}
  assert checkpoint.holder(tmp_path) is None  # others may train here now
  checkpoint.save(tmp_path, 4, {'params': params})
  assert checkpoint.verify(tmp_path, 4)['meta'] == {}
  with pytest.raises(ValueError, match='step 4 is not newer than step 4'):
    checkpoint.save(tmp_path, 4, {'params': params})


def test_an_existing_or_older_step_is_refused(tmp_path):
  state = {'x': jnp.ones(3)}
  with checkpoint.Checkpointer(tmp_path) as saver:
    saver.save(5, state, {})
    before = None
    for step in (5, 4):
      with pytest.raises(
        ValueError,
        match=f'step {step} is not newer than step 5, which is never over',
      ):
        saver.save(step, {'x': jnp.zeros(3)}, {})
      now = checkpoint.digest(tmp_path, 5)
      assert before in (None, now)
      before = now
  assert checkpoint.steps(tmp_path) == [5]


def test_what_cannot_be_stored_is_refused_at_once(tmp_path):
  x = jnp.ones(3)
  with checkpoint.Checkpointer(tmp_path) as saver:
    with pytest.raises(ValueError, match='meta of step 1 is not JSON: Out of'):
      saver.save(1, {'x': x}, {'a': float('nan')})
    with pytest.raises(ValueError, match='meta of step 1 is not JSON: Object'):
      saver.save(1, {'x': x}, {'a': x})
    with pytest.raises(ValueError, match=r'differ only in "." and "/"'):
      saver.save(1, {'a.b': x, 'a': {'b': x}}, {})
  assert checkpoint.steps(tmp_path) == []


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_saved(tmp_path, dtype, value):
  sound = {'params': {'w': jnp.ones((3, 2), dtype)}, 'ids': jnp.full(2, -1)}
  checkpoint.save(tmp_path, 1, sound)
  for path in ('params', 'opt_state'):
    bad = {**sound, path: {'w': sound['params']['w'].at[2, 1].set(value)}}
    with pytest.raises(errors.NotFinite) as caught:
      checkpoint.save(tmp_path, 2, bad)
    assert caught.value.exit_code == 6
    assert str(caught.value) == (
      f'step 2 not saved: {path}/w holds nan or an infinite number: lower'
      ' optim.peak or look at where it comes from; older steps are intact'
    )
    assert checkpoint.steps(tmp_path) == [1]
    assert manifest.leftovers(tmp_path) == []


def test_old_steps_go_and_the_rest_stays(tmp_path):
  with checkpoint.Checkpointer(tmp_path, keep=1, keep_every=3) as saver:
    for step in range(1, 8):
      saver.save(step, {'x': jnp.full(2, step)}, {})
      saver.wait()
      assert checkpoint.steps(tmp_path)[-2:] == [step - 1, step][-step:]
  # keep=1 keeps two all the same: one of them may turn out to be damaged.
  assert checkpoint.steps(tmp_path) == [3, 6, 7]
  assert manifest.leftovers(tmp_path) == []


def test_damaged_steps_do_not_count_as_kept(tmp_path):
  x = {'x': jnp.ones(2)}
  with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
    for step in (1, 2):
      saver.save(step, x, {})
  file = manifest.directory(tmp_path, 2) / 'state/x/0'
  file.write_bytes(bytes(8))
  with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
    saver.save(3, x, {})
  # 3 is the only other sound one, so that 1 stays.
  assert checkpoint.steps(tmp_path) == [1, 2, 3]


def test_nothing_is_printed(tmp_path, capfd, one):
  with checkpoint.Checkpointer(tmp_path) as saver:
    assert saver.restore({}, one) is None
    saver.save(1, {'x': jnp.ones(2)}, {})
    saver.save(2, {'x': jnp.ones(2)}, {})
    saver.wait()
    saver.restore(shapes({'x': jnp.ones(2)}), one)
  assert capfd.readouterr() == ('', '')


def test_another_tree_or_dtype_is_refused_by_name(saved, one):
  workdir, state = saved
  like = shapes(state)

  def changed(**params):
    return like._replace(params={**like.params, **params})

  f32 = jnp.float32
  cases = {
    r'1 leaves differ .*params/embed: float32\(16, 8\), expected '
    r'bfloat16\(16, 8\)': changed(
      embed=jax.ShapeDtypeStruct((16, 8), jnp.bfloat16)
    ),
    r'expected float32\(8, 16\)': changed(
      embed=jax.ShapeDtypeStruct((8, 16), f32)
    ),
    'params/more: missing': changed(more=jax.ShapeDtypeStruct((1,), f32)),
    'params/layer/scale: not expected': changed(
      layer={'w': like.params['layer']['w']}
    ),
    'expected key<rbg>': like._replace(
      extra={
        **like.extra,
        'rng': jax.eval_shape(lambda: jax.random.key(0, impl='rbg')),
      }
    ),
  }
  for text, other in cases.items():
    with pytest.raises(errors.Mismatch, match=text) as caught:
      checkpoint.restore(workdir, other, one)
    assert len(str(caught.value)) <= 200
    assert len(caught.value.lines) == 1
    assert 'use the config it was saved with' in str(caught.value)


def test_a_missing_path_is_an_error(tmp_path, one):
  for call in (
    lambda: checkpoint.restore(tmp_path / 'typo', {}, one),
    lambda: checkpoint.restore_params(tmp_path / 'typo'),
    lambda: checkpoint.read_meta(tmp_path / 'typo'),
  ):
    with pytest.raises(
      errors.Missing, match=r'no checkpoint here: check the path .*init_from'
    ):
      call()
  assert checkpoint.steps(tmp_path / 'typo') == []
  assert not (tmp_path / 'typo').exists()


def test_a_run_without_parameters_is_an_error(tmp_path):
  with checkpoint.Checkpointer(tmp_path) as saver:
    saver.save(1, {'x': jnp.ones(2)}, {})
  with pytest.raises(errors.Missing, match='has no params: use another run'):
    checkpoint.restore_params(tmp_path)


def test_a_missing_step_is_an_error(saved, one):
  with pytest.raises(errors.Gone, match=r'00000009: no such step: .* now: 1$'):
    checkpoint.restore(saved[0], shapes(saved[1]), one, step=9)


def test_a_backslash_is_refused_before_anything_is_written(tmp_path):
  for workdir in (tmp_path / 'a\\b', tmp_path / 'a\\b' / 'run'):
    with pytest.raises(errors.Remote, match='has a backslash, which the libr'):
      checkpoint.Checkpointer(workdir).__enter__()
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  'workdir', ['gs://bucket/run', Path('gs://bucket/run')]
)
def test_an_address_is_no_folder(workdir):
  with pytest.raises(errors.Remote) as caught:
    checkpoint.Checkpointer(workdir).__enter__()
  assert str(caught.value) == (
    f'{workdir}: not a folder of this machine: give one, and copy it up, or'
    ' mount the bucket'
  )


@pytest.mark.parametrize('kind', [object, 'S3', 'U3', 'datetime64[s]'])
def test_a_leaf_that_holds_no_numbers_is_refused(tmp_path, kind):
  state = {'params': {'a': np.empty(0, kind)}}
  with pytest.raises(ValueError, match='params/a cannot be stored'):
    checkpoint.save(tmp_path, 1, state)
  assert checkpoint.steps(tmp_path) == []


def test_a_slow_save_is_warned_of_once(tmp_path, capfd, monkeypatch):
  monkeypatch.setenv('FAULT', 'slow_save@0.2')
  with checkpoint.Checkpointer(tmp_path, grace_seconds=0.3) as saver:
    for step in (1, 2, 3):
      saver.save(step, {'params': {'a': np.zeros(3)}}, {})
  (line,) = capfd.readouterr().err.splitlines()
  assert re.fullmatch(
    rf'lm: {tmp_path}/checkpoints: saving step 1 took 0\.\d s, over half of '
    r'grace_seconds=0\.3: a run that is stopped may not save in time; set it '
    'to what the scheduler grants, less five',
    line,
  )


def test_the_step_to_go_back_to_stays_until_its_successor_is_there(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('FAULT', 'slow_save@0.2')
  state = {'params': {'a': np.zeros(3)}}
  with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
    saver.healthy = 1
    for step in (1, 2, 3, 4):
      saver.save(step, state, {})
    saver.healthy = 5
    with pytest.raises(ValueError, match='is not JSON'):
      saver.save(5, state, {'x': object()})
  assert checkpoint.steps(tmp_path) == [1, 3, 4]
