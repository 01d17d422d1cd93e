"""Labels and probabilities of texts, by a run that was tuned to classify."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import checkpoint, config, errors, types
from lm.checkpoint import bucket_reader
from lm.data.finetuning import batching, records
from lm.inference import prompts

_FORM = 'lm.data.finetuning.forms:classify'
_ROWS = 8  # texts at a time: one size, so that one program is compiled


class Classifier(NamedTuple):
  """A run that classifies texts.

  Attributes:
    labels: in the order of the classes.
    score: returns the log p of each class [C], for texts or pairs of texts.
  """

  labels: tuple[str, ...]
  score: Callable[[Sequence[Sequence[str]]], Iterator[np.ndarray]]

  def probabilities(
    self, texts: Sequence[Sequence[str]]
  ) -> Iterator[dict[str, float]]:
    """Yields the probability of each label, for each text; the likeliest first.

    Args:
      texts: each one or two texts.
    """
    for log_C in self.score(texts):
      order = np.argsort(-log_C, kind='stable')
      yield {self.labels[n]: float(np.exp(log_C[n])) for n in order}


def is_one(workdir: str | Path, step: int | None = None) -> bool:
  """Tells whether a run was tuned to classify texts.

  Raises:
    errors.Failure: there is no sound checkpoint.
  """
  meta = _meta(bucket_reader.local_folder(workdir, step), step)
  form = prompts.part(config.read_untrusted(meta['config']), 'form')
  return form is not None and form.fn == _FORM


def _meta(workdir: Path, step: int | None) -> dict:
  try:
    return checkpoint.read_meta(workdir, step)
  except errors.Gone as e:
    raise config.ConfigError(str(e)) from e


def restore(workdir: str | Path, step: int | None = None) -> Classifier:
  """Restores a run that classifies texts.

  Args:
    workdir: of the run; a bucket's address is copied here first.
    step: of the checkpoint; None is the newest sound one.

  Raises:
    config.ConfigError: the run classifies no texts, there is no such step, or
      its labels are not known: a run of an older version does not hold them,
      and the file that it names may not be read.
    errors.Failure: there is no sound checkpoint.
  """
  workdir = bucket_reader.local_folder(workdir, step)
  try:
    c, tokenizer, model = checkpoint.restore_run(workdir, step)
  except (ValueError, errors.Gone) as e:
    raise config.ConfigError(str(e)) from e
  spec = prompts.part(c, 'form')
  if spec is None or spec.fn != _FORM:
    raise config.ConfigError(
      f'{workdir}: it was trained by {prompts.trained_by(c)}, which does not '
      'classify texts'
    )
  labels = checkpoint.read_meta(workdir, step)['data'].get('labels')
  if labels is None:
    config.check_files(spec, workdir, key='data.form')
  else:
    spec = {**config.plain(spec), 'labels': labels}
  form = config.build(spec, tokenizer=tokenizer, length=c.data.length)
  params = jax.tree.map(jnp.asarray, checkpoint.restore_params(workdir, step))

  def score(texts: Sequence[Sequence[str]]) -> Iterator[np.ndarray]:
    for start in range(0, len(texts), _ROWS):
      rows = form.rows(
        [
          records.Text(f'{n}', tuple(x), form.labels[0])
          for n, x in enumerate(texts[start : start + _ROWS])
        ]
      )
      groups = [[row] for row in rows] + [[]] * (_ROWS - len(rows))
      batch = batching.assemble(groups, form, c.data.length, tokenizer)
      log_BC = np.asarray(_log_p(params, batch, model=model), np.float64)
      yield from log_BC[: len(rows)]

  return Classifier(form.labels, score)


@partial(jax.jit, static_argnames='model')
def _log_p(
  params: types.Params, batch: types.Batch, *, model: types.Model
) -> jax.Array:
  """Computes the log p of each class [B, C]."""
  logits_BC = model.apply(params, batch).logits[:, 0]
  return jax.nn.log_softmax(logits_BC.astype(jnp.float32), axis=-1)
