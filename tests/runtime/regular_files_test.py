"""Locks on files: one at a time, and all where there are no locks."""

import fcntl

import pytest

from lm import errors
from lm.checkpoint import read_locks
from lm.runtime import regular_files


def test_a_second_one_waits_and_gives_up(tmp_path):
  late = errors.Locked('another is at work')
  with (
    regular_files.exclusive(tmp_path / '.lock', 5.0, late),
    pytest.raises(errors.Locked, match='another is at work'),
    regular_files.exclusive(tmp_path / '.lock', 0.05, late),
  ):
    raise AssertionError('two were let in')
  with regular_files.exclusive(tmp_path / '.lock', 0.05, late):
    pass  # it is free again


def test_without_locks_all_are_let_in(tmp_path, monkeypatch):
  def refuse(*unused):
    raise OSError('no locks here')

  monkeypatch.setattr(fcntl, 'flock', refuse)
  late = errors.Locked('another is at work')
  with (
    regular_files.exclusive(tmp_path / '.lock', 0.05, late),
    regular_files.exclusive(tmp_path / '.lock', 0.05, late),
  ):
    pass


def test_a_read_lock_that_another_process_holds_is_one_line(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(read_locks, '_WAIT_SECONDS', 0.05)
  folder = tmp_path / 'read_locks'
  folder.mkdir()
  late = errors.Locked('')
  with (
    regular_files.exclusive(folder / '.lock', 5.0, late),
    pytest.raises(errors.Storage, match='held for 0 s by another process'),
    read_locks.read_lock(tmp_path, 1),
  ):
    raise AssertionError('it was let in')
