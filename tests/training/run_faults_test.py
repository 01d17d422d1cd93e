"""A run refuses or survives faults: each error is one line with its code."""

import os
from pathlib import Path
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

from configs import base
from lm import checkpoint, config, errors, fit, train
from lm.checkpoint import lease, manifest
from lm.data import writer
from lm.data.tokenizers import characters, utf8_bytes
from lm.runtime import signals
from tests import programs

STEPS = 36


@pytest.fixture
def place():
  """A folder with a short name, or error lines would be cut in their middle."""
  with tempfile.TemporaryDirectory(prefix='lm') as folder:
    yield Path(folder)


@pytest.fixture
def start(place, start):
  """Starts programs that have ended when their folder is removed."""
  return start


def contents(workdir: Path | str) -> dict[str, bytes]:
  """Reads the files of a run, but for those by which it is locked."""
  files = (x for x in Path(workdir).rglob('*') if x.is_file())
  return {
    str(x): x.read_bytes() for x in files if not x.name.startswith('lease')
  }


def refused(
  c, workdir, kind: type[Exception] = config.ConfigError, code=2
) -> str:
  """Trains, which must fail by `kind` in one line, and returns that.

  A run that is refused changes no file, and a new one leaves none.
  """
  before = contents(workdir)
  with pytest.raises(kind) as caught:
    train.train(c, workdir)
  assert contents(workdir) == before
  assert getattr(caught.value, 'exit_code', None) == code
  text = str(caught.value)
  assert len(text) <= 200 and '\n' not in text
  return text


# --- configs


@pytest.mark.parametrize(
  ('flag', 'say'),
  [
    ('optim.paek=1', 'unknown key optim.paek; did you mean optim.peak?'),
    ('batchsize=8', 'unknown key batchsize; did you mean batch_size?'),
    ('optim.peak=nan', 'optim.peak: nan is refused; give a finite number'),
    ('optim.clip=inf', 'optim.clip: inf is refused; give a finite number'),
    ('steps=-5', 'steps: -5 is negative'),
    ('keep=-1', 'keep: -1 is negative'),
    ('save_every=0', 'save_every: 0 must be an int from 1 to'),
    ('steps=many', "steps: 'many' must be an int from 1 to 2147483647"),
    ('batch_size=4.5', 'batch_size: 4.5 must be an int from 1 to'),
    (
      'model.head.tied=1',
      "model.head.tied: '1' is wrong; must be True or False",
    ),
    ('microbatches=3', 'microbatches: 3 does not divide batch_size 4'),
    ('model.fn=lm.models.decodr:make', 'did you mean decoder?'),
    ('optim.fn=os:system', 'fn os:system: the standard library is out of'),
    ('model=x', 'model: a dict is not set whole'),
  ],
)
def test_a_wrong_override_is_one_line(place, capsys, flag, say):
  arguments = [
    *programs.flags(place, place / 'run'),
    f'--config.{flag}',
  ]
  with pytest.raises(SystemExit) as caught:
    config.parse(arguments, '')
  assert caught.value.code == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and error.startswith('error: ')
  assert say in error and len(error) <= len('error: \n') + 200
  assert not (place / 'run').exists()


def test_a_typo_ends_a_program_before_anything_is_touched(start, place):
  workdir = place / 'run'
  process = start('train', programs.flags(place, workdir, optim__paek='1e-3'))
  assert process.error(2) == (
    'unknown key optim.paek; did you mean optim.peak?'
  )
  assert not workdir.exists()


@pytest.mark.parametrize(
  ('changes', 'say'),
  [
    (
      {'mesh__fsdp': 3},
      'mesh data=1 fsdp=3 tensor=2 needs 6 devices and there are 8: change'
      ' mesh.*',
    ),
    (
      {'batch_size': 6},
      'batch_size: 6 rows do not divide over 4 parts (mesh.data * mesh.fsdp *'
      ' mesh.expert): change batch_size or mesh',
    ),
    (
      {'sharding__vocab': 'tensor'},
      'params/embed/table: dimension 259 does not divide over mesh axis'
      ' tensor=2: change the model or the mesh',
    ),
    (
      {'model__blocks__main__mixer__heads': 3},
      'lm.models.decoder:make: blocks.main: lm.layers.attention:make: width=16 '
      'is not a multiple of heads=3: set'
      ' head_width',
    ),
    (
      {'steps': 3},
      'lm.optim.optimizers:make: optim.warmup=4.0: give a number from 0 to 3',
    ),
    (
      {'optim__rule__eps': 0.0},
      'lm.optim.rules:adamw: optim.rule.eps=0.0: give a number from 1.17549e-38'
      ' to 3.40282e+38',
    ),
  ],
)
def test_what_does_not_fit_together_is_one_line(data, place, changes, say):
  c = programs.on_eight(data, **changes)
  assert refused(c, place / 'run') == say
  assert checkpoint.steps(place / 'run') == []


