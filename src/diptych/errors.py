"""Every error Diptych raises on purpose.

    DiptychError
    ├── InputError           a request cannot be served as asked
    │   ├── MediaError         a picture cannot be fetched or decoded
    │   │   ├── MediaTooLarge    it is over a limit of bytes, pixels or seconds
    │   │   ├── UnsupportedMedia it is of a type or kind that is not taken
    │   │   ├── UnusableMedia    it was decoded, and the model cannot take it; or rows that are no embeddings
    │   │   ├── UnknownMedia     an id names nothing that is still there
    │   │   └── ReboundMedia     an id was given to other content before
    │   ├── ContextOverflow    the prompt does not fit the context
    │   ├── GrammarError       a grammar or JSON schema cannot be used
    │   └── NotSupported       this model, or the way it was started, cannot do it
    ├── FileError            a file is missing, damaged, or not what was expected
    │   ├── UnknownModel       no family or converter for what the file names
    │   └── MismatchedHalves   text half and media half do not belong together
    ├── OutputError          a file cannot be written (exists, overwrites an input, disk full)
    ├── MissingExtra         an optional package is not installed
    └── EngineError          the engine could not go on with a request
        ├── Overloaded         too many requests wait
        ├── Unavailable        it is being loaded or closed
        └── TimedOut           the time that the request was given is over

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
    """A picture cannot be fetched or decoded."""


class MediaTooLarge(MediaError):
    """A media part is over a limit of bytes, pixels or seconds."""

    status = 413


class UnsupportedMedia(MediaError):
    """A media part is of a type or kind that is not taken."""

    status = 415


class UnusableMedia(MediaError):
    """A media part was decoded and the model cannot take it, or rows are no embeddings of this model."""

    status = 422


class UnknownMedia(MediaError):
    """An id names nothing that is still there."""

    status = 404


class ReboundMedia(MediaError):
    """An id was given to other content before."""

    status = 409


class ContextOverflow(InputError):
    """The prompt does not fit the context: its tokens, and those that the context holds."""

    def __init__(self, message: str, n_prompt: int = 0, n_ctx: int = 0) -> None:
        super().__init__(message)
        self.n_prompt, self.n_ctx = n_prompt, n_ctx


class GrammarError(InputError):
    """A grammar or JSON schema cannot be used."""


class NotSupported(InputError):
    """This model cannot do it, or was not started so that it can."""

    status = 501


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


class Overloaded(EngineError):
    """Too many requests wait; `retry_after` is when to ask again, in seconds."""

    status = 429

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(EngineError):
    """The engine is being loaded or closed."""

    status = 503


class TimedOut(EngineError):
    """The time that the request was given is over."""

    status = 504
