"""Runs in a bucket: a machine that is lost loses no finished step."""

import json
import re
import sys
import threading
import time

import numpy as np
import pytest

from lm import checkpoint, config, errors, train
from lm.checkpoint import bucket, bucket_reader, manifest, mirror
from lm.reporting import metrics_log
from tests import bucket as fake_bucket
from tests import programs

STEPS = 36
ADDRESS = 'gs://shelf/runs/a'


@pytest.fixture
def shelf():
  """A server of buckets."""
  with fake_bucket.serve() as server:
    yield server


def committed(server) -> list[int]:
  """Lists the steps in the bucket that count."""
  found = re.findall(
    r'shelf/runs/a/checkpoints/(\d{8})/MANIFEST.json', '\n'.join(server.objects)
  )
  return sorted(map(int, found))


@pytest.mark.slow
def test_a_lost_machine_loses_no_finished_step(
  data, alone, shelf, start, tmp_path
):
  def run(machine, *arguments, program='train', **how):
    settings = {**shelf.settings(), 'LM_SCRATCH': str(tmp_path / machine)}
    return start(program, [*arguments], settings=settings, **how)

  arguments = programs.flags(data, ADDRESS, save_every=12)
  first = run('one', *arguments, fault='die_in_send@24')
  assert first.wait() == -9, first.text()
  assert committed(shelf) == [12]
  assert any('checkpoints/00000024/state' in name for name in shelf.objects)
  # Another machine, which has nothing.
  second = run('two', *arguments)
  assert second.wait() == 0, second.text()
  assert 'step 12 of 36' in second.text()
  assert committed(shelf) == [12, 24, 36]
  found = json.loads(
    shelf.objects['shelf/runs/a/checkpoints/00000036/MANIFEST.json']
  )
  assert found['checkpoint'] == checkpoint.digest(alone, STEPS)
  lines = tmp_path / 'metrics.jsonl'
  lines.write_bytes(shelf.objects['shelf/runs/a/metrics.jsonl'])
  assert programs.losses(tmp_path) == programs.losses(alone)
  # What makes a step one comes last.
  sent = [entry for entry in shelf.log if '/00000036/' in entry]
  assert sent[-1].endswith('/00000036/MANIFEST.json') and len(sent) > 3

  # Judged on a third machine, twice; the second time there is nothing to do.
  for _ in range(2):
    sweep = run('three', f'--workdir={ADDRESS}', program='evaluate')
    assert sweep.wait() == 0, sweep.text()
  judged = tmp_path / 'evals.jsonl'
  judged.write_bytes(shelf.objects['shelf/runs/a/evals.jsonl'])
  lines = [
    (line['step'], line['evaluator']) for line in metrics_log.read(judged)
  ]
  assert lines == [(n, x) for n in committed(shelf) for x in ('pause', 'valid')]
  assert shelf.log.count('PUT shelf/runs/a/evals.jsonl') == len(lines)
  sample = run('three', f'--workdir={ADDRESS}', '--length=3', program='sample')
  assert sample.wait() == 0, sample.text()
  # And another run begins with its parameters.
  tuned = programs.flags(
    data, tmp_path / 'tuned', steps=6, optim__warmup=1, init_from=ADDRESS
  )
  assert run('three', *tuned).wait() == 0
  wrong = run('three', '--workdir=gs://shelf/typo', program='sample')
  assert 'no checkpoint there: check the address' in wrong.error(2)


@pytest.fixture
def place(tmp_path, monkeypatch):
  """An address that is a folder: the same code, and no network."""
  monkeypatch.setenv('LM_SCRATCH', str(tmp_path / 'scratch'))
  return tmp_path / 'bucket'


def start_mirror(place, **settings):
  return mirror.Mirror(place, beat_seconds=0.2, **settings)


def save(folder, step, value=1.0):
  """Saves a step of one number."""
  import jax.numpy as jnp

  with checkpoint.Checkpointer(folder) as saver:
    saver.save(step, {'params': jnp.full(3, value)}, {'data': None})


def steps(place) -> list[int]:
  return bucket.Bucket(place).steps()


