"""Prepared data comes to a host whole, from a folder or a bucket."""

import os
from pathlib import Path
import shutil
import subprocess
import sys
import time

import pytest

from lm import config, errors, train
from lm.data import manifest as manifests
from lm.data import shards
from tests import bucket as fake_bucket
from tests import programs
from tools.launch import stage

ADDRESS = 'gs://bucket/web'


@pytest.fixture
def folder(tmp_path) -> Path:
  made = tmp_path / 'prepared'
  programs.write_data(made)
  (made / 'tokenizer.model').write_text('pieces')
  (made / 'contamination.json').write_text('{"files": {}}')
  (made / 'notes.txt').write_text('not for the hosts')
  return made


@pytest.fixture
def source(request, folder, monkeypatch):
  """The data where it comes from: its address, and how to change a file."""
  if request.param == 'folder':
    yield (
      str(folder),
      lambda name, content: (folder / name).write_bytes(content),
    )
    return
  pytest.importorskip('gcsfs')
  with fake_bucket.serve() as server:
    for name, value in server.settings().items():
      monkeypatch.setenv(name, value)
    for path in folder.rglob('*'):
      if path.is_file():
        name = f'bucket/web/{path.relative_to(folder)}'
        server.objects[name] = path.read_bytes()
    yield (
      ADDRESS,
      lambda name, content: server.put(
        os.path.normpath(f'bucket/web/{name}'), content
      ),
    )


def lies_at(place: Path) -> dict[str, bytes]:
  return {
    str(path.relative_to(place)): path.read_bytes()
    for path in place.rglob('*')
    if path.is_file() and path.name != '.lock'
  }


both = pytest.mark.parametrize('source', ['folder', 'bucket'], indirect=True)


@both
def test_two_hosts_get_the_same_data_and_keep_what_is_there(
  source, folder, tmp_path
):
  address, _ = source
  want = lies_at(folder)
  del want['notes.txt']
  files = stage.wanted(folder)
  for host in ('one', 'two'):
    target = tmp_path / host / 'data'
    said = stage.copy(address, target)
    assert said.startswith(f'{target}: {len(files)} files copied (')
    assert lies_at(target) == want
    for split in ('train', 'valid'):
      shards.load(target / split).verify()
  # A copy that was cut short, or damaged since, goes on with what is missing.
  target = tmp_path / 'one/data'
  name, other = list(files)[:2]
  times = {x: (target / x).stat().st_mtime_ns for x in files}
  with (target / name).open('r+b') as file:
    file.write(b'\xff')
  (target / other).unlink()
  (target / '.stage.dead').mkdir()
  (target / '.stage.dead/half').touch()
  assert ': 2 files copied (' in stage.copy(address, target)
  assert lies_at(target) == want
  kept = [x for x in files if x not in (name, other)]
  assert all((target / x).stat().st_mtime_ns == times[x] for x in kept)
  assert ': 0 files copied (' in stage.copy(address, target)


@both
def test_a_file_that_is_not_as_its_manifest_says_is_refused(source, tmp_path):
  address, put = source
  target = tmp_path / 'host'
  put('train/00000.bin', b'other bytes')
  with pytest.raises(errors.Damaged) as caught:
    stage.copy(address, target)
  assert str(caught.value).endswith(
    'its sha256 is not that of its manifest: bring it back, or prepare the data'
    ' again'
  )
  # Half a copy is no dataset.
  assert not (target / 'train/manifest.json').exists()
  assert not list(target.glob('.stage.*'))
  put('train/manifest.json', b'{}')
  with pytest.raises(errors.Damaged, match='is not a manifest'):
    stage.copy(address, target)


@both
def test_other_data_takes_the_place_of_what_was_there(source, folder, tmp_path):
  address, put = source
  target = tmp_path / 'host'
  # Data without held-out texts, and with another tokenizer.
  before = tmp_path / 'before'
  programs.write_data(before)
  (before / 'valid').rename(before / 'test')
  (before / 'tokenizer.model').write_text('others')
  (before / 'tokenizer.json').write_text('others')
  stage.copy(str(before), target)
  (target / 'train/other.bin').touch()
  put('tokenizer.model', b'new')
  stage.copy(address, target)
  want = {**lies_at(folder), 'tokenizer.model': b'new'}
  del want['notes.txt']
  assert lies_at(target) == want and not (target / 'test').exists()


