"""Every reader meets hostile text by one policy, in bounded memory.

Invalid UTF-8, empty files, NUL, lines of many megabytes, and text that spells
control symbols are in every large corpus.
"""

import collections
import csv
import gzip
import io
import json
from pathlib import Path
import subprocess
import sys

import pyarrow as pa
from pyarrow import feather, parquet
import pytest

from lm.data import documents, shards
from lm.data.tokenizers import auto
from tools import prepare_data, train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
# A mark of byte order inside of a text is a character like others.
TEXTS = [
  'a\0b\0',
  '<s> </s> <unk> <pad> <0x41> \u2581 <|endoftext|> [CLS] [MASK]',
  'x\ufeffy \u2028 \x85 \x1c \ufffe \U0010ffff',
  '  spaces  and\ttabs ',
]


def _csv(texts: list[str], delimiter: str) -> bytes:
  file = io.StringIO(newline='')
  rows = [['text'], *([x] for x in texts)]
  csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(rows)
  return file.getvalue().encode('utf-8', 'surrogateescape')


def _table(texts: list[str], write) -> bytes:
  raw = [x.encode('utf-8', 'surrogateescape') for x in texts]
  column = pa.array(raw, pa.binary())
  buffers = column.buffers()
  text = pa.StringArray.from_buffers(len(raw), buffers[1], buffers[2])
  file = io.BytesIO()
  write(pa.table({'text': text}), file)
  return file.getvalue()


def _wet(texts: list[str]) -> bytes:
  records = []
  for text in texts:
    data = text.encode('utf-8', 'surrogateescape')
    head = f'WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: {len(data)}'
    records.append(f'{head}\r\n\r\n'.encode() + data + b'\r\n\r\n')
  return b''.join(records)


def _lines(texts: list[str]) -> bytes:
  lines = (json.dumps({'text': x}, ensure_ascii=False) for x in texts)
  return '\n'.join(lines).encode('utf-8', 'surrogateescape')


# Writes texts as a file of a kind; bytes that are not UTF-8 are escaped.
WRITERS = {
  'a.jsonl': _lines,
  'a.json.gz': lambda texts: gzip.compress(
    b'[' + _lines(texts).replace(b'\n', b',') + b']'
  ),
  'a.csv': lambda texts: _csv(texts, ','),
  'a.tsv': lambda texts: _csv([x.replace('\t', ' ') for x in texts], '\t'),
  'a.parquet': lambda texts: _table(texts, parquet.write_table),
  'a.feather': lambda texts: _table(texts, feather.write_feather),
  'a.wet': _wet,
}


def read(file: Path, **how) -> tuple[list[str], dict[str, int]]:
  counts: collections.Counter[str] = collections.Counter()
  settings = documents.Settings(**how)
  files = documents.find(str(file))
  return [
    text
    for name in files
    for _, text in documents.records(name, settings, counts)
  ], counts


@pytest.mark.parametrize('name', WRITERS)
def test_a_text_comes_back_exactly(tmp_path, name):
  (tmp_path / name).write_bytes(WRITERS[name](TEXTS))
  texts = [x.replace('\t', ' ') if name == 'a.tsv' else x for x in TEXTS]
  assert read(tmp_path / name, errors='strict')[0] == texts
  for text in texts:
    (tmp_path / 'one.txt').write_bytes(text.encode())
    assert read(tmp_path / 'one.txt', errors='strict')[0] == [text]


@pytest.mark.parametrize('name', [*WRITERS, 'a.txt'])
def test_bytes_that_are_not_utf_8_are_counted(tmp_path, name):
  texts = ['good', 'b\udcffd', 'end']
  if name == 'a.txt':
    data = '\n'.join(texts).encode('utf-8', 'surrogateescape')
  else:
    data = WRITERS[name](texts)
  (tmp_path / name).write_bytes(data)
  found, counts = read(tmp_path / name, unit='line')
  assert found == ['good', 'b\ufffdd', 'end']
  assert counts['not Unicode, replaced by U+FFFD'] == 1
  found, counts = read(tmp_path / name, unit='line', errors='skip')
  assert found == ['good', 'end'] and counts['not Unicode, left out'] == 1
  with pytest.raises(
    ValueError, match=r'is not Unicode .byte 0xff is not UTF-8'
  ):
    read(tmp_path / name, unit='line', errors='strict')


