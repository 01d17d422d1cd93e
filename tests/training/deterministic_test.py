"""Ordered numerics: the same bits on any number of devices."""

import jax
import numpy as np
import optax
import pytest

from configs import base
from lm import checkpoint, config, sharding, train, tree
from lm.models import linen
from lm.training import program as program_lib
from tests import programs
from tools import compare_runs

if jax.device_count() < 8:
  pytest.skip(
    'needs eight devices: CPU simulates them', allow_module_level=True
  )

MODEL = config.build(
  base.llama(
    base.attention(positions=base.rotary(), bias=True),
    base.mlp(activation='swiglu', bias=True),
    length=16,
    width=32,
    depth=1,
    dropout=0.1,
  ),
  vocab=64,
)
TX = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
RULES = {
  'layers': None,
  'vocab': None,
  'embed': 'fsdp',
  'heads': None,
  'kv_heads': None,
  'mlp': None,
}
# Optimized as a run is, unlike the other tests: what compilers choose freely,
# they choose there.
OPTIMIZED = {
  'xla_backend_optimization_level': 3,
  'xla_llvm_disable_expensive_passes': False,
}


def batch(seed):
  rng = np.random.default_rng(seed)
  ids = rng.integers(0, 64, (16, 17)).astype(np.int32)
  weights = rng.random((16, 16)).astype(np.float32)
  return linen.example_batch(16, 16)._replace(
    tokens=ids[:, :-1], targets=ids[:, 1:], weights=weights
  )


def bits(
  devices,
  microbatches=1,
  numerics='deterministic',
  model=MODEL,
  batch=batch,
  rules=RULES,
  steps=4,
  **mesh,
):
  """Takes some steps, and returns the metrics of each and every leaf."""
  cut = sharding.make_mesh(**mesh, devices=jax.devices()[:devices])
  run = program_lib.make(
    model=model,
    tx=TX,
    example=batch(0),
    mesh=cut,
    rules=rules,
    seed=0,
    settings=program_lib.Settings(microbatches=microbatches, numerics=numerics),
  )
  state, found = program_lib.start(run), []
  with jax.set_mesh(cut):
    update = program_lib.lower(run).compile(compiler_options=OPTIMIZED)
    for n in range(steps):
      state, metrics = update(
        state, sharding.put(batch(n), cut), run.update.arguments()
      )
      found.append({name: float(x.total) for name, x in metrics.items()})
  return found, {path: np.asarray(x) for path, x in tree.paths(state)}


def check_same(got, want):
  """Checks that metrics and leaves of two results of `bits` are the same."""
  assert got[0] == want[0]
  for path, leaf in got[1].items():
    np.testing.assert_array_equal(leaf, want[1][path], path)


@pytest.fixture(scope='module')
def eight():
  return bits(8, fsdp=2, data=4)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('devices', 'microbatches', 'mesh'),
  [
    (8, 2, {'fsdp': 8}),
    (4, 1, {}),
    (2, 4, {'fsdp': 2}),
    (1, 1, {}),
  ],
)
def test_ordered_bits_are_those_of_eight_devices(
  eight, devices, microbatches, mesh
):
  check_same(bits(devices, microbatches, **mesh), eight)


@pytest.mark.slow
def test_ordered_is_near_fast_without_its_bits(eight):
  metrics, leaves = bits(8, numerics='fast', fsdp=2, data=4)
  fast, deterministic = (
    [step['loss_nats'] for step in steps] for steps in (metrics, eight[0])
  )
  # Dropout draws other masks.
  np.testing.assert_allclose(fast, deterministic, rtol=0.05)
  assert any((leaf != eight[1][path]).any() for path, leaf in leaves.items())


@pytest.mark.parametrize(
  ('mesh', 'logical_shards', 'message'),
  [
    (
      {'tensor': 2},
      8,
      r"numerics='deterministic': mesh axes tensor cut what is ad",
    ),
    ({}, 4, r'logical_shards=4 must be a power of two, a multiple of the 8 d'),
    ({}, 32, r'logical_shards=32 must be .* and divide batch_size=16'),
  ],
)
def test_what_has_no_order_is_refused(mesh, logical_shards, message):
  with pytest.raises(ValueError, match=message):
    program_lib.make(
      model=MODEL,
      tx=TX,
      example=batch(0),
      mesh=sharding.make_mesh(**mesh),
      rules=RULES,
      seed=0,
      settings=program_lib.Settings(
        numerics='deterministic', logical_shards=logical_shards
      ),
    )


def test_numerics_are_named():
  with pytest.raises(
    ValueError, match="numerics='exact' is neither 'fast' nor"
  ):
    program_lib.make(
      model=MODEL,
      tx=TX,
      example=batch(0),
      mesh=sharding.make_mesh(),
      rules=RULES,
      seed=0,
      settings=program_lib.Settings(numerics='exact'),
    )


CHANGES = {
  'numerics': 'deterministic',
  'batch_size': 8,
  'steps': 9,
  'save_every': 3,
}


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
  """An ordered run of nine steps on eight devices."""
  workdir = tmp_path_factory.mktemp('deterministic') / 'run'
  train.train(programs.make(data, **CHANGES), workdir)
  return workdir


@pytest.mark.slow
def test_a_run_moves_from_eight_devices_to_two_to_four(
  run, data, start, tmp_path, monkeypatch
):
  moved = programs.rewind(run, tmp_path / 'two', 3)
  for devices, mesh, begin in ((2, {}, 3), (4, {'mesh__fsdp': 2}, 6)):
    monkeypatch.setenv('JAX_NUM_CPU_DEVICES', str(devices))
    if begin == 6:
      moved = programs.rewind(moved, tmp_path / 'four', 6)
    process = start('train', programs.flags(data, moved, **CHANGES, **mesh))
    assert process.wait() == 0, process.text()
    assert f'step {begin} of 9' in process.text()
    for n in (begin + 3, 9):
      assert checkpoint.digest(moved, n) == checkpoint.digest(run, n)
  assert programs.losses(moved) == programs.losses(run)
  assert compare_runs.compare(run, moved).text().endswith('nothing differs')


@pytest.mark.slow
def test_the_first_difference_of_two_runs_is_named(run, data, tmp_path):
  other = programs.rewind(run, tmp_path / 'other', 3)
  c = programs.make(data, **CHANGES, optim__peak=2e-2, allow='("optim",)')
  train.train(c, other)
  said = compare_runs.compare(run, other).text()
  assert 'metrics diverge at step 4: learning_rate' in said
  assert 'checkpoints diverge at step 6: opt_state/' in said
  assert ' numbers, by up to ' in said
  with pytest.raises(ValueError, match='no step in common: give two work'):
    compare_runs.compare(run, tmp_path)
