"""The tiny models and the processes of the stages' tests."""

from tests.stages.conftest import chat_file, chatter, conversations, digits, sorter, spawn, text_file, texts


__all__ = ["chat_file", "chatter", "conversations", "digits", "sorter", "spawn", "text_file", "texts"]
