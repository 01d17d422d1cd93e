"""Declares every key of a config of the data factory, with its default.

A config file imports this, changes what it is about, and returns it locked.
"""

from typing import Any

from ml_collections import config_dict


def get_config() -> Any:
  """Returns the defaults as a ConfigDict; new keys cannot be added."""
  c = config_dict.ConfigDict(
    {
      'sources': config_dict.ConfigDict(),  # source() by name
      'stages': config_dict.ConfigDict(),  # specs by name
      'order': (),  # names of the stages, as they follow each other
      'split_valid': 0.01,  # share of the documents kept for validation
      'by_source': False,  # whether each source becomes a dataset of its own
      'shard_tokens': 1 << 28,  # a shard is closed when it has so many
      'tokenizer_file': None,  # its path, or 'bytes'; None: train_tokenizer
      'train_tokenizer': {
        'kind': 'bpe',  # or unigram, characters
        'vocab': 8192,  # pieces
        'coverage': 0.9995,  # share of characters that get pieces
        'sample_bytes': 100_000_000,  # of text that it is trained on
      },
      'engine': {
        'part_bytes': 8 << 20,  # of text in a part, the unit of work
        'memory_mb': 256,  # MiB that DuckDB uses before it spills to disk
      },
    }
  )
  return c


def source(inputs: str | tuple[str, ...], **changes: Any) -> dict[str, Any]:
  """A source of documents.

  Args:
    inputs: files, folders and patterns.
    **changes: of the keys below.
  """
  return {
    'inputs': inputs,
    'rank': 0,  # of duplicates the one from the source of least rank stays
    'field': 'text',  # of JSON and tables
    'unit': 'file',  # what is a document in text: file, line, paragraph
    'errors': 'replace',  # or skip, or strict
    'max_bytes': 16 << 20,  # longer texts are cut
    'licence': '',  # for the card of the dataset
    'about': '',
  } | changes
