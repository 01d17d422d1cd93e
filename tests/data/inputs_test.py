"""Preparation reads inputs as they are in the world, or refuses them in a line.

The cases of `shared/cases` go through tools.prepare_data, as a user's would.
"""

import bz2
import collections
import csv
import gzip
import io
import json
import lzma
import os
from pathlib import Path
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
import pyarrow as pa
from pyarrow import parquet
import pytest
import zstandard

from lm.data import documents, shards, text_files
from lm.data.finetuning import record_files
from lm.data.tokenizers import utf8_bytes
from tools import prepare_data, train_tokenizer

CASES = Path(os.environ.get('LM_DATA', '../shared/data')).parent / 'cases'
cases = pytest.mark.skipif(not CASES.is_dir(), reason='needs shared/cases')
WORDS = utf8_bytes.make()


@pytest.fixture
def prepared(tmp_path, capsys):
  """Makes `(inputs, *flags) -> documents`, by the program."""

  def texts(folder: Path) -> list[str]:
    source = shards.load(folder, WORDS)
    source.verify()
    count = source.manifest.documents
    return [WORDS.decode(source.document(n).tolist()) for n in range(count)]

  def prepared(*inputs, flags=()):
    output = tmp_path / f'out{len(list(tmp_path.glob("out*")))}'
    given = [f'--input={x}' for x in inputs]
    more = ['--tokenizer=bytes', f'--output={output}']
    code = prepare_data.main([*given, *more, *flags])
    prepared.report = capsys.readouterr()
    if code:
      line = prepared.report.err
      assert code == 2 and not output.exists(), line
      assert line.startswith('error: ') and line.count('\n') == 1
      assert len(line) <= len('error: \n') + 200
      return line
    assert not prepared.report.err
    if any(x.startswith('--split-valid') for x in flags):
      return texts(output / 'train'), texts(output / 'valid')
    return texts(output)

  return prepared


@pytest.fixture
def put(tmp_path):
  def put(name: str, data: bytes | str) -> Path:
    data = data.encode() if isinstance(data, str) else data
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(data)
    return tmp_path / name

  return put


@cases
@pytest.mark.parametrize(
  'name, flags, texts',
  (
    (
      'bom.jsonl',
      (),
      ['first record, must not be lost', 'second record', 'third record'],
    ),
    ('bom.txt', (), ['Alpha beta.\r\nGamma delta.\r\n']),
    (
      'utf16le.txt',
      ('--unit=line',),
      ['The cat sat on the mat.', 'The dog ran.'],
    ),
    ('utf16le.jsonl', (), ['a b c', 'd e f']),
    ('gz_named_txt.txt', (), None),
    ('glob/a[1].jsonl', (), ['the right file']),
    ('odd names/a b\n中[1].txt', (), ['odd name\n']),
    ('array.json', (), ['one', 'two']),
    ('array.jsonl', (), ['one', 'two']),
    ('nested.jsonl', ('--field=meta.text',), ['inner one', 'inner two']),
    ('plain.md', (), ['# markdown\n']),
    ('upper.TXT', (), ['upper case suffix\n']),
    ('x.jsonl.bz2', (), ['bz2']),
    ('x.jsonl.xz', (), ['xz']),
    ('multi_member.jsonl.gz', (), ['m one', 'm two']),
    ('crlf.jsonl', (), ['a', 'b']),
    ('bank_blankline.csv', (), ['hello', 'world', 'onlytext']),
    ('bank_bom.csv', (), ['my card, please', 'two\r\nlines']),
    *(
      (f'{kind}.parquet', (), ['alpha one', 'beta two', 'alpha one'])
      for kind in ('string', 'large', 'view', 'dict')
    ),
  ),
)
def test_cases_are_read(prepared, name, flags, texts):
  found = prepared(CASES / name, flags=flags)
  if texts is None:
    assert len(found) == 1 and found[0].startswith('hello compressed world\n')
  else:
    assert found == texts


@cases
@pytest.mark.parametrize(
  'name, flags, words',
  (
    ('mixed.jsonl', ('--errors=strict',), 'line 2: text is null; mend it'),
    ('csv_unbalanced.csv', (), 'row 1 (line 2): a quote has no pair'),
    (
      'latin1.csv',
      ('--errors=strict',),
      'row 1 (line 2) is not Unicode (byte 0xe9 is not UTF-8 '
      '(latin1?)); mend it or set errors to replace',
    ),
    ('list.parquet', (), 'column text is of type list<element: string> and n'),
    ('struct.parquet', (), 'column text is of type struct<text: string> and n'),
    ('int.parquet', (), 'column text is of type int64 and not text'),
    ('null.parquet', (), 'column text is of type null and not text'),
    ('binary.parquet', (), 'column text is of type binary and not text'),
    ('badutf8.parquet', (), 'column text is of type binary and not text'),
    ('truncated.jsonl.gz', (), 'damaged ('),
    ('trailing_garbage.jsonl.gz', (), 'damaged ('),
  ),
)
def test_cases_are_refused(prepared, name, flags, words):
  if name.startswith('csv'):
    flags = (*flags, '--field=text')
  line = prepared(CASES / name, flags=flags)
  assert words in line and Path(name).name in line


