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


def test_a_wrong_address_is_refused(copy):
  with pytest.raises(ValueError, match='not an address such as'):
    repository.move('git@host:a/lm', copy)
