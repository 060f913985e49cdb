"""Run the text half: llama.cpp through its C functions, the only place that imports llama_cpp."""
