"""Files of records, as they are in the world, are read or refused in a line."""

import gzip
import json
import os
from pathlib import Path

import pytest

from lm.data.finetuning import record_files

CASES = Path(os.environ.get('LM_DATA', '../shared/data')).parent / 'cases'
cases = pytest.mark.skipif(not CASES.is_dir(), reason='needs shared/cases')


@pytest.fixture
def put(tmp_path):
  def put(name: str, data: bytes | str) -> str:
    data = data.encode() if isinstance(data, str) else data
    (tmp_path / name).write_bytes(data)
    return str(tmp_path / name)

  return put


def table(path, delimiter=None):
  return list(record_files.table(path, 'bank', delimiter))


def refused(read) -> str:
  with pytest.raises(ValueError) as e:
    read()
  line = str(e.value)
  assert line.startswith('task ') and '\n' not in line and len(line) <= 200
  return line


def test_a_table_by_names_of_columns(put):
  text = 'text,category\r\n"my card, ""please""",card\r\n"two\r\nlines",x\r\n'
  rows = [
    {'text': 'my card, "please"', 'category': 'card'},
    {'text': 'two\r\nlines', 'category': 'x'},
  ]
  for data in (
    text.encode(),
    b'\xef\xbb\xbf' + text.encode(),
    text.encode('utf-16'),
    gzip.compress(text.encode()),
  ):
    assert table(put('a.csv', data)) == rows


def test_a_table_may_have_no_row(put):
  assert table(put('a.csv', 'a,b\n')) == []


def test_the_suffix_says_the_delimiter(put):
  rows = [{'a': '1,5', 'b': '2'}]
  tabs = gzip.compress(b'a\tb\n1,5\t2\n')
  for name in ('a.tsv', 'a.TSV', 'a.tsv.gz'):
    assert table(put(name, tabs)) == rows
  assert table(put('a.txt', tabs), '\t') == rows
  assert table(put('a.csv', 'a;b\n1,5;2\n'), ';') == rows


def test_fields_of_any_length_are_read(put):
  huge = 'x' * 300_000
  assert table(put('a.csv', f'a,b\n"{huge}",{huge}\n')) == [
    {'a': huge, 'b': huge}
  ]
  assert table(put('a.tsv', f'a\tb\n{huge}\t1\n'))[0]['a'] == huge


def test_blank_lines_are_skipped_and_short_rows_have_none(put):
  rows = table(put('a.csv', '\ntext,category\nhello,a\n\n  \nworld\n'))
  assert rows == [
    {'text': 'hello', 'category': 'a'},
    {'text': 'world', 'category': None},
  ]


@pytest.mark.parametrize(
  'data, words',
  (
    ('a,b\nx,1\n"he said,2\nz" y,3\n', 'row 2 (line 3): a quote has no pair'),
    ('a,b\nx,1\n\n"he said,2\nz,3\n', 'row 2 (line 4): a quote has no pair'),
    ('a,b\nx,1\ny,2,3\n', 'row 2 (line 3) has 3 fields for 2 columns; quote'),
    ('a,b,a\n1,2,3\n', "two columns are named 'a'; rename one"),
    ('', 'is empty; give a table of bank'),
    (
      'a,b\nx,y\ncaf\xe9 noir,1\n'.encode('latin1'),
      'row 2 (line 3): byte 0xe9 is not UTF-8 (latin1?); convert the file',
    ),
    ('caf\xe9,b\nx,y\n'.encode('latin1'), 'byte 0xe9 is not UTF-8 (latin1?)'),
    ('a,b\nx,1\ny\rz,2\n', 'row 2 (line 3): holds a carriage return (CR)'),
  ),
)
def test_a_bad_table_is_refused_with_its_row(put, data, words):
  assert words in refused(lambda: table(put('a.csv', data)))


def test_between_tabs_quotes_are_text_unless_they_pair(put):
  text = 'a\tb\n"Hello," he said.\t1\n"open\t"all ""of"" it"\nx\t"\n""\t""\n'
  assert [tuple(row.values()) for row in table(put('a.tsv', text))] == [
    ('"Hello," he said.', '1'),
    ('"open', 'all "of" it'),
    ('x', '"'),
    ('', ''),
  ]


def test_a_carriage_return_in_a_field_loses_no_text(put):
  tabs = 'text\tlabel\na\rb\tpos\r\n\r\nc\tneg\r'
  rows = [{'text': 'a\rb', 'label': 'pos'}, {'text': 'c', 'label': 'neg'}]
  assert table(put('a.tsv', tabs)) == rows
  quoted = 'text,label\r\n"a\rb",pos\nc,neg\r'
  assert table(put('a.csv', quoted)) == rows
  # Older files of Macs, and those to whose CRLF a program added a CR.
  rows = [{'text': 'a', 'label': 'pos'}, {'text': 'c', 'label': 'neg'}]
  for end in ('\r', '\r\r\n', '\r\n', '\n'):
    for name, delimiter in (('a.tsv', '\t'), ('a.csv', ',')):
      lines = [delimiter.join(('text', 'label'))]
      lines += [delimiter.join(row.values()) for row in rows]
      assert table(put(name, end.join([*lines, '']))) == rows


