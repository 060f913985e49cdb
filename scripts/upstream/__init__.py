"""llama.cpp's own server tests against `diptych serve`: the parts of scripts/upstream.py."""
