"""Files of strangers become documents: counted, bounded, never a traceback."""

import collections
import gzip
import hashlib
import json
from pathlib import Path
import subprocess
import sys
import tracemalloc

import pyarrow as pa
from pyarrow import parquet
import pytest

from lm.data import documents, shards
from lm.data.tokenizers import auto
from tools import embedded_text, prepare_data, train_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def read(*files, **how) -> tuple[list[str], dict[str, int]]:
  counts: collections.Counter[str] = collections.Counter()
  found = documents.find([str(f) for f in files])
  settings = documents.Settings(**how)
  return list(documents.read(found, settings, counts)), dict(counts)


@pytest.fixture
def put(tmp_path):
  def put(name: str, data: bytes | str) -> Path:
    data = data.encode() if isinstance(data, str) else data
    file = tmp_path / name
    file.write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
    return file

  return put


@pytest.mark.parametrize('suffix', ('.txt', '.txt.gz'))
def test_units_of_text(put, suffix):
  text = 'one\r\n\r\n two\nthree \n\n\n\nfour\0'
  file = put('a' + suffix, text)
  assert read(file)[0] == [text]
  texts, counts = read(file, unit='line')
  assert texts == ['one', ' two', 'three ', 'four\0']
  assert counts['empty, left out'] == 4
  texts, counts = read(file, unit='paragraph')
  assert texts == ['one', ' two\nthree ', 'four\0']
  assert counts == {'files': 1, 'documents': 3, 'bytes': 19}


@pytest.mark.parametrize('suffix', ('.jsonl', '.jsonl.gz'))
def test_json_lines(put, suffix):
  records = [{'text': '你好\n\0\u2028'}, {'body': 'b'}, {'text': ''}, 3]
  lines = [json.dumps(r, ensure_ascii=False) for r in records]
  file = put('a' + suffix, '\n'.join([*lines, '', '{broken', '{"text": "z"}']))
  texts, counts = read(file)
  assert texts == ['你好\n\0\u2028', 'z']
  assert counts == {
    'files': 1,
    'documents': 2,
    'bytes': 12,
    'empty, left out': 1,
    'records without the field, left out': 2,
    'lines that are not JSON, left out': 1,
  }
  assert read(file, field='body')[0] == ['b']
  with pytest.raises(ValueError, match='line 2 has no text in field text'):
    read(file, errors='strict')
  with pytest.raises(ValueError, match=r'no documents .*5 records.*the field'):
    read(file, field='absent')
  broken = put('b' + suffix, '{"text": "z"}\n{broken')
  with pytest.raises(ValueError, match=r'b\.jsonl.*: line 2 is not JSON; mend'):
    read(broken, errors='strict')


def test_parquet_is_streamed(tmp_path):
  texts = [f'text {n} 你好' for n in range(1000)]
  table = pa.table({'id': list(range(1000)), 'text': [*texts[:-1], None]})
  parquet.write_table(table, tmp_path / 'a.parquet', row_group_size=300)
  got, counts = read(tmp_path / 'a.parquet')
  assert got == texts[:-1]
  assert counts['records without the field, left out'] == 1
  with pytest.raises(ValueError, match=r'no column absent of text .columns'):
    read(tmp_path / 'a.parquet', field='absent')
  with pytest.raises(ValueError, match='column id is of type int64 and not te'):
    read(tmp_path / 'a.parquet', field='id')
  with pytest.raises(ValueError, match='row 1000: text is null; mend it or'):
    read(tmp_path / 'a.parquet', errors='strict')
  # Arrow does not check that a text is Unicode.
  raw = pa.array([b'good', b'b\xffd', b'abc' * 5])
  broken = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
  parquet.write_table(pa.table({'text': broken}), tmp_path / 'b.parquet')
  got, counts = read(tmp_path / 'b.parquet', max_bytes=10)
  assert got == ['good', 'b\ufffdd', 'abcabcabca', 'bcabc']
  with pytest.raises(ValueError, match=r'row 2 is not Unicode .byte'):
    read(tmp_path / 'b.parquet', errors='strict')
  assert counts['pieces cut from long documents'] == 1


