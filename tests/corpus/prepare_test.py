"""A notebook trains a tokenizer and writes token shards by two functions."""

import json

import pytest

from lm.corpus import build, prepare
from lm.data import documents, shards
from lm.data.tokenizers import auto, utf8_bytes
from lm.runtime import regular_files
from tools import prepare_data

TEXTS = [f'A sentence, number {n}.\n\nAnd more of it.' for n in range(200)]


@pytest.fixture
def source(tmp_path):
  file = tmp_path / 'texts.jsonl'
  lines = [json.dumps({'body': text}) for text in TEXTS]
  file.write_text('\n'.join([*lines, 'no JSON']))
  return file


SETTINGS = documents.Settings(field='body')


def read(directory, tokenizer):
  dataset = shards.load(directory, tokenizer)
  return [
    tokenizer.decode(dataset.document(n).tolist())
    for n in range(dataset.manifest.documents)
  ]


@pytest.mark.parametrize('kind', auto.KINDS)
def test_a_trained_tokenizer_writes_a_dataset(source, tmp_path, kind):
  suffix = 'json' if kind in ('characters', 'words') else 'model'
  output = str(tmp_path / f'tokenizer.{suffix}')
  result = prepare.train_tokenizer(
    str(source),
    output,
    vocab=288,
    kind=kind,
    least_count=1,  # so that words lose nothing, either
    settings=SETTINGS,
  )
  assert result.tokenizer.decode(result.tokenizer.encode(TEXTS[0])) == TEXTS[0]
  assert result.counts['documents'] == len(TEXTS)
  assert result.counts['lines that are not JSON, left out'] == 1
  written = prepare.write_dataset(
    [str(source)], tmp_path / 'data', output, settings=SETTINGS
  )
  (dataset,) = written.values()
  assert read(dataset.directory, result.tokenizer) == TEXTS
  assert dataset.manifest.documents == dataset.counts['documents'] == 200


def test_a_split_has_each_document_on_one_side(source, tmp_path):
  def write(split_valid):
    return prepare.write_dataset(
      str(source),
      tmp_path / f'{split_valid}',
      'bytes',
      split_valid=split_valid,
      settings=SETTINGS,
    )

  written = write(0.2)
  train, valid = (
    read(written[part].directory, utf8_bytes.make())
    for part in ('train', 'valid')
  )
  assert sorted(train + valid) == sorted(TEXTS) and 20 < len(valid) < 60
  # A larger share keeps what a smaller one has.
  more = read(write(0.4)['valid'].directory, utf8_bytes.make())
  assert set(valid) < set(more)


def test_errors_of_use_are_one_line(source, tmp_path):
  def dataset(**settings):
    prepare.write_dataset(str(source), tmp_path / 'x', 'bytes', **settings)

  def tokenizer(output, **settings):
    prepare.train_tokenizer(str(source), tmp_path / output, **settings)

  for action, message in (
    (lambda: dataset(split_valid=1.0), 'split_valid=1.0 must be from 0 on'),
    (lambda: dataset(shard_tokens=0), 'shard_tokens=0 must be positive'),
    (
      lambda: dataset(settings=documents.Settings(max_bytes=0)),
      'max_bytes=0 must be positive',
    ),
    (
      lambda: dataset(settings=documents.Settings(unit='word')),
      "unit='word' must be one of file, line, paragraph, and errors='replace'",
    ),
    (lambda: dataset(), 'no documents (1 files, 200 records without the field'),
    (lambda: tokenizer('x.model', kind='word'), "kind='word': unknown; give"),
    (lambda: tokenizer('x.json'), 'loaded by its suffix .model; end the name'),
  ):
    with pytest.raises(ValueError) as e:
      action()
    assert message in str(e.value) and '\n' not in str(e.value)
  assert not (tmp_path / 'x').exists()


