"""The log of a run survives kills; progress and pictures show it."""

import io
import json
import math
import os
from pathlib import Path
import re
import resource

import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, errors, types
from lm.reporting import metrics_log, plot, progress


def lines(workdir: Path) -> list[dict]:
  text = (workdir / 'metrics.jsonl').read_text()
  assert text.endswith('\n')
  records = [json.loads(line) for line in text.splitlines()]
  for record in records:
    assert re.fullmatch('[0-9a-f]{8}', record.pop('crc32'))
  return records


# --- metrics.jsonl


def test_a_line_holds_plain_numbers(tmp_path):
  log = metrics_log.Log(tmp_path)
  numbers = log.now(
    3,
    {
      'loss_nats': types.Metric(jnp.float32(6), jnp.float32(4)),
      'tokens': 128,
      'rate': np.float32(0.5),
      'empty': types.Metric(0.0, 0.0),
    },
  )
  assert numbers['loss_nats'] == 1.5
  (line,) = lines(tmp_path)
  assert line == {
    'step': 3,
    'loss_nats': 1.5,
    'tokens': 128,
    'rate': 0.5,
    'empty': 'NaN',
  }
  assert type(line['tokens']) is int


def test_lines_are_json_even_where_numbers_are_not_finite(tmp_path):
  values = {'a': math.nan, 'b': math.inf, 'c': -math.inf}
  metrics_log.Log(tmp_path).now(1, values)

  def refuse(word):
    raise AssertionError(f'{word} is not JSON')

  text = (tmp_path / 'metrics.jsonl').read_text()
  json.loads(text, parse_constant=refuse)
  (record,) = metrics_log.read(tmp_path / 'metrics.jsonl')
  assert math.isnan(record['a'])
  assert (record['b'], record['c']) == (math.inf, -math.inf)


def test_later_is_one_step_behind_and_keeps_the_order(tmp_path):
  log = metrics_log.Log(tmp_path)
  assert log.later(1, {'x': 1.0}) is None
  assert not (tmp_path / 'metrics.jsonl').exists()
  assert log.later(2, {'x': 2.0}) == (1, {'x': 1.0})
  log.now(2, {'valid': 9.0})
  log.later(3, {'x': 3.0})
  log.close()
  log.close()
  assert lines(tmp_path) == [
    {'step': 1, 'x': 1.0},
    {'step': 2, 'x': 2.0},
    {'step': 2, 'valid': 9.0},
    {'step': 3, 'x': 3.0},
  ]


def test_a_resumed_run_reads_as_one(tmp_path):
  log = metrics_log.Log(tmp_path)
  for step in range(1, 6):
    log.now(step, {'x': 1.0})
  log = metrics_log.Log(tmp_path, start=3)
  log.now(4, {'x': 2.0})
  assert [(r['step'], r['x']) for r in lines(tmp_path)] == [
    (1, 1.0),
    (2, 1.0),
    (3, 1.0),
    (4, 2.0),
  ]
  assert [p.name for p in tmp_path.glob('metrics*')] == ['metrics.jsonl']


@pytest.mark.parametrize('torn', [b'{"step": 2, "x"', b'{"step": 2, "x": 1.0}'])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
  path = tmp_path / 'metrics.jsonl'
  metrics_log.Log(tmp_path).now(1, {'x': 1.0})
  path.write_bytes(path.read_bytes() + torn)
  assert [r['step'] for r in metrics_log.read(path)] == [1]
  metrics_log.Log(tmp_path, start=5).now(6, {'x': 1.0})
  assert [r['step'] for r in lines(tmp_path)] == [1, 6]


