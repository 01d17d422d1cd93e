"""Arrow files and the folders of Hugging Face's `datasets` become documents."""

import collections
import json
import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
import pyarrow as pa
from pyarrow import compute, feather, parquet
import pytest

from lm.data import documents
from tools import prepare_data

TEXTS = ['alpha one', None, '你好', 'alpha one']


def arrays() -> dict[str, pa.Array]:
  """Makes the same column in every type of text."""
  plain = pa.array(TEXTS)
  return {
    'string': plain,
    'large': plain.cast(pa.large_string()),
    'view': plain.cast(pa.string_view()),
    'dictionary': plain.dictionary_encode(),
    'large dictionary': plain.cast(pa.large_string()).dictionary_encode(),
    'runs': compute.call_function('run_end_encode', [plain]),
    'extension': pa.ExtensionArray.from_storage(pa.json_(), plain),
    'slice': pa.array(['x', *TEXTS, 'y']).slice(1, len(TEXTS)),
  }


WRITERS = {
  'stream.arrow': lambda table, file: _ipc(pa.ipc.new_stream, table, file),
  'file.arrow': lambda table, file: _ipc(pa.ipc.new_file, table, file),
  'packed.feather': lambda table, file: feather.write_feather(
    table, file, compression='zstd'
  ),
  'odd name': lambda table, file: _ipc(pa.ipc.new_stream, table, file),
  'a.parquet': parquet.write_table,
}


def _ipc(new, table, file):
  with new(file, table.schema) as writer:
    writer.write_table(table, max_chunksize=3)


def read(*files, **how) -> tuple[dict[str, str], dict[str, int]]:
  counts: collections.Counter[str] = collections.Counter()
  found = {}
  for file in documents.find([str(x) for x in files], counts):
    config = documents.Settings(**how)
    found |= documents.records(file, config, counts)
  return found, dict(counts)


@pytest.mark.parametrize('writer', WRITERS)
@pytest.mark.parametrize('kind', arrays())
def test_every_type_of_text(tmp_path, writer, kind):
  if writer in ('a.parquet', 'packed.feather') and kind == 'runs':
    pytest.skip('these cannot hold runs')
  column = arrays()[kind]
  table = pa.table({'id': range(len(TEXTS)), 'text': column})
  WRITERS[writer](table, str(tmp_path / writer))
  found, counts = read(tmp_path / writer)
  assert found == {'row 1': 'alpha one', 'row 3': '你好', 'row 4': 'alpha one'}
  assert counts['records without the field, left out'] == 1
  with pytest.raises(ValueError, match='row 2: text is null; mend it or set'):
    read(tmp_path / writer, errors='strict')


@pytest.mark.parametrize('writer', WRITERS)
def test_fields_inside_of_structs(tmp_path, writer):
  inner = pa.array([{'b': x, 'c': n} for n, x in enumerate(TEXTS)] + [None])
  table = pa.table({'n': range(5), 'a': inner, 'other': ['x'] * 5})
  WRITERS[writer](table, str(tmp_path / writer))
  found, counts = read(tmp_path / writer, field='a.b')
  assert list(found.values()) == ['alpha one', '你好', 'alpha one']
  assert counts['records without the field, left out'] == 2
  for field, words in (
    ('a.c', 'column a.c is of type int64 and not text'),
    ('a', 'column a is of type struct'),
    ('a.d', 'no column a.d of text'),
    ('text', 'no column text of text'),
  ):
    with pytest.raises(ValueError, match=words) as e:
      read(tmp_path / writer, field=field)
    assert len(str(e.value)) <= 200


@pytest.mark.parametrize('writer', WRITERS)
@pytest.mark.parametrize(
  'column',
  (
    pa.array([b'a']),
    pa.array([['a']]),
    pa.array([None]),
    pa.array([1]),
    pa.array([b'a']).dictionary_encode(),
  ),
  ids=lambda x: str(x.type),
)
def test_what_is_no_text_is_refused_by_its_type(tmp_path, writer, column):
  WRITERS[writer](pa.table({'text': column}), str(tmp_path / writer))
  with pytest.raises(ValueError, match=r'column text is of type .* and not te'):
    read(tmp_path / writer)


