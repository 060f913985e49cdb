"""Run the media half: a session of ONNX Runtime, a family in it, and the thread that feeds it."""