def test_json_lines_and_arrays(put):
  rows = [{'a': 'x\u2028y'}, {'a': 1}]
  text = '\n'.join(json.dumps(x, ensure_ascii=False) for x in rows)
  for name, data in (
    ('a.jsonl', text.replace('\n', '\r\n\r\n') + '\r\n'),
    ('b.jsonl', text.encode('utf-16')),
    ('c.jsonl', json.dumps(rows)),
    ('d.json', ' \n' + json.dumps(rows, indent=1)),
    ('e.json', '\n'.join(json.dumps(row, indent=2) for row in rows)),
  ):
    path = put(name, data)
    assert record_files.json_lines(path) == rows
    assert record_files.json_lines(path, limit=1) == rows[:1]


@pytest.mark.parametrize(
  'data, words',
  (
    ('{"a": 1}\n[["a", 1]]\n', 'line 2 is not a JSON object'),
    ('[{"a": 1}, [["a", 1]]]', 'element 2 is not a JSON object'),
    ('{"a": 1}\n' + '[' * 10_000, 'line 2 is not a JSON object'),
    (b'{"a": 1}\n{"a": "caf\xe9"}', 'line 2: byte 0xe9 is not UTF-8 (latin1?)'),
    ('[{"a": 1}, {"a"]', 'element 2 is not JSON, or the file is cut; mend it'),
    ('[{"a": 1}, {"a": 2}', 'neither a comma nor a bracket follows element 2'),
    ('[{"a": 1} {"a": 2}]', 'neither a comma nor a bracket follows element 1'),
    ('[{"a": 1}]\n{"a": 2}', 'more follows the array of 1 elements; give one'),
    ('[{"a": 1}, ' + '[' * 10_000, 'element 2 is not JSON; mend it'),
    (b'[{"a": 1}, {"a": "caf\xe9"}]', 'byte 0xe9 is not UTF-8 (latin1?)'),
  ),
)
def test_bad_json_lines_are_refused_with_their_place(put, data, words):
  assert words in refused(lambda: record_files.json_lines(put('a', data)))


def test_deep_json_is_one_line(put):
  path = put('a.json', '[' * 10_000)
  assert 'not JSON; give a file of squad' in refused(
    lambda: record_files.json_value(path, 'squad')
  )


def test_lines_end_as_files_of_every_system_end_them(put):
  for data, lines in (
    ('a\r\nb\r\n\r\n', ['a', 'b', '']),
    ('a\nb\u2028c\x0bd', ['a', 'b\u2028c\x0bd']),
    ('\nb\n', ['', 'b']),
    ('\n', ['']),
    ('', []),
  ):
    assert record_files.lines(put('a.txt', data)) == lines


def test_a_name_is_itself_before_it_is_a_pattern(put):
  odd, plain = put('a[1].jsonl', '{"a": 1}'), put('a1.jsonl', '{"a": 2}')
  assert record_files.json_lines(odd) == [{'a': 1}]
  assert record_files.matching(odd.replace('[1]', '?')) == [plain]
  assert record_files.sha256_of([odd, plain]) != record_files.sha256_of([odd])


@cases
def test_cases_of_tables_and_arrays():
  assert table(f'{CASES}/bank_bom.csv') == [
    {'text': 'my card, please', 'category': 'card'},
    {'text': 'two\r\nlines', 'category': 'lines'},
  ]
  rows = table(f'{CASES}/bank_blankline.csv')
  assert [x['text'] for x in rows if x['category']] == ['hello', 'world']
  line = refused(lambda: table(f'{CASES}/csv_unbalanced.csv'))
  assert 'row 1 (line 2): a quote has no pair' in line
  line = refused(lambda: table(f'{CASES}/latin1.csv'))
  assert 'row 1 (line 2): byte 0xe9 is not UTF-8 (latin1?)' in line
  for name in ('array.json', 'array.jsonl'):
    rows = record_files.json_lines(f'{CASES}/{name}')
    assert [x['text'] for x in rows] == ['one', 'two']
  for name, count in (
    ('cls_bom.jsonl', 2),
    ('utf16le.jsonl', 2),
    ('x.jsonl.bz2', 1),
    ('x.jsonl.xz', 1),
    ('multi_member.jsonl.gz', 2),
    ('crlf.jsonl', 2),
  ):
    assert len(record_files.json_lines(f'{CASES}/{name}')) == count
  assert 'data' in record_files.json_value(f'{CASES}/squad_bom.json', 'squad')
  for name in ('truncated.jsonl.gz', 'trailing_garbage.jsonl.gz'):
    file = f'{CASES}/{name}'
    assert 'damaged (' in refused(lambda file=file: record_files.text(file))
  text = record_files.text(f'{CASES}/gz_named_txt.txt')
  assert text.startswith('hello compressed world\n')
  (row,) = record_files.json_lines(f'{CASES}/glob/a[1].jsonl')
  assert row['text'] == 'the right file'
  for name in ('par', 'par_crlf', 'par_empty'):
    both = [
      record_files.lines(f'{CASES}/{name}_{x}.txt') for x in ('src', 'tgt')
    ]
    assert len(both[0]) == len(both[1])