def test_another_config_is_refused_key_by_key(data, trained, place, capsys):
  workdir = shutil.copytree(trained, place / 'run')
  text = refused(programs.on_eight(data, optim__peak=0.5), workdir)
  assert text == (
    f'{workdir}: was made with another config: optim.peak: 0.01 (checkpoint)'
    ' -> 0.5 (now); use another --workdir, or name the keys in --config.allow'
  )
  assert capsys.readouterr().err == ''
  c = programs.on_eight(data, batch_size=8, data__length=8, seed=3)
  text = refused(c, workdir)
  assert text.startswith(f'{workdir}: was made with another config')
  assert text.endswith('--workdir, or name the keys in --config.allow')
  assert capsys.readouterr().err.splitlines() == [
    'batch_size: 4 (checkpoint) -> 8 (now)',
    'data.length: 16 (checkpoint) -> 8 (now)',
    'seed: 0 (checkpoint) -> 3 (now)',
  ]
  c = programs.on_eight(data, steps=12, allow='steps')
  assert refused(c, workdir) == (
    f'steps: 12, but {workdir} is at step 36 already; give more or use'
    ' another --workdir'
  )
  # nothing of it was written, not even the config
  stored = config.load(workdir / 'config.json')
  assert (stored.steps, stored.seed) == (STEPS, 0)


# --- data


def test_a_flipped_shard_ends_training_by_name(data, start, place):
  folder = shutil.copytree(data, place / 'data')
  programs.flip(folder / 'train' / '00000.bin')
  process = start('train', programs.flags(folder, place / 'run'))
  assert process.error(2) == (
    f'shard {folder}/train/00000.bin: block 0 of 1 is damaged (crc32); restore'
    ' it or prepare the data again'
  )
  # no update had seen those bytes
  assert programs.losses(place / 'run') == []


def test_replaced_data_is_refused(data, trained, place):
  workdir = programs.rewind(trained, place / 'run', 12)
  folder = place / 'data'
  writer.write(folder / 'train', ['other text'] * 60, utf8_bytes.make())
  shutil.copytree(data / 'valid', folder / 'valid')
  c = programs.on_eight(folder, allow='data.sources,evals')
  text = refused(c, workdir)
  assert re.fullmatch(
    r'tests\.tiny_config:data: dataset train: is \w{12}, but the checkpoint was'
    r' trained on \w{12}; restore it or start a new run',
    text,
  )
  assert checkpoint.steps(workdir) == [6, 12]


def test_a_model_that_cannot_be_fitted_leaves_no_config(data, place):
  c = programs.make(data).unlock()
  c.data.fn = 'lm.data.stream:make'
  del c.data.seconds, c.data.hang_at, c.evals.pause
  c.model, c.fit = base.ngram()
  (certificate := place / 'data/contamination.json').parent.mkdir()
  shutil.copytree(data, place / 'data', dirs_exist_ok=True)
  c.data.sources.train.path = str(place / 'data/train')
  certificate.write_text('{')
  with pytest.raises(config.ConfigError, match='no certificate of'):
    fit.fit(c.lock(), place / 'run')
  assert contents(place / 'run') == {}
  certificate.unlink()
  fit.fit(c, place / 'run')
  assert (place / 'run/config.json').is_file()


def test_a_damaged_certificate_is_refused(data, trained, place):
  workdir = programs.rewind(trained, place / 'run', 12)
  folder = shutil.copytree(data, place / 'data')
  (folder / 'contamination.json').write_text('{')
  for c in (
    programs.on_eight(folder, steps=40, allow='steps,evals'),
    programs.on_eight(folder, init_from=trained),
  ):
    text = refused(c, place / ('new' if c.init_from else workdir.name))
    assert 'no certificate of contamination' in text


def test_another_tokenizer_is_refused(data, trained, place, capsys):
  table = place / 'tokenizer.json'
  characters.train([programs.TEXT], str(table))
  c = programs.on_eight(data)
  with c.unlocked():
    c.tokenizer.fn = 'lm.data.tokenizers.characters:make'
    c.tokenizer.path = str(table)
  text = refused(c.lock(), place / 'new')
  assert f'dataset {data}/train: written with tokenizer ' in text
  # and neither does it go on with a run
  workdir = programs.rewind(trained, place / 'run', 12)
  refused(c, workdir)
  assert 'tokenizer.fn: ' in capsys.readouterr().err


