"""Every error Diptych raises on purpose.

    DiptychError
    ├── InputError           a request cannot be served as asked
    │   ├── MediaError         a picture cannot be fetched, decoded or is over a limit
    │   ├── ContextOverflow    the prompt does not fit the context
    │   └── GrammarError       a grammar or JSON schema cannot be used
    ├── FileError            a file is missing, damaged, or not what was expected
    │   ├── UnknownModel       no family or converter for what the file names
    │   └── MismatchedHalves   text half and media half do not belong together
    ├── OutputError          a file cannot be written (exists, overwrites an input, disk full)
    ├── MissingExtra         an optional package is not installed
    └── EngineError          the engine could not go on with a request

A message says what was found, what was expected and what to do. The command line prints it as one line and exits
with 2; the server turns it into an error object with `status`.
"""

from __future__ import annotations


class DiptychError(Exception):
    """The root of the tree. `status` is the HTTP status the server answers with."""

    status = 500


class InputError(DiptychError):
    """A request cannot be served as asked."""

    status = 400


class MediaError(InputError):
    """A picture cannot be fetched, decoded, or is over a limit."""


class ContextOverflow(InputError):
    """The prompt does not fit the context."""


class GrammarError(InputError):
    """A grammar or JSON schema cannot be used."""


class FileError(DiptychError):
    """A file is missing, damaged, or not what was expected."""


class UnknownModel(FileError):
    """No family or converter for what the file names."""


class MismatchedHalves(FileError):
    """Text half and media half do not belong together."""


class OutputError(DiptychError):
    """A file cannot be written: it exists, would overwrite an input, or the disk is full."""


class MissingExtra(DiptychError):
    """An optional package is not installed."""


class EngineError(DiptychError):
    """The engine could not go on with a request."""
