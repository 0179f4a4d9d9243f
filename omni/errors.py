"""Every error that users of the toolkit can cause, as one tree.

    OmniError
    ├── MediaError              a file, buffer or array cannot be used
    │   ├── MediaNotFoundError      no such file
    │   ├── MediaAccessError        no permission, a directory, outside the roots, network off
    │   ├── UnsupportedMediaError   content is none of the kinds we read
    │   ├── CorruptMediaError       truncated, empty, encrypted, no frames, non-finite samples
    │   ├── MediaLimitError         over a limit on bytes, pixels, seconds, frames or pages
    │   └── MediaTimeoutError       its decoder did not come back in time
    ├── RequestError            a prompt, message or option is wrong
    │   ├── ContextLengthError      the request does not fit the context or the token budget
    │   └── SchemaError             an answer's schema is wrong, or no answer to it can be made
    ├── AlignmentError          features and placeholders disagree
    ├── CheckpointError         a checkpoint is missing, incomplete or not ours to read
    │   └── ConfigError             its config has unknown, missing or contradicting fields
    ├── SessionError            a saved session is damaged, or of another version or model
    ├── NotEnoughMemoryError    the model does not fit the memory that is free
    └── StoppedError            the work was stopped from another thread

Each message says what was found, what was expected and what to do. The command line
prints it as one line and exits with code 2.
"""


class OmniError(Exception):
    """Base of all errors raised on purpose by this toolkit."""


class MediaError(OmniError):
    """A file, buffer or array cannot be used as media."""


class MediaNotFoundError(MediaError):
    """The path does not exist."""


class MediaAccessError(MediaError):
    """The source exists but may not be read: directory, permission, allowed roots, network."""


class UnsupportedMediaError(MediaError):
    """The content is none of the kinds of media that the toolkit reads."""


class CorruptMediaError(MediaError):
    """The content is damaged: truncated, empty, encrypted, no frames, non-finite samples."""


class MediaLimitError(MediaError):
    """The content is over one of the limits on bytes, pixels, seconds, frames or pages."""


class MediaTimeoutError(MediaError):
    """The decoder gave nothing for the time limit, and was stopped."""


class RequestError(OmniError, ValueError):
    """A prompt, a message or an option of a request is wrong."""


class ContextLengthError(RequestError):
    """The request does not fit the model's context or the given token budget."""


class SchemaError(RequestError):
    """A schema for answers is wrong, unsupported, or has no answer within ``max_new_tokens``."""


class AlignmentError(OmniError, ValueError):
    """Media features and placeholder tokens disagree."""


class CheckpointError(OmniError):
    """A checkpoint is missing, incomplete, or in a form that the toolkit does not read."""


class ConfigError(CheckpointError, ValueError):
    """A model config has unknown, missing or contradicting fields."""


class SessionError(OmniError):
    """A saved session is missing, damaged, or of another version, model or settings."""


class NotEnoughMemoryError(OmniError, MemoryError):
    """The model does not fit the memory that is free."""


class MissingPartsError(OmniError):
    """Parts of an item were not answered, so their answers cannot be combined."""


class StoppedError(OmniError):
    """The work was stopped from another thread, by `omni.stopping.Stop`."""
