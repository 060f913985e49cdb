"""HTTP itself: who may speak, bodies, connections, exchanges and errors. It knows nothing of models."""
