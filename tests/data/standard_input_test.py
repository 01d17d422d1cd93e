"""Standard input is an input, whatever comes in."""

import gzip
import io
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pyarrow as pa
from pyarrow import parquet
import pytest

from lm.data import documents, shards, standard_input
from lm.data.tokenizers import auto, utf8_bytes
from tools import prepare_data, train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
LINES = b'{"text": "one"}\n{"text": "two"}\n'
WORDS = utf8_bytes.make()


@pytest.fixture
def give(monkeypatch, tmp_path):
  """Makes `give(data)`, which puts bytes into standard input."""
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'spool'))
  (tmp_path / 'spool').mkdir()

  def give(data: bytes) -> None:
    standard_input.file.cache_clear()
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(data)))

  yield give
  standard_input.file.cache_clear()


def texts(folder: Path) -> list[str]:
  source = shards.load(folder, WORDS)
  count = source.manifest.documents
  return [WORDS.decode(source.document(n).tolist()) for n in range(count)]


def table() -> bytes:
  file = io.BytesIO()
  parquet.write_table(pa.table({'text': ['one', 'two']}), file)
  return file.getvalue()


@pytest.mark.parametrize(
  'data, flags, expected',
  (
    (b'plain\ntext', (), ['plain\ntext']),
    (b'plain\ntext', ('--unit=line',), ['plain', 'text']),
    (gzip.compress(b'plain'), (), ['plain']),
    (LINES, (), ['one', 'two']),
    (gzip.compress(LINES), (), ['one', 'two']),
    (LINES.decode().encode('utf-16'), (), ['one', 'two']),
    (b'[\n{"text": "one"}, {"text": "two"}]', (), ['one', 'two']),
    (b'{\n"text": "one"}', (), ['one']),
    (b'{a brace} of a text', (), ['{a brace} of a text']),
    (LINES, ('--stdin=text',), [LINES.decode()]),
    (b'text,n\none,1\n', ('--stdin=csv',), ['one']),
    (b'n\ttext\n1\tone\n', ('--stdin=tsv',), ['one']),
    (b'3\n{"text": "one"}\n', ('--stdin=jsonl',), ['one']),
    (table(), (), ['one', 'two']),
  ),
)
def test_what_comes_in_is_read(give, tmp_path, data, flags, expected):
  give(data)
  more = ['--tokenizer=bytes', f'--output={tmp_path}/out', *flags]
  assert prepare_data.main(['--input', '-', *more]) == 0
  assert texts(tmp_path / 'out') == expected


def test_it_is_read_twice_for_a_split_and_beside_files(give, tmp_path):
  lines = [json.dumps({'text': f'{n}'}) for n in range(200)]
  give('\n'.join(lines).encode())
  (tmp_path / 'a.txt').write_text('a file')
  flags = ['--tokenizer=bytes', f'--output={tmp_path}/out', '--split-valid=0.2']
  inputs = ['--input=-', f'--input={tmp_path}/a.txt', '--input=-']
  assert prepare_data.main([*inputs, *flags]) == 0
  found = texts(tmp_path / 'out/train') + texts(tmp_path / 'out/valid')
  assert sorted(found) == sorted([*map(str, range(200)), 'a file'])


def test_a_tokenizer_is_trained_on_it(give, tmp_path):
  give(b'{"text": "abc"}')
  flags = ['--kind=characters', f'--output={tmp_path}/x.json']
  assert train_tokenizer.main(['--input=-', *flags]) == 0
  assert (
    auto.load(f'{tmp_path}/x.json').decode(
      [*auto.load(f'{tmp_path}/x.json').encode('cab')]
    )
    == 'cab'
  )


def test_what_goes_wrong_is_one_line(give, monkeypatch, tmp_path, capsys):
  flags = ['--tokenizer=bytes', f'--output={tmp_path}/out', '--input=-']
  for data, words in (
    (b'', 'no documents (1 files, 1 empty, left out)'),
    (bytes(range(256)) * 9, 'stdin.txt: is no text in UTF-8'),
    (gzip.compress(b'x' * 9000)[:-9], 'damaged ('),
  ):
    give(data)
    assert prepare_data.main(flags) == 2
    line = capsys.readouterr().err
    assert words in line and line.count('\n') == 1 and len(line) <= 208
  give(b'text')
  with pytest.raises(
    ValueError, match=r'stdin\.doc: unknown kind; give one of'
  ):
    documents.find('-.doc')
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'absent'))
  with pytest.raises(
    ValueError, match=r'cannot be kept in .* .No such file or'
  ):
    documents.find('-')
  monkeypatch.setattr('sys.stdin', None)
  with pytest.raises(ValueError, match='standard input is closed; give a file'):
    documents.find('-')


@pytest.mark.process
def test_a_pipe_is_read_and_nothing_is_left_behind(tmp_path):
  (tmp_path / 'spool').mkdir()
  command = [sys.executable, '-m', 'tools.prepare_data', '--input', '-']
  command += ['--tokenizer=bytes', '--output', str(tmp_path / 'out')]
  lines = b''.join(b'{"text": "%d"}\n' % n for n in range(1000))
  done = subprocess.run(
    [*command, '--split-valid=0.5'],
    input=gzip.compress(lines),
    cwd=ROOT,
    env={**os.environ, 'TMPDIR': str(tmp_path / 'spool')},
    capture_output=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found = texts(tmp_path / 'out/train') + texts(tmp_path / 'out/valid')
  assert sorted(found) == sorted(map(str, range(1000)))
  assert not list((tmp_path / 'spool').iterdir())


@pytest.mark.process
@pytest.mark.parametrize(
  'number, code',
  (
    (signal.SIGINT, 130),
    (signal.SIGTERM, -signal.SIGTERM),
    (signal.SIGKILL, -signal.SIGKILL),
  ),
)
@pytest.mark.parametrize('tool', ('prepare_data', 'train_tokenizer'))
def test_its_copy_goes_with_the_program(tmp_path, tool, number, code):
  spool = tmp_path / 'spool'
  spool.mkdir()
  flags = {
    'prepare_data': ['--tokenizer=bytes', f'--output={tmp_path / "data"}'],
    'train_tokenizer': [f'--output={tmp_path / "x.model"}'],
  }
  child = subprocess.Popen(
    [sys.executable, '-m', f'tools.{tool}', '--input=-', *flags[tool]],
    cwd=ROOT,
    env={**os.environ, 'TMPDIR': str(spool)},
    stdin=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  deadline = time.monotonic() + 60.0
  # More may come: so it waits.
  while not any(spool.glob('lm-stdin-*/*')):
    assert child.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  child.send_signal(number)
  _, err = child.communicate()
  assert child.returncode == code and b'Traceback' not in err
  while any(spool.glob('lm-*')):
    assert time.monotonic() < deadline
    time.sleep(0.01)