@pytest.mark.parametrize('writer', WRITERS)
def test_bytes_that_are_not_unicode_meet_the_policy(tmp_path, writer):
  raw = pa.array([b'good', b'b\xffd', b'abc' * 5])
  column = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
  WRITERS[writer](pa.table({'text': column}), str(tmp_path / writer))
  found, counts = read(tmp_path / writer, max_bytes=10)
  assert found == {
    'row 1': 'good',
    'row 2': 'b\ufffdd',
    'row 3, piece 1': 'abcabcabca',
    'row 3, piece 2': 'bcabc',
  }
  assert counts['not Unicode, replaced by U+FFFD'] == 1
  assert 'row 2' not in read(tmp_path / writer, errors='skip')[0]
  with pytest.raises(ValueError, match='row 2 is not Unicode'):
    read(tmp_path / writer, errors='strict')


def test_other_columns_and_sizes_do_not_matter(tmp_path):
  texts = [f'text {n}' for n in range(5000)]
  table = pa.table({'image': [b'x' * 100] * 5000, 'text': texts})
  for name in ('stream.arrow', 'file.arrow'):
    WRITERS[name](table, str(tmp_path / name))
    assert list(read(tmp_path / name)[0].values()) == texts


@settings(deadline=None, max_examples=150)
@given(
  st.sampled_from(('stream.arrow', 'file.arrow', 'packed.feather')),
  st.sampled_from(sorted(arrays().keys() - {'runs'})),
  st.lists(
    st.tuples(st.integers(0, 1 << 20), st.binary(max_size=8)), max_size=4
  ),
  st.integers(0, 3000),
)
def test_a_damaged_file_is_read_or_refused_in_one_line(
  tmp_path_factory, writer, kind, edits, end
):
  file = tmp_path_factory.getbasetemp() / writer
  WRITERS[writer](pa.table({'text': arrays()[kind]}), str(file))
  data = bytearray(file.read_bytes())
  for place, change in edits:
    at = place % len(data)
    data[at : at + len(change)] = change
  if not edits:
    del data[end % len(data) :]
  file.unlink()  # it may still be mapped
  file.write_bytes(data)
  try:
    for text in read(file)[0].values():
      assert text.encode()
  except ValueError as e:
    assert type(e) is ValueError
    assert '\n' not in str(e) and len(str(e)) <= 200


def test_old_feather_and_no_arrow_are_refused(tmp_path):
  (tmp_path / 'a.feather').write_bytes(b'FEA1' + bytes(100))
  with pytest.raises(
    ValueError, match='is of version 1 of Feather; write it a'
  ):
    read(tmp_path / 'a.feather')
  (tmp_path / 'a.arrow').write_bytes(b'text')
  with pytest.raises(ValueError, match=r'damaged \(no arrow in it\); fetch it'):
    read(tmp_path / 'a.arrow')


