"""Serves a run that classifies texts: POST /v1/classify.

{"input": TEXT, or a list of texts or of pairs of texts}

{"object": "list", "model": NAME, "data": [
  {"index": 0, "label": LABEL, "probabilities": {LABEL: p, ...}}, ...]}
"""

from typing import Any

from lm.inference import classifier, device_queue, http_server, openai_api

_CHARACTERS = 1 << 16  # of a text, which is cut to what the model reads


class ClassifyService:
  """Answers requests about one run."""

  def __init__(
    self, run: classifier.Classifier, name: str, limits: openai_api.Limits
  ):
    """Classifies an empty text, so that all is compiled."""
    self._run, self._name, self._limits = run, name, limits
    self._queue = device_queue.DeviceQueue(limits.waiting)
    list(run.score([['']]))

  def routes(self) -> dict[str, http_server.Route]:
    """Lists the paths that are served, and what answers them."""
    labels = list(self._run.labels)
    return {
      **openai_api.model_routes(self._name, labels=labels),
      '/v1/classify': http_server.Route('POST', self._classify),
    }

  def _classify(self, exchange: http_server.Exchange) -> None:
    fields = openai_api.read_fields(exchange.body(), ('model', 'input'))
    openai_api.check_model(fields, self._name)
    texts = _texts(fields.get('input'), self._limits.rows)
    with self._queue.turn(exchange):
      exchange.check()
      try:
        found = list(self._run.probabilities(texts))
      except ValueError as e:  # half of a surrogate pair
        raise http_server.Refused(f'input: {e}') from e
    data = [
      {'index': n, 'label': next(iter(p)), 'probabilities': p}
      for n, p in enumerate(found)
    ]
    exchange.json({'object': 'list', 'model': self._name, 'data': data})


def _texts(value: Any, rows: int) -> list[list[str]]:
  """Reads the input: a text, or a list of texts or of pairs.

  Raises:
    http_server.Refused: it is something else, or too much.
  """
  many = value if isinstance(value, list) else [value]
  if not 0 < len(many) <= rows:
    raise http_server.Refused(f'input: must be 1 to {rows} texts')
  texts = [x if isinstance(x, list) else [x] for x in many]
  for one in texts:
    if not 0 < len(one) < 3 or not all(isinstance(x, str) for x in one):
      raise http_server.Refused(
        'input: must be a text, or a list of texts or of pairs of texts'
      )
    if sum(map(len, one)) > _CHARACTERS:
      raise http_server.Refused(
        f'input: more than {_CHARACTERS} characters; shorten it'
      )
  return texts