@pytest.mark.slow
def test_the_bucket_keeps_the_steps_that_it_should(place):
  with start_mirror(place, keep=2, keep_every=10) as copy:
    for step in (5, 10, 15, 20, 25):
      save(copy.folder, step)
      (copy.folder / 'metrics.jsonl').write_text(f'{step}')
      while step not in steps(place):
        time.sleep(0.01)
        copy.check()
  assert steps(place) == [10, 20, 25]
  assert (place / 'metrics.jsonl').read_text() == '25'
  assert json.loads((place / 'lease.json').read_text())['held'] is False


def test_a_run_can_go_back_on_another_machine(place, monkeypatch):
  def meta(dropped):
    return {'data': None, 'dropped': {'in_a_row': dropped, 'left_out': []}}

  state = {'params': {'a': np.ones(3, np.float32)}}
  with start_mirror(place, keep=2) as copy:
    for step, dropped in ((1, 0), (2, 0), (3, 1), (4, 2), (5, 3)):
      with checkpoint.Checkpointer(copy.folder) as saver:
        saver.healthy = 2
        saver.save(step, state, meta(dropped))
      while step not in steps(place):
        time.sleep(0.01)
        copy.check()
  assert steps(place) == [2, 4, 5]
  monkeypatch.setenv('LM_SCRATCH', str(place.parent / 'other'))
  with start_mirror(place, keep=2) as copy:
    assert manifest.steps(copy.folder) == [2, 5]


def test_the_certificate_of_a_run_goes_with_it(place, monkeypatch):
  with start_mirror(place) as copy:
    (copy.folder / 'contamination.json').write_text('{"sources": {}}')
    save(copy.folder, 1)
  for machine, open_folder in (
    ('trains', lambda: start_mirror(place)),
    ('evaluates', lambda: bucket_reader.Reader(place).lock_evals()),
  ):
    monkeypatch.setenv('LM_SCRATCH', str(place.parent / machine))
    with open_folder():
      (found,) = (place.parent / machine).rglob('contamination.json')
      assert found.read_text() == '{"sources": {}}'
  monkeypatch.setenv('LM_SCRATCH', str(place.parent / 'starts_from_it'))
  folder = bucket_reader.Reader(place).download()
  assert (folder / 'contamination.json').read_text() == '{"sources": {}}'


def test_the_record_of_a_run_goes_with_it_before_its_first_step(
  place, monkeypatch
):
  with start_mirror(place) as copy:
    (copy.folder / 'record.json').write_text('{"starts": [1]}')
  assert steps(place) == []
  monkeypatch.setenv('LM_SCRATCH', str(place.parent / 'other'))
  with start_mirror(place) as copy:
    assert (copy.folder / 'record.json').read_text() == '{"starts": [1]}'


def test_an_object_is_read_whole_while_it_is_written(place):
  shelf, ending = bucket.Bucket(place), threading.Event()
  sizes = {1: b'a' * (1 << 20), 2: b'b' * (1 << 20)}
  shelf.write('x', sizes[1])

  def write():
    while not ending.is_set():
      for data in sizes.values():
        shelf.write('x', data)

  thread = threading.Thread(target=write)
  thread.start()
  try:
    assert all(shelf.read('x') in sizes.values() for _ in range(300))
  finally:
    ending.set()
    thread.join()


def test_a_run_does_not_resume_from_a_damaged_step(place, capsys, monkeypatch):
  with start_mirror(place) as copy:
    for step in (1, 2):
      save(copy.folder, step)
  programs.damage(place, 2)
  monkeypatch.setenv('LM_SCRATCH', str(place.parent / 'other'))
  with start_mirror(place) as copy:
    assert manifest.steps(copy.folder) == [1]
    save(copy.folder, 2, 5.0)  # its number is free again
  assert 'trying the step before it' in capsys.readouterr().err
  assert manifest.verify(place, 2)
  for step in (1, 2):
    programs.damage(place, step)
  monkeypatch.setenv('LM_SCRATCH', str(place.parent / 'third'))
  with pytest.raises(errors.Damaged, match='no sound step left of 2'):
    start_mirror(place).__enter__()