def test_text_that_is_not_unicode_is_counted_by_policy(put):
  file = put('a.txt', b'good\nb\xffd\n\xe4\xbd\xa0\n\xe4\xbd\n')
  texts, counts = read(file, unit='line')
  assert texts == ['good', 'b\ufffdd', '你', '\ufffd']
  assert counts['not Unicode, replaced by U+FFFD'] == 2
  texts, counts = read(file, unit='line', errors='skip')
  assert texts == ['good', '你'] and counts['not Unicode, left out'] == 2
  with pytest.raises(ValueError, match=r'a\.txt: line 2 is not Unicode'):
    read(file, unit='line', errors='strict')

  body = b'{"text": "a\\ud800b"}\n{"text": "\\ud83d\\ude00"}\n{"text": "\xff"}'
  file = put('a.jsonl', body)
  texts, counts = read(file)
  assert texts == ['a\ufffdb', '\U0001f600', '\ufffd']
  assert counts['not Unicode, replaced by U+FFFD'] == 2
  assert read(file, errors='skip')[0] == ['\U0001f600']
  with pytest.raises(ValueError, match='line 1 is not Unicode'):
    read(file, errors='strict')


def test_the_places_of_documents(put, tmp_path):
  def places(file, **how):
    counts: collections.Counter[str] = collections.Counter()
    settings = documents.Settings(**how)
    found = dict(documents.records(str(file), settings, counts))
    assert counts['documents'] == len(found) and counts['files'] == 1
    return found

  file = put('a.txt', 'one\n\ntwo two\nthree\n')
  assert places(file) == {'': 'one\n\ntwo two\nthree\n'}
  assert places(file, unit='line') == {
    'line 1': 'one',
    'line 3': 'two two',
    'line 4': 'three',
  }
  assert places(file, unit='line', max_bytes=5) == {
    'line 1': 'one',
    'line 3, piece 1': 'two t',
    'line 3, piece 2': 'wo',
    'line 4, piece 1': 'three',
  }
  # A piece that ends where the cut falls is followed by another one.
  assert places(put('b.txt', 'abcdef\nx'), unit='line', max_bytes=3) == {
    'line 1, piece 1': 'abc',
    'line 1, piece 2': 'def',
    'line 2': 'x',
  }
  assert places(put('b.txt', 'abcde\nx'), unit='line', max_bytes=3) == {
    'line 1, piece 1': 'abc',
    'line 1, piece 2': 'de',
    'line 2': 'x',
  }
  assert places(file, unit='paragraph') == {
    'line 1': 'one',
    'line 3': 'two two\nthree',
  }
  assert places(file, max_bytes=13) == {
    'piece 1': 'one\n\ntwo two\n',
    'piece 2': 'three\n',
  }
  file = put('a.jsonl', '{"text": "a"}\nx\n{"text": ""}\n{"text": "b"}')
  assert places(file) == {'line 1': 'a', 'line 4': 'b'}
  assert places(put('a.json', '[{"text": "a"}]')) == {'element 1': 'a'}
  assert places(put('a.csv', 'text\na\n')) == {'row 1 (line 2)': 'a'}
  parquet.write_table(pa.table({'text': ['abc', 'd']}), tmp_path / 'a.parquet')
  assert places(tmp_path / 'a.parquet', max_bytes=2) == {
    'row 1, piece 1': 'ab',
    'row 1, piece 2': 'c',
    'row 2': 'd',
  }
  assert places(put('empty.txt', '')) == {}


def test_the_digest_of_a_file_is_of_its_stored_bytes(put, tmp_path):
  file = put('a.txt.gz', 'text ' * 1_000_000)
  whole = hashlib.sha256(file.read_bytes()).hexdigest()
  assert documents.digest(str(file)) == whole
  with pytest.raises(ValueError, match=r'absent: no such file; check the path'):
    documents.digest(str(tmp_path / 'absent'))


@pytest.mark.parametrize('unit', ('file', 'line', 'paragraph'))
@pytest.mark.parametrize('limit', (1, 2, 3, 4, 5, 7, 64))
def test_long_texts_are_cut_without_loss(put, unit, limit):
  text = 'ab\u00e9你好\U0001f600cd' * 9
  texts, counts = read(put('a.txt', text), unit=unit, max_bytes=limit)
  whole = limit >= 4  # below that, a character does not fit
  if whole:
    assert ''.join(texts) == text
    assert max(len(t.encode()) for t in texts) <= limit
  assert counts['pieces cut from long documents'] >= len(texts) - 1


