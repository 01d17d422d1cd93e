"""A build survives what happens to machines, disks and folders.

A failure means that a build hangs, leaves processes, writes something wrong
without a word, or ends with more than one line.
"""

import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import time

import pytest

from lm import config
from lm.corpus import build, parts, reading
from tests.corpus import build_test, sources_config
from tools import factory
from tools.bench import process_tree

corpus = build_test.corpus
SECONDS = 60.0  # a deadline for what takes seconds


def work(folder: Path) -> None:
  """Adds enough documents to a corpus that its workers are busy a while."""
  texts = [build_test.text(n, 400) for n in range(3000, 4500)]
  build_test.write(folder / 'big.jsonl', texts)


def wait(output: str, count: int, child: subprocess.Popen[str]) -> list[int]:
  """Waits until some parts are made; returns the processes of the build."""
  deadline = time.monotonic() + SECONDS
  while sum(1 for _ in Path(output).glob('parts/*')) < count:
    assert child.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  return process_tree.descendants(child.pid)


def alive(pids: list[int]) -> list[int]:
  """Lists the processes that still run, neither ended nor left as a zombie."""
  found = []
  for pid in pids:
    try:
      state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
      continue
    if state[0] != 'Z':
      found.append(pid)
  return found


def gone(pids: list[int]) -> bool:
  """Waits for processes to end; False if some go on."""
  deadline = time.monotonic() + 10.0
  while alive(pids) and time.monotonic() < deadline:
    time.sleep(0.05)
  return not alive(pids)


def one_line(err: str) -> str:
  """Returns the last line, which has to be the only one about an error."""
  assert 'Traceback' not in err, err
  return err.splitlines()[-1]


def check_goes_on(corpus: Path) -> None:
  """Checks that the same command ends what was begun."""
  child = build_test.start(corpus, 'out', '--workers=2')
  _, err = child.communicate(timeout=300)
  assert child.returncode == 0, err
  build.run(build_test.load(corpus), 'whole')
  assert build_test.shard_bytes(Path('out')) == build_test.shard_bytes(
    Path('whole')
  )
  assert build_test.rows('out') == build_test.rows('whole')
  assert not any(x.name[0] == '.' for x in Path('out').rglob('*'))


@pytest.mark.slow
@pytest.mark.process
def test_a_worker_that_is_killed_is_one_line(corpus):
  work(corpus)
  # Where the tests run in the background, a shell has them ignore Ctrl-C.
  heard = ('env', '--default-signal=INT')
  child = build_test.start(corpus, 'out', '--workers=2', before=heard)
  pids = wait('out', 30, child)
  # Of the processes, workers are those that have no children.
  os.kill(
    next(x for x in reversed(pids) if not process_tree.descendants(x)),
    signal.SIGKILL,
  )
  _, err = child.communicate(timeout=SECONDS)
  assert child.returncode == 7, err
  assert 'a worker was killed' in one_line(err)
  assert gone(pids)
  check_goes_on(corpus)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_a_build_that_is_stopped(corpus, number):
  work(corpus)
  # Where the tests run in the background, a shell has them ignore Ctrl-C.
  heard = ('env', '--default-signal=INT')
  child = build_test.start(corpus, 'out', '--workers=2', before=heard)
  pids = wait('out', 30, child)
  assert len(pids) >= 3
  child.send_signal(number)
  _, err = child.communicate(timeout=SECONDS)
  if number == signal.SIGINT:
    assert child.returncode == 130 and 'Ctrl-C' in one_line(err)
  assert gone(pids)
  check_goes_on(corpus)


@pytest.mark.process
def test_two_builds_of_a_folder_at_once(corpus):
  work(corpus)
  first = build_test.start(corpus, 'out', '--workers=2')
  wait('out', 1, first)
  second = build_test.start(corpus, 'out', '--workers=2')
  _, err = second.communicate(timeout=SECONDS)
  assert second.returncode == 3
  assert 'another process builds here' in one_line(err)
  _, err = first.communicate(timeout=300)
  assert first.returncode == 0, err


@pytest.mark.process
@pytest.mark.parametrize('kilobytes', [1, 20, 100])
@pytest.mark.parametrize('count', [1, 2])
def test_a_full_disk_is_one_line(corpus, kilobytes, count):
  # A file cannot grow further, as on a disk that is full.
  limited = ('bash', '-c', f'ulimit -f {kilobytes}; exec "$@"', 'bash')
  build_test.write(corpus / 'c.jsonl', [build_test.text(7, 20_000)] * 30)
  child = build_test.start(corpus, 'out', f'--workers={count}', before=limited)
  _, err = child.communicate(timeout=SECONDS)
  assert child.returncode == 5, err
  assert 'File too large' in one_line(err)
  check_goes_on(corpus)


