"""One address of the repository, in pyproject.toml and on every page."""

import shutil

import pytest

from tools import repository


@pytest.fixture
def copy(tmp_path):
  for name in ('pyproject.toml', 'README.md', 'CITATION.cff'):
    shutil.copy(repository.ROOT / name, tmp_path / name)
  return tmp_path


def test_citation_names_the_address():
  text = (repository.ROOT / 'CITATION.cff').read_text()
  assert f'"{repository.address()}"' in text


def test_a_new_address_is_written_to_every_page(copy):
  old, new = repository.address(copy), 'https://example.com/a/lm.git'
  changed = {x.name for x in repository.move(new, copy)}
  assert {'pyproject.toml', 'CITATION.cff'} <= changed
  assert repository.address(copy) == new
  assert all(old not in x.read_text() for x in repository.pages(copy))
  assert repository.move(new, copy) == []


def test_badges_lead_to_the_new_repository(copy):
  path = 'experiments/notebooks/1_first_run.ipynb'
  before = repository.badge(path, copy)
  text = (copy / 'README.md').read_text()
  assert before[0] in text
  repository.move('https://github.com/a/b.git', copy)
  moved = (copy / 'README.md').read_text()
  after = repository.badge(path, copy)
  assert after == (
    f'https://colab.research.google.com/github/a/b/blob/main/{path}',
    f'https://kaggle.com/kernels/welcome?src=https://github.com/a/b/blob/main/{path}',
  )
  assert before[0] not in moved and after[0] in moved


def test_a_wrong_address_is_refused(copy):
  with pytest.raises(ValueError, match='not an address such as'):
    repository.move('git@host:a/lm', copy)