def test_storage_that_hangs_ends_the_program(data, start, place):
  arguments = programs.flags(data, place / 'run', data__hang_at=3)
  assert start('train', arguments).error(5) == (
    'data: no batch for step 3 in 1 s, reading no shard; check that storage'
  )
  # what was computed before is not lost
  assert [step for step, _ in programs.losses(place / 'run')] == [1, 2]


def test_a_reader_that_dies_ends_the_program(data, start, place):
  arguments = programs.flags(data, place / 'run')
  error = start('train', arguments, fault='fail_read@3').error(5)
  assert re.fullmatch(
    r'data: reader grain-prefetch_\d failed at step 3: .*Input/output'
    r' error; check that storage',
    error,
  )


def test_readers_are_threads(data, start, place):
  """None of them can be killed or stopped from outside, as a process can."""
  arguments = programs.flags(data, place / 'run', data__seconds=0.05, threads=2)
  process = start('train', arguments)
  process.wait_for(lambda: 6 in checkpoint.steps(place / 'run'))
  children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
  assert children.read_text() == '', 'readers would be processes'


# --- checkpoints


def test_every_checkpoint_damaged_never_starts_anew(data, alone, start, place):
  workdir = programs.rewind(alone, place / 'run', 12)
  for step in (6, 12):
    programs.damage(workdir, step)
  process = start('train', programs.flags(data, workdir))
  error = process.error(4)
  assert error.startswith(
    f'{workdir}/checkpoints: no sound step left: 12, 6 are damaged'
  )
  assert error.endswith('bring back a copy, or remove them to start anew')
  listed = process.printed().splitlines()[:-1]
  assert [re.findall(r'/(\d{8})/', line)[0] for line in listed] == [
    '00000012',
    '00000006',
  ]
  assert all('sha256 differs' in line for line in listed), listed
  assert checkpoint.steps(workdir) == [6, 12]
  assert programs.losses(workdir) == programs.losses(alone)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_one_interval(data, trained, place):
  workdir = programs.rewind(trained, place / 'run', 18)
  programs.damage(workdir, 18)
  train.train(programs.on_eight(data), workdir)
  assert checkpoint.digest(workdir, STEPS) == checkpoint.digest(trained, STEPS)
  assert programs.losses(workdir) == programs.losses(trained)


def test_a_typo_in_init_from_is_no_fresh_start(data, place):
  c = programs.on_eight(data, init_from=place / 'typo')
  text = refused(c, place / 'run', errors.Missing)
  assert text == (
    f'{place}/typo/checkpoints: no checkpoint here: check the path'
    ' (--workdir, init_from)'
  )
  assert not (place / 'run').exists()


def test_parameters_of_another_model_are_refused(data, trained, place):
  c = programs.on_eight(data, init_from=trained, model__width=32)
  text = refused(c, place / 'run')
  assert text.startswith(f'init_from={trained} does not fit the model: embed/')
  assert 'float32(32,)' in text


def test_a_disk_too_small_is_refused_before_step_0(data, start, place):
  workdir = place / 'run'
  process = start('train', programs.flags(data, workdir, model__width=1 << 20))
  assert re.fullmatch(
    rf'{workdir}/checkpoints: a checkpoint needs \d{{15,}} bytes and \d+ are'
    ' free: make room, or lower keep, or use another workdir',
    process.error(5),
  )
  assert not (workdir / 'metrics.jsonl').exists()


def test_a_read_only_workdir_is_refused(data, place):
  # Root may write anywhere, but not here.
  workdir = '/proc/lm-run'
  if os.geteuid():
    place.chmod(0o500)
    workdir = place / 'run'
  text = refused(programs.on_eight(data), workdir, errors.Storage, 5)
  assert re.fullmatch(
    rf'{workdir}: cannot be written to: .*: make it writable or use another'
    ' workdir',
    text,
  )


def test_a_second_trainer_is_refused(data, start, place):
  workdir = place / 'run'
  workdir.mkdir()
  with lease.Lease(workdir):
    process = start('train', programs.flags(data, workdir))
    error = process.error(3)
  assert re.fullmatch(
    rf'{workdir}: locked by pid {os.getpid()} on {socket.gethostname()} since'
    r' \d+ s, heartbeat \d+ s ago: stop it or use another workdir',
    error,
  )
  assert not (workdir / 'config.json').exists()