@pytest.mark.parametrize('is_cut', [True, False])
def test_a_file_that_was_cut_or_removed_is_made_again(corpus, is_cut):
  build.run(build_test.load(corpus), 'out')
  expected = build_test.shard_bytes(Path('out'))
  listed = [
    x
    for name in ('parts', 'tables')
    for x in sorted(Path('out', name).glob('*/*'))
  ]
  assert len(listed) > 100
  for file in listed[::7]:
    if is_cut:
      os.truncate(file, file.stat().st_size // 2)
    else:
      file.unlink()
  build.run(build_test.load(corpus), 'out')
  assert build_test.shard_bytes(Path('out')) == expected
  again = [
    x
    for name in ('parts', 'tables')
    for x in sorted(Path('out', name).glob('*/*'))
  ]
  assert again == listed


def test_a_source_that_changes_is_refused(corpus, monkeypatch):
  real = reading.digest

  def digest(task):
    found = real(task)
    with Path(task['file']).open('a') as file:
      file.write('{"text": "one more"}\n')
    return found

  monkeypatch.setattr(reading, 'digest', digest)
  with pytest.raises(ValueError, match='changed while it was read'):
    build.run(build_test.load(corpus), 'out')
  assert not [*Path('out/parts').iterdir()]


def test_thousands_of_tiny_files(corpus):
  shutil.rmtree(corpus / 'b', ignore_errors=True)
  for n in range(2000):
    build_test.write(corpus / f'tiny/{n:04d}.jsonl', [f'tiny text {n}'])
  c = build_test.load(corpus, stages={}, order=()).unlock()
  c.engine.part_bytes = 1 << 20
  result = build.run(c.lock(), 'out')
  assert result.counts['documents'] == 2135
  assert len([*Path('out/parts').iterdir()]) < 60


def test_an_empty_source_beside_a_full_one(corpus):
  (corpus / 'c.jsonl').write_text('')
  build.run(build_test.load(corpus), 'out')
  audit = json.loads(Path('out/audit.json').read_text())
  assert {x['source'] for x in build_test.rows('out')} == {'a', 'b'}
  assert audit['sources']['a']['documents'] == 60


@pytest.mark.parametrize('by_source', [True, False])
def test_a_source_of_which_nothing_stays(corpus, by_source):
  (corpus / 'c.jsonl').write_bytes((corpus / 'a.jsonl').read_bytes())
  c = build_test.load(corpus, by_source=by_source)
  result = build.run(c, 'out')
  assert 'train/c' not in result.datasets
  audit = json.loads(Path('out/audit.json').read_text())['sources']['c']
  assert audit['kept']['documents'] == 0
  assert audit['dropped']['exact']['documents'] == 60


def test_a_source_without_documents_for_validation(corpus):
  build_test.write(corpus / 'c.jsonl', ['one text alone'])
  result = build.run(build_test.load(corpus, by_source=True), 'out')
  assert ('train/c' in result.datasets) != ('valid/c' in result.datasets)
  (row,) = [x for x in build_test.rows('out') if x['source'] == 'c']
  assert row['dataset'] in result.datasets and row['number'] == 0


def error(capsys, *flags: str) -> tuple[str, int]:
  with pytest.raises(SystemExit) as e:
    config.main(lambda _: factory.main([*flags]))
  assert isinstance(e.value.code, int)
  return one_line(capsys.readouterr().err), e.value.code


def test_an_output_that_cannot_be_written_is_one_line(corpus, capsys):
  given = f'--config={sources_config.__file__}:{corpus}'
  Path('file').write_text('')
  for output in ('file', 'file/x', '/proc/x/y'):
    text, code = error(capsys, given, f'--output={output}', '--workers=1')
    assert code == 5 and f'{output}: cannot be made' in text


def test_standard_input_is_refused(corpus, capsys):
  Path('c.py').write_text(
    'from configs.data import base\n'
    'def get_config():\n'
    '  c = base.get_config()\n'
    "  c.sources = {'a': base.source('-')}\n"
    '  return c.lock()\n'
  )
  text, code = error(capsys, '--config=c.py', '--output=out')
  assert code == 2 and 'standard input cannot be read again' in text


@pytest.mark.parametrize('damage', ['tex', 'tent', 'texts', None])
def test_a_part_that_was_changed_is_made_again(tmp_path, damage):
  def write(folder: Path) -> None:
    (folder / 'x').write_text('text')

  part = parts.make(tmp_path / 'part', write)
  if damage is None:
    (part / 'x').unlink()
  else:
    (part / 'x').write_text(damage)
  parts.make(tmp_path / 'part', write)
  assert (part / 'x').read_text() == 'text'


def test_a_part_that_is_whole_is_not_made_again(tmp_path):
  part = parts.make(tmp_path / 'part', lambda x: (x / 'x').touch())
  assert json.loads((part / 'sums.json').read_text()) == {'x': [0, 0]}
  parts.make(tmp_path / 'part', lambda _: pytest.fail('made again'))


def test_a_build_mends_whatever_has_changed_in_its_parts(corpus):
  c = build_test.load(corpus)
  build.run(c, 'out')
  expected = build_test.shard_bytes(Path('out')), build_test.rows('out')
  before = {x: x.read_bytes() for x in Path('out').glob('[pt]a*/*/*')}
  assert len(before) > 100
  for path, data in before.items():
    if data:
      flipped = bytearray(data)
      flipped[len(data) // 2] ^= 1
      path.write_bytes(flipped)
  for side in ('train', 'valid'):
    shutil.rmtree(Path('out') / side)
  build.run(c, 'out')
  assert (
    build_test.shard_bytes(Path('out')),
    build_test.rows('out'),
  ) == expected
  assert {x: x.read_bytes() for x in before} == before
