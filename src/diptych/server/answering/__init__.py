"""How answers come and what is told of them: what several APIs have in common."""