@pytest.mark.slow
def test_the_last_step_is_on_disk_when_training_returns(
  data, place, monkeypatch
):
  monkeypatch.setenv('FAULT', 'slow_save@0.5')
  train.train(programs.on_eight(data, save_every=STEPS), place / 'run')
  assert checkpoint.steps(place / 'run') == [STEPS]
  checkpoint.verify(place / 'run', STEPS)
  assert manifest.leftovers(place / 'run') == []


def test_training_goes_on_while_storage_stalls_in_a_save(data, start, place):
  workdir = place / 'run'
  process = start('train', programs.flags(data, workdir), fault='slow_save@5')
  process.wait_for(lambda: len(programs.losses(workdir)) >= 11)
  # Step 12 is saved next, which waits for the save of step 6.
  assert checkpoint.steps(workdir) == []
  assert any('tmp.save.00000006' in x for x in manifest.leftovers(workdir))
  process.send(signal.SIGKILL)


# --- numbers


def test_nan_for_ever_ends_with_healthy_checkpoints(data, start, place):
  workdir = place / 'run'
  arguments = programs.flags(data, workdir, save_every=2, max_skipped=5)
  process = start('train', arguments, fault='nan_grad@6-100')
  assert process.error(6) == (
    'step 24: 6 updates in a row were dropped, after 2 rollbacks of'
    ' max_rollbacks=2; lower optim.peak or look at the data'
  )
  for step in checkpoint.steps(workdir):
    leaves = checkpoint.restore_params(workdir, step)['embed'].values()
    assert all(np.isfinite(leaf).all() for leaf in leaves)
  kept = checkpoint.steps(workdir)
  assert kept[:3] == [2, 4, 6] and kept[-1] < 24


def test_parameters_that_overflow_end_the_run_too(data, place):
  # The gradients stay finite: what they are multiplied by is too large.
  c = programs.on_eight(data, max_skipped=3, optim__decay=1e38, optim__peak=1e4)
  with pytest.raises(errors.NotFinite) as caught:
    train.train(c, place / 'run')
  assert caught.value.exit_code == 6
  assert str(caught.value) == (
    'step 4: 4 updates in a row were dropped, and no checkpoint is from before'
    ' them; lower optim.peak or look at the data'
  )


# --- signals


def test_signals_while_saving(data, start, place):
  """Two signals wait for the save, a third does not; what is there is whole."""
  workdir = place / 'run'
  arguments = programs.flags(data, workdir, save_every=3, data__seconds=0.05)
  process = start('train', arguments, fault='slow_save@3')
  process.wait_for(lambda: 3 in checkpoint.steps(workdir))
  for number in range(3):
    assert process.running(), number
    process.send(signal.SIGTERM)
    time.sleep(0.2)
  assert process.error(143) == (
    'without a save: the deadline or a third signal came'
  )
  assert manifest.leftovers(workdir)
  for step in checkpoint.steps(workdir):
    checkpoint.verify(workdir, step)


def test_sigterm_while_compiling(data, start, place, monkeypatch):
  monkeypatch.setenv('JAX_ENABLE_COMPILATION_CACHE', 'false')
  monkeypatch.setenv('XLA_FLAGS', '--xla_backend_optimization_level=0')
  workdir = place / 'run'
  process = start('train', programs.flags(data, workdir))
  process.wait_for(lambda: 'step 0 of' in process.text())
  process.send(signal.SIGTERM)
  sent = time.monotonic()
  error = process.error(143)
  assert time.monotonic() - sent < 30
  # Compiling may have ended before the signal came, and updates followed.
  done = checkpoint.steps(workdir)
  assert len(done) <= 1
  ended = f'at step {done[0]}, which is saved' if done else 'without a save'
  assert ended in error


# Compiling and storage do not return to Python when a signal comes; nor does
# this. The trainer's own deadline is 25 s.
STUCK = """
import hashlib, sys
from lm.runtime import signals
with signals.Stop(deadline_seconds=float(sys.argv[1])):
  print('ready', flush=True)
  hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)
"""


@pytest.mark.process
@pytest.mark.parametrize(('deadline', 'count'), [(0.2, 1), (1000, 3)])
def test_a_stuck_program_ends_at_the_deadline_or_the_third_signal(
  deadline, count
):
  process = subprocess.Popen(
    [sys.executable, '-c', STUCK, str(deadline)],
    cwd=programs.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout is not None
    assert process.stdout.readline() == 'ready\n'
    for _ in range(count):
      process.send_signal(signal.SIGTERM)
      time.sleep(0.05)
    _, error = process.communicate(timeout=programs.PATIENCE_SECONDS)
  finally:
    process.kill()
  assert process.returncode == signals.EXIT_CODE == 143
  assert error == (
    'stopped: without a save: the deadline or a third signal came\n'
  )