@pytest.mark.parametrize('suffix', documents.KINDS)
def test_an_empty_file_is_one_line(tmp_path, suffix, capsys):
  (tmp_path / f'a{suffix}').touch()
  flags = [f'--input={tmp_path}', '--tokenizer=bytes', f'--output={tmp_path}/o']
  assert prepare_data.main(flags) == 2
  line = capsys.readouterr().err
  assert line.count('\n') == 1 and len(line) <= 208
  assert any(x in line for x in ('no documents (', 'damaged (', 'is no web ar'))


def test_control_symbols_are_never_forged(tmp_path):
  (tmp_path / 'a.jsonl').write_bytes(_lines(TEXTS * 20))
  flags = [f'--input={tmp_path}/a.jsonl']
  model = f'{tmp_path}/m.model'
  assert train_tokenizer.main([*flags, f'--output={model}', '--vocab=300']) == 0
  more = [f'--tokenizer={model}', f'--output={tmp_path}/out']
  assert prepare_data.main([*flags, *more]) == 0
  words = auto.load(model)
  source = shards.load(tmp_path / 'out', words)
  special = {words.bos, words.eos, words.pad} - {None}
  for n, text in enumerate(TEXTS * 20):
    ids = source.document(n).tolist()
    inner = [x for x in ids if x not in special]
    assert len(ids) - len(inner) <= 2  # that stand around a document
    assert words.decode(inner) == text


LONG = 200 << 20  # bytes
PEAK = """
import collections, pathlib, sys
from lm.data import documents
counts = collections.Counter()
settings = documents.Settings(unit=sys.argv[2])
size = sum(
  len(text.encode())
  for _, text in documents.records(sys.argv[1], settings, counts)
)
# Unlike ru_maxrss, it leaves out the memory of the process that started this.
(peak,) = [
  line.split()[1]
  for line in pathlib.Path('/proc/self/status').read_text().splitlines()
  if line.startswith('VmHWM')
]
print(peak, size, counts['documents'], counts[sys.argv[3]])
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
  'name, unit, what, expected',
  (
    ('a.txt', 'file', 'pieces cut from long documents', (LONG + 4, 13, 12)),
    ('a.txt', 'line', 'pieces cut from long documents', (LONG + 3, 14, 12)),
    (
      'a.txt.gz',
      'paragraph',
      'pieces cut from long documents',
      (LONG + 4, 13, 12),
    ),
    ('a.jsonl', 'file', 'JSON lines too long, left out', (3, 1, 1)),
    ('a.wet', 'file', 'records too long, cut', ((16 << 20) + 3, 2, 1)),
  ),
)
def test_a_line_of_200_megabytes(tmp_path, name, unit, what, expected):
  before, after = {
    '.jsonl': (b'{"text": "', b'"}\n{"text": "end"}'),
    '.wet': (
      b'WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: %d\r\n\r\n' % LONG,
      b'\r\n\r\n' + _wet(['end']),
    ),
  }.get(Path(name).suffix, (b'', b'\nend'))
  opened = gzip.GzipFile if name.endswith('.gz') else open
  with opened(tmp_path / name, 'wb') as file:
    file.write(before)
    for _ in range(LONG >> 20):
      file.write(b'abcd' * (1 << 18))
    file.write(after)
  command = [sys.executable, '-c', PEAK, str(tmp_path / name), unit, what]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
  # Bytes of text, documents, and how many were cut or left out.
  peak, *found = map(int, done.stdout.split())
  assert tuple(found) == expected
  assert peak <= 300 << 10, f'{peak >> 10} MiB'


def _stream(table: pa.Table, path: Path) -> None:
  with pa.ipc.new_stream(path, table.schema) as writer:
    writer.write_table(table)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
  'name, write',
  (
    ('a.arrow', _stream),
    (
      'a.parquet',
      lambda table, path: parquet.write_table(
        table, path, compression='none', use_dictionary=False
      ),
    ),
  ),
)
def test_a_table_of_200_megabytes_in_one_batch(tmp_path, name, write):
  rows = LONG // 1000
  texts = pa.array([f'{n:1000d}' for n in range(rows)])
  write(pa.table({'text': texts}), tmp_path / name)
  command = [sys.executable, '-c', PEAK, str(tmp_path / name), 'file', 'x']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
  peak, *found = map(int, done.stdout.split())
  assert found == [rows * 1000, rows, 0]
  assert peak <= 150 << 10, f'{peak >> 10} MiB'
