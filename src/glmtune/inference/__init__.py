"""From a model to replies: batches, files of questions, chats."""
