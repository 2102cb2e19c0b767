"""Turns with a model, as a tree that can be gone back in."""

from griffinlm.conversation.conversation import Conversation as Conversation
from griffinlm.conversation.turns import ConversationError as ConversationError
from griffinlm.conversation.turns import Turn as Turn
