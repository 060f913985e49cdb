"""Messages → chunks: the chat template of the model's file, with its media parts, tokenised."""

from diptych.prompt.build import Vocabulary, build, pieces
from diptych.prompt.history import seen
from diptych.prompt.template import ChatTemplate

__all__ = ["ChatTemplate", "Vocabulary", "build", "pieces", "seen"]
