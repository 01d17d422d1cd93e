"""Addresses are inputs like paths, and what goes wrong there is one line."""

import collections
import gzip
import hashlib
import io
import json
import os
from pathlib import Path
import subprocess
import sys
import zipfile

import pyarrow as pa
from pyarrow import parquet
import pytest

from lm.data import documents
from tests import bucket as fake_bucket
from tools import prepare_data

fsspec = pytest.importorskip('fsspec')
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def memory():
  """Gives the file system of memory://, empty."""
  system = fsspec.filesystem('memory')
  system.store.clear()
  system.pseudo_dirs[:] = ['']
  yield system
  system.store.clear()
  system.pseudo_dirs[:] = ['']


def read(*patterns, **how) -> tuple[list[str], dict[str, int]]:
  counts: collections.Counter[str] = collections.Counter()
  files = documents.find(patterns, counts)
  settings = documents.Settings(**how)
  return list(documents.read(files, settings, counts)), dict(counts)


def fill(memory) -> None:
  table = pa.table({'text': ['of parquet', None]})
  with memory.open('/b/raw/c.parquet', 'wb') as file:
    parquet.write_table(table, file)
  with (
    memory.open('/b/raw/d.arrow', 'wb') as file,
    pa.ipc.new_stream(file, table.schema) as writer,
  ):
    writer.write_table(pa.table({'text': ['of arrow', None]}))
  lines = '\n'.join(json.dumps({'text': f'line {n}'}) for n in range(3))
  for name, data in (
    ('raw/a.txt', 'a text'.encode('utf-16')),
    ('raw/deep/b.jsonl.gz', gzip.compress(lines.encode())),
    ('raw/.hidden/x.txt', b'hidden'),
    ('raw/_SUCCESS', b''),
    ('raw/z[1].txt', b'brackets'),
  ):
    memory.pipe(f'/b/{name}', data)


def test_folders_patterns_and_files(memory):
  fill(memory)
  texts, counts = read('memory://b/raw')
  assert texts == [
    'a text',
    'of parquet',
    'of arrow',
    'line 0',
    'line 1',
    'line 2',
    'brackets',
  ]
  assert counts['files'] == 5
  assert counts['files of another kind, left out'] == 1
  assert read('memory://b/raw/*.txt')[0] == ['a text', 'brackets']
  assert read('memory://b/**/*.jsonl.gz')[0] == ['line 0', 'line 1', 'line 2']
  assert read('memory://b/raw/z[1].txt')[0] == ['brackets']
  assert read('memory://b/raw/a.txt', 'memory://b/raw/a.*')[0] == ['a text']


def test_a_saved_dataset_of_hugging_face_has_an_address(memory):
  table = pa.table({'text': ['a', 'b']})
  for name in ('data-00000-of-00001.arrow', 'cache-0.arrow'):
    with (
      memory.open(f'/b/saved/train/{name}', 'wb') as file,
      pa.ipc.new_stream(file, table.schema) as writer,
    ):
      writer.write_table(table)
  state = {'_data_files': [{'filename': 'data-00000-of-00001.arrow'}]}
  memory.pipe('/b/saved/train/state.json', json.dumps(state).encode())
  memory.pipe('/b/saved/train/dataset_info.json', b'{}')
  memory.pipe('/b/saved/dataset_dict.json', b'{"splits": ["train"]}')
  assert read('memory://b/saved')[0] == ['a', 'b']
  assert read('memory://b/saved/train')[0] == ['a', 'b']
  memory.pipe('/b/saved/dataset_dict.json', b'{"splits": ["train", "test"]}')
  with pytest.raises(ValueError, match='holds the splits train, test; give th'):
    read('memory://b/saved')


def test_a_local_file_may_have_an_address(tmp_path):
  (tmp_path / 'a.txt').write_text('a')
  files = [
    f'file://{tmp_path}/a.txt',
    f'{tmp_path}/a.txt',
    f'file://{tmp_path}',
  ]
  assert read(*files)[0] == ['a']


def test_a_dataset_and_its_digest(memory, tmp_path, capsys):
  fill(memory)
  flags = ['--input=memory://b/raw', '--tokenizer=bytes']
  assert prepare_data.main([*flags, f'--output={tmp_path}/out']) == 0
  assert '7 documents' in capsys.readouterr().out
  stored = memory.cat('/b/raw/deep/b.jsonl.gz')
  (file,) = documents.find('memory://b/raw/deep/*')
  assert documents.digest(file) == hashlib.sha256(stored).hexdigest()


