"""Hides what opens an account in the addresses that a user gives."""

import re
from typing import Any

# user:password@ before a host. A password may hold @, and also / if a colon is
# before it that is not that of a port.
_LOGIN = re.compile(
  r'(?<=://)(?:[^/\s]*|[^/@\s:]+:(?!:|[0-9]*(?:/|\Z))[^@\s]{0,200})@'
)
# ?token=..., &X-Amz-Signature=... (Amazon, Google), &sig=... (Azure)
_SECRET = re.compile(
  r'(?i)([?&#;][^=?&#;\s]{0,60}(?:token|key|sig|secret|pass|pwd|auth|cred|session'
  r'|accessid|policy)[^=?&#;\s]{0,60}=)[^&#;\s\'",\])}]+'
)


def hidden(value: Any) -> Any:
  """Takes logins out of an address, and stars in place of secrets in its query.

  Args:
    value: an address, a text with addresses, or lists and dicts of such; other
      values stay as they are.
  """
  if isinstance(value, str):
    if '=' in value:
      value = _SECRET.sub(r'\1***', value)
    return _LOGIN.sub('', value) if '://' in value else value
  if isinstance(value, dict):
    return {k: hidden(v) for k, v in value.items()}
  if isinstance(value, list):
    return [hidden(x) for x in value]
  if isinstance(value, tuple):
    return tuple(hidden(x) for x in value)
  return value
