"""Checkpoints: saved in the background, verified byte by byte, one writer."""

from lm.checkpoint.checkpointer import (
  Checkpointer,
  Damaged,
  Gone,
  digest,
  holder,
  pin,
  read_meta,
  restore,
  restore_params,
  steps,
  verify,
)

__all__ = [
  'Checkpointer',
  'Damaged',
  'Gone',
  'digest',
  'holder',
  'pin',
  'read_meta',
  'restore',
  'restore_params',
  'steps',
  'verify',
]