def test_what_goes_wrong_is_one_line(memory, monkeypatch, tmp_path):
  fill(memory)
  memory.pipe('/b/x.doc', b'x')
  whole = gzip.compress(b'text ' * 1000)
  memory.pipe('/b/cut.txt.gz', whole[: len(whole) // 2])

  def fails(*patterns):
    with pytest.raises(ValueError) as e:
      read(*patterns)
    assert type(e.value) is ValueError
    assert '\n' not in str(e.value) and len(str(e.value)) <= 200
    return str(e.value)

  assert 'memory://b/absent.txt: no such file' in fails('memory://b/absent.txt')
  assert 'no such file; check' in fails('memory://b/absent*')
  assert 'unknown kind; give one of .txt' in fails('memory://b/x.doc')
  assert 'damaged (' in fails('memory://b/cut.txt.gz')
  assert 'Protocol not known' in fails('nonsense://b/x.txt')
  (tmp_path / 'a.txt').write_text('a')
  for error, words in (
    (PermissionError('no'), 'no permission to read it; log in'),
    (FileNotFoundError('gone'), 'no such file; check the address'),
    (RuntimeError('HTTP 503\nbusy'), 'cannot be read (HTTP 503 busy); check'),
    (OSError(5, 'I/O'), 'cannot be read ([Errno 5] I/O); check the address'),
  ):

    def fail(self, *args, error=error, **kw):
      raise error

    for name in ('_open', 'isfile'):
      with monkeypatch.context() as patch:
        patch.setattr(type(memory), name, fail)
        assert words in fails('memory://b/raw/a.txt')

    class Breaks:
      def read(self, size, error=error):
        raise error

      def close(self):
        pass

    with monkeypatch.context() as patch:
      patch.setattr(type(memory), '_open', lambda *args, **kw: Breaks())
      for name in ('a.txt', 'c.parquet', 'd.arrow'):
        assert words in fails(f'memory://b/raw/{name}')


def test_an_error_does_not_show_the_login_of_an_address(memory):
  with pytest.raises(ValueError) as error:
    documents.find(['memory://me:secret@host/none.txt'])
  assert str(error.value).startswith('input memory://host/none.txt: no such')


def test_a_missing_package_is_one_line(monkeypatch):
  def fail(address):
    raise ImportError('Please install gcsfs to access Google Storage')

  with monkeypatch.context() as patch:
    patch.setattr(fsspec.core, 'url_to_fs', fail)
    with pytest.raises(ValueError, match=r'needs a package: pip .*\[gcs\]'):
      documents.find('gs://bucket/a.txt')
  monkeypatch.setitem(sys.modules, 's3fs', None)
  with pytest.raises(ValueError, match=r'needs a package: .*s3fs'):
    documents.find('s3://bucket/a.txt')
  monkeypatch.setitem(sys.modules, 'fsspec', None)
  with pytest.raises(ValueError, match=r'address needs fsspec: pip .*\[gcs\]'):
    documents.find('gs://bucket/a.txt')


def test_a_file_inside_of_an_archive_has_an_address(tmp_path):
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as archive:
    archive.writestr('in/a.txt', 'inside')
    archive.writestr('in/b.jsonl', '{"text": "b"}')
  for pattern, texts in (
    ('in/a.txt', ['inside']),
    ('in/*', ['inside', 'b']),
    ('in', ['inside', 'b']),
  ):
    assert read(f'zip://{pattern}::{tmp_path}/x.zip')[0] == texts


def test_a_remote_file_is_read_in_pieces(memory):
  sizes = []
  data = b'{"text": "' + b'x' * 1000 + b'"}\n'
  memory.pipe('/b/a.jsonl', data * 10_000)
  real = type(memory)._open

  def opened(self, *args, **kw):
    file = real(self, *args, **kw)
    read_all = file.read

    def read(size=-1):
      sizes.append(size)
      return read_all(size)

    file.read = read
    return file

  original = type(memory)._open
  type(memory)._open = opened
  try:
    texts, _ = read('memory://b/a.jsonl')
    documents.digest('memory://b/a.jsonl')
  finally:
    type(memory)._open = original
  assert len(texts) == 10_000
  assert sizes and min(sizes) > 0 and max(sizes) <= 1 << 20


@pytest.mark.process
def test_a_bucket_is_an_input(tmp_path, monkeypatch):
  lines = [json.dumps({'text': f'{n} ' + 'x' * 1000}) for n in range(9000)]
  table = io.BytesIO()
  parquet.write_table(pa.table({'text': ['of parquet'] * 3}), table)
  busy = iter([True, False] * 2)
  real = fake_bucket._Handler.do_GET

  def sometimes(self):
    # A busy server is asked again.
    if next(busy, False):
      self._answer(503, {'error': {'code': 503, 'message': 'busy'}})
    else:
      real(self)

  monkeypatch.setattr(fake_bucket._Handler, 'do_GET', sometimes)
  with fake_bucket.serve() as server:
    server.objects |= {
      'shelf/raw/a.txt': b'a text',
      'shelf/raw/deep/b.jsonl': '\n'.join(lines).encode(),  # of two blocks
      'shelf/raw/c.parquet': table.getvalue(),
      'shelf/other/d.txt': b'not asked for',
    }

    def run(*inputs):
      command = [
        sys.executable,
        '-m',
        'tools.prepare_data',
        '--tokenizer=bytes',
      ]
      command += [f'--output={tmp_path}/out', *(f'--input={x}' for x in inputs)]
      return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **server.settings()},
        capture_output=True,
        text=True,
        check=False,
      )

    done = run('gs://shelf/raw', 'gs://shelf/raw/*.txt')
    assert done.returncode == 0, done.stderr
    assert f'{len(lines) + 4:,} documents' in done.stdout
    assert '3 files' in done.stdout
    assert next(busy, None) is None  # the server was busy twice
    done = run('gs://shelf/raw/absent*')
    assert (done.returncode, done.stderr.count('\n')) == (2, 1), done.stderr
    assert 'gs://shelf/raw/absent*: no such file; check' in done.stderr