@cases
def test_the_case_of_a_single_text_is_split(prepared):
  train, valid = prepared(CASES / 'single.txt', flags=['--split-valid=0.1'])
  whole = (CASES / 'single.txt').read_text()
  assert len(train) == len(valid) == 1 and train[0] + valid[0] == whole
  assert train[0].endswith('\n') and 0.08 < len(valid[0]) / len(whole) < 0.12
  assert '1 documents, whose ends are for validation' in prepared.report.out


def test_values_that_are_no_text_are_counted_and_named(prepared, put):
  values = ['a', None, 7, True, ['b'], {'c': 'd'}]
  lines = [json.dumps({'text': x}) for x in values] + ['{"other": "x"}', '3']
  assert prepared(put('a.jsonl', '\n'.join(lines))) == ['a']
  for words in (
    '4 records whose field is no text, left out',
    '3 records without the field, left out',
  ):
    assert words in prepared.report.out
  for line, words in zip(
    lines[1:],
    (
      'text is null',
      'text is a number',
      'text is true or false',
      'text is a list',
      'text is an object',
      "has no text in field text (fields: ['other']); set field",
      'has no text in field text (fields: none); set field',
    ),
    strict=True,
  ):
    for data, place in (
      ('{"text": "x"}\n' + line, 'line 2'),
      ('[{"text": "x"},\n' + line + ']', 'element 2'),
    ):
      found = prepared(put('b.jsonl', data), flags=['--errors=strict'])
      assert f'b.jsonl: {place}' in found and words in found


def test_fields_inside_of_fields(prepared, put, tmp_path):
  flags = ['--field=a.b']
  rows = [{'a': {'b': 'in'}}, {'a.b': 'itself', 'a': {'b': 'no'}}, {'a': 'x'}]
  text = '\n'.join(map(json.dumps, rows))
  assert prepared(put('a.jsonl', text), flags=flags) == ['in', 'itself']
  assert '1 records without the field' in prepared.report.out
  table = pa.table({'a': [{'b': 'in', 'c': 1}, None, {'b': None, 'c': 2}]})
  parquet.write_table(table, tmp_path / 'a.parquet')
  assert prepared(tmp_path / 'a.parquet', flags=flags) == ['in']
  assert '2 records without the field' in prepared.report.out
  line = prepared(tmp_path / 'a.parquet', flags=['--field=a.c'])
  assert 'column a.c is of type int64 and not text' in line
  line = prepared(tmp_path / 'a.parquet', flags=['--field=a.d'])
  assert 'no column a.d of text' in line
  line = prepared(tmp_path / 'a.parquet', flags=['--field=a.b.c'])
  assert 'no column a.b.c of text' in line
  table = pa.table({'a.b': ['itself'], 'a': [{'b': 'no'}]})
  parquet.write_table(table, tmp_path / 'b.parquet')
  assert prepared(tmp_path / 'b.parquet', flags=flags) == ['itself']


def test_tables_are_read_by_column(prepared, put):
  file = put('a.CSV', 'id,body\n1,"two\nlines, ""so"""\n2,\n3\n4,x\n')
  assert prepared(file, flags=['--field=body']) == ['two\nlines, "so"', 'x']
  assert '1 empty, left out' in prepared.report.out
  assert '1 records without the field, left out' in prepared.report.out
  line = prepared(file, flags=['--field=body', '--errors=strict'])
  assert 'row 3 (line 5): body is null' in line
  assert "no column text (columns: ['id', 'body']); set field" in prepared(file)
  file = put('a.tsv.gz', gzip.compress(b'text\tb\n"say\t1\n\nso"\t2\n'))
  assert prepared(file) == ['"say', 'so"']