def save(folder: Path, texts: list[str], shards: int = 2) -> None:
  """Writes a folder as `datasets.Dataset.save_to_disk` does.

  Source: huggingface/datasets, src/datasets/arrow_dataset.py, save_to_disk: a
  stream of Arrow a shard, state.json with `_data_files`, dataset_info.json.
  """
  folder.mkdir(parents=True)
  names = [f'data-{n:05d}-of-{shards:05d}.arrow' for n in range(shards)]
  size = -(-len(texts) // shards)
  features = {'text': {'dtype': 'string', '_type': 'Value'}}
  info = {b'huggingface': json.dumps({'info': {'features': features}}).encode()}
  for n, name in enumerate(names):
    table = pa.table(
      {'text': pa.array(texts[n * size : (n + 1) * size], pa.string())}
    )
    _ipc(pa.ipc.new_stream, table.replace_schema_metadata(info), folder / name)
  state = {
    '_data_files': [{'filename': x} for x in names],
    '_fingerprint': '0123456789abcdef',
    '_format_columns': None,
    '_format_kwargs': {},
    '_format_type': None,
    '_output_all_columns': False,
    '_split': 'train',
  }
  (folder / 'state.json').write_text(json.dumps(state, indent=2))
  (folder / 'dataset_info.json').write_text(json.dumps({'features': features}))


def test_a_folder_of_hugging_face_is_an_input(tmp_path, capsys):
  texts = [f'text {n}' for n in range(25)]
  save(tmp_path / 'saved', texts, 12)
  # A cache of `map`, which lies beside the data.
  cache = pa.table({'text': ['of a cache']})
  _ipc(pa.ipc.new_stream, cache, tmp_path / 'saved' / 'cache-0a1b.arrow')
  counts: collections.Counter[str] = collections.Counter()
  files = documents.find(str(tmp_path / 'saved'), counts)
  assert [Path(x).name[:10] for x in files] == [
    f'data-{n:05d}' for n in range(12)
  ]
  assert list(documents.read(files, documents.Settings(), counts)) == texts
  assert (
    counts['files'] == 12 and 'files of another kind, left out' not in counts
  )
  flags = [f'--input={tmp_path}/saved', '--tokenizer=bytes']
  assert prepare_data.main([*flags, f'--output={tmp_path}/out']) == 0
  assert '25 documents' in capsys.readouterr().out
  # Inside of another folder, beside other files.
  (tmp_path / 'raw').mkdir()
  os.rename(tmp_path / 'saved', tmp_path / 'raw' / 'saved')
  (tmp_path / 'raw' / 'a.txt').write_text('another')
  found = documents.find(str(tmp_path / 'raw'))
  read_texts = documents.read(found, documents.Settings(), counts)
  assert list(read_texts) == ['another', *texts]


def test_splits_of_a_folder_are_named_one_by_one(tmp_path):
  save(tmp_path / 'saved' / 'train', ['a', 'b'])
  save(tmp_path / 'saved' / 'test', ['t'], 1)
  about = tmp_path / 'saved' / 'dataset_dict.json'
  about.write_text('{"splits": ["train", "test"]}')
  with pytest.raises(
    ValueError, match='holds the splits train, test; give the folder of one'
  ):
    documents.find(str(tmp_path / 'saved'))
  files = documents.find(str(tmp_path / 'saved' / 'train'))
  counts: collections.Counter[str] = collections.Counter()
  assert list(documents.read(files, documents.Settings(), counts)) == ['a', 'b']
  about.write_text('{"splits": ["train"]}')
  files = documents.find(str(tmp_path / 'saved' / 'train'))
  assert len(files) == 2


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
  save(tmp_path / 'saved', ['a', 'b'])
  state = tmp_path / 'saved' / 'state.json'
  data = tmp_path / 'saved' / 'data-00001-of-00002.arrow'
  data.rename(tmp_path / 'elsewhere.arrow')
  missing = 'data-00001-of-00002.arrow of state.json is not there; copy the who'
  with pytest.raises(ValueError, match=missing):
    documents.find(str(tmp_path / 'saved'))
  for text, words in (
    ('{', 'state.json: is not JSON; fetch it again'),
    ('{}', 'its files of state.json is not there'),
    ('{"_data_files": [{"filename": "../elsewhere.arrow"}]}', 'is not there'),
    ('{"_data_files": [1, {"filename": 2}]}', 'is not there'),
  ):
    state.write_text(text)
    with pytest.raises(ValueError, match=words) as e:
      documents.find(str(tmp_path / 'saved'))
    assert '\n' not in str(e.value) and len(str(e.value)) <= 200
