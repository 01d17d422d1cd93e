"""The state of a repository, and a patch that gives it back."""

import subprocess

import pytest

from lm.runtime import code_state

COMMIT = ('-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-qm', 'x')


def git(folder, *words, given=None):
  subprocess.run(
    ['git', *words], cwd=folder, check=True, input=given, capture_output=True
  )


@pytest.fixture
def repository(tmp_path):
  folder = tmp_path / 'repository'
  folder.mkdir()
  git(folder, 'init', '-q')
  (folder / 'a.py').write_text('one\ntwo\n')
  (folder / 'gone.py').write_text('gone\n')
  (folder / '.gitignore').write_text('data/\n')
  git(folder, 'add', '-A')
  git(folder, *COMMIT)
  return folder


def test_a_clean_repository_has_no_patch(repository):
  state = code_state.of(repository)
  assert state is not None
  assert len(state.commit) == 40
  assert (state.patch, state.digest, state.left_out) == ('', None, ())


def test_the_patch_gives_back_what_was_there(repository, tmp_path):
  (repository / 'a.py').write_text('one\n2\n')
  (repository / 'gone.py').unlink()
  (repository / 'b').mkdir()
  (repository / 'b/new file.py').write_text('neu: ü\n')
  (repository / 'latin.txt').write_bytes(b'caf\xe9\n')
  (repository / 'bytes').write_bytes(bytes(range(256)))
  (repository / 'data').mkdir()
  (repository / 'data/ignored').write_text('x')
  state = code_state.of(repository / 'b')  # from any folder inside
  assert state is not None and state.digest is not None
  assert state.root == str(repository)
  again = tmp_path / 'again'
  git(tmp_path, 'clone', '-q', str(repository), str(again))
  patch = state.patch.encode('utf-8', 'surrogateescape')
  git(again, 'apply', '--binary', '-', given=patch)

  def files(folder):
    return {
      path.relative_to(folder).as_posix(): path.read_bytes()
      for path in folder.rglob('*')
      if path.is_file() and not {'.git', 'data'} & {*path.parts}
    }

  assert files(again) == files(repository)


def test_what_is_too_large_is_named(repository):
  (repository / 'large').write_bytes(b'x' * (1 << 20))
  (repository / 'link').symlink_to('large')
  state = code_state.of(repository)
  assert state is not None
  assert (state.patch, state.left_out) == ('', ('large', 'link'))


def test_nothing_is_written_to_the_repository(repository):
  (repository / 'a.py').write_text('changed\n')
  (repository / 'new').write_text('new\n')

  def everything():
    return {
      path: path.read_bytes()
      for path in (repository / '.git').rglob('*')
      if path.is_file()
    }

  before = everything()
  assert code_state.of(repository) is not None
  assert everything() == before


def test_without_a_repository_there_is_no_state(tmp_path, monkeypatch):
  assert code_state.of(tmp_path) is None
  git(tmp_path, 'init', '-q')
  assert code_state.of(tmp_path) is None  # no commit
  monkeypatch.setenv('PATH', str(tmp_path))
  assert code_state.of(code_state.package_folder()) is None  # no git


def test_the_code_of_this_package_is_that_of_its_files(tmp_path, monkeypatch):
  """So a change of any file is another code."""
  monkeypatch.setattr(code_state, '_LM', tmp_path)
  (tmp_path / 'corpus').mkdir()
  file = tmp_path / 'corpus/rule.py'
  codes = []
  for text in ('a = 1', 'a = 2'):
    file.write_text(text)
    codes.append(code_state.package_digest.__wrapped__())
  file.rename(file.with_name('rules.py'))
  codes.append(code_state.package_digest.__wrapped__())
  assert len(set(codes)) == 3