def test_what_a_file_holds_is_known_by_its_content(prepared, put, tmp_path):
  parquet.write_table(pa.table({'text': ['p']}), tmp_path / 'a.parquet')
  data = (tmp_path / 'a.parquet').read_bytes()
  assert prepared(put('b.txt', data)) == ['p']
  assert 'damaged' in prepared(put('c.parquet', '{"text": "a"}'))
  assert 'damaged' in prepared(put('d.parquet.gz', gzip.compress(data)))
  for pack in (gzip, bz2, lzma, zstandard):
    packed = pack.compress(b'{"text": "a"}')
    assert prepared(put('e.jsonl', packed)) == ['a']
  assert 'is no text in UTF-8' in prepared(put('f.txt', bytes(range(256)) * 9))
  assert 'is a zip archive' in prepared(put('g.txt', b'PK\3\4' + bytes(90)))
  text = ('ещё один текст в другой кодировке').encode('koi8-r')
  assert 'in another encoding' in prepared(put('h.txt', text))


def test_values_may_go_over_lines(prepared, put):
  rows = [{'text': f'{n} \u4f60 ]}}"\\' * 9} for n in range(3000)]
  texts = [row['text'] for row in rows]
  for data in (
    json.dumps(rows),
    json.dumps(rows, indent=1, ensure_ascii=False),
    '\n'.join(json.dumps(row, indent=1) for row in rows),
  ):
    assert prepared(put('a.json', data)) == texts
  assert prepared(put('b.json', json.dumps(rows[0], indent=1))) == texts[:1]
  assert 'no documents' in prepared(put('c.json', ' [ ] \n'))


@pytest.mark.parametrize(
  'data, words',
  (
    ('[{"text": "a"}, {"te', 'element 2 is not JSON, or the file is cut'),
    ('[{"text": "a"}, 12', 'neither a comma nor a bracket follows element 2'),
    ('[{"text": "a"}] []', 'more follows the array of 1 elements'),
    ('[{"text": "' + 'x' * 5000 + '"}]', 'element 1 is not JSON or longer tha'),
    ('{\n"text": "' + 'x' * 5000 + '"}', 'value 1 is not JSON or longer than'),
    ('[{"text": \n', 'element 1 is not JSON'),
  ),
)
def test_a_broken_array_is_refused(prepared, put, data, words):
  file = put('a.json', data)
  assert words in prepared(file, flags=['--max-document-bytes=1000'])


def test_a_folder_is_an_input(prepared, put, tmp_path):
  for name, data in (
    ('raw/b.txt', 'b'),
    ('raw/deep/a.JSONL', '{"text": "a"}'),
    ('raw/.hidden.txt', 'hidden'),
    ('raw/.git/x.txt', 'hidden'),
    ('raw/_SUCCESS', ''),
    ('raw/table.doc', 'x'),
  ):
    put(name, data)
  assert prepared(tmp_path / 'raw') == ['b', 'a']
  assert '2 files of another kind, left out' in prepared.report.out
  assert '2 files\n' in prepared.report.out
  put('empty/x.doc', '')
  line = prepared(tmp_path / 'empty')
  assert 'no file of a known kind in this folder' in line
  # A pattern that names a folder's file of another kind is a mistake.
  assert 'unknown kind' in prepared(tmp_path / 'raw' / '*')


def test_a_folder_that_cannot_be_read_is_no_empty_one(
  prepared, put, tmp_path, monkeypatch
):
  put('raw/a.txt', 'a')
  put('raw/deep/b.txt', 'b')
  real = os.scandir

  def scandir(path):
    if str(path).endswith('deep'):
      raise PermissionError(13, 'Permission denied', str(path))
    return real(path)

  monkeypatch.setattr(os, 'scandir', scandir)
  line = prepared(tmp_path / 'raw')
  assert 'raw/deep: cannot be read (Permission denied); check it' in line
  assert 'no such file' in prepared('')  # which is not this folder


@pytest.mark.parametrize('suffix', ('json', 'csv', 'tsv'))
def test_memory_stays_bounded(put, suffix):
  text, line = 'x' * 1000, {'json': '{"text": "%s"},\n'}.get(suffix, '"%s"\n')
  head, end = (
    ('[', '{"text": "end"}]') if suffix == 'json' else ('text\n', 'end')
  )
  whole = put(f'a.{suffix}', head + line % text * 10_000 + end)
  # What does not end is refused early.
  begin = '' if suffix == 'tsv' else line[: line.index('%')]
  broken = put(f'b.{suffix}', head + begin + text * 10_000)
  how = documents.Settings(max_bytes=1 << 20)

  def last(file):
    texts = documents.read([str(file)], how, collections.Counter())
    return collections.deque(texts, 1)[0]

  tracemalloc.start()
  assert last(whole) == 'end'
  with pytest.raises(ValueError, match=r'longer than 1,048,576'):
    last(broken)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 8 << 20


