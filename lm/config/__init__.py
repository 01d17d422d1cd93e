"""Configs: what a run is, as values that are checked before any device opens.

A config is a locked `ConfigDict` of plain values: None, bool, int, float, str,
tuples and lists of these, and dicts with string keys. A dict with a key `fn`
is a spec: `fn='package.module:function'` and the arguments of the function. A
tuple may hold dicts of numbers by name too, and no others.

Laws of every config, whether it comes from a file, a flag or JSON:
  - no number is negative, nan or inf; None says "no value", never -1;
  - a value keeps the type it was declared with; True is not a number;
  - None may be given only to a key that was declared None. What else such a key
    takes, and one that was declared (), says the table in keys.py or the
    function of its spec, by its annotations. There is no other schema.

This package imports neither jax nor the modules that specs name, until `build`,
`resolve` or `fill` is called: a wrong value, key or function name ends a
program in one line, in well under three seconds.

Read values.py (the laws), keys.py (the types), specs.py and sources.py
(functions by name, with and without an import), overrides.py, untrusted.py
(configs of strangers), files.py (config files) and programs.py (flags and
errors), in this order. The names below are the whole door: other floors import
`config`, not the files behind it.
"""

from lm.config import data_folder
from lm.config.exit_codes import EXIT_CODES, exit_code_help, last_line
from lm.config.files import find, load, optional, store
from lm.config.hints import is_tree
from lm.config.keys import check_complete, complete
from lm.config.messages import ConfigError, did_you_mean
from lm.config.overrides import override
from lm.config.programs import (
  Asked,
  asked,
  error_line,
  main,
  parse,
  print_json,
  user_errors,
)
from lm.config.specs import build, fill, resolve, walk
from lm.config.untrusted import (
  FACTORIES,
  STAGES,
  check_files,
  read_untrusted,
  trust,
  trust_flag,
)
from lm.config.values import (
  Config,
  check,
  diff,
  flatten,
  from_json,
  innermost,
  plain,
  to_json,
)

__all__ = [
  'EXIT_CODES',
  'FACTORIES',
  'STAGES',
  'Asked',
  'Config',
  'ConfigError',
  'asked',
  'build',
  'check',
  'check_complete',
  'check_files',
  'complete',
  'data_folder',
  'did_you_mean',
  'diff',
  'error_line',
  'exit_code_help',
  'fill',
  'find',
  'flatten',
  'from_json',
  'innermost',
  'is_tree',
  'last_line',
  'load',
  'main',
  'optional',
  'override',
  'parse',
  'plain',
  'print_json',
  'read_untrusted',
  'resolve',
  'store',
  'to_json',
  'trust',
  'trust_flag',
  'user_errors',
  'walk',
]
