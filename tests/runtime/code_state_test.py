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
  (repository / 'tabs.md').write_bytes(b'a\t\r\nb  \n\x0c')
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
  (repository / 'large.py').write_bytes(b'x' * (1 << 20))
  (repository / 'link.py').symlink_to('large.py')
  state = code_state.of(repository)
  assert state is not None
  assert (state.patch, state.left_out) == ('', ('large.py', 'link.py'))


def test_what_may_hold_secrets_is_left_out(repository, monkeypatch):
  names = ('.env', '.aws/config.json', 'api_key.txt', 'id.pem', 'Secrets.toml')
  for name in names:
    (repository / name).parent.mkdir(exist_ok=True)
    (repository / name).write_text('hush')
  (repository / 'mine.py').write_text('a = 1\n')
  state = code_state.of(repository)
  assert state is not None
  assert '+a = 1' in state.patch and 'hush' not in state.patch
  assert {*state.left_out} == {*names}
  # A repository of a home folder is one of everything.
  monkeypatch.setenv('HOME', str(repository / 'home'))
  assert code_state.of(repository) is None


def test_the_folder_of_a_run_does_not_count(repository):
  run = repository / 'out/run'
  run.mkdir(parents=True)
  (run / 'config.json').write_text('{}')
  (repository / 'out/run2.json').write_text('{}')
  state = code_state.of(repository, run)
  assert state is not None
  assert 'run2.json' in state.patch and 'config.json' not in state.patch


@pytest.mark.parametrize(
  'setting',
  [
    ('color.diff', 'always'),
    ('diff.context', '0'),
    ('diff.noprefix', 'true'),
    ('diff.py.textconv', 'tr a-z A-Z <'),
  ],
)
def test_settings_of_a_user_change_no_patch(repository, setting):
  (repository / '.gitattributes').write_text('*.py diff=py\n')
  git(repository, 'add', '-A')
  git(repository, *COMMIT)
  (repository / 'a.py').write_text('one\n2\n')
  before = code_state.of(repository)
  git(repository, 'config', *setting)
  assert code_state.of(repository) == before


def test_an_installed_package_is_in_no_repository(repository, monkeypatch):
  inside = repository / 'data/lm'
  inside.mkdir(parents=True)
  (inside / '__init__.py').touch()
  monkeypatch.setattr(code_state, '_LM', inside)
  assert code_state.of_package() is None
  assert code_state.of(inside) is not None


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
  assert code_state.of_package() is None  # no git


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
