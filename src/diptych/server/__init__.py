"""The engine over HTTP: the API of OpenAI and Anthropic clients, of llama-server, and a small page."""
