"""The page in the browser, by Gradio, mounted into the server's process: chatting, comparing, and training."""
