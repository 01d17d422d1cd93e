"""Laws from the shares of a mixture to a loss, fitted by least squares.

Letters here: N mixtures, S sources, C candidates, V validation texts. Each law
has one set of coefficients for each validation text.
"""

from collections.abc import Callable, Mapping

import numpy as np
from scipy import optimize

Law = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]
FLOOR = 0.01  # of a share whose logarithm is taken
CANDIDATES = 100_000
KEPT = 100  # candidates whose mean is the predicted best, as in RegMix


def _least_squares(features: Callable[[np.ndarray], np.ndarray]) -> Law:
  """Makes a law that is linear in features of the shares."""

  def fit(p_NS: np.ndarray, y_N: np.ndarray):
    weights, *_ = np.linalg.lstsq(features(p_NS), y_N, rcond=None)
    return lambda p_CS: features(p_CS) @ weights

  return fit


def _constant(p_NS: np.ndarray) -> np.ndarray:
  return np.ones((len(p_NS), 1))


def _linear(p_NS: np.ndarray) -> np.ndarray:
  # No constant: shares add up to 1.
  return p_NS


def _logarithms(p_NS: np.ndarray) -> np.ndarray:
  return np.hstack([_constant(p_NS), np.log(np.maximum(p_NS, FLOOR))])


def _quadratic(p_NS: np.ndarray) -> np.ndarray:
  first, second = np.triu_indices(p_NS.shape[1], 1)
  return np.hstack([p_NS, p_NS[:, first] * p_NS[:, second]])


def _exponential(p_NS: np.ndarray, y_N: np.ndarray):
  """Fits loss = c + exp(t . p), Ye et al. 2024, arXiv 2403.16952.

  Their factor k of the exponential is left out: since shares add up to 1, it is
  the same as adding log(k) to every t.
  """
  starts = []
  for share in (0.0, 0.5, 0.8, 0.95):
    c = share * y_N.min()
    t, *_ = np.linalg.lstsq(p_NS, np.log(y_N - c), rcond=None)
    starts.append(np.array([c, *t]))

  def rest(x: np.ndarray) -> np.ndarray:
    return x[0] + np.exp(np.minimum(p_NS @ x[1:], 50.0)) - y_N

  found = [optimize.least_squares(rest, start) for start in starts]
  best = min(found, key=lambda x: x.cost).x
  return lambda p_CS: best[0] + np.exp(p_CS @ best[1:])


LAWS: Mapping[str, Law] = {
  'constant': _least_squares(_constant),  # what a law has to be better than
  'linear': _least_squares(_linear),
  'logarithms': _least_squares(_logarithms),
  'quadratic': _least_squares(_quadratic),
  'exponential': _exponential,
}


def fit(law: str, p_NS: np.ndarray, y_NV: np.ndarray):
  """Fits a law to each validation text; gives `p_CS -> mean loss`."""
  parts = [LAWS[law](p_NS, y_N) for y_N in y_NV.T]
  return lambda p_CS: np.mean([part(p_CS) for part in parts], axis=0)


def left_out(law: str, p_NS: np.ndarray, y_NV: np.ndarray) -> np.ndarray:
  """Predicts the mean loss of each mixture by a fit to all others, [N]."""
  found = []
  for n in range(len(p_NS)):
    others = np.arange(len(p_NS)) != n
    predict = fit(law, p_NS[others], y_NV[others])
    found.append(float(predict(p_NS[n : n + 1])[0]))
  return np.array(found)


def best(predict: Callable[[np.ndarray], np.ndarray], sources: int):
  """Finds the mixture with the least predicted loss, [S].

  It is the mean of the best hundred of 100,000 candidates, drawn evenly from
  all mixtures: Liu et al. 2024, arXiv 2407.01492, where candidates
  are drawn around the sizes of the sources.
  """
  rng = np.random.default_rng(0)
  p_CS = rng.dirichlet(np.ones(sources), CANDIDATES)
  order_C = np.argsort(predict(p_CS), kind='stable')
  return p_CS[order_C[:KEPT]].mean(axis=0)