def test_newer_steps_of_this_machine_are_uploaded(place):
  with start_mirror(place) as copy:
    save(copy.folder, 1)
  save(copy.folder, 2)  # by a process that died before its copy
  (copy.folder / 'metrics.jsonl').write_text('two')
  (copy.folder / 'tmp.fetch.1').mkdir()
  before = (manifest.directory(place, 1) / manifest.NAME).stat().st_mtime_ns
  with start_mirror(place):
    assert not (copy.folder / 'tmp.fetch.1').exists()
  assert steps(place) == [1, 2]
  after = (manifest.directory(place, 1) / manifest.NAME).stat().st_mtime_ns
  assert before == after
  assert (place / 'metrics.jsonl').read_text() == 'two'


def lease(place, **changes):
  """Writes the lease of another machine."""
  content = {'id': 'x', 'count': 1, 'held': True, 'host': 'far', 'pid': 1}
  place.mkdir(exist_ok=True)
  # As a bucket does: whoever reads has the old lease or the new one.
  part = place / 'lease.part'
  part.write_text(json.dumps({**content, 'beat_seconds': 0.4, **changes}))
  part.replace(place / 'lease.json')


@pytest.mark.slow
def test_one_machine_at_a_time(place):
  ending = threading.Event()

  def beat():
    for n in range(10_000):
      lease(place, count=n)
      if ending.wait(0.1):
        return

  other = threading.Thread(target=beat)
  lease(place)
  other.start()
  try:
    with pytest.raises(errors.Locked, match='held by pid 1 on far: stop it or'):
      start_mirror(place).__enter__()
  finally:
    ending.set()
    other.join()
  # It has fallen silent: taken over, but not at once.
  began = time.monotonic()
  with start_mirror(place) as copy:
    assert time.monotonic() - began > 2.5 * 0.4
    save(copy.folder, 1)
    while steps(place) != [1]:
      time.sleep(0.01)
    # It was only asleep, and has taken over: nothing more is written.
    lease(place, id='y')
    save(copy.folder, 2)
    with pytest.raises(errors.Locked, match='held by pid 1 on far'):
      while True:
        copy.check()
        time.sleep(0.01)
    with pytest.raises(errors.Locked):
      copy.__exit__(None, None, None)
    assert steps(place) == [1]
    assert json.loads((place / 'lease.json').read_text())['id'] == 'y'
    copy._error = None  # `with` would raise it again


@pytest.mark.slow
def test_every_request_has_a_deadline(place, monkeypatch):
  slow = bucket.Bucket(place, seconds=0.1)
  forever = threading.Event()
  with pytest.raises(errors.Storage, match=r'x: no answer in 0.1 s: check the'):
    slow._request('x', forever.wait)
  forever.set()
  with pytest.raises(errors.Storage, match='x: no: check the address, the net'):
    slow._request('x', lambda: (_ for _ in ()).throw(ValueError('no')))
  with start_mirror(place, deadline_seconds=0.5) as copy:
    monkeypatch.setattr(
      bucket.Bucket,
      'upload',
      lambda *unused: (_ for _ in ()).throw(errors.Storage('full')),
    )
    save(copy.folder, 1)
    with pytest.raises(errors.Storage, match=r'cannot be written to for 0.5 s'):
      while True:
        copy.check()
        time.sleep(0.01)
    copy._error = None
  assert steps(place) == []


def test_unsupported_uses_of_a_bucket_are_one_line(data, monkeypatch, tmp_path):
  from lm.runtime import process_group

  c = programs.on_eight(data)
  group = process_group.alone()
  monkeypatch.setattr(group, 'count', 2)
  with pytest.raises(config.ConfigError, match='2 processes need a folder tha'):
    train.train(c, ADDRESS, group)
  with pytest.raises(errors.Remote, match='s3://x/y: not a folder of this mac'):
    checkpoint.Checkpointer('s3://x/y').__enter__()
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  with pytest.raises(
    errors.Remote, match=r"needs gcsfs: pip install -e '.\[gcs"
  ):
    bucket.Bucket(ADDRESS)