def test_a_certificate_goes_with_its_data(folder, tmp_path):
  target, other = tmp_path / 'host', tmp_path / 'other'
  stage.copy(str(folder), target)
  assert (target / 'contamination.json').exists()
  programs.write_data(other)  # without one
  stage.copy(str(other), target)
  assert not (target / 'contamination.json').exists()


@both
def test_a_dataset_for_each_source_comes_too(source, folder, tmp_path):
  address, put = source
  if address != str(folder):
    address = 'gs://bucket/mixed'
  else:
    address = str(tmp_path / 'mixed')
  for name, content in lies_at(folder).items():
    split, _, file = name.rpartition('/')
    for place in (f'{split}/web/{file}', f'{split}/books/{file}'):
      path = tmp_path / 'mixed' / (place if split else file)
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(content)
      if address.startswith('gs'):
        put(f'../mixed/{path.relative_to(tmp_path / "mixed")}', content)
  want = lies_at(tmp_path / 'mixed')
  del want['notes.txt']
  target = tmp_path / 'host'
  stage.copy(str(folder), target)  # other data, of one source
  stage.copy(address, target)
  assert lies_at(target) == want
  assert stage.datasets(target)[:2] == ['train/books', 'train/web']


def test_a_file_that_is_gone_is_refused(folder, tmp_path):
  (folder / 'train/00000.idx').unlink()
  with pytest.raises(errors.Damaged, match='is missing, and its manifest'):
    stage.copy(str(folder), tmp_path / 'host')
  shutil.rmtree(folder / 'train')
  with pytest.raises(config.ConfigError, match='has no train/manifest'):
    stage.copy(str(folder), tmp_path / 'host')


def test_a_manifest_names_nothing_outside_of_its_folder(folder, tmp_path):
  made = manifests.load(folder / 'train')
  evil = made.shards[0]._replace(name='../../evil')
  made = made._replace(shards=(evil,))
  (folder / 'train/manifest.json').write_bytes(manifests.dump(made))
  with pytest.raises(errors.Damaged, match='bad name'):
    stage.copy(str(folder), tmp_path / 'host')
  assert not list(tmp_path.rglob('*evil*'))


def test_a_disk_that_is_too_small_is_one_line(folder, tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=10)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
  with pytest.raises(errors.Storage) as caught:
    stage.copy(str(folder), tmp_path / 'host')
  assert str(caught.value).endswith(
    'are to come and 0.0 GB are free: make room, or choose another disk'
  )


def test_a_folder_of_another_user_is_refused(folder, tmp_path, monkeypatch):
  everybodys = tmp_path / 'tmp'
  everybodys.mkdir()
  everybodys.chmod(0o1777)
  stage.copy(str(folder), everybodys / 'mine/data')
  monkeypatch.setattr(os, 'getuid', lambda: 12345)
  if (everybodys / 'mine').stat().st_uid == 0:
    monkeypatch.setattr(stage, '_ROOT', 12346)
  with pytest.raises(config.ConfigError, match='belongs to another user'):
    stage.copy(str(folder), everybodys / 'mine/data')


@pytest.mark.process
@pytest.mark.slow
def test_a_copy_that_is_killed_goes_on_and_a_run_trains_on_it(folder, tmp_path):
  target = tmp_path / 'host/data'
  large = folder / 'train/00000.bin'
  assert large.exists()
  command = [sys.executable, '-m', 'tools.launch.stage', str(folder)]
  with subprocess.Popen([*command, str(target)], cwd=programs.ROOT) as process:
    deadline = time.monotonic() + programs.PATIENCE_SECONDS
    while not target.exists():
      assert time.monotonic() < deadline
      time.sleep(0.001)
    process.kill()
  done = subprocess.run(
    [*command, str(target)],
    cwd=programs.ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.startswith(f'{target}: ')
  listed = subprocess.run(
    [*command[:-1], '--check', str(target)],
    cwd=programs.ROOT,
    capture_output=True,
    text=True,
  )
  assert (listed.returncode, listed.stdout) == (0, '')
  c = programs.on_eight(target, steps=5, optim__warmup=1)
  assert int(train.train(c, tmp_path / 'run').step) == 5
  (target / 'valid/00000.bin').unlink()
  listed = subprocess.run(
    [*command[:-1], '--check', str(target)],
    cwd=programs.ROOT,
    capture_output=True,
    text=True,
  )
  assert listed.stdout == 'missing valid/00000.bin\n'
