"""The neighbours of words in a run whose vectors are known."""

import sys

import numpy as np
import pytest

from lm import checkpoint, config, errors, types
from lm.data.tokenizers import utf8_bytes
from tools import neighbours

# Angles of the vectors of single bytes, in degrees; lengths do not matter.
ANGLES = {'a': 0, 'b': 10, 'c': 30, 'd': 90, 'e': 100, ' ': 200}


def write_run(workdir, path: str) -> None:
  """Writes a checkpoint of bytes' vectors as a run of lm.fit would."""
  words = utf8_bytes.make()
  table = np.zeros((words.size, 2), np.float32)
  for n, (letter, degrees) in enumerate(ANGLES.items()):
    angle = np.deg2rad(degrees)
    (place,) = words.encode(letter)
    table[place] = (1 + n) * np.array([np.cos(angle), np.sin(angle)])
  table[words.bos] = [1, 0]  # no text holds it
  params = table
  for name in reversed(path.split('/')):
    params = {name: params}
  c = {
    'tokenizer': {'fn': 'lm.data.tokenizers.utf8_bytes:make'},
    'model': {'fn': 'lm.models.embeddings:vectors', 'width': 2},
  }
  meta = {
    'config': config.to_json(c),
    'data': {},
    'tokenizer': words.sha256,
  }
  with checkpoint.Checkpointer(workdir) as saver:
    saver.save(1, types.TrainState(np.int32(1), params, (), {}), meta)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of known vectors."""
  workdir = tmp_path_factory.mktemp('run')
  write_run(workdir, 'embed/table')
  return workdir


def printed(capsys, *arguments) -> list[str]:
  neighbours.main(list(map(str, arguments)))
  return capsys.readouterr().out.splitlines()


def test_neighbours_are_ordered_by_cosine(run, capsys):
  lines = printed(capsys, f'--workdir={run}', '--count=3', 'a', 'd')
  assert lines == [
    'a',
    "   0.985  'b'",
    "   0.866  'c'",
    "   0.000  'd'",
    'd',
    "   0.985  'e'",
    "   0.500  'c'",
    "   0.174  'b'",
  ]
  # All there are, but for the word itself and what no text holds.
  assert len(printed(capsys, f'--workdir={run}', '--count=999', 'a')) == 256


def test_an_analogy_leaves_its_own_words_out(run, capsys):
  # Nearest of all to 90.7 degrees would be d itself.
  lines = printed(
    capsys, f'--workdir={run}', '--count=1', '--analogy', 'a', 'b', 'd'
  )
  assert lines == ['b - a + d', "   0.987  'e'"]


def test_a_word_is_looked_up_with_a_space_first():
  pieces = {' king': [7], 'king': [8], ' q': [3, 4], 'q': [5]}
  vectors = neighbours.Vectors(pieces.__getitem__, str, np.eye(9))
  assert vectors.id_of('king') == 7 and vectors.id_of('q') == 5


def test_the_body_of_a_head_has_vectors_too(run, tmp_path, capsys):
  write_run(tmp_path, 'body/embed/table')
  want = printed(capsys, f'--workdir={run}', 'a')
  assert printed(capsys, f'--workdir={tmp_path}', 'a') == want


def test_what_cannot_be_looked_up_is_one_line(run, tmp_path):
  def refused(kind, *arguments) -> str:
    with pytest.raises(kind) as caught:
      neighbours.main(list(map(str, arguments)))
    assert getattr(caught.value, 'exit_code', None) == 2
    return str(caught.value)

  here = f'--workdir={run}'
  assert refused(config.ConfigError, here, 'abc') == (
    "'abc': not one piece of the tokenizer but 3: 'a' 'b' 'c': give one of them"
  )
  assert refused(config.ConfigError, here, '--count=0', 'a') == (
    '--count: 0 must be at least 1'
  )
  assert refused(config.ConfigError, here) == 'give words, or --analogy a b c'
  text = refused(errors.Missing, f'--workdir={tmp_path}', 'a')
  assert 'no checkpoint here: check the path' in text
  write_run(tmp_path, 'table')
  assert refused(config.ConfigError, f'--workdir={tmp_path}', 'a') == (
    f'{tmp_path}: its model has no embed/table or body/embed/table: use another'
    ' run'
  )


def test_the_program_ends_with_a_code(run, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['neighbours', f'--workdir={run}', 'xyz'])
  with pytest.raises(SystemExit) as caught:
    config.main(neighbours.main)
  assert caught.value.code == 2
  assert capsys.readouterr().err.startswith("error: 'xyz': not one piece")


def test_a_language_model_has_neighbours_too(trained, capsys):
  lines = printed(capsys, f'--workdir={trained}', '--count=5', 'e')
  cosines = [float(line.split()[0]) for line in lines[1:]]
  assert len(cosines) == 5 and cosines == sorted(cosines, reverse=True)
