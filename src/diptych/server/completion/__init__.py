"""Text completions, llama-server's and OpenAI's."""
