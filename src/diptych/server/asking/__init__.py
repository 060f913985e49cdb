"""How JSON becomes requests: what the bodies of several APIs have in common."""