def test_every_cut_of_a_file_leaves_its_whole_lines(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  for step in (1, 2):
    metrics_log.append(path, {'step': step, 'x': 0.5})
  whole = path.read_bytes()
  first = whole.index(b'\n') + 1
  for cut in range(len(whole) + 1):
    path.write_bytes(whole[:cut])
    metrics_log.trim(path, 9)
    want = whole if cut == len(whole) else whole[:first] * (cut >= first)
    assert path.read_bytes() == want


def test_append_does_not_join_a_torn_line(tmp_path):
  path = tmp_path / 'evals.jsonl'
  path.write_bytes(b'{"step": 1, "met')
  metrics_log.append(path, {'step': 2, 'metrics': {'a': 1.0}})
  assert metrics_log.read(path) == [{'step': 2, 'metrics': {'a': 1.0}}]


def test_no_flipped_bit_of_a_line_is_read(tmp_path, capfd):
  path = tmp_path / 'metrics.jsonl'
  for step in (1, 2, 3):
    metrics_log.append(path, {'step': step, 'x': 0.5})
  whole, first = path.read_bytes(), metrics_log.read(path)
  start = whole.index(b'\n') + 1
  end = whole.index(b'\n', start) - 1
  for byte in range(start, end):
    for bit in range(8):
      bad = bytearray(whole)
      bad[byte] ^= 1 << bit
      path.write_bytes(bad)
      assert metrics_log.read(path) in ([first[0], first[2]], [first[0]]), byte
  path.write_bytes(whole)
  assert metrics_log.read(path) == first
  # A file costs one warning, however often it is read.
  assert len(capfd.readouterr().err.splitlines()) <= 2


def test_lines_without_a_checksum_are_left_out_and_stay(tmp_path, capfd):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "x": 2.0}\n[1]\n{"crc32": "00000000"}\n')
  metrics_log.append(path, {'step': 2})
  metrics_log.append(path, {'step': 9})
  for _ in range(2):
    assert metrics_log.read(path) == [{'step': 2}, {'step': 9}]
  assert capfd.readouterr().err == (
    f'lm: {path}: lines without a right checksum are left out: 3\n'
  )
  metrics_log.trim(path, 5)
  assert path.read_text().startswith('{"step": 1, "x": 2.0}\n[1]\n')
  assert metrics_log.read(path) == [{'step': 2}]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
  path = tmp_path / 'metrics.jsonl'
  metrics_log.append(path, {'step': 1})
  whole = path.read_bytes()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 5, hard))
  try:
    with pytest.raises(errors.Storage) as error:
      metrics_log.append(path, {'step': 2, 'x': 1.0})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert re.fullmatch(
    rf'{path}: cannot be written: File too large \(\d+ bytes free\): make room,'
    ' or make it writable',
    str(error.value),
  )
  assert metrics_log.read(path) == [{'step': 1}]
  metrics_log.append(path, {'step': 3})
  assert metrics_log.read(path) == [{'step': 1}, {'step': 3}]


@pytest.mark.parametrize(
  'make', [os.mkfifo, lambda x: x.symlink_to('/dev/zero')]
)
def test_a_log_that_is_no_plain_file_is_refused(tmp_path, make):
  path = tmp_path / 'metrics.jsonl'
  make(path)
  for use in (
    metrics_log.read,
    lambda x: metrics_log.append(x, {'step': 1}),
    lambda x: metrics_log.trim(x, 1),
  ):
    with pytest.raises(errors.Storage, match='is no plain file but a'):
      use(path)


def test_trim_swaps_the_file_at_once(tmp_path, monkeypatch):
  path = tmp_path / 'metrics.jsonl'
  for step in (1, 2):
    metrics_log.append(path, {'step': step})
  before = path.read_bytes()

  def killed(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(Path, 'replace', killed)
  with pytest.raises(KeyboardInterrupt):
    metrics_log.trim(path, 1)
  assert path.read_bytes() == before


def test_what_stays_in_a_log_is_known_by_name(tmp_path):
  log = metrics_log.Log(tmp_path)
  for step in (1, 2, 3):
    log.now(step, {'x': float(step), f'y{step}': 1.0})
  assert log.newest == {}
  assert metrics_log.Log(tmp_path, start=2).newest == {
    **{'step': 2, 'x': 2.0},
    **{'y1': 1.0, 'y2': 1.0},
  }


def test_a_writer_that_was_replaced_writes_nothing(tmp_path):
  replaced = []

  def check():
    if replaced:
      raise errors.Locked('taken over')

  replaced.append(True)
  with pytest.raises(errors.Locked):
    metrics_log.Log(tmp_path / 'run', 0, check)
  assert not (tmp_path / 'run').exists()
  replaced.clear()
  log = metrics_log.Log(tmp_path, 0, check)
  replaced.append(True)
  with pytest.raises(errors.Locked):
    log.now(1, {'x': 1.0})
  assert list(tmp_path.iterdir()) == []
  replaced.clear()
  log.now(1, {'x': 1.0})
  before = (tmp_path / 'metrics.jsonl').read_bytes()
  replaced.append(True)
  with pytest.raises(errors.Locked):
    metrics_log.trim(tmp_path / 'metrics.jsonl', 0, check)
  assert (tmp_path / 'metrics.jsonl').read_bytes() == before


# --- tables


def test_table_aligns_words_and_numbers():
  rows = [
    {'name': '困惑度', 'value': 12.34567, 'n': 3},
    {'name': 'loss', 'value': None, 'n': 1000},
  ]
  assert metrics_log.table(rows, ['name', 'value', 'n']).splitlines() == [
    'name    value     n',
    '困惑度  12.35     3',
    'loss        -  1000',
  ]
  assert metrics_log.table([], ['a', 'b']) == 'a  b'


# --- progress


class Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


class Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self) -> float:
    return self.now


