"""Models of the Hugging Face hub: which files make one, and how they come and go. Only `download` imports its library."""
