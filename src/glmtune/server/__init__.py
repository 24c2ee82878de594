"""An OpenAI-compatible server over the engine: one process, one model, any number of its adapters.

request -> limits, auth (pure ASGI) -> protocol (validated) -> prompts (the one renderer) -> worker (one thread
that steps the engine) -> replies (ids to text and tool calls) -> answers (OpenAI's objects)
"""