def test_a_cut_falls_on_a_line_if_it_can(put):
  file = put('a.txt', 'first line\nsecond\nthird\n')
  assert read(file, max_bytes=14)[0] == ['first line\n', 'second\nthird\n']


def test_a_line_of_many_megabytes_stays_bounded(put):
  huge = b'x' * (24 << 20)
  files = (
    put('a.txt', huge + b'\nend'),
    put('b.jsonl', b'{"text": "' + huge + b'"}\n{"text": "end"}'),
  )
  for file, unit in (
    (files[0], 'line'),
    (files[0], 'file'),
    (files[1], 'file'),
  ):
    settings = documents.Settings(unit=unit, max_bytes=1 << 20)
    counts: collections.Counter[str] = collections.Counter()
    tracemalloc.start()
    last = ''
    for text in documents.read([str(file)], settings, counts):
      last = text
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert last.strip() == 'end' and peak < 8 << 20
    assert (
      counts['pieces cut from long documents'] == 24
      or counts['JSON lines too long, left out'] == 1
    )


def test_bad_files_are_one_line(put, tmp_path):
  whole = gzip.compress(b'text ' * 1000)
  cases = (
    ('cut.txt.gz', whole[: len(whole) // 2], 'damaged'),
    ('no.txt.gz', b'not gzip', 'damaged'),
    ('bad.txt.gz', whole[:15] + b'\xff' * 9 + whole[24:], 'damaged'),
    ('no.parquet', b'PAR1 no PAR1', 'damaged|cannot be read'),
    ('empty.parquet', b'', 'damaged|cannot be read'),
    ('empty.txt', b'', 'no documents .1 files, 1 empty, left out'),
    ('empty.jsonl', b'', 'no documents'),
  )
  for name, data, message in cases:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as e:
      read(tmp_path / name)
    assert '\n' not in str(e.value) and len(str(e.value)) <= 200
  with pytest.raises(ValueError, match=r'absent\*: no such file; check'):
    documents.find([str(tmp_path / 'absent*')])
  put('a.doc', 'x')
  message = r'a\.doc: unknown kind; give one of \.txt, .*, \.parquet$'
  with pytest.raises(ValueError, match=message) as e:
    documents.find([str(tmp_path / 'a.doc')])
  assert len(str(e.value)) <= 200


def test_files_are_sorted_and_read_once(put, tmp_path):
  for name in 'cab':
    put(f'{name}.txt', name)
  patterns = [str(tmp_path / '*.txt'), str(tmp_path / 'b.txt')]
  assert [Path(f).stem for f in documents.find(patterns)] == ['a', 'b', 'c']
  odd = str(put('a[1].txt', 'x'))
  assert documents.find([odd]) == [odd]


def test_tools_make_a_dataset_and_split_it(put, tmp_path, capsys):
  texts = [f'A sentence, number {n}.\n\nAnd more of it.' for n in range(300)]
  lines = [json.dumps({'text': t}) for t in texts]
  file = put('a.jsonl.gz', '\n'.join([*lines, 'broken']))
  model = str(tmp_path / 'm' / 'bpe.model')
  arguments = ['--input', str(file), '--output', model, '--vocab', '320']
  assert train_tokenizer.main(arguments) == 0
  output = tmp_path / 'out'
  arguments = ['--input', str(file), '--tokenizer', model]
  arguments += ['--output', str(output), '--split-valid', '0.2']
  for _ in range(2):  # again: nothing changes
    assert prepare_data.main(arguments) == 0
  report = capsys.readouterr().out
  for words in ('300 documents', '1 lines that are not JSON', 'bytes a token'):
    assert words in report
  words = auto.load(model)
  found = []
  for part in ('train', 'valid'):
    source = shards.load(output / part, words)
    source.verify()
    count = source.manifest.documents
    found.append(
      [words.decode(source.document(n).tolist()) for n in range(count)]
    )
  assert sorted([*found[0], *found[1]]) == sorted(texts)
  assert 30 < len(found[1]) < 90

  arguments[-2:] = []
  assert prepare_data.main(arguments) == 2
  assert 'error: dataset' in capsys.readouterr().err


def test_tools_train_characters(put, tmp_path, capsys):
  file = put('a.txt', 'abc你好')
  flags = ['--input', str(file), '--kind', 'characters', '--output']
  assert train_tokenizer.main([*flags, str(tmp_path / 'c.json')]) == 0
  assert auto.load(str(tmp_path / 'c.json')).size == 259 + 5
  assert train_tokenizer.main([*flags, str(tmp_path / 'c.model')]) == 2
  assert 'suffix .json; end the name in it' in capsys.readouterr().err


def test_the_tool_checks_its_numbers_before_it_reads(put, tmp_path, capsys):
  file = put('a.txt', b'\xff')
  flags = ['--input', str(file), '--errors', 'strict']
  flags += ['--output', str(tmp_path / 'x.model')]
  for more, message in (
    (['--vocab', '260'], 'vocab=260: give a whole number from 261'),
    (['--coverage', '99.95'], 'coverage=99.95: give a share from 0.98 to 1'),
    (['--max-bytes', '0'], 'max_bytes=0: give a whole number above 0'),
    ([], 'a.txt'),
  ):
    assert train_tokenizer.main([*flags, *more]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count('\n') == 1


def test_the_tool_trains_on_text_without_a_space(put, tmp_path):
  file = put('a.txt', '你好世界。我们去学习。' * 50)
  model = str(tmp_path / 'x.model')
  flags = ['--input', str(file), '--output', model, '--vocab', '280']
  assert train_tokenizer.main(flags) == 0
  assert len(auto.load(model).encode('你好')) == 1


def test_bad_usage_is_one_line_and_exit_2(put, tmp_path, capsys):
  file = str(put('a.txt', 'text'))
  base = ['--output', str(tmp_path / 'o'), '--tokenizer', 'bytes']
  for more, message in (
    (['--input', 'absent.txt'], 'absent.txt: no such file'),
    (['--input', file, '--split-valid', '1'], 'split_valid=1.0 must be from'),
    (['--input', file, '--split-valid', 'nan'], 'split_valid=nan must be'),
    (['--input', file, '--max-document-bytes', '0'], 'max_bytes=0 must be'),
    (['--input', file, '--shard-tokens', '0'], 'shard_tokens=0 must be'),
    (['--input', file, '--tokenizer', 'no.model'], 'no.model: cannot be read'),
    (['--input', file, '--split-valid', '1e-9'], 'no documents to write'),
  ):
    assert prepare_data.main([*base, *more]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count('\n') == 1


@pytest.mark.process
@pytest.mark.parametrize(
  'how', (['-m', 'tools.prepare_data'], ['tools/prepare_data.py'])
)
def test_tools_run_both_ways(put, tmp_path, how):
  file = put('a.txt', 'text')
  flags = ['--input', str(file), '--tokenizer', 'bytes', '--output']
  done = subprocess.run(
    [sys.executable, *how, *flags, str(tmp_path / 'o')],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert shards.load(tmp_path / 'o').manifest.tokens == 5


def test_embedded_text_skips_what_does_not_parse(tmp_path, monkeypatch):
  sources = {
    'a.py': '"""' + 'module ' * 9 + '"""\ndef f():\n  "too short"\n',
    'b.py': 'class A:\n  def f(self):\n    """' + 'method ' * 9 + '"""\n',
    'c.py': 'if 1:\n  def f():\n    """' + 'module ' * 9 + '"""\n',
    'd.py': 'def f(:\n',
    'e.py': '\0',
    'x/topics.py': 'topics = {"a": r"""' + 'topic ' * 9 + '"""}\n',
  }
  for name, text in sources.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  monkeypatch.setattr(
    embedded_text,
    'sources',
    lambda: [(name, tmp_path / name) for name in sorted(sources)],
  )
  counts: collections.Counter[str] = collections.Counter()
  texts = list(embedded_text.texts(counts))
  expected = [(word * 9).strip() for word in ('module ', 'method ', 'topic ')]
  assert texts == expected
  assert counts == {'files': 6, 'files that cannot be parsed, left out': 2}
  assert embedded_text.main(['--output', str(tmp_path / 'out')]) == 0
  written = [
    json.loads(line)['text']
    for name in ('train', 'valid')
    for line in (tmp_path / 'out' / f'{name}.jsonl').read_text().splitlines()
  ]
  assert sorted(written) == sorted(expected)


def test_embedded_text_lists_no_tests():
  names = [name for name, _ in embedded_text.sources()]
  assert names == sorted(names) and len(names) > 500
  assert 'python/pydoc_data/topics.py' in names
  assert not [n for n in names if '/tests/' in n or 'site-packages' in n]
