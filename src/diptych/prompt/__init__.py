"""Messages → chunks: the chat template of the model's file, with its media parts, tokenised."""

from diptych.prompt.build import build
from diptych.prompt.template import ChatTemplate

__all__ = ["ChatTemplate", "build"]