def test_a_tokenizer_that_is_trained_again_is_read_again(tmp_path, source):
  (tmp_path / 'other.txt').write_text('a quick brown fox jumps over dogs ' * 99)
  text = tmp_path / 'text.txt'
  text.write_text('And more, number 7.')
  model = str(tmp_path / 'x.model')
  for inputs, settings in ((source, SETTINGS), (tmp_path / 'other.txt', None)):
    trained = prepare.train_tokenizer(
      [str(inputs)], model, vocab=290, settings=settings
    )
    output = tmp_path / f'of-{inputs.stem}'
    prepare.write_dataset(str(text), output, model)
    assert read(output, trained.tokenizer) == [text.read_text()]


def test_a_refusal_leaves_the_tokenizer_of_the_dataset(tmp_path, source):
  (tmp_path / 'other.txt').write_text('zyx ' * 99)
  for name, text in (('a', source), ('b', tmp_path / 'other.txt')):
    prepare.train_tokenizer(
      [str(text)],
      tmp_path / f'{name}.json',
      kind='characters',
      settings=SETTINGS,
    )
  data = tmp_path / 'data'

  def write(name):
    prepare.write_dataset(
      str(source),
      data,
      str(tmp_path / f'{name}.json'),
      split_valid=0.2,
      settings=SETTINGS,
    )

  write('a')
  with pytest.raises(ValueError, match='holds another dataset'):
    write('b')
  first = (tmp_path / 'a.json').read_bytes()
  assert (data / 'tokenizer.json').read_bytes() == first


def test_two_programs_that_write_the_same_are_told_apart(
  tmp_path, source, capsys
):
  work = tmp_path / '.data.unfinished'
  work.mkdir()
  flags = ['--input', str(source), '--tokenizer=bytes', '--field=body']
  with regular_files.exclusive(work / 'lock', 0.0, ValueError()):
    code = prepare_data.main([*flags, f'--output={tmp_path / "data"}'])
  error = capsys.readouterr().err
  assert code == 3 and error.startswith('error: ') and error.count('\n') == 1


def test_what_is_refused_leaves_nothing(source, tmp_path):
  with pytest.raises(ValueError, match='no documents'):
    prepare.write_dataset(str(source), tmp_path / 'x', 'bytes')
  assert sorted(x.name for x in tmp_path.iterdir()) == [source.name]


def test_another_dataset_is_refused_before_any_work(
  source, tmp_path, monkeypatch
):
  def write(**settings):
    prepare.write_dataset(
      str(source), tmp_path / 'x', 'bytes', settings=SETTINGS, **settings
    )

  write(split_valid=0.1)
  monkeypatch.setattr(prepare.build, 'run', None)
  with pytest.raises(ValueError, match='train: holds another dataset'):
    write(split_valid=0.2)


def test_the_work_is_removed_while_nobody_else_can_begin(
  source, tmp_path, monkeypatch
):
  """Or the work of a second process would be removed."""
  real, refused = build._remove, []

  def remove(root, *words):
    with (
      pytest.raises(ZeroDivisionError),
      regular_files.exclusive(root / 'lock', 0.0, ZeroDivisionError()),
    ):
      pass
    refused.append(root)
    real(root, *words)

  monkeypatch.setattr(build, '_remove', remove)
  prepare.write_dataset(
    str(source), tmp_path / 'data', 'bytes', settings=SETTINGS
  )
  with pytest.raises(ValueError, match='no documents'):
    prepare.write_dataset(str(source), tmp_path / 'x', 'bytes')
  assert len(refused) == 2
  assert sorted(x.name for x in tmp_path.iterdir()) == ['data', source.name]


def test_a_lock_whose_file_was_removed_is_none(tmp_path, monkeypatch):
  """So is one that a process opened before the one that had it removed it."""
  path = tmp_path / 'lock'
  real = regular_files.open_append

  def opened(path):
    file = real(path)
    path.unlink()
    return file

  monkeypatch.setattr(regular_files, 'open_append', opened)
  with (
    pytest.raises(ZeroDivisionError),
    regular_files.exclusive(path, 0.0, ZeroDivisionError()),
  ):
    pass


def test_refused_input_leaves_work_that_was_begun(source, tmp_path):
  work = tmp_path / '.data.unfinished'
  (work / 'parts').mkdir(parents=True)
  with pytest.raises(ValueError, match='no documents'):
    prepare.write_dataset(str(source), tmp_path / 'data', 'bytes')
  assert (work / 'parts').is_dir()
