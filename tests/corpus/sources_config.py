"""The sources of a folder, tests/corpus/sources_config.py:FOLDER."""

from pathlib import Path

from tests.corpus import build_test


def get_config(folder: str):
  """Returns the config."""
  return build_test.load(Path(folder))