def test_progress_prints_a_line_every_ten_seconds():
  out, clock = io.StringIO(), Clock()
  bar = progress.Progress(100, tokens_per_step=500, stream=out, clock=clock)
  for step in range(1, 26):
    bar.update(step, loss_nats=3.0)
    clock.now += 1.0
  assert out.getvalue().splitlines() == [
    'step 1/100  loss 3.0000 nats',
    'step 11/100  loss 3.0000 nats  500 tokens/s  ETA 0:01:29',
    'step 21/100  loss 3.0000 nats  500 tokens/s  ETA 0:01:19',
  ]


def test_progress_always_prints_the_last_step():
  out, clock = io.StringIO(), Clock()
  bar = progress.Progress(2, stream=out, clock=clock)
  bar.update(1)
  clock.now += 0.5
  bar.update(2, bits_per_byte=1.5)
  # Without the time that is left, which is none.
  assert out.getvalue().splitlines()[-1] == 'step 2/2  1.5000 bits/byte'


def test_progress_redraws_in_place_and_fits_the_terminal(monkeypatch):
  monkeypatch.setenv('COLUMNS', '40')
  out, clock = Terminal(), Clock()
  bar = progress.Progress(10, stream=out, clock=clock)
  for step in range(1, 4):
    bar.update(step, loss_nats=3.0)
    clock.now += 1.0
  assert '\n' not in out.getvalue()
  drawn = out.getvalue().split('\r')[1:]
  assert len(drawn) == 3
  assert drawn[2].startswith('[######..............] step 3/10')
  assert all(len(x.removesuffix('\x1b[K')) < 40 for x in drawn)
  bar.say('saved')
  assert out.getvalue().endswith('\nsaved\n')


def test_rates_are_never_negative():
  out, clock = io.StringIO(), Clock()
  bar = progress.Progress(10, tokens_per_step=5, stream=out, clock=clock)
  for step, now in [(1, 100.0), (2, 50.0), (3, 50.0), (2, 60.0), (3, 1e9)]:
    clock.now = now
    bar.update(step)
    assert bar.rate() >= 0
  assert '-' not in out.getvalue()


# --- report


def test_report_draws_training_evals_and_bzip2(tmp_path, monkeypatch):
  with pytest.raises(config.ConfigError, match='train first'):
    plot.report(tmp_path)
  log = metrics_log.Log(tmp_path)
  for step in (10, 20):
    log.now(step, {'loss_nats': 3.0, 'tokens': step * 100})
  for step in (0, 15):
    metrics_log.append(
      tmp_path / 'evals.jsonl',
      {
        **dict.fromkeys(('checkpoint', 'evaluator', 'task', 'code'), 'x'),
        'step': step,
        'metrics': {'v/bits_per_byte': 2.0},
      },
    )
  drawn = []
  save = plot.Figure.savefig

  def keep(figure, *args, **kw):
    drawn.append(figure)
    save(figure, *args, **kw)

  monkeypatch.setattr(plot.Figure, 'savefig', keep)
  path = plot.report(tmp_path, bzip2_bits_per_byte=2.1)
  assert path.read_bytes().startswith(b'\x89PNG')
  left, right = drawn[0].axes
  assert left.lines[0].get_xdata().tolist() == [1000, 2000]
  by_name = {line.get_label(): line for line in right.lines}
  assert list(by_name['v/bits_per_byte'].get_xdata()) == [0, 1500]
  assert set(by_name['bzip2'].get_ydata()) == {2.1}