def test_a_file_is_read_once_by_every_spelling(
  prepared, put, tmp_path, monkeypatch
):
  file = put('raw/a.txt', 'a')
  (tmp_path / 'link.txt').symlink_to(file)
  monkeypatch.chdir(tmp_path)
  spellings = ('raw/a.txt', './raw/a.txt', 'raw/../raw/a.txt', file, 'raw')
  assert prepared(*spellings, 'link.txt', 'raw/*.txt') == ['a']
  put('raw/b.txt', 'a')  # a copy is another file
  assert prepared('raw') == ['a', 'a']


def test_few_documents_are_cut_for_validation(prepared, put):
  flags = ['--split-valid=0.25']
  # No line ends: between characters.
  train, valid = prepared(put('a.txt', '你好世界。' * 20), flags=flags)
  assert train[0] + valid[0] == '你好世界。' * 20 and len(valid[0]) == 25
  # A line end that is near.
  train, valid = prepared(put('b.txt', 'x' * 70 + '\n' + 'y' * 29), flags=flags)
  assert (train, valid) == (['x' * 70 + '\n'], ['y' * 29])
  # One that is not.
  train, valid = prepared(put('c.txt', 'x\n' + 'y' * 98), flags=flags)
  assert (train, valid) == (['x\n' + 'y' * 73], ['y' * 25])
  line = prepared(put('d.txt', 'xy'), flags=flags)
  assert 'split_valid=0.25: no documents to write for one side; give' in line


def test_many_documents_are_split_by_their_hash(prepared, put):
  texts = [f'{n}\n{n}' for n in range(100)]
  lines = '\n'.join(json.dumps({'text': x}) for x in texts)
  train, valid = prepared(put('a.jsonl', lines), flags=['--split-valid=0.2'])
  assert sorted(train + valid) == sorted(texts)
  assert 'whose ends' not in prepared.report.out


ROWS = [{'text': f'{n}: "你好", she said.\né'} for n in range(9)]


def _whole(suffix: str) -> bytes:
  """Makes a sound file of a kind."""
  if suffix == 'parquet':
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), file)
    return file.getvalue()
  if suffix in ('csv', 'tsv'):
    file = io.StringIO(newline='')
    writer = csv.writer(file, delimiter={'csv': ',', 'tsv': '\t'}[suffix])
    writer.writerows([['text'], *([row['text']] for row in ROWS)])
    return file.getvalue().encode()
  if suffix == 'json':
    return json.dumps(ROWS).encode('utf-8')
  return '\n'.join(map(json.dumps, ROWS)).encode('utf-16')


EDITS = st.tuples(
  st.sampled_from(('change', 'insert', 'cut', 'end')),
  st.integers(0, 1 << 20),
  st.integers(0, 255),
)


@settings(deadline=None, max_examples=150)
@given(
  st.sampled_from(('parquet', 'csv', 'tsv', 'json', 'jsonl', 'txt')),
  st.sampled_from((bytes, gzip.compress, bz2.compress, zstandard.compress)),
  st.lists(EDITS, max_size=6),
  st.sampled_from(text_files.ERRORS),
  st.sampled_from((5, 200, 1 << 20)),
)
def test_a_damaged_file_is_read_or_refused_in_one_line(
  tmp_path_factory, suffix, pack, edits, errors, max_bytes
):
  data = bytearray(pack(_whole(suffix)))
  for edit, place, byte in edits:
    at = place % (len(data) + 1)
    if edit == 'change':
      data[at : at + 1] = [byte]
    elif edit == 'insert':
      data[at:at] = [byte]
    elif edit == 'cut':
      data[at : at + byte] = b''
    else:
      del data[at:]
  file = tmp_path_factory.getbasetemp() / f'damaged.{suffix}'
  file.write_bytes(data)
  how = documents.Settings(errors=errors, max_bytes=max_bytes)
  for read in (
    lambda: documents.read([str(file)], how, collections.Counter()),
    lambda: record_files.text(str(file)),
    lambda: record_files.json_lines(str(file)),
    lambda: record_files.table(str(file), 'bank'),
  ):
    try:
      ''.join(map(str, read())).encode()
    except ValueError as e:
      assert type(e) is ValueError
      assert '\n' not in str(e) and len(str(e)) <= 200


def test_the_tokenizer_reads_as_preparation_does(put, tmp_path, capsys):
  put('raw/a.JSON', json.dumps([{'a': {'b': 'words of a text. ' * 40}}]))
  put('raw/b.csv', 'a.b\n"words, of a table"\n')
  put('raw/x.doc', '')
  flags = ['--kind=characters', f'--output={tmp_path}/x.json', '--field=a.b']
  assert train_tokenizer.main([f'--input={tmp_path}/raw', *flags]) == 0
  out = capsys.readouterr().out
  for words in ('2 files', '1 files of another kind', '2 documents'):
    assert words in out
