"""Damaged and hostile checkpoints: no wrong byte is ever handed out."""

import hashlib
import json
import os
import shutil

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
import numpy as np
import pytest

from lm import checkpoint, errors
from lm.checkpoint import host_arrays, manifest, orbax_io

LIKE = {
  'params': {
    'w': jax.ShapeDtypeStruct((4, 8), jnp.float32),
    'b': jax.ShapeDtypeStruct((8,), jnp.bfloat16),
  },
  'step': jax.ShapeDtypeStruct((), jnp.int32),
}


def state(step: int):
  return jax.tree.map(lambda x: jnp.full(x.shape, step, x.dtype), LIKE)


@pytest.fixture(scope='module')
def pristine(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('pristine')
  with checkpoint.Checkpointer(workdir) as saver:
    for step in (1, 2, 3):
      saver.save(step, state(step), {'at': step})
  return workdir


@pytest.fixture
def workdir(pristine, tmp_path):
  """A copy to damage, with steps 1, 2 and 3."""
  shutil.copytree(pristine / 'checkpoints', tmp_path / 'run/checkpoints')
  return tmp_path / 'run'


@pytest.fixture
def one():
  return SingleDeviceSharding(jax.devices()[0])


def files(workdir, step):
  place = manifest.directory(workdir, step)
  return sorted(path for path in place.rglob('*') if path.is_file())


def check_refused(workdir, step, match):
  with pytest.raises(errors.Damaged, match=match) as caught:
    checkpoint.verify(workdir, step)
  assert len(str(caught.value)) <= 200
  assert '\n' not in str(caught.value)


def check_fallback(workdir, one, capfd, want, *warned):
  """Restores `want`, with one line on stderr for each newer step."""
  got, meta = checkpoint.restore(workdir, LIKE, one)
  assert int(got['step']) == meta['at'] == want
  lines = capfd.readouterr().err.splitlines()
  assert len(lines) == len(warned)
  for line, text in zip(lines, warned, strict=True):
    assert text in line
    assert line.endswith('trying the step before it')
  assert float(checkpoint.restore_params(workdir)['w'][0, 0]) == want
  assert checkpoint.read_meta(workdir) == {'at': want}


@pytest.mark.slow
def test_one_flipped_bit_is_never_silent(workdir, one, capfd):
  rng = np.random.default_rng(0)
  paths = files(workdir, 3)
  assert any('/state/params.w/' in str(path) for path in paths)
  for _ in range(400):
    path = paths[rng.integers(len(paths))]
    good = path.read_bytes()
    bad = bytearray(good)
    bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
    path.write_bytes(bad)
    check_refused(workdir, 3, r'(bits have changed|MANIFEST.json: )')
    path.write_bytes(good)
  checkpoint.verify(workdir, 3)
  path = manifest.directory(workdir, 3) / 'state/params.w/0.0'
  path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
  check_fallback(workdir, one, capfd, 2, 'params.w/0.0: sha256 differs')


def test_flips_all_over_a_manifest_are_seen(workdir):
  path = manifest.directory(workdir, 3) / 'MANIFEST.json'
  good = path.read_bytes()
  for position in range(0, len(good), 11):
    bad = bytearray(good)
    bad[position] ^= 1 << position % 8
    path.write_bytes(bad)
    check_refused(workdir, 3, 'MANIFEST.json: ')


def test_every_truncated_emptied_or_zeroed_file_is_seen(workdir, one, capfd):
  for path in files(workdir, 3):
    good = path.read_bytes()
    for bad, text in [
      (good[:-1], 'truncated'),
      (b'', 'truncated: 0 bytes, expected'),
      (bytes(len(good)), 'sha256 differs'),
      (good + b'\0', 'grown'),
    ]:
      path.write_bytes(bad)
      if path.name == 'MANIFEST.json':
        text = 'MANIFEST.json: '
      check_refused(workdir, 3, text)
    path.write_bytes(good)
  path = manifest.directory(workdir, 3) / 'state/params.w/0.0'
  path.write_bytes(bytes(path.stat().st_size))
  check_fallback(workdir, one, capfd, 2, 'bits have changed')


def test_every_deleted_file_is_seen(workdir, one, capfd):
  for path in files(workdir, 3):
    path.rename(path.with_suffix('.away'))
    check_refused(workdir, 3, 'missing|extra')
    path.with_suffix('.away').rename(path)
  (manifest.directory(workdir, 3) / 'state/params.w/0.0').unlink()
  (manifest.directory(workdir, 2) / 'MANIFEST.json').unlink()
  check_fallback(
    workdir, one, capfd, 1, '0.0: missing', 'MANIFEST.json: missing'
  )


def test_an_extra_file_is_seen(workdir):
  (manifest.directory(workdir, 3) / 'state/params.w/0.1').write_bytes(b'')
  check_refused(workdir, 3, r'params.w/0.1: extra file, not in the manifest')


def test_a_renamed_step_is_seen(workdir, one, capfd):
  os.rename(manifest.directory(workdir, 3), manifest.directory(workdir, 9))
  check_refused(workdir, 9, 'says step 3: the directory was renamed')
  check_fallback(workdir, one, capfd, 2, 'says step 3')


def test_wrong_leaves_under_right_files_are_seen(workdir, one, capfd):
  """Someone, or orbax, wrote other values than those that were hashed."""
  path = manifest.directory(workdir, 3) / 'state/params.w/0.0'
  path.write_bytes(bytes(path.stat().st_size))
  forge(workdir, 3)
  checkpoint.verify(workdir, 3)
  got, _ = checkpoint.restore(workdir, LIKE, one)
  assert int(got['step']) == 2
  assert 'leaf params/w: sha256 differs' in capfd.readouterr().err


def test_all_damaged_lists_each_and_never_starts_anew(workdir, one, capfd):
  for step in (1, 2):
    (manifest.directory(workdir, step) / 'MANIFEST.json').unlink()
  (manifest.directory(workdir, 3) / 'state/step/0').write_bytes(b'1234')
  assert checkpoint.steps(workdir) == [3]
  for call in (
    lambda: checkpoint.restore(workdir, LIKE, one),
    lambda: checkpoint.restore_params(workdir),
    lambda: checkpoint.read_meta(workdir),
  ):
    with pytest.raises(errors.Damaged, match='or remove them to start') as e:
      call()
    assert 'no sound step left: 3, 2, 1' in str(e.value).replace(' ... ', '')
    assert len(str(e.value)) <= 200
    assert e.value.exit_code == 4
  assert len(capfd.readouterr().err.splitlines()) == 3
  for _ in range(2):  # again and again: nothing is moved away
    with (
      checkpoint.Checkpointer(workdir) as saver,
      pytest.raises(errors.Damaged),
    ):
      saver.restore(LIKE, one)


def test_the_writer_sets_damaged_steps_aside(workdir, one, capfd):
  (manifest.directory(workdir, 3) / 'state/step/0').write_bytes(b'1234')
  with checkpoint.Checkpointer(workdir) as saver:
    with pytest.raises(ValueError, match='not newer than step 3'):
      saver.save(3, state(3), {})
    restored = saver.restore(LIKE, one)
    assert restored is not None and int(restored[0]['step']) == 2
    assert 'damaged.00000003.1: set aside; remove' in capfd.readouterr().err
    saver.save(3, state(3), {'at': 3})
  assert checkpoint.steps(workdir) == [1, 2, 3]
  check_fallback(workdir, one, capfd, 3)


def test_a_foreign_checkpoint_is_refused(tmp_path, pristine, one):
  place = manifest.directory(tmp_path, 7)
  shutil.copytree(manifest.directory(pristine, 3) / 'state', place)
  with pytest.raises(
    errors.Damaged,
    match=r'MANIFEST.json: missing: not a whole checkpoint of lm',
  ):
    checkpoint.restore(tmp_path, LIKE, one, step=7)


def test_stray_names_cost_one_warning(workdir, one, capfd):
  root = manifest.root(workdir)
  for name in ('9', '3 (copy)', '00000008 (copy)', '0000000000000009'):
    shutil.copytree(manifest.directory(workdir, 3), root / name)
  (root / '00000010').write_text('a file')
  (root / 'notes.txt').write_text('')
  (root / '00000011.orbax-checkpoint-tmp-17').mkdir()
  (root / 'tmp.save.00000012.3/state').mkdir(parents=True)
  assert checkpoint.steps(workdir) == [1, 2, 3]
  check_fallback(workdir, one, capfd, 3)
  with checkpoint.Checkpointer(workdir):
    pass
  (line,) = capfd.readouterr().err.splitlines()
  assert line.endswith(
    'ignored, not steps: 0000000000000009, 00000008 (copy), 00000010,'
    ' 3 (copy), 9, notes.txt'
  )
  # What a dead writer left is cleared away; what is not ours stays.
  assert manifest.leftovers(workdir) == []
  assert (root / '9/MANIFEST.json').is_file()


# Files from strangers: every hash is right, what they say is not.


def forge(workdir, step, **changes):
  """Makes a manifest that fits whatever lies in the directory now."""
  place = manifest.directory(workdir, step)
  old = json.loads((place / 'MANIFEST.json').read_text())
  (place / 'MANIFEST.json').unlink()
  leaves = changes.pop('leaves', old['leaves'])
  content = manifest.write(place, step, leaves, old['meta'])
  content = {**content, **changes}
  del content['sha256']
  text = json.dumps(content, sort_keys=True, indent=1) + '\n'
  content['sha256'] = hashlib.sha256(text.encode()).hexdigest()
  text = json.dumps(content, sort_keys=True, indent=1) + '\n'
  (place / 'MANIFEST.json').write_text(text)
  return content


@pytest.mark.parametrize('leaf', ['w', 'b'])
def test_a_step_that_is_not_finite_is_not_sound(
  workdir, one, capfd, monkeypatch, leaf
):
  """Its hashes are all right: it was saved so, by whoever saved it."""
  bad = state(9)
  bad['params'][leaf] = bad['params'][leaf].at[..., 1].set(jnp.nan)
  with monkeypatch.context() as m:
    m.setattr(host_arrays, 'is_finite', lambda array: True)
    checkpoint.save(workdir, 9, bad, {'at': 9})
  check_refused(workdir, 9, f'params.{leaf}/0.*: holds nan or an infinite numb')
  check_fallback(workdir, one, capfd, 3, 'holds nan or an infinite number')
  with checkpoint.Checkpointer(workdir) as saver:
    restored = saver.restore(LIKE, one)
    assert restored is not None and int(restored[0]['step']) == 3
  assert checkpoint.steps(workdir)[-1] == 3


def test_links_are_not_followed(workdir, tmp_path):
  secret = tmp_path / 'secret'
  path = manifest.directory(workdir, 3) / 'state/params.w/0.0'
  secret.write_bytes(path.read_bytes())
  path.unlink()
  path.symlink_to(secret)
  check_refused(workdir, 3, 'params.w/0.0: is a symlink, which is not followed')
  folder = manifest.directory(workdir, 2) / 'state'
  folder.rename(tmp_path / 'elsewhere')
  folder.symlink_to(tmp_path / 'elsewhere')
  check_refused(workdir, 2, 'state: extra file|missing|symlink')
  manifest.directory(workdir, 1).rename(tmp_path / '1')
  manifest.directory(workdir, 1).symlink_to(tmp_path / '1')
  check_refused(workdir, 1, '00000001: is a symlink')


def test_a_pipe_does_not_hang(workdir):
  for name in ('state/params.w/0.0', 'MANIFEST.json'):
    path = manifest.directory(workdir, 3) / name
    path.unlink()
    os.mkfifo(path)
    check_refused(workdir, 3, 'truncated|is no plain file')


@pytest.mark.parametrize(
  'name', ['/etc/passwd', '../00000002/state/step/0', 'a/../b', 'a//b', '']
)
def test_names_that_leave_the_directory_are_refused(workdir, name):
  record = {'bytes': 1, 'sha256': '0' * 64}
  forge(workdir, 3, files={name: record})
  check_refused(workdir, 3, 'unsafe file name')


@pytest.mark.parametrize('path', ['params/../../x', '/abs', 'params//w', '..'])
def test_leaves_with_unsafe_names_are_refused(workdir, path):
  record = {'shape': [1], 'dtype': 'float32', 'sha256': '0' * 64}
  forge(workdir, 3, leaves={path: record})
  check_refused(workdir, 3, 'unsafe leaf name')


@pytest.mark.parametrize(
  'change',
  [
    {'files': {'a': {'bytes': -1, 'sha256': ''}}},
    {'files': {'a': {'bytes': 1.0, 'sha256': ''}}},
    {'files': {'a': None}},
    {'files': []},
    {'leaves': {'a': {'shape': [-1], 'dtype': 'float32', 'sha256': ''}}},
    {'leaves': {'a': {'shape': '', 'dtype': 'float32', 'sha256': ''}}},
    {'leaves': {'a': {'shape': [1 << 80], 'dtype': 'int8', 'sha256': ''}}},
    {'leaves': {'a': {}}},
    {'format': 2},
    {'checkpoint': '0' * 64},
    {'more': 1},
  ],
)
def test_malformed_manifests_are_refused(workdir, change):
  forge(workdir, 3, **change)
  check_refused(workdir, 3, 'MANIFEST.json: .*; use another step')


def test_deeply_nested_json_is_refused(workdir):
  path = manifest.directory(workdir, 3) / 'MANIFEST.json'
  path.write_bytes(b'[' * 200_000)
  check_refused(workdir, 3, 'unreadable')


def bomb(workdir, leaves=None, drop=(), **zarr):
  """Changes what the array file of params/w says of itself."""
  folder = manifest.directory(workdir, 3) / 'state/params.w'
  content = json.loads((folder / '.zarray').read_text())
  (folder / '.zarray').write_text(json.dumps({**content, **zarr}))
  for name in drop:
    (folder / name).unlink()
  forge(workdir, 3, **({'leaves': leaves} if leaves else {}))
  checkpoint.verify(workdir, 3)


HUGE = {
  'params/w': {'shape': [1 << 40], 'dtype': 'float32', 'sha256': '0' * 64}
}


@pytest.mark.parametrize(
  'change',
  [
    {'shape': [1 << 40], 'leaves': HUGE},
    {'shape': [1 << 40], 'chunks': [1], 'drop': ['0.0'], 'leaves': HUGE},
    {'shape': [1 << 40], 'chunks': [1 << 40], 'leaves': HUGE},
    {'chunks': [1 << 20, 1 << 20]},
    {'chunks': [2, 8]},
    {'chunks': [-1, -32]},
    {'compressor': {'id': 'zstd', 'level': 1}},
    {'filters': [{'id': 'delta'}]},
    {'dtype': '<f8'},
    {'dtype': '|S1000000'},
    {'shape': None},
  ],
)
def test_bombs_are_refused_before_memory_is_allocated(
  workdir, one, monkeypatch, change
):
  bomb(workdir, **change)
  monkeypatch.setattr(
    orbax_io, 'read', lambda *_: pytest.fail('orbax was asked to read')
  )
  with pytest.raises(errors.Damaged, match='00000003') as caught:
    checkpoint.restore_params(workdir, 3)
  assert len(str(caught.value)) <= 200
  if 'leaves' not in change:
    with pytest.raises(errors.Damaged, match='00000003'):
      checkpoint.restore(workdir, LIKE, one, 3)


def test_other_formats_of_orbax_are_refused(workdir):
  path = manifest.directory(workdir, 3) / 'state/_METADATA'
  for key in ('use_ocdbt', 'use_zarr3'):
    old = path.read_text()
    path.write_text(json.dumps({**json.loads(old), key: True}))
    forge(workdir, 3)
    with pytest.raises(errors.Damaged, match='not in the format of lm'):
      checkpoint.restore_params(workdir, 3)
    path.write_text(old)


def test_mutated_metadata_never_gives_wrong_values(workdir, one):
  """Hashes are right, so that orbax's own parsers see the nonsense."""
  rng = np.random.default_rng(0)
  place = manifest.directory(workdir, 3)
  paths = [place / 'state/_METADATA', place / 'state/params.w/.zarray']
  refused = 0
  for _ in range(40):
    path = paths[rng.integers(2)]
    good = path.read_bytes()
    bad = bytearray(good)
    start, cut, grow = (int(rng.integers(n)) for n in (len(bad), 9, 9))
    bad[start : start + cut + 1] = rng.bytes(grow)
    path.write_bytes(bad)
    forge(workdir, 3)
    try:
      got, _ = checkpoint.restore(workdir, LIKE, one, 3)
      assert float(jnp.min(got['params']['w'])) == 3.0
    except errors.Damaged:
      refused += 1
    path.write_bytes(good)
  assert refused > 10
